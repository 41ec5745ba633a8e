"""Racing: errors under repeated looks, power, and what it must not depend on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from vispco.errors import MeasurementError
from vispco.search.racing import BETS, Order, Race, RacingOptions, shuffled


def whole_race(
    scores: NDArray[np.float64], costs: Any, order: Order, options: RacingOptions | None = None, budgets: Any = None
) -> Race:
    """A race on scores [P, S] of the split's samples, measured only as far as the race asks."""
    race = Race(costs, order, options, budgets)
    ordered = scores[:, order.row]
    for stage in race.stages:
        running = ~race.stopped
        race.look(np.where(running[:, None], ordered[:, :stage], np.nan))
    return race


def one_task(samples: int, seed: int) -> Order:
    return shuffled([[str(i) for i in range(samples)]], seed)


def allowed(replays: int, alpha: float) -> int:
    """Errors that a rate of ``alpha`` exceeds in fewer than 1 of 10,000 cases."""
    tail, errors = 1.0, 0
    while tail > 1e-4:
        tail -= math.comb(replays, errors) * alpha**errors * (1 - alpha) ** (replays - errors)
        errors += 1
    return errors


def two_schedules(samples: int, both: float, only_second: int, only_first: int = 0) -> NDArray[np.float64]:
    """Scores [2, S]: right in both for a share, then in one of the two for so many samples."""
    scores = np.zeros((2, samples))
    scores[:, : int(both * samples)] = 1
    start = int(both * samples)
    scores[1, start : start + only_second] = 1
    scores[0, start + only_second : start + only_second + only_first] = 1
    return scores


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "only_second", "only_first"),
    [(0.05, 10, 0), (0.05, 30, 20), (0.0, 20, 20), (-0.1, 10, 30)],
)
def test_a_schedule_exactly_at_the_margin_is_stopped_with_probability_alpha_at_most(
    margin: float, only_second: int, only_first: int
) -> None:
    """Against one witness the test has no slack but the bets': this is where an invalid test would show."""
    samples, replays, alpha = 200, 250, 0.1
    scores = two_schedules(samples, 0.4, only_second, only_first)
    assert scores[1].mean() - scores[0].mean() == pytest.approx(margin)
    options = RacingOptions(margin=margin, alpha=alpha, first=16, reserve=1)
    errors = 0
    for seed in range(replays):
        order = one_task(samples, seed)
        race = Race([0.2, 0.5], order, options, [1.0])
        race.look(scores[:, order.row])
        errors += bool(race._shown[1, 0])
    assert errors <= allowed(replays, alpha)


def test_errors_over_many_schedules_that_are_all_at_the_margin() -> None:
    """A ladder of steps just above the margin: each stop is an error; all budgets count together."""
    samples, replays, alpha, margin = 200, 150, 0.2, 0.05
    steps = 8
    scores = np.zeros((steps, samples))
    for step in range(steps):
        scores[step, : 30 + 11 * step] = 1
    errors = 0
    for seed in range(replays):
        race = whole_race(
            scores,
            np.linspace(0.2, 1, steps),
            one_task(samples, seed),
            RacingOptions(margin=margin, alpha=alpha, first=16, reserve=1),
        )
        errors += bool(race.stopped.any())
    assert errors <= allowed(replays, alpha)


def test_equal_schedules_lose_nothing_and_cost_little() -> None:
    """Equal scores: all but a few are stopped as none is better, and one of the best always finishes."""
    rng = np.random.default_rng(0)
    scores = np.repeat((rng.random(1024) < 0.7)[None, :].astype(float), 40, axis=0)
    race = whole_race(scores, np.linspace(0.2, 1, 40), one_task(1024, 1))
    assert not race.stopped[0]
    assert race.stopped.sum() >= 30
    strict = whole_race(scores, np.linspace(0.2, 1, 40), one_task(1024, 1), RacingOptions(margin=0.0))
    assert not strict.stopped.any(), "an equal schedule is not worse"


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_stopped_schedule_keeps_a_cheaper_witness_that_finishes(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    schedules, samples = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 400))
    chances = np.sort(rng.random(schedules)) if data.draw(st.booleans()) else rng.random(schedules)
    costs = np.round(rng.random(schedules), 1)
    scores = (rng.random((schedules, samples)) < chances[:, None]).astype(float)
    options = RacingOptions(
        margin=data.draw(st.sampled_from([-0.1, 0.0, 0.1, 0.3])),
        first=data.draw(st.integers(1, 64)),
        reserve=data.draw(st.integers(1, 3)),
    )
    race = whole_race(scores, costs, one_task(samples, seed), options)
    assert not race.stopped.all()
    assert not race.unwitnessed.any()
    for schedule in np.flatnonzero(race.stopped):
        witnesses = np.flatnonzero(race._shown[schedule] & ~race.stopped)
        assert len(witnesses)
        assert (costs[witnesses] <= costs[schedule]).all()
        assert race.stopped_at[schedule] in race.stages[:-1]


def test_what_is_certain_is_never_wrong() -> None:
    """With nearly all samples seen the contrary becomes impossible: infinite evidence, but only for what is true."""
    samples = 64
    scores = two_schedules(samples, 0.0, 1)
    for seed in range(30):
        for margin in (0.0, 0.01, 1 / 64 - 1e-9):
            race = whole_race(
                scores, [0.2, 0.5], one_task(samples, seed), RacingOptions(margin=margin, first=60, reserve=1)
            )
            assert not race.stopped.any()
        race = whole_race(scores, [0.2, 0.5], one_task(samples, seed), RacingOptions(margin=0.2, first=60, reserve=1))
        assert race.stopped[1] or scores[1, one_task(samples, seed).row[:60]].any()


def test_evidence_is_shared_out_over_cheaper_schedules_and_budgets() -> None:
    """What counts as shown, from the wealth: the threshold that the union bounds ask for."""
    rng = np.random.default_rng(2)
    scores = (rng.random((6, 300)) < np.array([[0.3, 0.5, 0.6, 0.6, 0.4, 0.5]]).T).astype(float)
    order, alpha = one_task(300, 2), 0.1
    for budgets, targets in ((None, 6), ([0.3, 0.7], 2), (np.linspace(0, 1, 40), 6)):
        race = Race(np.linspace(0.2, 1, 6), order, RacingOptions(alpha=alpha, reserve=6), budgets)
        race.look(scores[:, order.row][:, : race.stages[0]])
        wealth = np.exp(race._wealth).mean(axis=0)
        assert race._first.tolist() == [i for i in range(6) for _ in range(i)]
        shown = wealth >= race._first * targets / alpha
        assert 0 < shown.sum() < len(shown)
        assert race._shown[race._first, race._second].tolist() == shown.tolist()
        assert not np.triu(race._shown).any()


def test_a_witness_goes_on_for_those_that_lean_on_it() -> None:
    """Leads change among equal schedules; who led when others stopped must finish if no other witness does."""
    held = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scores = (rng.random((30, 1024)) < 0.6).astype(float)
        race = whole_race(
            scores, np.linspace(0.2, 1, 30), one_task(1024, seed), RacingOptions(margin=0.15, reserve=1), [1.0]
        )
        assert race.stopped.any()
        assert not race.unwitnessed.any()
        sole = race._shown[race.stopped] & ~race.stopped
        held += (sole[sole.sum(axis=1) == 1].any(axis=0) & race._shown[:, ~race.stopped].any(axis=1)).sum()
    assert held > 0, "no case of it: the test shows nothing"


# --- power ------------------------------------------------------------------------------------------


def test_clearly_worse_schedules_go_early() -> None:
    rng = np.random.default_rng(0)
    chances = np.array([0.5, 0.8, *[0.55] * 20])
    scores = (rng.random((22, 2048)) < chances[:, None]).astype(float)
    race = whole_race(scores, np.linspace(0.2, 1, 22), one_task(2048, 0), RacingOptions(margin=0.0, reserve=1))
    assert not race.stopped[:2].any()
    assert race.stopped[2:].sum() >= 18
    assert np.median(race.stopped_at[2:]) <= 512


def test_the_reserve_goes_on() -> None:
    scores = np.ones((30, 1024))
    costs = np.linspace(0.2, 1, 30)
    few = whole_race(scores, costs, one_task(1024, 0), RacingOptions(margin=0.3, reserve=1), [1.0])
    assert few.stopped.sum() == 29
    for reserve in (2, 5):
        race = whole_race(scores, costs, one_task(1024, 0), RacingOptions(margin=0.3, reserve=reserve), [1.0])
        assert (~race.stopped).sum() >= reserve


def test_who_leads_all_cheaper_ones_goes_on() -> None:
    """Also between budgets, where a front has more points than there are choices."""
    scores = np.ones((3, 1024))
    scores[0, ::10] = 0
    scores[1, ::20] = 0
    race = whole_race(scores, [0.2, 0.5, 0.8], one_task(1024, 0), RacingOptions(margin=0.3, reserve=1), [1.0])
    assert race._shown[1, 0]
    assert not race.stopped.any()


# --- what it must not depend on ------------------------------------------------------------------------


def test_same_stops_however_the_looks_are_cut() -> None:
    rng = np.random.default_rng(3)
    chances = rng.uniform(0.4, 0.8, 25)
    scores = (rng.random((25, 700)) < chances[:, None]).astype(float)
    costs = rng.random(25)
    order = one_task(700, 3)
    by_stage = whole_race(scores, costs, order)
    assert by_stage.stopped.any()
    at_once = Race(costs, order)
    at_once.look(scores[:, order.row])
    assert at_once.stopped_at.tolist() == by_stage.stopped_at.tolist()
    resumed = Race(costs, order)
    for end in (100, 300, 300, 650, 700):
        stored = scores[:, order.row][:, :end].copy()
        for schedule in np.flatnonzero(by_stage.stopped):
            stored[schedule, by_stage.stopped_at[schedule] :] = np.nan
        resumed.look(stored)
    assert resumed.stopped_at.tolist() == by_stage.stopped_at.tolist()


def test_a_slow_test_of_one_pair_says_the_same() -> None:
    """Wealth of one pair by the definition, sample by sample, with weights of two tasks of different sizes."""
    rng = np.random.default_rng(5)
    groups = [[str(i) for i in range(60)], [str(i // 2) for i in range(30)]]
    for whole in (False, True):
        order = shuffled(groups, 5, whole_groups=whole)
        scores = rng.random((2, 90))
        race = Race([0.1, 0.2], order, RacingOptions(first=40, margin=0.1), [1.0])
        stage = race.stages[0]
        race.look(scores[:, :stage])
        units = order.unit.max() + 1
        per_unit = np.zeros((2, units))
        weights = np.zeros(units)
        for place, unit in enumerate(order.unit):
            per_unit[:, unit] += units * order.weight[place] * scores[:, place]
            weights[unit] += units * order.weight[place]
        logs = []
        for bet in BETS:
            wealth, ahead = 0.0, 0.0
            for unit in range(order.unit[stage - 1] + 1):
                difference = per_unit[1, unit] - per_unit[0, unit]
                mean = (units * 0.1 - ahead) / (units - unit)
                wealth += math.log(1 + bet * (mean - difference) / (weights.max() - mean))
                ahead += difference
            logs.append(wealth)
        assert race._wealth[:, 0] == pytest.approx(logs)


def test_a_failed_schedule_is_no_witness_and_leaves_its_own_behind() -> None:
    scores = np.ones((3, 1024))
    scores[0] = 0
    order = one_task(1024, 0)
    race = Race([0.1, 0.2, 0.3], order, RacingOptions(reserve=1, margin=0.2), [1.0])
    race.look(scores[:, :512])
    assert race.stopped.tolist() == [False, False, True]
    broken = scores.copy()
    broken[1, 512:] = np.nan
    race.look(broken)
    assert race.failed.tolist() == [False, True, False]
    assert race.unwitnessed.tolist() == [False, False, True]
    never = Race([0.1, 0.2, 0.3], order, RacingOptions(reserve=1, margin=0.2), [1.0])
    broken[1] = np.nan
    assert never.look(broken).tolist() == [False, False, False]


# --- order ------------------------------------------------------------------------------------------


@given(
    groups=st.lists(st.lists(st.integers(0, 5), max_size=30), min_size=1, max_size=3).filter(any),
    whole=st.booleans(),
    first=st.integers(1, 40),
)
def test_order(groups: list[list[int]], whole: bool, first: int) -> None:
    named = [[str(group) for group in part] for part in groups]
    named = [part for part in named if part]
    order = shuffled(named, 7, whole_groups=whole)
    places = list(zip(order.task.tolist(), order.row.tolist(), strict=True))
    assert sorted(places) == [(t, r) for t, part in enumerate(named) for r in range(len(part))]
    assert order.weight.sum() == pytest.approx(1)
    assert sorted(set(np.diff(order.unit, prepend=-1).tolist())) in ([1], [0, 1])
    units = {}
    for (task, row), unit in zip(places, order.unit.tolist(), strict=True):
        units.setdefault((task, named[task][row]) if whole else (task, row), set()).add(unit)
    assert all(len(found) == 1 for found in units.values())
    assert len(units) == order.unit.max() + 1
    race = Race([0.5], order, RacingOptions(first=first))
    assert race.stages[-1] == len(places)
    assert race.stages == sorted(set(race.stages))
    borders = set(np.flatnonzero(np.diff(order.unit)) + 1) | {len(places)}
    assert set(race.stages) <= borders


def test_order_is_uniform() -> None:
    """Each sample is in the first quarter a quarter of the time, in whole groups too: the test rests on it."""
    groups = [[str(i // 2) for i in range(16)], [str(i) for i in range(8)]]
    early = np.zeros(24)
    for seed in range(2000):
        order = shuffled(groups, seed)
        early[order.row[:6] + 16 * order.task[:6]] += 1
    assert early == pytest.approx(500, abs=5 * math.sqrt(2000 * 0.25 * 0.75))


def test_tiny_and_refused() -> None:
    one = one_task(1, 0)
    assert Race([0.3, 0.4], one).look([[1.0], [0.0]]).tolist() == [False, False]
    assert Race([], one).look(np.zeros((0, 1))).tolist() == []
    with pytest.raises(MeasurementError, match=r"\[0, 1\]"):
        Race([0.3, 0.4], one).look([[1.5], [0.0]])
    for wrong in ({"alpha": 0}, {"alpha": 1}, {"first": 0}, {"margin": 2}, {"reserve": 0}, {"margins": 0.1}):
        with pytest.raises(ValidationError):
            RacingOptions(**wrong)  # type: ignore[arg-type]
