"""Successive halving over samples with two objectives, under any sampler of Optuna's.

Proposals come in brackets. All of a bracket are measured on the first samples of the split, which are drawn at random;
the better half goes on to twice as many, and so on. Which half is better is decided by non-dominated sorting of
(accuracy so far, cost), then by crowding distance. Optuna prunes no trial with several objectives, so the
sampler is told the accuracy so far of what was stopped. Only schedules that saw all samples are COMPLETE trials, which
fronts and choices are made of.

After Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (AISTATS 2016), and
for several objectives Schmucker et al., "Multi-objective asynchronous successive halving" (arXiv 2106.12639).
Deviations: synchronous, so that a resumed search proposes the same; the cost is exact from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import Field

from vispco.evaluation.prepared import PreparedSplit, block_ends
from vispco.evaluation.records import Outcome
from vispco.pruning.schedules import Counts, Schedule
from vispco.search.base import SEARCHES, Options, Proposal
from vispco.search.racing import Order, order_by
from vispco.search.samplers import GPSearch, NSGA2Search, OptunaSearch, TPESearch, next_generation
from vispco.search.sampling import Drawn, SamplingOptions
from vispco.search.study_cost import TIE

SAMPLERS: dict[str, type[OptunaSearch]] = {"tpe": TPESearch, "nsga2": NSGA2Search, "gp": GPSearch}


class HalvingOptions(SamplingOptions):
    """``sampler``: whose proposals. ``batch``: proposals of a bracket. ``eta``: one of so many goes on, to so many
    times the samples. ``first``: samples before the first decision. ``population``: as of ``nsga2``. With ``compute``
    or ``spent`` a bracket begins only if it cannot exceed the rest.
    """

    batch: int = Field(16, ge=2)
    sampler: Literal["tpe", "nsga2", "gp"] = "tpe"
    eta: int = Field(2, ge=2)
    first: int = Field(64, ge=1)
    population: int = Field(20, ge=2)


class Halving:
    """Which of P schedules go on: what :meth:`Evaluator.race` asks for.

    Args:
        costs: as shares, [P]; infinite beyond a limit.
        order: of the samples.
        rungs: samples seen at each decision, ascending, and last all of them.
        going: how many schedules go on from each decision.
    """

    def __init__(self, costs: Sequence[float], order: Order, rungs: Sequence[int], going: Sequence[int]) -> None:
        self.costs, self.order = np.asarray(costs, dtype=np.float64), order
        self._decisions = list(zip(rungs[:-1], going, strict=True))
        self.stopped_at = np.zeros(len(self.costs), dtype=np.int64)

    @property
    def unwitnessed(self) -> NDArray[np.bool_]:
        """Nobody goes on later who was stopped."""
        return np.zeros(len(self.costs), dtype=bool)

    def look(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """From scores [P, n] of the first n samples; who is stopped, [P]."""
        while self._decisions and self._decisions[0][0] <= scores.shape[1]:
            seen, count = self._decisions.pop(0)
            running = np.flatnonzero(self.stopped_at == 0)
            weight = self.order.weight[:seen]
            accuracy = scores[running, :seen] @ (weight / weight.sum())
            alive = running[~np.isnan(accuracy)]  # what failed ends by itself
            kept = alive[best(accuracy[~np.isnan(accuracy)], self.costs[alive], count)]
            self.stopped_at[np.setdiff1d(alive, kept)] = seen
        return self.stopped_at > 0


def best(accuracy: NDArray[np.float64], cost: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of the ``count`` best of [P], by the front that they are on, then by crowding distance.

    What costs infinitely much, beyond a limit, comes after all that does not.
    """
    from moocore import pareto_rank

    within = np.isfinite(cost)
    if not within.all():
        fit, over = np.flatnonzero(within), np.flatnonzero(~within)
        return np.concatenate([fit[best(accuracy[fit], cost[fit], count)], over])[:count]
    if not len(accuracy):
        return np.zeros(0, dtype=np.int64)
    rank = pareto_rank(np.column_stack([accuracy, cost]), maximise=[True, False])
    crowding = np.zeros(len(accuracy))
    for front in np.unique(rank):
        mine = np.flatnonzero(rank == front)
        crowding[mine] = _crowding(np.column_stack([accuracy[mine], cost[mine]]))
    order = np.lexsort((np.arange(len(rank)), -crowding, rank))
    return np.asarray(order[:count], dtype=np.int64)


def _crowding(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the points of one front, [P, 2]: both neighbours' distance in parts of the range; ends: infinite."""
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = max(float(column[order[-1]] - column[order[0]]), 1e-12)
        distance[order[0]] = distance[order[-1]] = np.inf
        distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def rungs_of(samples: int, first: int, eta: int) -> list[int]:
    """Samples seen at each decision: ends of blocks, each at least ``eta`` times the one before, and last all."""
    rungs: list[int] = []
    *ends, whole = block_ends(samples)
    for end in ends:
        if end >= (eta * rungs[-1] if rungs else first):
            rungs.append(end)
    return [*rungs, whole]


@SEARCHES.register("halving")
class HalvingSearch(OptunaSearch):
    """Successive halving over samples: many schedules on few samples, few on all."""

    kind: ClassVar[str] = "halving"
    Options: ClassVar[type[Options]] = HalvingOptions
    among_methods: ClassVar[bool] = False
    stops_early: ClassVar[bool] = True
    resolutions: ClassVar[bool] = False
    several_costs: ClassVar[bool] = False  # who goes on is decided by accuracy and one cost

    @classmethod
    def may_change_trials(cls, options: Any, before: int) -> bool:
        return before % int(options.batch) == 0  # whole brackets stay as they are

    def sampler(self, seed: int) -> BaseSampler:
        return self._inner.sampler(seed)

    @property
    def _inner(self) -> OptunaSearch:
        return SAMPLERS[self.options.sampler](self.context, self.options)

    @property
    def redraws(self) -> int:  # type: ignore[override]
        return self._inner.redraws

    def notes(self, start: int) -> Mapping[str, Any]:
        if self.options.sampler != "nsga2":
            return {}
        return {"generation": next_generation(self.history(start), self.options.population)}

    def history(self, start: int) -> list[FrozenTrial]:
        """With the accuracy so far of what was stopped, as if it had been measured."""
        return [_as_measured(trial) if trial.state == TrialState.PRUNED else trial for trial in super().history(start)]

    def outcomes(self, start: int, wanted: list[Proposal]) -> dict[str, Outcome]:
        drawn = [self.schedule_of(parameters) for parameters in self.drawn(start, self._bracket(start))]
        context = self.context
        self.check_means("use tpe, nsga2 or gp")

        def make(costs: Sequence[float], parts: Sequence[PreparedSplit]) -> Halving:
            order = order_by([part.place for part in parts])
            return Halving(costs, order, self._rungs, self._going(len(costs)))

        found: dict[str, Outcome] = {}
        ratio = None if context.cost.in_flops and not context.cost.bounds else self._cost_of
        for outcome in context.evaluator.race(drawn, make, "search", context.method, context.watch, ratio):
            found.setdefault(outcome.schedule, outcome)
        return found

    def _cost_of(self, counts: Sequence[Counts]) -> float:
        """The cost as a share, from counts [S, L] of each task's samples; infinite beyond a limit."""
        cost, method = self.context.cost, self.context.method
        if cost.excess_of_counts(counts, method) > TIE:
            return np.inf
        return cost.ratio_of_counts(counts, method)

    @property
    def _rungs(self) -> list[int]:
        samples = sum(len(part.samples) for part in self.context.evaluator.prepared("search"))
        return rungs_of(samples, self.options.first, self.options.eta)

    def _going(self, schedules: int) -> list[int]:
        """How many go on from each decision."""
        return [max(1, schedules // self.options.eta ** (n + 1)) for n in range(len(self._rungs) - 1)]

    def _bracket(self, start: int) -> int:
        """Proposals of the bracket that begins at ``start``."""
        most: int = self.options.batch
        return most if self.options.trials is None else min(most, self.options.trials - start)

    def _affordable(self, start: int, drawn: Sequence[Drawn], settled: Mapping[int, FrozenTrial]) -> int:
        """All of the bracket, or nothing: the most that it may cost is known, what it will cost is not."""
        context, schedules = self.context, [schedule for schedule, _ in drawn]
        before = [trial for number, trial in settled.items() if number < start]
        if context.allowance is not None:
            left = context.allowance - sum(self._charge(trial) for trial in before)
            if self._dearest(schedules) > left:
                return 0
        if context.paid_allowance is not None:
            left = context.paid_allowance - self._paid_before(start, settled)
            together = context.evaluator.shared_price(schedules, "search", context.method)
            if min(together, self._dearest(schedules)) > left:
                return 0
        return len(drawn)

    def _dearest(self, schedules: Sequence[Schedule]) -> int:
        """The most that a bracket is charged: if at every decision the dearest go on."""
        evaluator, method = self.context.evaluator, self.context.method
        parts = [evaluator.prices(schedule, self._rungs, "search", method) for schedule in schedules]
        prices, total = np.sort(np.array(parts), axis=0)[::-1], 0
        for stage, count in enumerate([len(schedules), *self._going(len(schedules))]):
            total += int(prices[:count, stage].sum())
        return total


def _as_measured(trial: FrozenTrial) -> FrozenTrial:
    """A stopped trial with what is known of it in place of values."""
    return create_trial(
        values=[trial.user_attrs["accuracy"], trial.user_attrs.get("cost_ratio", trial.user_attrs["flops_ratio"])],
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
    )
