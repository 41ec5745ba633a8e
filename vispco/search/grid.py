"""The dense grid: every schedule of the family's grid, exactly once, whatever was interrupted before."""

from __future__ import annotations

from typing import ClassVar

from vispco.search.base import SEARCHES, Proposal, Search


@SEARCHES.register("grid")
class GridSearch(Search):
    """The empirical frontier. We enumerate the points ourselves: Optuna's grid samplers lose or repeat points."""

    kind: ClassVar[str] = "grid"

    def run(self) -> None:
        points = list(self.context.family.dense_grid())
        settled = {trial.user_attrs["schedule"] for trial in self.context.log.settled()}
        missing = [schedule for schedule in points if schedule.text() not in settled]
        before = len(points) - len(missing)
        self.context.advance(before, len(points), "")
        self.measure(
            [Proposal(schedule) for schedule in missing],
            lambda landed: self.context.advance(before + landed, len(points), missing[landed - 1].text()),
        )
