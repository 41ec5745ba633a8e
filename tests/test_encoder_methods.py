"""Methods that rank before the decoder: the conformance suite, planted tokens, the official rules written out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vispco
from test_vision import llava, tower_of
from vispco.errors import ConfigError
from vispco.models.families import adapter_for
from vispco.pruning.forward.tokens import Prompt
from vispco.pruning.methods import make_method
from vispco.pruning.methods.cdpruner import diverse
from vispco.pruning.methods.divprune import farthest_first
from vispco.pruning.methods.hiprune import neighbourhood
from vispco.pruning.methods.vispruner import thinned
from vispco.pruning.schedules import Step
from vispco.testing import MethodConformance
from vispco.testing.tiny import TINY, TinyFamily


class OnLlava(MethodConformance):
    """The suite on one family, for a further set of parameters of a method that passes it on all."""

    __test__ = False

    @pytest.fixture
    def tiny(self) -> TinyFamily:
        return TINY["llava"]


class TestDivPrune(MethodConformance):
    method = make_method("divprune")


class TestVisionZip(MethodConformance):
    method = make_method("visionzip")
    equals_masking = False


class TestVisionZipDominant(OnLlava):
    __test__ = True
    method = make_method("visionzip", {"contextual": 0})


class TestVisPruner(MethodConformance):
    method = make_method("vispruner")


class TestHiPrune(MethodConformance):
    method = make_method("hiprune", {"alpha": 0.5})


class TestCDPruner(MethodConformance):
    method = make_method("cdpruner", {"relevance": "embeddings"})


class TestPruMerge(MethodConformance):
    method = make_method("prumerge")
    equals_masking = False


class TestPruMergePlus(OnLlava):
    __test__ = True
    method = make_method("prumerge", {"plus": True})
    equals_masking = False


def kept_of(features: Any, method: Any, count: int, rows: Any = ((3, 1, 6),), layer: int = 0) -> list[int]:
    """Numbers of the visual tokens of a LLaVA prompt with these ``features`` that enter ``layer``."""
    tiny = TINY["llava"]
    batch, adapter = tiny.batch(rows), adapter_for(tiny.model())
    inputs = adapter.with_features(batch, features)
    with torch.no_grad(), vispco.prune(tiny.model(), method=method, schedule=Step(layer, count / 16)) as session:
        tiny.model()(**inputs)
    return [place - rows[0][0] for place in session.kept(layer)[0]]


# --- DivPrune --------------------------------------------------------------------------------------


def official_divprune(features: Any, count: int) -> list[int]:
    """With the whole matrix: the second-smallest distance of each column first, then max-min."""
    distance = 1 - F.cosine_similarity(features[:, None], features[None], dim=-1)
    picked = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
    while len(picked) < count:
        nearest = distance[picked].amin(dim=0)
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    return picked


@pytest.mark.parametrize("n", [1, 2, 16, 61])
def test_divprune_is_the_official_rule(n: int) -> None:
    for seed in range(5):
        features = torch.randn(n, 24, generator=torch.Generator().manual_seed(seed))
        expected = official_divprune(features, n) if n > 1 else [0]
        unit = F.normalize(features, dim=-1)
        for most in {1, n // 2, n} - {0}:
            assert farthest_first(unit, most).tolist() == expected[:most]


def test_divprune_keeps_the_odd_one_out_and_drops_copies() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(32, generator=generator)
    features = base + 0.2 * torch.randn(16, 32, generator=generator)
    odd, copy, original = 11, 5, 2
    features[odd], features[copy] = -base, features[original]
    for count in range(1, 16):
        kept = kept_of(features, "divprune", count)
        assert odd in kept
        assert not {copy, original} <= set(kept)
    assert sorted(farthest_first(F.normalize(torch.ones(6, 4), dim=-1), 6).tolist()) == list(range(6))


def test_divprune_looks_at_embeddings_only() -> None:
    """The same tokens stay wherever they are dropped, and so they do before any layer."""
    features = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    assert kept_of(features, "divprune", 5) == sorted(official_divprune(features, 5))
    assert kept_of(features, "divprune", 5, layer=3) == kept_of(features, "divprune", 5)


# --- methods that read the tower -------------------------------------------------------------------


@dataclass
class Seen:
    """Of one picture of 16 tokens on a LLaVA with three tower layers: what the plain tower gives (eager attention),
    what enters decoder layer ``at`` (the picture's rows, plain and pruned), and the numbers of the kept tokens."""

    attention: Any
    pseudo: Any
    keys: Any
    last_keys: Any
    features: Any
    plain: Any
    pruned: Any
    kept: list[int]


def seen(method: Any, count: int, at: int = 1, images: int = 1) -> Seen:
    model, batch = llava(), TINY["llava"].batch([(3, images, 6)])
    plain, found = tower_of(model, batch["pixel_values"]), []
    layers, entering = model.model.vision_tower.encoder.layers, []
    for number in (1, 2):
        normed = layers[number].layer_norm1(plain.hidden_states[number])
        entering.append([getattr(layers[number].self_attn, f"{x}_proj")(normed) for x in "qk"])
    (_, keys), (query, last_keys) = entering
    hook = model.model.language_model.layers[at].input_layernorm.register_forward_pre_hook(
        lambda module, args: found.append(args[0][0].detach())
    )
    with torch.no_grad():
        model(**batch)
        with vispco.prune(model, method=method, schedule=Step(at, count / (16 * images))) as session:
            model(**batch)
    hook.remove()
    kept = session.kept(at)[0]
    assert len(kept) == count
    return Seen(
        attention=plain.attentions[1].mean(dim=1)[0, 0, 1:],
        pseudo=(query[:, :1] @ last_keys.mT / 4).softmax(dim=-1)[0, 0, 1:].detach(),
        keys=keys[0, 1:].detach(),
        last_keys=last_keys[0, 1:].detach(),
        features=plain.hidden_states[-2][0, 1:],
        plain=found[0][3:19],
        pruned=found[1][3 : 3 + count],
        kept=[place - 3 for place in kept],
    )


# --- VisionZip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(("count", "targets"), [(8, 3), (12, 2), (5, 5), (6, 0)])
def test_visionzip_is_the_official_rule(count: int, targets: int, at: int) -> None:
    found = seen(make_method("visionzip", {"contextual": targets / count}), count, at)
    dominant = sorted(found.attention.topk(count - targets).indices.tolist())
    rest = [i for i in range(16) if i not in dominant]
    metric = F.normalize(found.keys.view(16, 2, 8).mean(dim=1), dim=-1)
    expected = {i: found.plain[i].clone() for i in dominant}
    if targets:
        aims = rest[:: max(1, len(rest) // targets)][:targets]
        joined: dict[int, list[int]] = {aim: [] for aim in aims}
        for i in (i for i in rest if i not in aims):
            joined[max(aims, key=lambda aim: float(metric[i] @ metric[aim]))].append(i)
        for aim, members in joined.items():
            mean = found.plain[members].mean(dim=0) if members else 0
            expected[aim] = found.plain[aim] + mean
    assert found.kept == sorted(expected)
    assert torch.allclose(found.pruned, torch.stack([expected[i] for i in found.kept]), atol=1e-3)


# --- VisPruner -------------------------------------------------------------------------------------


def official_thinning(features: Any, residual: list[int], count: int) -> list[int]:
    """A loop of Python over pairs; ``residual`` by falling attention."""
    unit = F.normalize(features, dim=-1)
    while len(residual) > count:
        go = min(8, len(residual) - count)
        one, other = residual[::2], residual[1::2]
        nearest = {i: max(float(unit[i] @ unit[j]) for j in other) for i in one}
        residual = sorted(one, key=lambda i: -nearest[i])[go:] + other
    return residual


@pytest.mark.parametrize(("count", "share"), [(12, 0.5), (7, 0.5), (5, 0.2), (1, 0.5), (8, 1.0), (9, 0.0)])
def test_vispruner_is_the_official_rule(count: int, share: float) -> None:
    found = seen(make_method("vispruner", {"important": share}), count)
    order = found.attention.argsort(descending=True).tolist()
    first = int(count * share)
    expected = order[:first] + (official_thinning(found.features, order[first:], count - first) if share < 1 else [])
    assert found.kept == sorted(expected)
    assert torch.equal(found.pruned, found.plain[found.kept])


@pytest.mark.parametrize(("n", "count"), [(64, 8), (61, 9), (20, 19), (40, 1)])
def test_thinning_is_the_official_loop(n: int, count: int) -> None:
    features = torch.randn(n, 12, generator=torch.Generator().manual_seed(n))
    order = list(range(n))
    left = thinned(F.normalize(features, dim=-1), torch.tensor(order), count)
    assert left.tolist() == official_thinning(features, order, count)


def test_thinning_keeps_the_odd_one_out() -> None:
    for odd in range(64):
        unit = torch.ones(64, 1)
        unit[odd] = -1
        assert odd in thinned(unit, torch.arange(64), 40).tolist()


# --- HiPrune ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "alpha"), [(8, 0.1), (8, 0.625), (12, 0.5), (11, 1.0), (1, 0.1), (16, 0.5), (0, 1.0)]
)
def test_hiprune_is_the_official_rule(count: int, alpha: float) -> None:
    """In a tower of three layers the middle one is the first; features come from the second."""
    model, batch = llava(), TINY["llava"].batch([(3, 1, 6)])
    plain = tower_of(model, batch["pixel_values"])
    middle, deep = (plain.attentions[layer].mean(dim=(1, 2))[0, 1:].clone() for layer in (0, 1))
    anchors = middle.topk(round(count * alpha / 5)).indices
    around = torch.cat([anchors, anchors - 1, anchors + 1, anchors - 4, anchors + 4]).clamp(0, 15).unique()
    deep[around] -= 1
    expected = {*around.tolist(), *deep.topk(count - len(around)).indices.tolist()}
    method = make_method("hiprune", {"alpha": alpha})
    with torch.no_grad(), vispco.prune(model, method=method, schedule=Step(0, count / 16)) as session:
        model(**batch)
    assert session.kept(0)[0] == [place + 3 for place in sorted(expected)]


def test_hiprune_keeps_the_first_where_anchors_and_neighbours_are_too_many() -> None:
    model, batch = llava(), TINY["llava"].batch([(3, 1, 6)])
    anchor = int(tower_of(model, batch["pixel_values"]).attentions[0].mean(dim=(1, 2))[0, 1:].argmax())
    expected = list(dict.fromkeys(min(max(place, 0), 15) for place in (anchor, anchor - 1, anchor + 1, anchor - 4)))[:3]
    with (
        torch.no_grad(),
        vispco.prune(model, method="hiprune", alpha=1.0, schedule=Step(0, 3 / 16)) as session,
    ):
        model(**batch)
    assert session.kept(0)[0] == [place + 3 for place in sorted(expected)]


def test_neighbours_stand_a_rows_length_away() -> None:
    """Two views, rows of 4 and of 3; at the ends the last token there is."""
    lengths = torch.tensor([4] * 8 + [3] * 6)
    found = neighbourhood(torch.tensor([0, 5, 9]), lengths).view(5, 3).T.tolist()
    assert found == [[0, 0, 1, 0, 4], [5, 4, 6, 1, 9], [9, 8, 10, 6, 12]]
    assert neighbourhood(torch.tensor([13]), lengths).tolist() == [13, 12, 13, 10, 13]


# --- CDPruner --------------------------------------------------------------------------------------


def by_determinant(kernel: Any, count: int) -> list[int]:
    """Each time the token with which the determinant of the kernel is largest."""
    picked: list[int] = []
    while len(picked) < count:
        left = [i for i in range(len(kernel)) if i not in picked]
        picked.append(max(left, key=lambda i: float(torch.linalg.det(kernel[[*picked, i]][:, [*picked, i]]))))
    return picked


@pytest.mark.parametrize("n", [1, 2, 9, 16])
def test_cdpruner_picks_the_largest_determinant(n: int) -> None:
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        unit = F.normalize(torch.randn(n, 24, generator=generator), dim=-1)
        relevance = 0.2 + torch.rand(n, generator=generator)
        kernel = relevance[:, None] * (unit @ unit.T) * relevance
        order = diverse(unit, relevance, n)
        assert order.tolist() == by_determinant(kernel.double(), n)
        assert diverse(unit, relevance, max(1, n // 2)).tolist() == order[: max(1, n // 2)].tolist()


def test_cdpruner_orders_also_what_adds_nothing() -> None:
    """Six copies of two directions: after one of each nothing is new, and the rest follow."""
    unit = torch.eye(4)[[0, 1, 0, 1, 0, 1]]
    order = diverse(unit, torch.tensor([0.5, 0.4, 1.0, 0.9, 0.3, 0.2]), 6).tolist()
    assert order[:2] == [2, 3]
    assert sorted(order) == list(range(6))


def test_cdpruner_asks_the_text_behind_the_picture() -> None:
    tiny, generator = TINY["llava"], torch.Generator().manual_seed(3)
    batch, features = tiny.batch([(3, 1, 6)]), torch.randn(16, 32, generator=generator)
    asked = tiny.model().get_input_embeddings()(batch["input_ids"][0, 19:]).mean(dim=0).detach()
    cosine = F.cosine_similarity(features, asked[None], dim=-1)
    relevance = (cosine - cosine.min() + 1e-6) / (cosine.max() - cosine.min())
    unit = F.normalize(features, dim=-1)
    kernel = (relevance[:, None] * (unit @ unit.T) * relevance).double()
    for count in (1, 4, 9):
        method = make_method("cdpruner", {"relevance": "embeddings"})
        assert kept_of(features, method, count) == sorted(by_determinant(kernel, count))
        kept = kept_of(features, make_method("cdpruner", {"relevance": "none"}), count)
        assert kept == sorted(by_determinant((unit @ unit.T).double(), count))
    # The least relevant token goes last, the most relevant one first.
    assert kept_of(features, method, 1) == [int(cosine.argmax())]
    assert int(cosine.argmin()) not in kept_of(features, method, 15)


def test_cdpruner_turns_the_text_towers_cosine_round() -> None:
    """As published: a family with such a tower gives the cosine with what is read off the vision tower."""
    tiny, generator = TINY["llava"], torch.Generator().manual_seed(4)
    model, batch = tiny.model(), tiny.batch([(3, 1, 6)])
    adapter = adapter_for(model)
    with torch.no_grad():
        features, extras = adapter.encode_with_extras(batch)
    cosine = torch.rand(16, generator=generator)
    prompt = Prompt(
        embeddings=torch.cat([torch.zeros(3, 32), features])[None],
        visual=torch.tensor([[False] * 3 + [True] * 16]),
        valid=torch.ones(1, 19, dtype=torch.bool),
        read_coordinates=lambda: torch.zeros(0),
        read_keys=list,
        read_vision=lambda: [replace(extras, relevance=cosine)],
    )
    relevance = (cosine.max() - cosine + 1e-6) / (cosine.max() - cosine.min())
    unit = F.normalize(features, dim=-1)
    expected = by_determinant((relevance[:, None] * (unit @ unit.T) * relevance).double(), 8)
    assert make_method("cdpruner").order(prompt, 0, torch.arange(3, 19), 8).tolist() == expected
    assert expected[0] == int(cosine.argmin())


# --- PruMerge --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "images", "at"), [(6, 1, 0), (2, 1, 2), (11, 1, 1), (1, 1, 1)])
def test_prumerge_is_the_official_rule(count: int, images: int, at: int) -> None:
    found = seen("prumerge", count, at, images)
    attention, keys = found.pseudo, F.normalize(found.last_keys, dim=-1)
    order = attention.argsort(descending=True).tolist()
    own, dropped = order[: max(1, count - 1)], order[max(1, count - 1) :]
    expected = {}
    for i in own:
        others = [j for j in range(16) if j != i]
        near = sorted(others, key=lambda j, i=i: -float(keys[i] @ keys[j]))[:32]
        expected[i] = found.plain[i] + sum(attention[j] * found.plain[j] for j in near)
    if count > 1:
        expected[dropped[0]] = sum(attention[j] * found.plain[j] for j in dropped)
    assert found.kept == sorted(expected)
    assert torch.allclose(found.pruned, torch.stack([expected[i] for i in found.kept]), atol=1e-3)


def test_prumerge_takes_32_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with fewer, since a picture has only 15 others here."""
    monkeypatch.setattr("vispco.pruning.methods.prumerge.NEIGHBOURS", 3)
    found = seen("prumerge", 5)
    keys = F.normalize(found.last_keys, dim=-1)
    own = found.pseudo.topk(4).indices.tolist()
    assert set(own) < set(found.kept)
    for i in own:
        near = (keys[i] @ keys.T).index_fill(0, torch.tensor(i), -2.0).topk(3).indices
        expected = found.plain[i] + (found.pseudo[near, None] * found.plain[near]).sum(dim=0)
        assert torch.allclose(found.pruned[found.kept.index(i)], expected, atol=1e-3)


def test_prumerge_plus_spreads_three_quarters() -> None:
    found = seen(make_method("prumerge", {"plus": True}), 9)
    outliers = found.pseudo.topk(2).indices.tolist()
    rest = [i for i in range(16) if i not in outliers]
    spread = [rest[int((i + 0.5) * 14 / 6)] for i in range(6)]
    (extra,) = set(found.kept) - set(outliers) - set(spread)
    left = [i for i in rest if i not in spread]
    assert extra == max(left, key=lambda i: float(found.pseudo[i]))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("visionzip", {"contextual": 1.5}, "contextual: 1.5; it is a share"),
        ("vispruner", {"important": -0.1}, "important: -0.1; it is a share"),
        ("cdpruner", {"relevance": "clip"}, "no relevance 'clip'; choose text_tower, embeddings or none"),
        ("prumerge", {"plus": 3}, "plus: 3; it is true or false"),
    ],
)
def test_wrong_parameters_get_one_line(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_method(name, parameters)
