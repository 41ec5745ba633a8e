"""One share of the tokens at every layer: what servers that drop before the decoder can run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.pruning.families.base import FAMILIES, Fits, ScheduleFamily, down, largest, logit
from vispco.pruning.schedules import Schedule, Step, resolution_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from torch import Tensor


@FAMILIES.register("constant")
class ConstantFamily(ScheduleFamily):
    """``step(layer=0, keep)``: tokens are dropped before the first layer.

    The free parameter is keep's log-odds; there is nothing to sharpen.
    """

    name = "constant"
    before_decoder: ClassVar[bool] = True

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution

        return {"keep": FloatDistribution(0.0, 1.0)}

    def schedule(self, parameters: dict[str, Any]) -> Schedule:
        return Step(layer=0, keep=round(float(parameters["keep"]), 4))

    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        assert isinstance(schedule, Step)
        return {"keep": schedule.keep}

    def like(self, schedule: Schedule) -> Schedule | None:
        ratios, whole = set(schedule.keep_ratio(self.layers)), resolution_of(schedule) in (None, 1.0)
        return Step(layer=0, keep=ratios.pop()) if whole and len(ratios) == 1 else None

    def cheapest(self) -> Schedule:
        return Step(layer=0, keep=0.0)

    def dense_grid(self) -> Iterator[Schedule]:
        """Keep 0, 0.02, ..., 1."""
        for fiftieth in range(51):
            yield Step(layer=0, keep=fiftieth / 50)

    def start(self) -> Tensor:
        import torch

        return torch.tensor([logit(0.5)])

    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        import torch

        return torch.sigmoid(free).expand(*free.shape[:-1], self.layers)

    def upward(self) -> Tensor:
        import torch

        return torch.ones(1)

    def discrete(self, free: Tensor) -> Schedule:
        import torch

        return Step(layer=0, keep=float(torch.sigmoid(free[0])))

    def invert(self, schedule: Schedule, free: Tensor) -> Tensor:
        import torch

        assert isinstance(schedule, Step)
        return torch.tensor([logit(schedule.keep)], dtype=free.dtype)

    def snap(self, schedule: Schedule, fits: Fits) -> Schedule:
        return largest(lambda keep: Step(0, down(keep)), fits, 0.0, 1.0) or self.cheapest()
