"""Families that fall along a formula: linear, exponential, sigmoid. Each has two shape parameters and ``keep``.

Their differentiable form is the formula itself, so there is nothing to sharpen.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.pruning.families.base import FAMILIES, SHAPE_SHARE, Fits, ScheduleFamily, down, largest, logit
from vispco.pruning.schedules import Curve, Exponential, Linear, Schedule, Sigmoid

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from torch import Tensor


class CurveFamily(ScheduleFamily):
    """Shape parameters lie in ``bounds()``, (low, high, cheap): ``cheap`` is the end with the fewer tokens."""

    kind: ClassVar[type[Curve]]
    log: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[frozenset[str]] = frozenset()  # adds tokens at some layers and takes them at others

    @abstractmethod
    def bounds(self) -> dict[str, tuple[float, float, float]]:
        """Lowest, highest and cheapest value of every shape parameter, in the order of the schedule's fields."""

    @abstractmethod
    def formula(self, at: Tensor, first: Tensor, second: Tensor, keep: Tensor) -> Tensor:
        """Keep ratio at layers ``at``, as in the schedule's :meth:`Curve.at`."""

    @abstractmethod
    def grid_values(self) -> tuple[list[float], list[float]]:
        """Values of the two shape parameters in the dense grid."""

    def _make(self, values: dict[str, float]) -> Schedule:
        return self.kind(**values)

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution

        shapes = {
            name: FloatDistribution(low, high, log=name in self.log) for name, (low, high, _) in self.bounds().items()
        }
        return {**shapes, "keep": FloatDistribution(0.0, 1.0)}

    def schedule(self, parameters: dict[str, Any]) -> Schedule:
        return self._make({name: round(float(parameters[name]), 4) for name in (*self.bounds(), "keep")})

    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        return {name: getattr(schedule, name) for name in (*self.bounds(), "keep")}

    def like(self, schedule: Schedule) -> Schedule | None:
        return schedule if type(schedule) is self.kind else super().like(schedule)

    def cheapest(self) -> Schedule:
        return self._make({**{name: cheap for name, (_, _, cheap) in self.bounds().items()}, "keep": 0.0})

    def dense_grid(self) -> Iterator[Schedule]:
        """The grid's shapes times keep 0, 0.1, ..., 0.9, and keep 1 once."""
        names = list(self.bounds())
        for first, second in itertools.product(*self.grid_values()):
            for tenth in range(10):
                yield self._make({names[0]: first, names[1]: second, "keep": tenth / 10})
        yield self._make({**{name: cheap for name, (_, _, cheap) in self.bounds().items()}, "keep": 1.0})

    # --- free parameters: log-odds of the place between the bounds ---------------------------------

    def _values(self, free: Tensor) -> list[Tensor]:
        import torch

        values = []
        for number, (name, (low, high, _)) in enumerate(self.bounds().items()):
            place = torch.sigmoid(free[..., number, None])
            if name in self.log:
                values.append(low * (high / low) ** place)
            else:
                values.append(low + (high - low) * place)
        return [*values, torch.sigmoid(free[..., 2, None])]

    def start(self) -> Tensor:
        import torch

        return torch.zeros(3)

    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        import torch

        at = torch.arange(1, self.layers, dtype=free.dtype, device=free.device)
        return torch.cat([torch.ones_like(free[..., :1]), self.formula(at, *self._values(free)).clamp(0, 1)], dim=-1)

    def upward(self) -> Tensor:
        import torch

        signs = [1.0 if cheap == low else -1.0 for low, _, cheap in self.bounds().values()]
        moves = [
            SHAPE_SHARE * sign * (name not in self.neutral) for name, sign in zip(self.bounds(), signs, strict=True)
        ]
        return torch.tensor([*moves, 1.0])

    def discrete(self, free: Tensor) -> Schedule:
        names = (*self.bounds(), "keep")
        return self._make({n: round(float(v), 4) for n, v in zip(names, self._values(free), strict=True)})

    def invert(self, schedule: Schedule, free: Tensor) -> Tensor:
        import torch

        places = []
        for name, (low, high, _) in self.bounds().items():
            value = min(max(getattr(schedule, name), low), high)
            place = math.log(value / low) / math.log(high / low) if name in self.log else (value - low) / (high - low)
            places.append(min(max(place, 0.02), 0.98))
        places.append(min(max(self.parameters(schedule)["keep"], 0.02), 0.98))
        return torch.tensor([logit(place) for place in places], dtype=free.dtype)

    def snap(self, schedule: Schedule, fits: Fits) -> Schedule:
        """The same shape with another ``keep``; if no keep fits, the shape moved towards the cheapest one."""
        shape = {name: getattr(schedule, name) for name in self.bounds()}
        found = largest(lambda keep: self._make({**shape, "keep": down(keep)}), fits, 0.0, 1.0)
        if found is not None:
            return found
        cheap = {name: end for name, (_, _, end) in self.bounds().items()}

        def towards(share: float) -> Schedule:
            values = {name: round(cheap[name] + share * (shape[name] - cheap[name]), 4) for name in shape}
            return self._make({**values, "keep": 0.0})

        return largest(towards, fits, 0.0, 1.0) or self.cheapest()

    def neighbours(self, schedule: Schedule, by: int = 1) -> list[Schedule]:
        """The curve half a layer earlier and later, or ``by`` halves."""
        values, first = self.parameters(schedule), next(iter(self.bounds()))
        low, high, _ = self.bounds()[first]
        moved = (round(values[first] + half * by, 4) for half in (-0.5, 0.5))
        return [self._make({**values, first: value}) for value in moved if low <= value <= high]


@FAMILIES.register("linear")
class LinearFamily(CurveFamily):
    """``linear(start, width, keep)``: falls in a straight line from 1 to ``keep``."""

    name = "linear"
    kind = Linear

    def bounds(self) -> dict[str, tuple[float, float, float]]:
        return {"start": (0.0, self.layers - 1.0, 0.0), "width": (1.0, float(self.layers), 1.0)}

    def formula(self, at: Tensor, first: Tensor, second: Tensor, keep: Tensor) -> Tensor:
        return 1 - (1 - keep) * ((at - first) / second).clamp(0, 1)

    def grid_values(self) -> tuple[list[float], list[float]]:
        widths = sorted({1.0, max(1.0, self.layers / 4), max(1.0, self.layers / 2), float(self.layers)})
        return [float(layer) for layer in range(self.layers - 1)], widths


@FAMILIES.register("exponential")
class ExponentialFamily(CurveFamily):
    """``exponential(start, rate, keep)``: falls by a constant factor per layer towards ``keep``."""

    name = "exponential"
    kind = Exponential
    log = frozenset({"rate"})

    def bounds(self) -> dict[str, tuple[float, float, float]]:
        return {"start": (0.0, self.layers - 1.0, 0.0), "rate": (0.05, 8.0, 8.0)}

    def formula(self, at: Tensor, first: Tensor, second: Tensor, keep: Tensor) -> Tensor:
        return keep + (1 - keep) * (-second * (at - first).clamp(min=0)).exp()

    def grid_values(self) -> tuple[list[float], list[float]]:
        return [float(layer) for layer in range(self.layers - 1)], [0.125, 0.5, 2.0, 8.0]


@FAMILIES.register("sigmoid")
class SigmoidFamily(CurveFamily):
    """``sigmoid(centre, slope, keep)``: falls from 1 to ``keep`` around a centre.

    The official code's kernel with its slope of 10 made learnable.
    """

    name = "sigmoid"
    kind = Sigmoid
    log = frozenset({"slope"})
    neutral = frozenset({"slope"})

    def bounds(self) -> dict[str, tuple[float, float, float]]:
        return {"centre": (0.0, self.layers - 1.0, 0.0), "slope": (0.3, 10.0, 10.0)}

    def formula(self, at: Tensor, first: Tensor, second: Tensor, keep: Tensor) -> Tensor:
        return 1 - (1 - keep) * (second * (at - first)).sigmoid()

    def grid_values(self) -> tuple[list[float], list[float]]:
        return [layer + 0.5 for layer in range(self.layers - 1)], [0.5, 1.0, 2.0, 10.0]
