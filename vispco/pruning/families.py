"""Schedule families: a few parameters -> a schedule. Each has a discrete and a differentiable form.

The discrete form is what samplers draw (Optuna distributions) and what is measured; the differentiable form
is what the lagrangian search optimises. They agree where the differentiable one is sharp (a test).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.pruning.schedules import Schedule, Step
from vispco.registry import Registry

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from torch import Tensor

FAMILIES = Registry("family of schedules")


class ScheduleFamily(ABC):
    """Bounds, discrete form and differentiable form of one family, for a decoder of ``layers`` layers."""

    name: ClassVar[str]

    def __init__(self, layers: int) -> None:
        self.layers = layers

    @abstractmethod
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna samplers draw from."""

    @abstractmethod
    def schedule(self, parameters: dict[str, Any]) -> Schedule:
        """The schedule of drawn ``parameters``."""

    @abstractmethod
    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        """Inverse of :meth:`schedule`, for schedules of this family."""

    @abstractmethod
    def cheapest(self) -> Schedule:
        """The schedule with the least compute; it defines the floor."""

    @abstractmethod
    def dense_grid(self) -> Iterator[Schedule]:
        """The family's dense grid, without repeated schedules."""

    @abstractmethod
    def start(self) -> Tensor:
        """Free parameters [P] to start a gradient search from."""

    @abstractmethod
    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        """Keep ratios [L], differentiable in the free parameters [P]; large ``sharpness`` is nearly discrete."""

    @abstractmethod
    def discrete(self, free: Tensor) -> Schedule:
        """The schedule that :meth:`relaxed` approaches as it sharpens."""

    @abstractmethod
    def snap(self, schedule: Schedule, fits: Callable[[Schedule], bool]) -> Schedule:
        """The schedule of the same shape with the most tokens that still ``fits``; the cheapest if none does."""

    def invert(self, schedule: Schedule, free: Tensor) -> Tensor:
        """Free parameters whose :meth:`discrete` form is near ``schedule``; ``free`` is where the search stood."""
        return free

    def neighbours(self, schedule: Schedule) -> list[Schedule]:
        """Schedules of nearby shape, for a discrete check at the end of a gradient search. Default: none."""
        return []


@FAMILIES.register("step")
class StepFamily(ScheduleFamily):
    """``step(layer, keep)``, layer 1..L-1; free parameters (a, b): centre ``(L-1) sigmoid(a)``, keep ``sigmoid(b)``.

    Differentiable form: the kernel of the official code, ``1 - (1-r) sigmoid(sharpness (l - k))`` with centre k
    (arXiv 2604.15188; slope 10 there, any slope here). The first layer after the centre is the one that prunes.
    """

    name = "step"

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution, IntDistribution

        return {"layer": IntDistribution(1, self.layers - 1), "keep": FloatDistribution(0.0, 1.0)}

    def schedule(self, parameters: dict[str, Any]) -> Schedule:
        """``keep`` is rounded to four digits, finer than any number of tokens and short to read."""
        return Step(layer=int(parameters["layer"]), keep=round(float(parameters["keep"]), 4))

    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        assert isinstance(schedule, Step)
        return {"layer": schedule.layer, "keep": schedule.keep}

    def cheapest(self) -> Schedule:
        return Step(layer=1, keep=0.0)

    def dense_grid(self) -> Iterator[Schedule]:
        """Layers 1..L-1 times keep 0, 0.05, ..., 0.95, and keep 1 once (at every layer it is the same)."""
        for layer in range(1, self.layers):
            for twentieth in range(20):
                yield Step(layer=layer, keep=twentieth / 20)
        yield Step(layer=1, keep=1.0)

    def start(self) -> Tensor:
        import torch

        return torch.tensor([_logit(0.5), _logit(0.5)])

    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        import torch

        centre = (self.layers - 1) * torch.sigmoid(free[0])
        at = torch.arange(self.layers, dtype=free.dtype, device=free.device)
        return 1 - (1 - torch.sigmoid(free[1])) * torch.sigmoid(sharpness * (at - centre))

    def discrete(self, free: Tensor) -> Schedule:
        import torch

        centre = float((self.layers - 1) * torch.sigmoid(free[0]))
        return Step(layer=min(self.layers - 1, int(centre) + 1), keep=float(torch.sigmoid(free[1])))

    def invert(self, schedule: Schedule, free: Tensor) -> Tensor:
        import torch

        assert isinstance(schedule, Step)
        centre = (schedule.layer - 0.5) / (self.layers - 1)
        keep = min(max(schedule.keep, 0.02), 0.98)
        return torch.tensor([_logit(centre), _logit(keep)], dtype=free.dtype)

    def neighbours(self, schedule: Schedule) -> list[Schedule]:
        assert isinstance(schedule, Step)
        layers = (schedule.layer - 1, schedule.layer + 1)
        return [Step(layer, schedule.keep) for layer in layers if 1 <= layer < self.layers]

    def snap(self, schedule: Schedule, fits: Callable[[Schedule], bool]) -> Schedule:
        assert isinstance(schedule, Step)
        layer = schedule.layer
        while layer > 1 and not fits(Step(layer, 0.0)):
            layer -= 1
        if fits(Step(layer, 1.0)):
            return Step(layer, 1.0)
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(Step(layer, middle)) else (low, middle)
        return Step(layer, math.floor(low * 1e4) / 1e4)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
