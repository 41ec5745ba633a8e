"""The conformance suite on every built-in method, sign tests, and golden numbers of the published recipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import vispco
from vispco.errors import ConfigError, MeasurementError
from vispco.models.families import adapter_for
from vispco.pruning.methods import METHODS, make_method
from vispco.pruning.methods.pool import split
from vispco.pruning.methods.sparsevlm import clusters_of, density_peaks, recycled_counts
from vispco.pruning.published import (
    FITPRUNE_DELETED,
    LLAVA_TOKENS,
    PUBLISHED,
    SPARSEVLM_KEPT,
    fitprune_counts,
    sparsevlm_counts,
)
from vispco.pruning.schedules import Step
from vispco.testing import MethodConformance
from vispco.testing.methods import able
from vispco.testing.tiny import TINY


class TestFastV(MethodConformance):
    method = make_method("fastv")


class TestFitPrune(MethodConformance):
    method = make_method("fitprune")


class TestSparseVLM(MethodConformance):
    method = make_method("sparsevlm", {"heads": 3})


class TestSparseVLM15(MethodConformance):
    method = make_method("sparsevlm", {"release": "1.5"})


class TestSparseVLMRecycling(MethodConformance):
    method = make_method("sparsevlm", {"release": "1.5", "recycle": True})
    equals_masking = False


class TestRandom(MethodConformance):
    method = make_method("random", {"seed": 3})


class TestStride(MethodConformance):
    method = make_method("stride")


class TestPool(MethodConformance):
    method = make_method("pool")
    equals_masking = False


# --- sign tests: the rule recomputed from the attention weights that the model itself returns ------


@pytest.fixture(params=list(TINY))
def tiny(request: Any) -> Iterator[Any]:
    model = able(TINY[request.param], make_method("fastv")).model()
    model.set_attn_implementation("eager")
    yield TINY[request.param]
    model.set_attn_implementation("sdpa")


def attention_and_kept(tiny: Any, method: Any, layer: int = 2) -> tuple[Any, Any, Any, Any]:
    """Attention [h, T, T] of the layer before ``layer``, visual places, text places, and what the method keeps."""
    model, batch = tiny.model(), tiny.batch([(3, 1, 6)])
    with torch.no_grad():
        attention = model(**batch, output_attentions=True).attentions[layer - 1][0]
        with vispco.prune(model, method=method, schedule=Step(layer, 0.25)) as session:
            model(**batch)
    ids = batch["input_ids"][0]
    visual = adapter_for(model).visual_mask(ids[None], None)[0].nonzero()[:, 0]
    text = torch.arange(int(visual[-1]) + 1, len(ids))
    assert session.kept(layer - 1)[0] == visual.tolist()
    return attention, visual, text, session.kept(layer)[0]


def best(scores: torch.Tensor, visual: torch.Tensor, count: int) -> list[int]:
    return sorted(visual[scores.topk(count).indices].tolist())


def test_fastv_keeps_what_the_last_token_attends_to(tiny: Any) -> None:
    attention, visual, _, kept = attention_and_kept(tiny, "fastv")
    assert kept == best(attention[:, -1, visual].mean(0), visual, len(kept))


def test_fitprune_keeps_what_text_and_picture_attend_to(tiny: Any) -> None:
    attention, visual, text, kept = attention_and_kept(tiny, "fitprune")
    strongest = attention.amax(0)
    own = strongest[visual][:, visual].mean(0)
    cross = strongest[text][:, visual].sum(0)
    assert kept == best(cross * own, visual, len(kept))


def raters(tiny: Any, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """By the definition, with the embeddings that the decoder receives."""
    model, batch, seen = tiny.model(), tiny.batch([(3, 1, 6)]), []
    hook = (
        adapter_for(model)
        .decoder()
        .register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"][0]), with_kwargs=True
        )
    )
    with torch.no_grad():
        model(**batch)
    hook.remove()
    share = (seen[0][visual] @ seen[0][text].T).softmax(1).mean(0)
    chosen = text[share > share.mean()]
    assert 0 < len(chosen) < len(text)
    return chosen


def test_sparsevlm_15_keeps_what_the_raters_attend_to(tiny: Any) -> None:
    attention, visual, text, kept = attention_and_kept(tiny, make_method("sparsevlm", {"release": "1.5"}))
    scores = attention.mean(0)[raters(tiny, visual, text)][:, visual].mean(0)
    assert kept == best(scores, visual, len(kept))


def test_sparsevlm_20_divides_by_positions_and_picks_heads() -> None:
    """On LLaVA, whose rotary table is the textbook one."""
    tiny = TINY["llava"]
    tiny.model().set_attn_implementation("eager")
    attention, visual, text, kept = attention_and_kept(tiny, make_method("sparsevlm", {"heads": 2}))
    tiny.model().set_attn_implementation("sdpa")
    chosen, d = raters(tiny, visual, text), 8
    frequencies = 10000.0 ** -(torch.arange(0, d, 2) / d)
    distance = (chosen[:, None] - visual[None]).float()
    kernel = 2 * (distance[..., None] * frequencies).cos().sum(-1) / d**0.5
    corrected = attention[:, chosen][:, :, visual] / kernel.clamp(min=0.01 * d**0.5)
    heads = corrected.sum((1, 2)).topk(2).indices
    assert kept == best(corrected[heads].mean((0, 1)), visual, len(kept))


def test_random_is_uniform_and_seeded() -> None:
    tiny, batch = TINY["llava"], TINY["llava"].batch([(3, 1, 5)])
    seen = torch.zeros(16)
    kept = set()
    for seed in range(300):
        with torch.no_grad(), vispco.prune(tiny.model(), method="random", schedule=Step(1, 0.25), seed=seed) as session:
            tiny.model()(**batch)
        places = tuple(p - 3 for p in session.kept(1)[0])
        seen[list(places)] += 1
        kept.add(places)
    assert len(kept) > 200
    # Binomial(300, 1/4): 75 +- 7.5; five sigma either way.
    assert seen.min() > 37
    assert seen.max() < 113


def test_stride_keeps_the_middles() -> None:
    tiny = TINY["llava"]
    with torch.no_grad(), vispco.prune(tiny.model(), method="stride", schedule=Step(1, 0.25)) as session:
        tiny.model()(**tiny.batch([(3, 1, 5)]))
    assert [place - 3 for place in session.kept(1)[0]] == [2, 6, 10, 14]


def test_pool_means_compact_cells() -> None:
    """A quarter of a 4 x 4 grid is its four 2 x 2 cells; what enters the layer is their mean."""
    grid = np.array([(0, 0, row, column) for row in range(4) for column in range(4)], dtype=float)
    cells = {frozenset(map(tuple, grid[cell][:, 2:].astype(int))) for cell in split(grid, np.arange(16), 4)}
    assert cells == {frozenset({(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)}) for r in (0, 2) for c in (0, 2)}
    tiny, seen = TINY["llava"], {}
    model, batch = tiny.model(), tiny.batch([(3, 1, 5)])
    layer = model.model.language_model.layers[1].input_layernorm
    for name, schedule in (("plain", Step(1, 1.0)), ("pooled", Step(1, 0.25))):
        hook = layer.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0][0]}))
        with torch.no_grad(), vispco.prune(model, method="pool", schedule=schedule) as session:
            model(**batch)
        hook.remove()
    places = [place - 3 for place in session.kept(1)[0]]
    for number, place in enumerate(places):
        row, column = place // 4 // 2 * 2, place % 4 // 2 * 2
        cell = [3 + r * 4 + c for r in (row, row + 1) for c in (column, column + 1)]
        assert torch.allclose(seen["pooled"][3 + number], seen["plain"][cell].mean(0), atol=1e-6)


def test_split_is_exact_for_any_count() -> None:
    generator = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        where = generator.integers(0, 5, (n, 4)).astype(float)
        for count in range(1, n + 1):
            parts = split(where, np.arange(n), count)
            assert len(parts) == count
            assert sorted(np.concatenate(parts).tolist()) == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1 + n // count


def test_nan_weights_get_one_line() -> None:
    model = TINY["llava"].build()
    with torch.no_grad():
        model.model.language_model.layers[0].self_attn.q_proj.weight.fill_(float("nan"))
        for method in ("fastv", "fitprune", "sparsevlm"):
            with pytest.raises(MeasurementError, match=f"{method}.*not finite before layer 1"):
                with vispco.prune(model, method=method, schedule=Step(1, 0.5)):
                    model(**TINY["llava"].batch([(3, 1, 5)]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"release": "3"}, "no release '3'"),
        ({"recycle": True}, "recycles in release 1.5 only"),
        ({"heads": 0}, "at least 1"),
        ({"head": 3}, "no parameter 'head'; did you mean 'heads'"),
    ],
)
def test_wrong_parameters_get_one_line(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_method("sparsevlm", parameters)


# --- golden numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "cost", "final"),
    [(40, 0.612, 240), (50, 0.503, 173), (60, 0.403, 127), (70, 0.303, 88), (80, 0.203, 62), (90, 0.103, 37)],
)
def test_fitprune_recipes_cost_what_they_say(share: int, cost: float, final: int) -> None:
    """The paper's own count: visual tokens only, attention of all that enter a layer, the rest of all that leave."""
    hidden, mlp, deleted = 4096, 11008, FITPRUNE_DELETED[share]
    entering = np.array(fitprune_counts(deleted), dtype=float)
    leaving = entering - np.array(deleted)
    pruned = 3 * entering * hidden**2 + 2 * entering**2 * hidden + leaving * hidden**2 + 3 * leaving * hidden * mlp
    full = 4 * LLAVA_TOKENS * hidden**2 + 2 * LLAVA_TOKENS**2 * hidden + 3 * LLAVA_TOKENS * hidden * mlp
    assert pruned.sum() / (32 * full) == pytest.approx(cost, abs=6e-4)
    assert leaving[-1] == final


@pytest.mark.parametrize(
    ("name", "counts", "leaving", "entering"),
    [
        (192, (309, 204, 113), 192.0, 206.5),
        (128, (312, 117, 39), 128.6, 145.4),
        (96, (249, 55, 27), 96.9, 114.1),
        (64, (82, 32, 18), 64.8, 82.3),
    ],
)
def test_sparsevlm_counts_with_clusters(name: int, counts: tuple[int, ...], leaving: float, entering: float) -> None:
    kept = SPARSEVLM_KEPT["1.5"][name]
    assert tuple(sparsevlm_counts(kept, recycle=True)) == counts
    tokens = [LLAVA_TOKENS] * 3 + [counts[0]] * 4 + [counts[1]] * 9 + [counts[2]] * 16
    assert np.mean(tokens) == pytest.approx(entering, abs=0.06)
    assert np.mean([*tokens[1:], counts[2]]) == pytest.approx(leaving, abs=0.06)
    ratios = PUBLISHED[f"sparsevlm-1.5:{name}"].for_layers(32)
    assert ratios.counts(np.array([576]), 32)[0].tolist() == tokens
    before = LLAVA_TOKENS
    for count, alone in zip(counts, kept, strict=True):
        assert recycled_counts(before, count) == (alone, clusters_of(before - alone))
        before = count


def test_recycling_splits_a_count_exactly() -> None:
    for n in range(1, 120):
        for keep in range(n + 1):
            kept, clusters = recycled_counts(n, keep)
            assert kept + clusters == keep
            assert clusters in (0, clusters_of(n - kept))


def test_density_peaks_find_the_groups() -> None:
    torch.manual_seed(0)
    groups = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    states = groups.repeat_interleave(9, 0) + torch.randn(27, 2)
    centres, nearest = density_peaks(states, 3)
    assert sorted((centres // 9).tolist()) == [0, 1, 2]
    assert all(len(set(nearest[9 * g : 9 * g + 9].tolist())) == 1 for g in range(3))


BEFORE_THE_DECODER = {
    *("divprune", "visionzip", "vispruner", "cdpruner", "prumerge", "scope", "idpruner", "evs", "vidcom2", "hiprune"),
}


def test_every_published_default_can_be_used_at_any_depth() -> None:
    for name, known in PUBLISHED.items():
        assert known.make_method().name in METHODS
        for layers in (4, 8, 32, 40):
            ratios = known.for_layers(layers).keep_ratio(layers)
            before = name.split(":")[0] in BEFORE_THE_DECODER
            assert (ratios[0] < 1.0) == before, name
            assert min(ratios) < 1.0, name
    exact = PUBLISHED["fitprune:50"].for_layers(32).counts(np.array([576]), 32)[0].tolist()
    assert exact == fitprune_counts(FITPRUNE_DELETED[50])
    assert PUBLISHED["sparsevlm:192"].for_layers(32).counts(np.array([576]), 32)[0].tolist() == (
        [576] * 3 + [300] * 4 + [200] * 9 + [118] * 16
    )
    counts = {
        name: PUBLISHED[name].for_layers(32).counts(np.array([576]), 32)[0].tolist()
        for name in PUBLISHED
        if name.split(":")[0] not in {"fastv", "fitprune", "sparsevlm", "sparsevlm-1.5"}
    }
    assert counts == {
        "pyramiddrop:8-16-24": [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8,
        "dart:128": [576] * 2 + [132] * 30,
        "vtw:16": [576] * 16 + [0] * 16,
        "divprune:0.098": [56] * 32,
        "visionzip:64": [64] * 32,
        "visionzip:221": [221] * 32,
        "vispruner:128": [128] * 32,
        "hiprune:64": [64] * 32,
        "hiprune:128": [128] * 32,
        "hiprune:192": [192] * 32,
        "cdpruner:64": [64] * 32,
        "cdpruner:192": [192] * 32,
        "prumerge:14.4x": [40] * 32,
        "scope:64": [64] * 32,
        "idpruner:0.25": [144] * 32,
        "evs:0.25": [144] * 32,
        "vidcom2:0.25": [144] * 32,
    }
    assert np.mean(counts["pyramiddrop:8-16-24"]) == 270
    for name, (dominant, contextual) in {"visionzip:64": (54, 10), "visionzip:221": (191, 30)}.items():
        assert int(PUBLISHED[name].make_method()._targets(dominant + contextual)) == contextual
