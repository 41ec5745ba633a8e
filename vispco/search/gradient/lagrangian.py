"""The learned frontier: schedule parameters by gradients through the relaxed model.

For budgets b: minimise KL(teacher || student) over the family's free parameters subject to flops_ratio <= b; snap the
result to the budget (bisection on the monotone cost, so that the realised ratio is never above it); compare it with the
neighbouring shapes on the calibration split; measure the best with the shared evaluator. Then measure some more
budgets, where the front found so far leaves the largest gaps.

Three ways to parametrise (``predictor``): ``budget``, one small network that reads the budget, trained once for all;
``static``, free parameters for each budget, found one budget after another, each from its neighbour's solution and
multiplier; ``input``, a network that also reads the prompt, so that every sample has its own schedule. Two ways to
hold the budget: the augmented Lagrangian (kind ``lagrangian``), and by construction (kind ``on_budget``).

With a predictor, the schedules of all budgets are checked together and measured together, so that what they have in
common runs once.

After arXiv 2604.15188. Deviations: the violation is normalised by the budget; several primal steps per dual step; the
penalty is capped; exact FLOPs; with every dual step the budgets are restored by steps on the constraints alone; a final
check on the calibration split.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vispco.search.base import SEARCHES
from vispco.search.gradient.constraints import ByConstruction, ByLagrangian, Constraint
from vispco.search.gradient.search import GradientSearch

TOLERANCE = 0.01  # of flops_ratio, within which every budget is held before it is snapped


@SEARCHES.register("lagrangian")
class LagrangianSearch(GradientSearch):
    """Budgets held by the augmented Lagrangian method.

    A few primal steps per dual step move a relaxed schedule away from its budget faster than the multiplier brings it
    back, and a step of a predictor for one budget moves all others. So with every dual step the budgets are restored by
    steps on the constraints alone, which run no model.
    """

    kind: ClassVar[str] = "lagrangian"
    tolerance: ClassVar[float | None] = TOLERANCE

    def constraint(self, budgets: Tensor) -> Constraint:
        options = self.options
        equality = options.predictor != "static" and not self._limits  # a limit may keep a budget from being reached
        return ByLagrangian(len(budgets), options.penalty, options.penalty_cap, equality)


@SEARCHES.register("on_budget")
class OnBudgetSearch(GradientSearch):
    """Every gradient step is on budget by construction: no multiplier, no penalty."""

    kind: ClassVar[str] = "on_budget"

    def constraint(self, budgets: Tensor) -> Constraint:
        return ByConstruction(self.context.family, self._cost, budgets)
