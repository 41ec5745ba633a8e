"""Which schedule a budget gets: the snapped one or a neighbouring shape, by the calibration split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vispco.pruning.schedules import Schedule, parse_schedule
from vispco.search.gradient.distillation import whole_rounds
from vispco.search.gradient.refine import nearest_of_each

if TYPE_CHECKING:
    from vispco.search.gradient.search import GradientSearch


class Ranking:
    """Candidates of budgets, nearest to the teacher first."""

    def __init__(self, search: GradientSearch) -> None:
        self.search, self.context, self.options = search, search.context, search.options

    def nearest_each(self, snapped: Sequence[tuple[float, Schedule]]) -> list[list[Schedule]]:
        """Of each budget its schedule and the neighbouring shapes, nearest to the teacher first."""
        family, options = self.context.family, self.options
        if not options.check:
            return [[schedule] for _, schedule in snapped]
        if not options.climb:
            return self.rank_each([(budget, [one, *family.neighbours(one)]) for budget, one in snapped])
        ranked: list[list[Schedule]] = []
        for budget, schedule in snapped:
            above = ranked[-1][0] if ranked else self._above(budget)
            ranked.append(self._climb(schedule, budget, above))
        return ranked

    def _above(self, budget: float) -> Schedule | None:
        """The first schedule of the next larger budget."""
        above = [trials[0] for asked, trials in sorted(self.search.done().items()) if asked > budget]
        return parse_schedule(above[0].user_attrs["schedule"]) if above else None

    def _climb(self, snapped: Schedule, budget: float, above: Schedule | None) -> list[Schedule]:
        """Pattern search: neighbours 1, 2, 4, ... steps away of the nearest so far, until none of them is nearer."""
        family, fits = self.context.family, self.search.fits(budget)
        starts = [snapped] if above is None else [snapped, above]
        ranked, best, tried = self._rank(starts, budget), None, set[Schedule]()
        for _ in range(self.options.climb):
            if ranked[0] == best:
                break
            best = ranked[0]
            tried.update(ranked)
            around = [shape for by in doubling(family.layers // 3) for shape in family.neighbours(best, by)]
            further = dict.fromkeys(family.snap(shape, fits) for shape in around)
            ranked = self._rank([best, *(shape for shape in further if shape not in tried)], budget)
        return ranked

    def _rank(self, shapes: list[Schedule], budget: float) -> list[Schedule]:
        """The shapes, snapped to the budget, nearest to the teacher first."""
        return self.rank_each([(budget, shapes)])[0]

    def rank_each(self, groups: Sequence[tuple[float, list[Schedule]]]) -> list[list[Schedule]]:
        """:meth:`_rank` of several budgets' shapes, together; in the given order without a check."""
        snap = self.context.family.snap
        candidates = []
        for budget, shapes in groups:
            fits = self.search.fits(budget)
            candidates.append(list(dict.fromkeys(snap(shape, fits) for shape in shapes)))
        if not self.options.check or all(len(group) == 1 for group in candidates):
            return candidates
        return nearest_of_each(self.search.calibration, candidates, *self.batches())

    def batches(self) -> tuple[int, int]:
        """Mini-batches of a check: at first, and at most."""
        problem = self.context.evaluator.problem
        most = whole_rounds(problem, max(1, self.options.check // self.options.batch))
        return whole_rounds(problem, max(1, most // 4)), most


def doubling(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``; 1 at least."""
    return [2**power for power in range(max(most, 1).bit_length())]
