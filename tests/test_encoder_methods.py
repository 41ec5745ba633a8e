"""Methods that rank before the decoder: the conformance suite, planted tokens, the official rules written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vispco
from vispco.models.base import adapter_for
from vispco.pruning.methods import make_method
from vispco.pruning.methods.divprune import farthest_first
from vispco.pruning.schedules import Step
from vispco.testing import MethodConformance
from vispco.testing.tiny import TINY


class TestDivPrune(MethodConformance):
    method = make_method("divprune")


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


class TestVisionZip(MethodConformance):
    method = make_method("visionzip")
    equals_masking = False


class TestVisionZipDominant(MethodConformance):
    method = make_method("visionzip", {"contextual": 0})


class TestVisPruner(MethodConformance):
    method = make_method("vispruner")


class TestCDPruner(MethodConformance):
    method = make_method("cdpruner", {"relevance": "embeddings"})


class TestPruMerge(MethodConformance):
    method = make_method("prumerge")
    equals_masking = False


class TestPruMergePlus(MethodConformance):
    method = make_method("prumerge", {"plus": True})
    equals_masking = False
