"""The dense grid: every schedule of the family's grid, exactly once, whatever was interrupted before."""

from __future__ import annotations

from typing import ClassVar

from vispco.search.base import SEARCHES, Options, Proposal, Search
from vispco.search.racing import RacingOptions


class GridOptions(Options):
    """``race``: measure on growing parts of the split and stop what is shown not to matter (``{}`` for defaults)."""

    race: RacingOptions | None = None


@SEARCHES.register("grid")
class GridSearch(Search):
    """The empirical frontier. We enumerate the points ourselves: Optuna's grid samplers lose or repeat points."""

    kind: ClassVar[str] = "grid"
    deterministic: ClassVar[bool] = True
    before_decoder: ClassVar[bool] = True
    resolutions: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = GridOptions

    def run(self) -> None:
        points = list(self.context.family.dense_grid())
        settled = {trial.user_attrs["schedule"] for trial in self.context.log.settled()}
        missing = [schedule for schedule in points if schedule.text() not in settled]
        before = len(points) - len(missing)
        self.context.advance(before, len(points), "")
        # All points race, those that have landed too: what they do to the others must not change by a restart.
        known = self.race(points, self.options.race) if self.options.race is not None and missing else None
        self.measure(
            [Proposal(schedule) for schedule in missing],
            lambda landed: self.context.advance(before + landed, len(points), missing[landed - 1].text()),
            known,
        )
