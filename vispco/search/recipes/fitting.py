"""A schedule for every budget from one scalar, which is found by bisection on the calibration split.

What a value of the scalar gives is stored at once, so that a search that was stopped goes on after the last one, and
every trial is charged what an undisturbed run would have been. Budgets share what they have in common: each value of
the scalar is tried once, and charged to the first budget that asks for it.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from vispco.pruning.schedules import Schedule
from vispco.search.base import Options, Proposal, Search, SearchContext

TIE = 1e-12

Fit = Mapping[str, Any]


class FittingSearch(Search):
    """Largest budget first; for each the least scalar that reaches it, then snapped to it.

    A larger scalar prunes more. Value number n of ``steps`` stands for the n-th part of the scalar's range; the last
    is not tried: it stands for the cheapest schedule. Proposals do not depend on what is measured, so they are measured
    together at the end.
    """

    fixed_family: ClassVar[str | None] = "layerwise"
    reads_calibration: ClassVar[bool] = True
    steps: ClassVar[int]

    def __init__(self, context: SearchContext, options: Options) -> None:
        super().__init__(context, options)
        self._fits: dict[int, Fit] = {}

    @abstractmethod
    def fit(self, number: int) -> Fit:
        """What value ``number`` of the scalar gives, as plain data, with the ``flops`` that finding it took.

        A function of the seed and of the fits before, which are in ``self.fits()``, in the order of their making.
        """

    @abstractmethod
    def reaches(self, fit: Fit, budget: float) -> bool:
        """Whether a fit comes within the budget before it is snapped."""

    @abstractmethod
    def schedule(self, fit: Fit, budget: float) -> Schedule:
        """The schedule of a fit that reaches the budget."""

    def fits(self) -> list[Fit]:
        """Fits that were made, oldest first."""
        return list(self._fits.values())

    def run(self) -> None:
        context, budgets = self.context, sorted(self.context.budgets, reverse=True)
        done = {trial.user_attrs["budget"] for trial in context.log.settled()}
        total, before = len(budgets), sum(budget in done for budget in budgets)
        context.advance(before, total, "")
        if before == total:
            return
        self._fits = self._recall()
        asked: set[int] = set()
        wanted = []
        for budget in sorted(budgets, key=lambda budget: budget not in done):  # what trials have paid is not paid again
            started, earlier = time.monotonic(), set(asked)
            context.advance(before, total, f"fitting budget {budget:.3f}")
            number = self._least(budget, asked)
            flops = sum(self._fits[n]["flops"] for n in asked - earlier)
            if budget in done:
                continue
            schedule = context.family.cheapest() if number is None else self.schedule(self._fits[number], budget)
            snapped = context.family.snap(schedule, lambda s, b=budget: self._ratio(s) <= b + TIE)  # type: ignore[misc]
            attributes = {"budget": budget, "scalar": 1.0 if number is None else number / self.steps}
            wanted.append(Proposal(snapped, None, flops, time.monotonic() - started, attributes))

        def tell(landed: int) -> None:
            context.advance(before + landed, total, f"budget {wanted[landed - 1].attributes['budget']:.3f}")

        self.measure(wanted, tell)

    def _least(self, budget: float, asked: set[int]) -> int | None:
        """Number of the least value that reaches the budget, None if only the last does; notes what it ``asked``."""
        low, high = 0, self.steps
        while high - low > 1:
            middle = (low + high) // 2
            if middle not in self._fits:
                row = {"number": middle, "made": len(self._fits), **self.fit(middle)}
                self.context.store.save_steps(self.context.log.name, f"fit-{middle}", [row])
                self._fits[middle] = json.loads(json.dumps(row))
            asked.add(middle)
            low, high = (low, middle) if self.reaches(self._fits[middle], budget) else (middle, high)
        return high if high < self.steps else None

    def _recall(self) -> dict[int, Fit]:
        """Fits of an earlier run, in the order of their making."""
        rows = [row for rows in self.context.store.trajectory(self.context.log.name).values() for row in rows]
        return {row["number"]: row for row in sorted(rows, key=lambda row: row["made"])}

    def _ratio(self, schedule: Schedule) -> float:
        return self.context.evaluator.flops_ratio(schedule, "search", self.context.method)
