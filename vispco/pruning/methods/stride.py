"""Uniform stride: every so-many-th visual token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vispco.pruning.methods.base import METHODS, Method, ScoreContext

if TYPE_CHECKING:
    from torch import Tensor


@METHODS.register("stride")
@dataclass(frozen=True)
class Stride(Method):
    """Keeps tokens ``floor((i + 0.5) * n / keep)`` of the n visual tokens still there, i = 0..keep-1.

    Kept sets at later boundaries are strides of what is left.
    """

    name: ClassVar[str] = "stride"

    def score(self, context: ScoreContext) -> Tensor:
        return -context.rank.float()

    def select(self, context: ScoreContext, scores: Tensor, keep: Tensor) -> Tensor:
        import torch

        visual = context.visual
        order = visual.cumsum(dim=1) - 1
        total = visual.sum(dim=1)
        chosen = torch.zeros_like(visual)
        for row in range(len(visual)):
            count, n = int(keep[row]), int(total[row])
            picks = {int((i + 0.5) * n / count) for i in range(count)}
            chosen[row] = torch.isin(order[row], torch.tensor(sorted(picks), device=order.device, dtype=order.dtype))
        return chosen & visual
