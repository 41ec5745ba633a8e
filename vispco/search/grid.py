"""The dense grid: every schedule of the family's grid, exactly once, whatever was interrupted before."""

from __future__ import annotations

from typing import ClassVar

from vispco.search.base import SEARCHES, Search


@SEARCHES.register("grid")
class GridSearch(Search):
    """The empirical frontier. We enumerate the points ourselves: Optuna's grid samplers lose or repeat points."""

    kind: ClassVar[str] = "grid"

    def run(self) -> None:
        points = list(self.context.family.dense_grid())
        done = self.context.log.schedules()
        for number, schedule in enumerate(points, start=1):
            if schedule.text() not in done:
                self.measure(schedule)
            self.context.advance(number, len(points), schedule.text())
