"""Several steps, and a ratio of its own for every layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vispco.pruning.families.base import (
    FAMILIES,
    SHAPE_SHARE,
    Fits,
    ScheduleFamily,
    down,
    largest,
    logit,
    sigmoid,
    steps_of,
)
from vispco.pruning.schedules import MultiStep, Ratios, Schedule, Step

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from torch import Tensor

REACH = 16.0


def shares_to_ratios(shares: Sequence[float]) -> list[float]:
    """Falling ratios from ``shares`` in [0, 1]: ``r_j = r_(j-1) u_j^(1/(n-j+1))``.

    For independent uniform shares these are n uniform numbers sorted from large to small, so that drawing
    shares favours no depth of pruning.
    """
    ratios, ratio = [], 1.0
    for place, share in enumerate(shares):
        ratio *= share ** (1 / (len(shares) - place))
        ratios.append(ratio)
    return ratios


def ratios_to_shares(ratios: Sequence[float]) -> list[float]:
    """Inverse of :func:`shares_to_ratios`."""
    shares, before = [], 1.0
    for place, ratio in enumerate(ratios):
        shares.append(min(1.0, (ratio / before) ** (len(ratios) - place)) if before > 0 else 0.0)
        before = ratio
    return shares


def shifted(ratios: Sequence[float], by: float) -> list[float]:
    """``ratios`` moved by ``by`` in log-odds, down to 0 and up to 1; order stays. Below one in a thousand is 0."""
    moved = []
    for ratio in ratios:
        if abs(by) >= REACH:
            moved.append(float(by > 0))
            continue
        p = min(max(ratio, 1e-4), 1 - 1e-4)
        value = sigmoid(math.log(p / (1 - p)) + by)
        moved.append(0.0 if value < 1e-3 else down(value))
    return moved


@FAMILIES.register("multistep")
class MultiStepFamily(ScheduleFamily):
    """``multistep`` with up to three steps: a layer each, and the share that enters from there on.

    Free parameters: centres ``(L-1) sigmoid(a_j)`` and factors ``sigmoid(b_j)``. Differentiable form: the product
    of the single steps' kernels, ``prod_j (1 - (1-f_j) sigmoid(sharpness (l - c_j)))``; the official code has one
    step only, so this form is ours.
    """

    name = "multistep"
    steps = 3

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution, IntDistribution

        layers = {f"layer_{j}": IntDistribution(1, self.layers - 1) for j in range(1, self.steps + 1)}
        return {**layers, **{f"share_{j}": FloatDistribution(0.0, 1.0) for j in range(1, self.steps + 1)}}

    def schedule(self, parameters: dict[str, Any]) -> Schedule:
        """Layers are sorted; of steps at one layer the last counts."""
        numbers = range(1, self.steps + 1)
        layers = sorted(int(parameters[f"layer_{j}"]) for j in numbers)
        return _merged(layers, shares_to_ratios([float(parameters[f"share_{j}"]) for j in numbers]))

    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        assert isinstance(schedule, MultiStep)
        missing = self.steps - len(schedule.layers)
        # Steps of one layer: the last counts, so the missing ones go before the first, with nothing dropped.
        layers = [schedule.layers[0]] * missing + list(schedule.layers)
        shares = ratios_to_shares([1.0] * missing + list(schedule.keeps))
        return {
            **{f"layer_{j}": layer for j, layer in enumerate(layers, start=1)},
            **{f"share_{j}": share for j, share in enumerate(shares, start=1)},
        }

    def cheapest(self) -> Schedule:
        return MultiStep((1,), (0.0,))

    def dense_grid(self) -> Iterator[Schedule]:
        """Every choice of one to three layers with falling quarters, and keep 1 once."""
        quarters = (0.75, 0.5, 0.25, 0.0)
        for steps in range(1, self.steps + 1):
            for layers in itertools.combinations(range(1, self.layers), steps):
                for keeps in itertools.combinations(quarters, steps):
                    yield MultiStep(layers, keeps)
        yield MultiStep((1,), (1.0,))

    def start(self) -> Tensor:
        import torch

        at = [(j + 1) / (self.steps + 1) for j in range(self.steps)]
        return torch.tensor([logit(p) for p in at] + [logit(0.5 ** (1 / self.steps))] * self.steps)

    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        import torch

        centres = (self.layers - 1) * torch.sigmoid(free[..., : self.steps, None])
        factors = torch.sigmoid(free[..., self.steps :, None])
        at = torch.arange(self.layers, dtype=free.dtype, device=free.device)
        kernels = 1 - (1 - factors) * torch.sigmoid(sharpness * (at - centres))
        return kernels.prod(dim=-2)

    def upward(self) -> Tensor:
        import torch

        return torch.tensor([SHAPE_SHARE] * self.steps + [1.0] * self.steps)

    def discrete(self, free: Tensor) -> Schedule:
        import torch

        centres = ((self.layers - 1) * torch.sigmoid(free[: self.steps])).tolist()
        factors = torch.sigmoid(free[self.steps :]).tolist()
        order = sorted(range(self.steps), key=lambda j: centres[j])
        layers = [min(self.layers - 1, int(centres[j]) + 1) for j in order]
        return _merged(layers, list(itertools.accumulate((factors[j] for j in order), lambda a, b: a * b)))

    def from_ratios(self, keep_ratio: Sequence[float]) -> Schedule | None:
        steps = steps_of(keep_ratio) or [(1, 1.0)]
        return MultiStep(*zip(*steps, strict=True)) if len(steps) <= self.steps else None

    def invert(self, schedule: Schedule, free: Tensor) -> Tensor:
        import torch

        assert isinstance(schedule, MultiStep)
        missing = self.steps - len(schedule.layers)
        layers = [schedule.layers[0]] * missing + list(schedule.layers)
        ratios = [1.0] * (missing + 1) + list(schedule.keeps)
        factors = [b / a if a > 0 else 1.0 for a, b in itertools.pairwise(ratios)]
        values = [logit((layer - 0.5) / (self.layers - 1)) for layer in layers]
        return torch.tensor(values + [logit(min(max(f, 0.02), 0.98)) for f in factors], dtype=free.dtype)

    def neighbours(self, schedule: Schedule, by: int = 1) -> list[Schedule]:
        """One step moved by one layer, or ``by`` layers, either way."""
        assert isinstance(schedule, MultiStep)
        found: list[Schedule] = []
        for j, far in itertools.product(range(len(schedule.layers)), (-by, by)):
            layers = [layer + far * (i == j) for i, layer in enumerate(schedule.layers)]
            if layers == sorted(set(layers)) and layers[0] >= 1 and layers[-1] < self.layers:
                found.append(MultiStep(layers, schedule.keeps))
        return found

    def snap(self, schedule: Schedule, fits: Fits) -> Schedule:
        assert isinstance(schedule, MultiStep)
        layers = list(schedule.layers)
        while layers[0] > 1 and not fits(Step(layers[0], 0.0)):
            layers = [max(layer - 1, 1) for layer in layers]
        found = largest(lambda by: _merged(layers, shifted(schedule.keeps, by)), fits, -REACH, REACH)
        return found or self.cheapest()


def _merged(layers: Sequence[int], keeps: Sequence[float]) -> MultiStep:
    """Steps without those that drop nothing or share a layer with a later one."""
    last = {layer: down(keep) for layer, keep in zip(layers, keeps, strict=True)}
    steps: list[tuple[int, float]] = []
    for layer, keep in sorted(last.items()):
        if keep < (steps[-1][1] if steps else 1.0):
            steps.append((layer, keep))
    steps = steps or [(1, 1.0)]
    return MultiStep([layer for layer, _ in steps], [keep for _, keep in steps])


@FAMILIES.register("layerwise")
class LayerwiseFamily(ScheduleFamily):
    """A keep ratio for every layer from 1 to L-1, falling; all tokens enter layer 0.

    Free parameters: factors ``sigmoid(a_l)`` from layer to layer; the differentiable form is their running
    product and has nothing to sharpen.
    """

    name = "layerwise"

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution

        return {f"share_{layer}": FloatDistribution(0.0, 1.0) for layer in range(1, self.layers)}

    def schedule(self, parameters: dict[str, Any]) -> Schedule:
        ratios = shares_to_ratios([float(parameters[f"share_{layer}"]) for layer in range(1, self.layers)])
        return Ratios([1.0, *map(down, ratios)])

    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        shares = ratios_to_shares(schedule.keep_ratio(self.layers)[1:])
        return {f"share_{layer}": share for layer, share in enumerate(shares, start=1)}

    def cheapest(self) -> Schedule:
        return Ratios([1.0] + [0.0] * (self.layers - 1))

    def start(self) -> Tensor:
        import torch

        return torch.tensor([logit(0.25 ** (1 / (self.layers - 1)))] * (self.layers - 1))

    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        import torch

        return torch.cat([torch.ones_like(free[..., :1]), torch.sigmoid(free).cumprod(dim=-1)], dim=-1)

    def upward(self) -> Tensor:
        import torch

        return torch.ones(self.layers - 1)

    def discrete(self, free: Tensor) -> Schedule:
        return Ratios([1.0, *(down(float(r)) for r in self.relaxed(free, 1.0)[1:])])

    def from_ratios(self, keep_ratio: Sequence[float]) -> Schedule | None:
        return Ratios([1.0, *map(down, keep_ratio[1:])])

    def invert(self, schedule: Schedule, free: Tensor) -> Tensor:
        import torch

        ratios = schedule.keep_ratio(self.layers)
        factors = [b / a if a > 0 else 0.5 for a, b in itertools.pairwise(ratios)]
        return torch.tensor([logit(min(max(f, 0.02), 0.99)) for f in factors], dtype=free.dtype)

    def snap(self, schedule: Schedule, fits: Fits) -> Schedule:
        ratios = schedule.keep_ratio(self.layers)[1:]
        return largest(lambda by: Ratios([1.0, *shifted(ratios, by)]), fits, -REACH, REACH) or self.cheapest()
