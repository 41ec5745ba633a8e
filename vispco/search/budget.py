"""The compute of relaxed schedules, and schedules that are on budget by construction."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vispco.costs import decoder_flops, plain_flops

if TYPE_CHECKING:
    from vispco.evaluation.evaluator import Evaluator
    from vispco.pruning.families import ScheduleFamily

REACH = 80.0
HALVINGS = 48


class RelaxedCost:
    """``flops_ratio`` of real-valued keep ratios on the search split, differentiable; scoring is left out.

    Reads the split's lengths only, no answers.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        parts = evaluator.prepared("search")
        weights: Counter[tuple[int, int]] = Counter()
        for part in parts:
            for visual, text in zip(part.n_visual.tolist(), part.n_text.tolist(), strict=True):
                weights[visual, text] += 1 / (len(part.samples) * len(parts))  # type: ignore[assignment]
        self.shape = evaluator.problem.shape
        lengths = torch.tensor([[visual, text] for visual, text in sorted(weights)], dtype=torch.float64)
        self._visual, self._text = lengths[:, 0, None], lengths[:, 1, None]
        share = torch.tensor([weights[key] for key in sorted(weights)], dtype=torch.float64)
        whole = plain_flops(self.shape, (self._visual + self._text)[:, 0])
        self._weight = share / whole

    def __call__(self, ratios: Tensor) -> Tensor:
        """float64 [...] of ``ratios`` [..., L]."""
        tokens = self._text + self._visual * ratios.double()[..., None, :]
        cost: Tensor = (decoder_flops(self.shape, tokens) * self._weight).sum(dim=-1)
        return cost


def on_budget(family: ScheduleFamily, cost: RelaxedCost, free: Tensor, budgets: Tensor, sharpness: float) -> Tensor:
    """``free`` [..., P] moved along the family's :meth:`upward` so that its relaxed cost is ``budgets`` [...].

    The distance is found by bisection, since the cost only rises along that direction; its gradient is that of the
    implicit function: at cost(free + t u) = b, dt/dfree = -(dcost/dfree) / (dcost/dt). Out of reach, it stops at
    the nearest end.
    """
    up = family.upward().to(free)
    with torch.no_grad():
        low = torch.full_like(budgets, -REACH)
        high = torch.full_like(budgets, REACH)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            fits = cost(family.relaxed(free + middle[..., None] * up, sharpness)) <= budgets
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    with torch.enable_grad():
        move = low.detach().clone().requires_grad_(True)
        reached = cost(family.relaxed(free.detach() + move[..., None] * up, sharpness))
        (slope,) = torch.autograd.grad(reached.sum(), [move])
    here = cost(family.relaxed(free + low[..., None] * up, sharpness))
    # Where the cost no longer moves, neither does the distance.
    step = torch.where(slope > 1e-9, (here - here.detach()) / slope.clamp(min=1e-9), torch.zeros_like(slope))
    return free + (low - step)[..., None] * up
