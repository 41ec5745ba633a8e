"""What every cost must pass, on a decoder with sliding windows, grouped heads and a staircase of times."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vispco.costs.base import CostModel, Setting, make_cost
from vispco.costs.profile import Curve, Decode, Profile, Scoring, Timings
from vispco.errors import ConfigError
from vispco.models.shapes import ModelShape
from vispco.pruning.methods.base import make_method

SHAPE = ModelShape(layers=6, hidden=32, heads=8, kv_heads=2, head_dim=4, mlp=64)
WINDOWS = (None, 20, 20, None, 20, 20)


def staircase(edges: tuple[int, ...] = (16, 48, 64), last: int = 200, start: float = 1.0) -> Curve:
    """Flat, with a step of ``start`` after each edge."""
    points = [(1, start)]
    for number, edge in enumerate(edges, start=1):
        points += [(edge, start * number), (edge + 1, start * (number + 1))]
    points.append((last, start * (len(edges) + 1)))
    return Curve(tokens=[n for n, _ in points], ms=[ms for _, ms in points])


def planted_profile(
    shape: ModelShape = SHAPE, windows: tuple[int | None, ...] = WINDOWS, model: str = "made"
) -> Profile:
    """A profile of no real device; layers are staircases, everything else is a line."""
    line = Curve(tokens=[1, 200], ms=[0.1, 0.5])
    layers = {"full": staircase(), "sliding": staircase(start=0.5)}
    times = Timings(
        layers=layers,
        rest=line,
        tower=Curve(tokens=[1, 200], ms=[2.0, 8.0]),
        methods={"fastv": Scoring(boundary=line, start=0.2, layer=0.01)},
        decode=Decode(layers={"full": line, "sliding": line}, rest=0.3, hooks=0.05),
    )
    kinds = ["sliding" if windows and windows[n] else "full" for n in range(shape.layers)]
    sizes = {key: getattr(shape, key) for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp")}
    return Profile(
        model=model, shape=sizes, kinds=kinds, device="none", dtype="float32", attention="sdpa", batches={1: times}
    )


def a_setting() -> Setting:
    return Setting(
        SHAPE,
        WINDOWS,
        bytes_per_value=2,
        vocabulary=100,
        vision_flops=10.0,
        method=make_method("fastv"),
        answer_tokens=5,
        profile=planted_profile(),
    )


def some_counts(seed: int, prompts: int = 40) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Random counts [B, L], and visual and text tokens [B]."""
    rng = np.random.default_rng(seed)
    visual, text = rng.integers(1, 90, prompts), rng.integers(1, 60, prompts)
    kept = rng.integers(0, visual[:, None] + 1, (prompts, SHAPE.layers)) * rng.integers(0, 2, (prompts, 1))
    kept[::4] = visual[::4, None]
    return np.minimum.accumulate(np.minimum(kept, visual[:, None]), axis=1), visual, text


class CostConformance:
    """Set ``cost``, a name. ``monotone``: False for a cost that more tokens may lower."""

    cost: ClassVar[str]
    monotone: ClassVar[bool] = True

    @pytest.fixture
    def model(self) -> CostModel:
        return make_cost(self.cost)

    def test_says_what_it_is(self, model: CostModel) -> None:
        assert model.name == self.cost
        assert model.unit
        assert model.about

    def test_is_finite_and_above_zero(self, model: CostModel) -> None:
        values = model.of(a_setting(), *some_counts(0))
        assert values.dtype == np.float64
        assert np.isfinite(values).all()
        assert (values > 0).all()

    def test_prompts_do_not_depend_on_each_other(self, model: CostModel) -> None:
        setting, (counts, visual, text) = a_setting(), some_counts(1)
        alone = [model.of(setting, counts[i : i + 1], visual[i : i + 1], text[i : i + 1])[0] for i in range(len(text))]
        assert alone == model.of(setting, counts, visual, text).tolist()

    def test_is_the_sum_of_its_parts(self, model: CostModel) -> None:
        if not model.additive:
            return
        setting, (counts, visual, text) = a_setting(), some_counts(2)
        total = np.zeros(len(text))
        for row in range(len(text)):
            v, t, c = visual[row : row + 1], text[row : row + 1], counts[row : row + 1]
            total[row] = float(np.sum(model.constant(setting, v, t) + model.pruning(setting, v, t, c)))
            before = int(v[0])
            for layer, kept in enumerate(c[0].tolist()):
                total[row] += float(model.layer(setting, layer, np.array([kept + t[0]]))[0])
                if 0 < kept < before:
                    part = model.boundary(setting, np.array([before]), t, np.array([kept]))
                    total[row] += float(np.sum(part))
                before = kept
        np.testing.assert_allclose(model.of(setting, counts, visual, text), total, rtol=1e-12)

    def test_more_tokens_never_cost_less(self, model: CostModel) -> None:
        """Without scoring, which a schedule that drops nothing does not need."""
        if not self.monotone:
            return
        setting, (counts, visual, text) = replace(a_setting(), method=None), some_counts(3)
        sign = -1 if model.larger_is_better else 1
        for layer in range(SHAPE.layers):
            more = counts.copy()
            more[:, : layer + 1] = np.minimum(more[:, : layer + 1] + 3, visual[:, None])
            difference = model.of(setting, more, visual, text) - model.of(setting, counts, visual, text)
            assert (sign * difference >= -1e-12).all()

    def test_relaxed_form_is_the_discrete_one_at_whole_counts(self, model: CostModel) -> None:
        setting, (counts, visual, text) = replace(a_setting(), method=None), some_counts(4)
        kept = torch.tensor(counts, dtype=torch.float64, requires_grad=True)
        v, t = torch.tensor(visual, dtype=torch.float64), torch.tensor(text, dtype=torch.float64)
        relaxed = model.relaxed(setting, kept, v, t)
        np.testing.assert_allclose(relaxed.detach().numpy(), model.of(setting, counts, visual, text), rtol=1e-12)
        (slope,) = torch.autograd.grad(relaxed.sum(), [kept])
        assert torch.isfinite(slope).all()

    def test_says_that_it_needs_a_profile(self, model: CostModel) -> None:
        setting = replace(a_setting(), profile=None)
        if not model.needs_profile:
            assert model.of(setting, *some_counts(5)).tolist() == model.of(a_setting(), *some_counts(5)).tolist()
            return
        with pytest.raises(ConfigError, match="vispco profile"):
            model.of(setting, *some_counts(5))
