"""The dense grid: every schedule of the family's grid, exactly once, whatever was interrupted before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Schedule
from vispco.search.base import SEARCHES, Options, Proposal, Search
from vispco.search.racing import RacingOptions
from vispco.search.study_cost import StudyCost


class GridOptions(Options):
    """``race``: measure on growing parts of the split and stop what is shown not to matter (``{}`` for defaults)."""

    race: RacingOptions | None = None


def grid_points(family: ScheduleFamily, method: Method, cost: StudyCost) -> list[Schedule]:
    """The family's dense grid; on the edges of a staircase of times, and without what a limit on a cost forbids."""
    return measured_points(family.dense_grid(), family, method, cost)


def measured_points(
    points: Iterable[Schedule], family: ScheduleFamily, method: Method, cost: StudyCost
) -> list[Schedule]:
    """What a grid measures for the ``points`` of its family."""
    points = [cost.on_edge(schedule, family, method) for schedule in points]
    return list(dict.fromkeys(one for one in points if not cost.bounds or cost.within_limits(one, method)))


@SEARCHES.register("grid")
class GridSearch(Search):
    """The empirical frontier. We enumerate the points ourselves: Optuna's grid samplers lose or repeat points."""

    kind: ClassVar[str] = "grid"
    deterministic: ClassVar[bool] = True
    is_reference: ClassVar[bool] = True
    before_decoder: ClassVar[bool] = True
    resolutions: ClassVar[bool] = True
    any_cost: ClassVar[bool] = True
    several_costs: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = GridOptions

    def run(self) -> None:
        points = grid_points(self.context.family, self.context.method, self.context.cost)
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
