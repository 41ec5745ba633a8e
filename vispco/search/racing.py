"""Racing: which schedules need not be measured on the rest of the split, with a test that may be repeated.

The split is a finite population, looked at in random order without replacement. A schedule i is stopped when a
cheaper schedule j, its *witness*, is still running and

    accuracy_i < accuracy_j + margin            (accuracies on the whole split)

has been shown. For each pair the evidence is the wealth of a gambler who bets against the contrary (Waudby-Smith &
Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024, the version without replacement):
under the contrary, the mean of what is left is known to be at least ``(N margin - sum so far) / left``, no bet on
less can gain on average, and by Ville's inequality the wealth ever reaches ``1 / a`` with probability at most ``a``.
It holds at every look, for any bounded scores, and whenever one stops looking; nothing is asymptotic. What it rests
on is the order: drawn at random, all tasks in one draw (:func:`shuffled`). Accuracy is the weighted mean of scores; of
a task whose ``aggregate`` is another number, nothing is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from vispco.errors import MeasurementError
from vispco.fronts import FITS

BETS = (0.3, 0.8)
GROWTH = 1.1
STEP = 64


class RacingOptions(BaseModel):
    """How a race stops schedules.

    ``margin``: the most accuracy that racing may cost at any budget. A negative margin stops only what is shown to
    be worse than a cheaper schedule by more than ``-margin``.
    ``alpha``: probability, over the order of the samples, that it costs more at one budget or another.
    ``first``: samples before the first look.
    ``reserve``: this many of the best so far within each budget go on, whatever has been shown. It is no part of
    the guarantee, but keeps the loss far below the margin where many schedules are about equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: Annotated[float, Field(ge=-1, le=1)] = 0.05
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    first: Annotated[int, Field(ge=1)] = 128
    reserve: Annotated[int, Field(ge=1)] = 3


@dataclass(frozen=True)
class Order:
    """The order in which samples are measured; position s is sample ``row[s]`` of task ``task[s]``.

    ``weight[s]``: its weight in the accuracy, which is the sum of ``weight * score``; weights add up to 1.
    ``unit[s]``: samples of one unit are drawn together; units are numbered by position.
    """

    task: NDArray[np.int64]
    row: NDArray[np.int64]
    weight: NDArray[np.float64]
    unit: NDArray[np.int64]


def order_by(places: Sequence[NDArray[np.int64]]) -> Order:
    """Single samples in the order of their ``places``, [S] per task, which a random order of all gave them."""
    task = np.repeat(np.arange(len(places)), [len(part) for part in places])
    row = np.concatenate([np.arange(len(part)) for part in places])
    weight = np.concatenate([np.full(len(part), 1 / (len(places) * max(1, len(part)))) for part in places])
    order = np.argsort(np.concatenate(list(places)), kind="stable")
    return Order(task[order], row[order], weight[order], np.arange(len(order)))


def shuffled(groups: Sequence[Sequence[str]], seed: int, *, whole_groups: bool = False) -> Order:
    """All samples of all tasks in one random order, from the group of each sample of each task.

    Tasks are mixed in one draw: only then is the mean of what is left known. The accuracy is the unweighted mean
    over tasks of mean scores. Single samples are drawn unless ``whole_groups``: the population is the split itself,
    so that questions about one picture need not stay together, and single draws say more. Draw whole groups where a
    task scores them as one.
    """
    task = np.repeat(np.arange(len(groups)), [len(part) for part in groups])
    row = np.concatenate([np.arange(len(part)) for part in groups])
    weight = np.concatenate([np.full(len(part), 1 / (len(groups) * max(1, len(part)))) for part in groups])
    names = [(number, group) for number, part in enumerate(groups) for group in part]
    known: dict[object, int] = {}
    unit = np.array([known.setdefault(name if whole_groups else place, len(known)) for place, name in enumerate(names)])
    place_of_unit = np.random.default_rng(seed).permutation(len(known))
    order = np.argsort(place_of_unit[unit], kind="stable")
    return Order(task[order], row[order], weight[order], place_of_unit[unit][order])


class Race:
    """A race between P schedules over S samples.

    With probability at least ``1 - alpha`` over the order of the samples, for all ``budgets`` together: among the
    schedules that are not stopped there is one within the budget whose accuracy on the whole split is at most
    ``margin`` below the best of all schedules within the budget. Without budgets it holds for every budget, and
    every stopped schedule has a witness that it does not beat by more than ``margin``.

    Wealth starts at 1 for each schedule, in equal parts over the cheaper ones; there is one best schedule per
    budget, and a loss there takes that its wealth reaches ``len(budgets) / alpha`` although it is the best.
    A schedule goes on while a stopped one has no other witness, so that margins do not add up along a chain.

    The same scores give the same stops, however they are cut into calls of :meth:`look`.

    Args:
        costs: flops_ratio of each schedule, [P]; of equal ones the first counts as the cheaper.
        order: samples in the order in which they are measured.
        budgets: those that schedules are chosen for; None for all.
        stages: samples measured before each look, rising, the last all of them; default: often. They must not
            depend on scores.
    """

    def __init__(
        self,
        costs: ArrayLike,
        order: Order,
        options: RacingOptions | None = None,
        budgets: ArrayLike | None = None,
        stages: Sequence[int] | None = None,
    ) -> None:
        self.options = options or RacingOptions()
        self.costs = np.asarray(costs, dtype=np.float64)
        self.order = order
        schedules = len(self.costs)
        limits = np.unique(self.costs if budgets is None else np.asarray(budgets, dtype=np.float64))
        self._targets = schedules if budgets is None else min(schedules, len(limits))
        self._by_cost = np.argsort(self.costs, kind="stable")
        self._rank = np.empty(schedules, dtype=np.int64)
        self._rank[self._by_cost] = np.arange(schedules)
        # The schedules that compete for the least budget that fits are the first so many by cost.
        least = np.append(limits, np.inf)[np.searchsorted(limits, self.costs - FITS)]
        self._rivals = np.searchsorted(self.costs[self._by_cost], least + FITS, side="right")
        self._reserved = np.isfinite(least)

        self._starts = np.flatnonzero(np.diff(order.unit, prepend=-1))
        self._ends = np.append(self._starts[1:], len(order.unit))
        self._units = len(self._starts)
        self._weight = order.weight * self._units
        self._most = float(np.add.reduceat(self._weight, self._starts).max()) if self._units else 1.0
        self.stages = list(stages) if stages is not None else self._stages()

        self._seen = 0
        self._sums = np.zeros(schedules)
        self._first, self._second = np.nonzero(self._rank[:, None] > self._rank[None, :])
        self._wealth = np.zeros((len(BETS), len(self._first)))
        self._shown = np.zeros((schedules, schedules), dtype=bool)
        self.failed = np.zeros(schedules, dtype=bool)
        self.stopped_at = np.zeros(schedules, dtype=np.int64)

    @property
    def stopped(self) -> NDArray[np.bool_]:
        """[P]; their measurements end at ``stopped_at``."""
        return self.stopped_at > 0

    @property
    def unwitnessed(self) -> NDArray[np.bool_]:
        """Stopped schedules whose witnesses all failed later, [P]: nothing is known of them but their own samples."""
        running = ~self.stopped & ~self.failed
        return self.stopped & ~(self._shown & running).any(axis=1)

    def _stages(self) -> list[int]:
        """Samples measured before each look, rising; the last is all of them."""
        stages: list[int] = []
        wanted, samples = self.options.first, len(self.order.unit)
        while wanted < samples:
            border = int(self._ends[np.searchsorted(self._ends, wanted)])
            if border < samples and (not stages or border > stages[-1]):
                stages.append(border)
            wanted = -(-max(int(wanted * GROWTH), wanted + STEP) // STEP) * STEP
        return [*stages, samples]

    # --- looking -------------------------------------------------------------------------------------

    def look(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Take in scores in [0, 1], [P, n] for the first n samples of the order, and say who is stopped, [P].

        All stages that end within n are gone through, each once. What a schedule was not measured on is NaN and is
        not read after its stop. A running schedule with NaN has failed: it stays in ``failed``, is no witness and is
        not stopped.

        Raises:
            MeasurementError: a score is below 0 or above 1.
        """
        values = np.asarray(scores, dtype=np.float64)
        for stage in self.stages:
            if self._done < stage <= values.shape[1]:
                self._take(values[:, self._done : stage], stage)
                if stage < self.stages[-1]:
                    self._stop(stage)
        return self.stopped.copy()

    @property
    def _done(self) -> int:
        return int(self._ends[self._seen - 1]) if self._seen else 0

    def _take(self, scores: NDArray[np.float64], stage: int) -> None:
        """Bet on the next samples, unit by unit, in every pair that is running."""
        running = ~self.stopped
        begin, stop = self._done, int(np.searchsorted(self._ends, stage)) + 1
        part = np.where(running[:, None], scores, 0.0)
        self.failed |= np.isnan(part).any(axis=1)
        running &= ~self.failed
        part = np.where(running[:, None], part, 0.0)
        if part.size and (part.min() < 0 or part.max() > 1):
            raise MeasurementError(f"racing needs scores in [0, 1], got {part.min():g} to {part.max():g}; remove race:")
        starts = self._starts[self._seen : stop]
        units = np.add.reduceat(part * self._weight[begin:stage], starts - begin, axis=1)
        pairs = np.flatnonzero(running[self._first] & running[self._second])
        first, second = self._first[pairs], self._second[pairs]
        ahead = self._sums[first] - self._sums[second]
        goal = self.options.margin * self._units
        growth = np.ones((len(BETS), len(pairs)))
        for column, left in enumerate(range(self._units - self._seen, self._units - stop, -1)):
            difference = units[first, column] - units[second, column]
            least = (goal - ahead) / left
            gain = (least - difference) / np.maximum(self._most - least, 1e-9)
            with np.errstate(over="ignore"):  # where the contrary has become impossible
                for bet, grown in zip(BETS, growth, strict=True):
                    grown *= 1 + bet * gain
            ahead += difference
            if column % 64 == 63:
                self._bank(pairs, growth)
        self._bank(pairs, growth)
        self._sums += units.sum(axis=1)
        self._seen = stop

    def _bank(self, pairs: NDArray[np.int64], growth: NDArray[np.float64]) -> None:
        """Add what was won since the last time to the log wealth: products of many terms would overflow."""
        with np.errstate(divide="ignore", over="ignore"):
            self._wealth[:, pairs] += np.log(np.clip(growth, 0, np.finfo(float).max))
        growth[:] = 1

    def _stop(self, stage: int) -> None:
        cheaper = self._rank[self._first]
        total = np.logaddexp.reduce(self._wealth, axis=0) - np.log(len(BETS)) - np.log(cheaper)
        shown = total >= np.log(self._targets / self.options.alpha)
        self._shown[self._first[shown], self._second[shown]] = True
        running, tie = ~self.stopped & ~self.failed, 1e-9 * self._units
        ordered = np.where(running, self._sums, -np.inf)[self._by_cost]
        before = np.concatenate([[-np.inf], np.maximum.accumulate(ordered)[:-1]])
        # The best so far of all that are no dearer: the only witnesses, as others are likely to be stopped themselves.
        leading = np.empty_like(running)
        leading[self._by_cost] = running[self._by_cost] & (ordered > before + tie)
        for schedule in self._by_cost[::-1]:
            if not running[schedule] or leading[schedule] or not (self._shown[schedule] & leading & running).any():
                continue
            # As in a choice, of equal ones the cheaper is the better.
            rivals = self._by_cost[: self._rivals[schedule]]
            needed = self._sums[schedule] + np.where(self._rank[rivals] < self._rank[schedule], -tie, tie)
            better = running[rivals] & (self._sums[rivals] > needed)
            if self._reserved[schedule] and better.sum() < self.options.reserve:
                continue
            running[schedule] = False
            leaning = np.flatnonzero(self._shown[:, schedule] & self.stopped)
            if (self._shown[leaning] & running).any(axis=1).all():
                self.stopped_at[schedule] = stage
            else:
                running[schedule] = True
