"""Free parameters of their own for every budget, found one budget after another (``predictor: static``)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vispco.search.gradient.predictor import ParameterTable

if TYPE_CHECKING:
    from vispco.search.gradient.search import GradientSearch

SETTLED = 0.02  # change of every keep ratio


class OneByOne:
    """Each budget starts from its neighbour's solution and multiplier."""

    def __init__(self, search: GradientSearch) -> None:
        self.search, self.context, self.options = search, search.context, search.options

    def run(self, budgets: list[float]) -> None:
        done = self.search.done()
        free: Tensor = self.context.family.start()
        multiplier = 0.0
        for number, budget in enumerate(budgets):
            if budget in done:
                first = done[budget][0]
                free = torch.tensor(first.user_attrs["free"], dtype=torch.float64)
                multiplier = first.user_attrs["multiplier"]
                self.search.measure(self.search.runners_up(done[budget]))
            else:
                free, multiplier = self._solve(number, budget, free, multiplier)
            self.context.advance(number + 1, len(budgets) + self.options.between, f"budget {budget:.3f}")

    def _solve(self, number: int, budget: float, start: Tensor, multiplier: float) -> tuple[Tensor, float]:
        """Find, measure and store the schedules of one budget; returns where the next budget starts."""
        started = time.monotonic()
        budgets = torch.tensor([budget], dtype=torch.float64)
        descent = self.search.descent(
            ParameterTable(start, 1),
            budgets,
            f"{self.search.kind}/{self.context.seed}/{number}",
            settled=self._settles(budget),
        )
        descent.constraint.restore([[multiplier, self.options.penalty, math.inf]])
        descent.run()
        free = descent.free().detach()[0]
        (ranked,) = self.search.ranking.nearest_each([(budget, self.search.snapped(free, budget))])
        free, proposals = self.search.proposals(number, budget, free, ranked, descent, number)
        self.search.measure(self.search.billed(proposals, started))
        return free, proposals[0].attributes["multiplier"]

    def _settles(self, budget: float) -> Callable[[Tensor], bool]:
        """Whether the snapped schedule is the one of the dual step before."""
        family, fits = self.context.family, self.search.fits(budget)
        before: list[tuple[float, ...]] = []

        def settled(free: Tensor) -> bool:
            now = family.snap(family.discrete(free[0]), fits).keep_ratio(family.layers)
            same = bool(before) and max(abs(a - b) for a, b in zip(before[-1], now, strict=True)) <= SETTLED
            before.append(now)
            return same

        return settled
