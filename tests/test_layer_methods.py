"""PyramidDrop and DART: the conformance suite, planted tokens, and the official rules written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vispco
from vispco.errors import ConfigError
from vispco.models.families import adapter_for
from vispco.pruning.methods import make_method
from vispco.pruning.needs import missing
from vispco.pruning.schedules import Ratios, Step, keep_count
from vispco.testing import MethodConformance, checks
from vispco.testing.tiny import LAYERS, TINY


def families_for(method: str) -> list[str]:
    """Those that give what the method needs; the others are refused by name (tests of every method on every family)."""
    return [name for name, tiny in TINY.items() if not missing(make_method(method), adapter_for(tiny.model()))]


class TestPyramidDrop(MethodConformance):
    method = make_method("pyramiddrop")


class TestDART(MethodConformance):
    method = make_method("dart")


def states(model: Any, batch: Any, number: int) -> Any:
    """What enters layer ``number`` of the plain model, [B, n, H]."""
    seen: list[Any] = []
    layer = adapter_for(model).layers()[number]
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return seen[0]


# --- PyramidDrop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families_for("pyramiddrop"))
def test_pyramiddrop_reads_the_layer_ahead(name: str) -> None:
    """The last row of the attention weights that the plain model returns for the very layer, at every boundary."""
    tiny = TINY[name]
    model, batch = tiny.model(), tiny.batch([(3, 1, 6)])
    visual = adapter_for(model).visual_mask(batch["input_ids"], None)[0].nonzero()[:, 0]
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = model(**batch, output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    for layer in range(LAYERS):
        with torch.no_grad(), vispco.prune(model, method="pyramiddrop", schedule=Step(layer, 0.25)) as session:
            model(**batch)
        scores = attentions[layer][0, :, -1, visual].mean(0)
        count = keep_count(0.25, len(visual))
        assert session.kept(layer)[0] == sorted(visual[scores.topk(count).indices].tolist())


@pytest.mark.parametrize("name", families_for("pyramiddrop"))
def test_look_ahead_projects_as_the_layer_does(name: str) -> None:
    """Queries and keys made beside a layer are those that it makes itself."""
    tiny = TINY[name]
    model, batch = tiny.model(), tiny.batch(checks.RAGGED)
    adapter, seen = adapter_for(model), {}
    for number in range(LAYERS):
        hooks = [
            module.register_forward_hook(lambda m, a, out, what=what: seen.update({what: out}))
            for what, module in zip(("queries", "keys"), adapter.projections(number), strict=True)
        ]
        hidden = states(model, batch, number)
        for hook in hooks:
            hook.remove()
        shape = adapter.shape().at(number)
        for what, heads in (("queries", shape.heads), ("keys", shape.kv_heads)):
            with torch.no_grad():
                assert torch.allclose(
                    adapter.project(number, hidden, what), adapter.to_heads(seen[what], heads), atol=1e-5
                )


def test_pyramiddrop_keeps_a_planted_key_and_drops_its_opposite() -> None:
    """Two pictures' tokens are replaced: one has the last token's query for its key in layer 0, the other minus it."""
    tiny = TINY["llava"]
    model, batch = tiny.model(), tiny.batch([(3, 1, 6)])
    adapter = adapter_for(model)
    layer, shape = adapter.layers()[0], adapter.shape()
    hidden = states(model, batch, 0)
    positions = torch.arange(hidden.shape[1])[None]
    cos, sin = adapter.decoder().rotary_emb(hidden, positions)
    winner, loser = 9, 14
    planted = hidden.clone()
    with torch.no_grad():
        query = adapter.rotate(adapter.project(0, hidden[:, -1:], "queries"), (cos[:, -1:], sin[:, -1:]))
        wanted = query.view(1, shape.kv_heads, -1, 1, shape.head_dim).mean(2)
        for place, sign in ((winner, 1), (loser, -1)):
            # Rotated back to the token's place, then through the inverse of the key projection.
            key = adapter.rotate(sign * wanted, (cos[:, place : place + 1], -sin[:, place : place + 1]))
            made = torch.linalg.pinv(layer.self_attn.k_proj.weight) @ key.transpose(1, 2).reshape(-1)
            planted[0, place] = made / layer.input_layernorm.weight
    features = planted[0, 3:19]
    inputs = adapter.with_features(batch, features)
    for count in range(1, 16):
        with torch.no_grad(), vispco.prune(model, method="pyramiddrop", schedule=Step(0, count / 16)) as session:
            model(**inputs)
        assert winner in session.kept(0)[0]
        assert loser not in session.kept(0)[0]


# --- DART ------------------------------------------------------------------------------------------


def official_dart(keys: Any, seen: Any, visual: list[int], behind: list[int], each: int) -> list[int]:
    """Pivots by L1 norm, then ``each`` least similar tokens per pivot; ``keys`` [n, g * d], ``seen`` [n, H]."""
    norms = keys.abs().sum(-1)
    pivots = sorted(visual, key=lambda i: -norms[i])[:4]
    guides = sorted(behind, key=lambda i: -norms[i])[:4]
    kept, pool = list(pivots), [i for i in visual if i not in pivots]
    for pivot in sorted(pivots + guides):
        cosine = F.cosine_similarity(seen[pivot][None], seen[pool], dim=-1)
        taken = [pool[i] for i in (-cosine).topk(each).indices]
        kept += taken
        pool = [i for i in pool if i not in taken]
    return sorted(kept)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("name", families_for("dart"))
def test_dart_is_the_official_rule_at_its_counts(name: str, each: int) -> None:
    tiny = TINY[name]
    model, batch = tiny.model(), tiny.batch([(3, 2 * each, 6)])
    adapter, keys = adapter_for(model), []
    visual = adapter.visual_mask(batch["input_ids"], None)[0].nonzero()[:, 0].tolist()
    hook = adapter.projections(1)[1].register_forward_hook(lambda m, a, out: keys.append(out))
    hidden = states(model, batch, 2)
    hook.remove()
    behind = list(range(visual[-1] + 1, hidden.shape[1]))
    flat = adapter.to_heads(keys[0], adapter.shape().at(1).kv_heads)[0].transpose(0, 1).flatten(1)
    with torch.no_grad():
        seen = adapter.decoder().norm(hidden)[0]
        with vispco.prune(model, method="dart", schedule=Step(2, (8 * each + 4) / len(visual))) as session:
            model(**batch)
    assert session.kept(2)[0] == official_dart(flat, seen, visual, behind, each)


def test_dart_keeps_what_is_unlike_its_pivots_and_drops_their_copies() -> None:
    """Planted at layer 0's output: copies of the pivot must lose, its opposite must win."""
    tiny = TINY["llava"]
    model, batch = tiny.model(), tiny.batch([(3, 1, 6)])
    adapter, plan = adapter_for(model), {}

    def plant(module: Any, args: Any, output: Any) -> Any:
        hidden = output.clone()
        pivot = plan["pivot"]
        hidden[:, plan["copy"]], hidden[:, plan["opposite"]] = hidden[:, pivot] * 0.3, -hidden[:, pivot]
        return hidden

    keys: list[Any] = []
    hook = adapter.projections(0)[1].register_forward_hook(lambda m, a, out: keys.append(out))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    ranked = (3 + keys[0][0, 3:19].abs().sum(-1).argsort(descending=True)).tolist()
    plan = {"pivot": ranked[0], "copy": ranked[-1], "opposite": ranked[-2]}
    method = make_method("dart", {"visual_pivots": 1, "text_pivots": 0})
    hook = adapter.layers()[0].register_forward_hook(plant)
    try:
        for count in range(2, 16):
            with torch.no_grad(), vispco.prune(model, method=method, schedule=Step(1, count / 16)) as session:
                model(**batch)
            kept = session.kept(1)[0]
            assert len(kept) == count
            assert {plan["pivot"], plan["opposite"]} <= set(kept)
            assert plan["copy"] not in kept
    finally:
        hook.remove()


def test_dart_spreads_any_count_over_its_pivots() -> None:
    """All counts of all sizes of prompt are exact, also with less text than pivots."""
    tiny = TINY["qwen2_5_vl"]
    for rows in ([(1, 1, 1)], [(0, 1, 2)], [(3, 2, 6)]):
        batch = tiny.batch(rows)
        n = 12 * rows[0][1]
        for count in range(1, n):
            with torch.no_grad(), vispco.prune(tiny.model(), method="dart", schedule=Step(1, count / n)) as session:
                tiny.model()(**batch)
            assert len(session.kept(1)[0]) == count


@pytest.mark.parametrize("parameters", [{"visual_pivots": 0}, {"text_pivots": -1}])
def test_dart_without_pivots_gets_one_line(parameters: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="needs at least 1 and 0"):
        make_method("dart", parameters)


def test_methods_that_read_the_layer_ahead_may_prune_before_the_first() -> None:
    tiny = TINY["gemma3"]
    schedule = Ratios([0.5, 0.25, 0.25, 0.1])
    checks.check_dropping(tiny.model(), tiny.batch(checks.RAGGED), make_method("pyramiddrop"), schedule)
