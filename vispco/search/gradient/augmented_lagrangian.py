"""The augmented Lagrangian of one constraint.

Minimise f(x) subject to g(x) <= 0. With multiplier lam >= 0 and penalty rho > 0 the primal steps minimise

    f(x) + psi(g(x)),   psi(g) = (max(0, lam + rho g)^2 - lam^2) / (2 rho)

and every dual step does

    lam <- max(0, lam + rho g)
    rho <- min(cap, growth * rho)   if g > shrink * (the violation of the dual step before), else rho

(Nocedal & Wright, Numerical Optimization, 2nd ed., equations 17.36, 17.64 and 17.65; for one inequality the
slack is eliminated.) The dual step equals the current penalty, which is what makes the multiplier converge;
the cap keeps the last primal problems well conditioned. For an equality g(x) = 0 the multiplier may have any sign:

    psi(g) = lam g + rho g^2 / 2,   lam <- lam + rho g

(equations 17.36 and 17.39), and the penalty grows with |g|. Where more tokens never hurt, the equality has the same
solution as the inequality; it also pulls up a budget whose loss is already too small to do so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class AugmentedLagrangian:
    """State of the multiplier and the penalty; violations are normalised by the caller (g / budget here).

    ``equality``: the constraint is g = 0, not g <= 0.
    """

    multiplier: float = 0.0
    penalty: float = 20.0
    growth: float = 2.0
    shrink: float = 0.5
    cap: float = 200.0
    last_violation: float = float("inf")
    equality: bool = False

    def term(self, violation: Tensor) -> Tensor:
        """``psi``, to be added to the objective; differentiable in ``violation``."""
        if self.equality:
            return self.multiplier * violation + self.penalty * violation**2 / 2
        pushed = (self.multiplier + self.penalty * violation).clamp(min=0.0)
        return (pushed**2 - self.multiplier**2) / (2 * self.penalty)

    def dual_step(self, violation: float) -> None:
        """Update multiplier, then penalty, from the violation that the primal steps reached."""
        self.multiplier += self.penalty * violation
        if not self.equality:
            self.multiplier = max(0.0, self.multiplier)
        size = abs(violation) if self.equality else max(0.0, violation)
        if size > self.shrink * self.last_violation:
            self.penalty = min(self.cap, self.growth * self.penalty)
        self.last_violation = size
