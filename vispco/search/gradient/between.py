"""Budgets between those of the study, where the front leaves the largest gaps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from vispco.pruning.schedules import parse_schedule

if TYPE_CHECKING:
    from vispco.search.gradient.search import GradientSearch


def measure_between(search: GradientSearch, budgets: list[float]) -> None:
    """More budgets, each in the middle of a gap in which the front found so far may gain most.

    Between two neighbouring measured budgets at most (difference in budget) x (difference in accuracy) of
    hypervolume is missed; of the half of a gap a quarter. The shapes found at both ends are tried, without
    gradient steps.
    """
    context, options, started = search.context, search.options, time.monotonic()
    solved, tried = search.done(), search.between()
    extra = len(tried)
    ends = [(budget, t[0]) for budget, t in sorted(solved.items()) if t[0].state == TrialState.COMPLETE]
    if options.predictor == "input" or extra >= options.between or len(ends) < 2:
        return
    wanted = [gap for gap in widest(ends, options.between) if gap[0] not in tried][: options.between - extra]
    shapes = [[parse_schedule(end.user_attrs["schedule"]) for end in (above, below)] for _, above, below in wanted]
    ranked = search.ranking.rank_each([(gap[0], both) for gap, both in zip(wanted, shapes, strict=True)])
    proposals = []
    for (budget, above, _), (chosen, *_others) in zip(wanted, ranked, strict=True):
        own = {"budget": budget, "interpolated": True, "batch": len(budgets)}
        proposals.append(search.runner_up(chosen, above.user_attrs, **own))
    if extra:
        search.forget_costs()
    total = len(budgets) + options.between
    search.measure(
        search.billed(proposals, started),
        lambda landed: context.advance(len(budgets) + extra + landed, total, "between budgets"),
    )


def widest(ends: Sequence[tuple[float, FrozenTrial]], count: int) -> list[tuple[float, FrozenTrial, FrozenTrial]]:
    """Midpoints of the ``count`` largest gaps between measured budgets, with the trials above and below the gap.

    Half a gap counts as if its end had the accuracy in the middle.
    """
    gaps = []
    for (low, below), (high, above) in itertools.pairwise(ends):
        gain = max(1e-6, above.values[0] - below.values[0])
        gaps.append((low, high, (high - low) * gain, above, below))
    midpoints = []
    for _ in range(count):
        place = max(range(len(gaps)), key=lambda n: gaps[n][2])
        low, high, missed, above, below = gaps.pop(place)
        middle = (low + high) / 2
        midpoints.append((middle, above, below))
        gaps[place:place] = [(low, middle, missed / 4, above, below), (middle, high, missed / 4, above, below)]
    return midpoints
