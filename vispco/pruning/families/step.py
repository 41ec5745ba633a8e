"""One step: all tokens up to a layer, a share of them from there on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vispco.pruning.families.base import FAMILIES, SHAPE_SHARE, Fits, ScheduleFamily, down, largest, logit, steps_of
from vispco.pruning.schedules import Schedule, Step

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from torch import Tensor


@FAMILIES.register("step")
class StepFamily(ScheduleFamily):
    """``step(layer, keep)``: all tokens up to a layer, a share of them from there on.

    Layers are 1..L-1; free parameters (a, b): centre ``(L-1) sigmoid(a)``, keep ``sigmoid(b)``. Differentiable
    form: the kernel of the official code, ``1 - (1-r) sigmoid(sharpness (l - k))`` with centre k (arXiv
    2604.15188; slope 10 there, any slope here). The first layer after the centre is the one that prunes.
    """

    name = "step"

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution, IntDistribution

        return {"layer": IntDistribution(1, self.layers - 1), "keep": FloatDistribution(0.0, 1.0)}

    def schedule(self, parameters: dict[str, Any]) -> Schedule:
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

        return torch.tensor([logit(0.5), logit(0.5)])

    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        import torch

        centre, keep = (self.layers - 1) * torch.sigmoid(free[..., :1]), torch.sigmoid(free[..., 1:])
        at = torch.arange(self.layers, dtype=free.dtype, device=free.device)
        return 1 - (1 - keep) * torch.sigmoid(sharpness * (at - centre))

    def upward(self) -> Tensor:
        import torch

        return torch.tensor([SHAPE_SHARE, 1.0])

    def discrete(self, free: Tensor) -> Schedule:
        import torch

        centre = float((self.layers - 1) * torch.sigmoid(free[0]))
        return Step(layer=min(self.layers - 1, int(centre) + 1), keep=float(torch.sigmoid(free[1])))

    def from_ratios(self, keep_ratio: Sequence[float]) -> Schedule | None:
        steps = steps_of(keep_ratio)
        return Step(*(steps or [(1, 1.0)])[0]) if len(steps) <= 1 else None

    def invert(self, schedule: Schedule, free: Tensor) -> Tensor:
        import torch

        assert isinstance(schedule, Step)
        centre = (schedule.layer - 0.5) / (self.layers - 1)
        keep = min(max(schedule.keep, 0.02), 0.98)
        return torch.tensor([logit(centre), logit(keep)], dtype=free.dtype)

    def neighbours(self, schedule: Schedule, by: int = 1) -> list[Schedule]:
        assert isinstance(schedule, Step)
        layers = (schedule.layer - by, schedule.layer + by)
        return [Step(layer, schedule.keep) for layer in layers if 1 <= layer < self.layers]

    def snap(self, schedule: Schedule, fits: Fits) -> Schedule:
        assert isinstance(schedule, Step)
        layer = schedule.layer
        while layer > 1 and not fits(Step(layer, 0.0)):
            layer -= 1
        return largest(lambda keep: Step(layer, down(keep)), fits, 0.0, 1.0) or self.cheapest()
