"""How near a budget's relaxed solution is to the Karush-Kuhn-Tucker conditions.

At a solution of: minimise f subject to g <= 0, there is a multiplier m >= 0 with grad f + m grad g = 0 and m g = 0
(Nocedal & Wright, Numerical Optimization, 2nd ed., theorem 12.1). f is the loss, g the violation relative to the
budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vispco.pruning.families import ScheduleFamily
from vispco.search.gradient.relaxed_cost import Relaxed


def residuals(
    family: ScheduleFamily, cost: Relaxed, free: Tensor, sharpness: float, slope: Sequence[float], budget: float
) -> dict[str, float]:
    """``stationarity``, ``feasibility`` and ``complementarity``; all 0 at a solution.

    The multiplier is the one that fits best, m = max(0, -grad f . grad g / |grad g|^2) (least squares). Stationarity is
    what it leaves, |grad f + m grad g| / |grad f|: 1 where moving along the budget would gain as much as leaving it.
    Feasibility is max(0, g); complementarity is |m g|, in units of the loss.

    Args:
        free: [P], in which gradients are taken.
        slope: [L], derivative of the loss with respect to the keep ratios; noisy, a mean over mini-batches.
    """
    free = free.detach().double().requires_grad_(True)
    ratios = family.relaxed(free, sharpness)
    violation = (cost(ratios) - budget) / budget
    (loss,) = torch.autograd.grad((ratios * torch.tensor(slope, dtype=ratios.dtype)).sum(), [free], retain_graph=True)
    (over,) = torch.autograd.grad(violation, [free])
    multiplier = max(0.0, -float(loss @ over) / max(float(over @ over), 1e-30))
    size, value = float(loss.norm()), float(violation.detach())
    return {
        "stationarity": float((loss + multiplier * over).norm()) / size if size > 0 else 0.0,
        "feasibility": max(0.0, value),
        "complementarity": abs(multiplier * value),
    }
