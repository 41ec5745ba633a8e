"""The augmented Lagrangian of one inequality constraint.

Minimise f(x) subject to g(x) <= 0. With multiplier lam >= 0 and penalty rho > 0 the primal steps minimise

    f(x) + psi(g(x)),   psi(g) = (max(0, lam + rho g)^2 - lam^2) / (2 rho)

and every dual step does

    lam <- max(0, lam + rho g)
    rho <- min(cap, growth * rho)   if g > shrink * (the violation of the dual step before), else rho

(Nocedal & Wright, Numerical Optimization, 2nd ed., equations 17.36, 17.64 and 17.65; for one inequality the
slack is eliminated.) The dual step equals the current penalty, which is what makes the multiplier converge;
the cap keeps the last primal problems well conditioned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class AugmentedLagrangian:
    """State of the multiplier and the penalty; violations are normalised by the caller (g / budget here)."""

    multiplier: float = 0.0
    penalty: float = 20.0
    growth: float = 2.0
    shrink: float = 0.5
    cap: float = 200.0
    last_violation: float = float("inf")

    def term(self, violation: Tensor) -> Tensor:
        """``psi``, to be added to the objective; differentiable in ``violation``."""
        pushed = (self.multiplier + self.penalty * violation).clamp(min=0.0)
        return (pushed**2 - self.multiplier**2) / (2 * self.penalty)

    def dual_step(self, violation: float) -> None:
        """Update multiplier, then penalty, from the violation that the primal steps reached."""
        self.multiplier = max(0.0, self.multiplier + self.penalty * violation)
        positive = max(0.0, violation)
        if positive > self.shrink * max(0.0, self.last_violation):
            self.penalty = min(self.cap, self.growth * self.penalty)
        self.last_violation = positive
