"""Methods of 2025 and 2026: the conformance suite, published rules worked by hand, ties, keep 0, 1 and all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vispco
from test_encoder_methods import OnLlava, kept_of
from vispco.errors import ConfigError, ModelError
from vispco.models.families import adapter_for
from vispco.models.pixels import prediction_errors
from vispco.pruning.methods import make_method
from vispco.pruning.methods.evs import changes
from vispco.pruning.methods.idpruner import marginal
from vispco.pruning.methods.scope import covering
from vispco.pruning.methods.vidcom2 import familiarity, frame_counts
from vispco.pruning.schedules import Step
from vispco.testing import MethodConformance
from vispco.testing.tiny import TINY, TinyFamily

# Eight unit vectors at these degrees, and a weight for each.
DEGREES = (0, 10, 20, 80, 90, 100, 180, 200)
CIRCLE = torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in DEGREES])
WEIGHT = torch.tensor([0.1, 0.3, 0.2, 0.1, 0.05, 0.15, 0.06, 0.04])


class TestScope(OnLlava):
    __test__ = True
    method = make_method("scope")


class TestIDPruner(OnLlava):
    __test__ = True
    method = make_method("idpruner")


class TestEVS(OnLlava):
    __test__ = True
    method = make_method("evs")


class TestVidCom2(OnLlava):
    __test__ = True
    method = make_method("vidcom2")


class TestPixelPrune(MethodConformance):
    method = make_method("pixelprune")

    @pytest.fixture
    def tiny(self) -> TinyFamily:
        return TINY["qwen2_5_vl"]


# --- SCOPE and IDPruner ----------------------------------------------------------------------------


def test_scope_is_the_published_order() -> None:
    """By the official function on these vectors: 1, 5, 6, 3, 2, 7, 0, 4."""
    assert covering(CIRCLE, WEIGHT, 8).tolist() == [1, 5, 6, 3, 2, 7, 0, 4]
    for most in range(9):
        assert covering(CIRCLE, WEIGHT, most).tolist() == [1, 5, 6, 3, 2, 7, 0, 4][:most]


def test_scope_by_hand() -> None:
    """Three tokens, two of them the same: after one of the two the other gains nothing, so it goes last.

    At first gains are 2, 2 and 1 (nothing is below 0), times weights 0.2, 0.2, 0.3: 0.4, 0.4, 0.3; of equals the
    earlier. Then tokens 0 and 1 are covered: gains 0 and 1.
    """
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert covering(vectors, torch.tensor([0.2, 0.2, 0.3]), 3).tolist() == [0, 2, 1]
    # Opposite tokens do not cover each other: a cosine of -1 counts as 0, not as a loss.
    assert covering(torch.tensor([[1.0], [-1.0]]), torch.tensor([0.1, 0.2]), 2).tolist() == [1, 0]


def test_idpruner_is_the_rule_worked_by_hand() -> None:
    """1 first (0.3); 6 is nearly opposite to it; then 5; and so on: 1, 6, 5, 2, 3, 0, 7, 4."""
    assert marginal(CIRCLE, WEIGHT, 0.5, 8).tolist() == [1, 6, 5, 2, 3, 0, 7, 4]
    for most in range(9):
        assert marginal(CIRCLE, WEIGHT, 0.5, most).tolist() == [1, 6, 5, 2, 3, 0, 7, 4][:most]
    # By importance alone; all equal: in their order.
    assert marginal(CIRCLE, WEIGHT, 1.0, 8).tolist() == WEIGHT.argsort(descending=True, stable=True).tolist()
    assert marginal(torch.ones(4, 1), torch.full((4,), 0.25), 0.5, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["scope", "idpruner"])
def test_they_read_the_tower(name: str) -> None:
    """What a LLaVA's own tower gives, put through the rule, is what the session keeps."""
    tiny = TINY["llava"]
    model, batch = tiny.model(), tiny.batch([(3, 1, 6)])
    with torch.no_grad():
        features, extras = adapter_for(model).encode_with_extras(batch)
        with vispco.prune(model, method=name, schedule=Step(0, 5 / 16)) as session:
            model(**batch)
    if name == "scope":
        order = covering(F.normalize(extras.features, dim=-1), extras.attention, 5)
    else:
        order = marginal(F.normalize(features, dim=-1), extras.attention, 0.5, 5)
    assert [place - 3 for place in session.kept(0)[0]] == sorted(order.tolist())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("scope", {"alpha": -1.0}), ("idpruner", {"weight": 2.0}), ("vidcom2", {"temperature": 0.0})],
)
def test_wrong_parameters_get_one_line(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"method '{name}' got"):
        make_method(name, parameters)


# --- video -----------------------------------------------------------------------------------------


def places_of(frames: int, rows: int, columns: int) -> torch.Tensor:
    axes = (torch.arange(n) for n in (1, frames, rows, columns))
    return torch.cartesian_prod(*axes)


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        (0.3, [0, 1, 2, 3, 5, 7, 8, 10]),
        (0.5, [0, 1, 2, 3, 7, 10]),
        (0.7, [0, 1, 2, 3]),
        (0.9, [0, 1, 2, 3]),
    ],
)
def test_evs_is_the_published_rule(drop: float, kept: list[int]) -> None:
    """Three frames of four cells; the official count is at least one frame, which comes first in our order too."""
    video = CIRCLE[torch.tensor([0, 1, 3, 6, 0, 2, 3, 7, 1, 2, 5, 7])]
    order = changes(video, places_of(3, 2, 2)).argsort(descending=True, stable=True)
    assert sorted(order[: max(4, int(12 * (1 - drop)))].tolist()) == kept


def test_evs_compares_a_cell_with_itself_one_frame_before() -> None:
    """Cells of two videos; the second starts anew."""
    places = torch.cat([places_of(2, 1, 2), places_of(2, 1, 1) + torch.tensor([1, 0, 0, 0])])
    vectors = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = changes(vectors, places)
    assert found[[0, 1, 4]].tolist() == [255.0] * 3
    for now, before in ((2, 0), (3, 1), (5, 4)):
        assert float(found[now]) == pytest.approx(1 - float(vectors[now] @ vectors[before]), abs=1e-6)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "qwen3_5", "glm4v"])
def test_a_frame_that_repeats_the_one_before_goes_first(name: str) -> None:
    tiny: Any = TINY[name]
    model, batch = tiny.model(), tiny.video_batch()
    adapter = adapter_for(model)
    with torch.no_grad():
        features = adapter.encode_images(batch)
        visual = adapter.visual_mask(batch["input_ids"], None)
        places = adapter.coordinates(batch, visual)[visual]
        video = int((places[:, 1] > 0).nonzero()[0])
        cells = [int(((places[:, 0] == places[video, 0]) & (places[:, 1] == frame)).sum()) for frame in (1, 2)]
        second = ((places[:, 0] == places[video, 0]) & (places[:, 1] == 1)).nonzero()[:, 0]
        first = second - cells[0]
        features[second] = features[first]
        given = adapter.with_features(batch, features)
        n = int(visual[0].sum())
        with vispco.prune(model, method="evs", schedule=Step(1, (n - cells[0]) / n)) as session:
            model(**given)
    gone = sorted(set(visual[0].nonzero()[:, 0].tolist()) - set(session.kept(1)[0]))
    assert gone == visual[0].nonzero()[:, 0][second].tolist()


def test_vidcom2_shares_tokens_as_published() -> None:
    """196 tokens in each of four frames, r = 0.6, one frame unlike the rest: rates 1 and three times 0.45.

    Rounded one by one that is 196 + 3 * 88 = 460 of the 470 that are asked for; the other ten go to the three.
    """
    counts = frame_counts(torch.tensor([0.0, -1.0, -1.0, -1.0]), torch.tensor([196] * 4), 470)
    assert counts[0] == 196
    assert sorted(counts[1:]) == [91, 91, 92]
    # Frames that are alike share evenly; no frame is left out while there is one token for each.
    assert frame_counts(torch.zeros(4), torch.tensor([196] * 4), 196) == [49] * 4
    assert frame_counts(torch.tensor([0.0, -9.0, -9.0]), torch.tensor([8, 8, 8]), 3) == [1, 1, 1]
    assert frame_counts(torch.zeros(3), torch.tensor([4, 4, 4]), 0) == [0, 0, 0]
    assert frame_counts(torch.zeros(3), torch.tensor([4, 2, 4]), 10) == [4, 2, 4]


def test_vidcom2_counts_always_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        frames = int(torch.randint(1, 7, (1,), generator=generator))
        sizes = torch.randint(1, 12, (frames,), generator=generator)
        for count in range(int(sizes.sum()) + 1):
            counts = frame_counts(torch.rand(frames, generator=generator), sizes, count)
            assert sum(counts) == count
            assert all(0 <= c <= s for c, s in zip(counts, sizes.tolist(), strict=True))


def test_vidcom2_familiarity_by_hand() -> None:
    """At the centre five Gaussians of 1; at distance 1, exp(-4), exp(-2), exp(-1), exp(-1/2), exp(-1/4)."""
    values = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    expected = [5.0, sum(math.exp(-x) for x in (4, 2, 1, 0.5, 0.25))]
    assert familiarity(values, torch.zeros(2)).tolist() == pytest.approx(expected)


def test_vidcom2_keeps_the_odd_one_out() -> None:
    """In a picture, one frame: the token that is unlike all others is the last to go."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(32, generator=generator)
    features = base + 0.1 * torch.randn(16, 32, generator=generator)
    features[11] = -base
    for count in (1, 4, 15):
        assert 11 in kept_of(features, "vidcom2", count)


# --- PixelPrune ------------------------------------------------------------------------------------


def test_pixelprune_by_hand() -> None:
    """A flat picture with one other cell, at (1, 1) of 3 x 3, and a stripe that only the cell above foretells.

    Flat cells equal the cell on the left. The other cell does not. On its right the cell on the left is the odd one;
    below it the corner equals the left but not what is above, so the odd cell is the prediction. The rest is foretold.
    """
    cells = torch.zeros(3, 3, 2)
    cells[1, 1] = 0.5
    found = prediction_errors(cells)
    assert math.isinf(found[0, 0])
    assert found.flatten()[1:].tolist() == [0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.5, 0.0]
    stripe = torch.zeros(3, 3, 1)
    stripe[:, 1] = 1.0
    found = prediction_errors(stripe)  # at (1, 1) the corner equals the left but not what is above, which is right
    assert found[1:].tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert found[0, 1:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_exact_copies_go_first(name: str) -> None:
    """The right half of a picture repeats one cell: its tokens but the first go before any other."""
    tiny = TINY[name]
    model, batch = tiny.model(), tiny.batch([(3, 1, 6)])
    cells = batch["pixel_values"].view(2, 6, -1).clone()
    cells[:, 4:] = cells[:, 3:4]
    cells[1, 3:] = cells[0, 3]
    batch["pixel_values"] = cells.view(batch["pixel_values"].shape)
    with torch.no_grad(), vispco.prune(model, method="pixelprune", schedule=Step(0, 7 / 12)) as session:
        model(**batch)
    copies = {4, 5, 10, 11}
    places = adapter_for(model).visual_mask(batch["input_ids"], None)[0].nonzero()[:, 0].tolist()
    kept = {places.index(place) for place in session.kept(0)[0]}
    assert len(kept) == 7
    assert not copies & kept
    assert 0 in kept  # the corner


def test_pixels_are_missed_in_one_line() -> None:
    with (
        pytest.raises(
            ModelError, match=r"'pixelprune' needs pixels of the visual tokens, which .*'llava' does not give"
        ),
        vispco.prune(TINY["llava"].model(), method="pixelprune", schedule=Step(1, 0.5)),
    ):
        pass
