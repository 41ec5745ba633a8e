"""The two-level bootstrap and Holm's correction: closed forms, slow twins, and what they promise, by simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vispco.analysis import two_level
from vispco.analysis.bootstrap import Scores, group_bootstraps, holm
from vispco.analysis.two_level import Estimate, estimate, resample

Floats = NDArray[np.float64]


def crossed(rng: np.random.Generator, runs: int, groups: int, *, seeds: float, samples: float, both: float) -> Floats:
    """Scores [runs, groups]: what the seed, the sample and the pair of them add, by their standard deviations."""
    seed = seeds * rng.normal(size=(runs, 1))
    return seed + samples * rng.normal(size=groups) + both * rng.normal(size=(runs, groups))


def one_task(scores: Floats) -> list[Scores]:
    return [{"t": row} for row in np.atleast_2d(scores)]


def each_its_own(count: int) -> dict[str, list[str]]:
    return {"t": [str(i) for i in range(count)]}


def differ(first: Floats, second: Floats, resamples: int = 999, seed: int = 0) -> Estimate:
    groups = each_its_own(first.shape[1])
    drawn = resample({"a": one_task(first), "b": one_task(second)}, groups, resamples=resamples, seed=seed)
    return estimate(drawn["a"], drawn["b"], seed=seed)


# --- Holm ----------------------------------------------------------------------------------------


def test_holm_on_a_worked_example() -> None:
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.01, 0.9]) == pytest.approx([0.08, 0.03, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@given(p_values=st.lists(st.integers(1, 100).map(lambda n: n / 100), min_size=1, max_size=5))
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    """A hypothesis is rejected if every set of hypotheses that contains it is, by Bonferroni."""
    numbers = range(len(p_values))
    sets = [set(chosen) for size in range(1, len(p_values) + 1) for chosen in combinations(numbers, size)]
    slow = [min(1.0, max(len(s) * min(p_values[i] for i in s) for s in sets if number in s)) for number in numbers]
    assert holm(p_values) == pytest.approx(slow)


# --- closed forms and twins -----------------------------------------------------------------------


def test_deterministic_searches_by_hand() -> None:
    """Only samples are drawn: half the interval is the 95 % quantile of how far the resampled difference is off."""
    rng = np.random.default_rng(0)
    groups = {"b": [f"g{i // 3}" for i in range(60)], "a": [str(i) for i in range(30)]}
    runs = [{"b": rng.random(60), "a": rng.integers(0, 2, 30).astype(float)} for _ in range(2)]
    drawn = resample({"x": runs[:1], "y": runs[1:]}, groups, fixed=["x", "y"], resamples=999)
    found = estimate(drawn["x"], drawn["y"])
    slow = group_bootstraps(runs, groups, resamples=999)
    value = np.mean([(runs[0][t] - runs[1][t]).mean() for t in groups])
    off = np.sort(np.abs(slow[0] - slow[1] - value))
    assert found.value == pytest.approx(value)
    assert found.covers == "samples"
    assert found.interval == pytest.approx((value - off[949], value + off[949]))
    assert found.p_value == (1 + (off >= abs(value)).sum()) / 1000


@pytest.mark.parametrize("more", [2, 3, 4])
def test_ties_count_against_a_difference(more: int) -> None:
    """Scores of 0 and 1: many resamples are off by exactly the difference, whatever rounding makes of it."""
    samples = 21
    sides = {"a": one_task((np.arange(samples) < 9 + more) * 1.0), "b": one_task((np.arange(samples) < 9) * 1.0)}
    drawn = resample(sides, each_its_own(samples), fixed=sides, resamples=999)
    counts = np.round((drawn["a"].draws[0] - drawn["b"].draws[0]) * samples).astype(int)
    off = np.abs(counts - more)
    assert (off == more).any()
    assert estimate(drawn["a"], drawn["b"]).p_value == (1 + int((off >= more).sum())) / 1000


def test_standard_error_of_many_runs_and_groups() -> None:
    """Half an interval is 1.96 standard errors: variance of seeds, samples and both over their numbers."""
    rng = np.random.default_rng(1)
    scores = crossed(rng, 150, 120, seeds=0.3, samples=0.4, both=0.5)
    found = differ(scores, np.zeros((1, 120)))
    assert found.covers == "samples"  # one run that is not said to be deterministic
    drawn = resample({"a": one_task(scores), "b": one_task(np.zeros(120))}, each_its_own(120), fixed=["b"])
    wide = estimate(drawn["a"], drawn["b"])
    expected = 1.96 * np.sqrt(0.3**2 / 150 + 0.4**2 / 120 + 0.5**2 / (150 * 120))
    assert wide.covers == "seeds and samples"
    assert wide.interval is not None
    assert (wide.interval[1] - wide.interval[0]) / 2 == pytest.approx(expected, rel=0.12)
    assert sum(wide.interval) / 2 == pytest.approx(wide.value) == pytest.approx(scores.mean())


def test_ten_seeds_are_as_few_as_students_t_says() -> None:
    """Samples agree, seeds do not: about the classic interval of ten numbers, 2.26 standard errors to each side."""
    rng, reached = np.random.default_rng(2), []
    for _ in range(100):
        scores = crossed(rng, 10, 8, seeds=1.0, samples=0.0, both=0.0)
        drawn = resample({"a": one_task(scores)}, each_its_own(8), resamples=999)
        low, high = estimate(drawn["a"]).interval or (0.0, 0.0)
        reached.append((high - low) / 2 / (scores[:, 0].std(ddof=1) / np.sqrt(10)))
    assert np.median(reached) == pytest.approx(2.262, rel=0.1)


def test_groups_and_tasks_weigh_as_in_the_score() -> None:
    """Rows of one group move together; tasks weigh the same whatever their size; the error is that of group sums."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=80)
    thrice = {"t": np.repeat(values, 3), "u": np.zeros(5)}
    groups = {"t": [str(i) for i in np.repeat(np.arange(80), 3)], "u": ["x", "x", "y", "z", "z"]}
    drawn = resample({"a": [thrice]}, groups, fixed=["a"])
    found = estimate(drawn["a"])
    assert found.value == pytest.approx(values.mean() / 2)
    expected = 1.96 * values.std(ddof=1) / np.sqrt(80) / 2
    assert found.interval is not None
    assert found.interval[1] - found.value == pytest.approx(expected, rel=0.06)
    single = resample({"a": [thrice]}, {**groups, "u": ["x"] * 5}, fixed=["a"])
    assert estimate(single["a"]).interval is None
    assert estimate(single["a"]).p_value is None


def test_equal_searches_differ_by_nothing() -> None:
    scores = crossed(np.random.default_rng(4), 10, 20, seeds=0.1, samples=0.3, both=0.1)
    drawn = resample({"a": one_task(scores[0]), "b": one_task(scores[0])}, each_its_own(20), fixed=["a", "b"])
    same = estimate(drawn["a"], drawn["b"])
    assert (same.value, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)
    certain = resample({"a": one_task(scores[0] + 1), "b": one_task(scores[0])}, each_its_own(20), fixed=["a", "b"])
    sure = estimate(certain["a"], certain["b"])
    assert sure.interval == pytest.approx((1.0, 1.0))
    assert sure.p_value == 1 / (two_level.RESAMPLES + 1)


def test_what_must_not_matter_does_not() -> None:
    rng = np.random.default_rng(5)
    first, second = (crossed(rng, 10, 30, seeds=0.1, samples=0.3, both=0.2) for _ in range(2))
    first.setflags(write=False)
    found = differ(first, second)
    assert differ(first, second) == found
    shifted = differ(first + 0.25, second + 0.25)
    assert shifted.interval == pytest.approx(found.interval)
    assert shifted.p_value == found.p_value
    third = one_task(rng.normal(size=(7, 30)))
    drawn = resample({"c": third, "b": one_task(second), "a": one_task(first)}, each_its_own(30), resamples=999)
    assert estimate(drawn["a"], drawn["b"]) == found
    swapped = differ(second, first)
    assert swapped.value == -found.value
    assert swapped.interval is not None
    assert found.interval is not None
    assert swapped.interval[1] == pytest.approx(-found.interval[0], abs=0.15 * (found.interval[1] - found.interval[0]))


@pytest.mark.parametrize("runs", [1, 2, 4, 5])
def test_few_runs_say_nothing_of_other_seeds(runs: int) -> None:
    rng = np.random.default_rng(6)
    first, second = (crossed(rng, n, 30, seeds=0.5, samples=0.2, both=0.1) for n in (runs, 10))
    found = differ(first, second)
    assert found.covers == ("seeds and samples" if runs == 5 else "samples")
    assert found.interval is not None
    if runs < 5:
        sides = {"a": one_task(first), "b": one_task(second)}
        still = resample(sides, each_its_own(30), fixed=sides, resamples=999)
        assert found == estimate(still["a"], still["b"])


@given(seed=st.integers(0, 10_000), shift=st.floats(-0.3, 0.3))
def test_p_is_small_exactly_where_the_interval_leaves_out_zero(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    first, second = (crossed(rng, 6, 12, seeds=0.1, samples=0.2, both=0.1) for _ in range(2))
    found = differ(first + shift, second, resamples=199)
    assert found.interval is not None
    assert found.p_value is not None
    assert (found.p_value <= 0.05) == (found.interval[0] > 0 or found.interval[1] < 0)


# --- what is promised, by simulation ---------------------------------------------------------------

WORLDS = {
    "seeds differ": {"seeds": 0.05, "samples": 0.0, "both": 0.05},
    "samples differ": {"seeds": 0.005, "samples": 0.4, "both": 0.1},
    "only pairs differ": {"seeds": 0.0, "samples": 0.0, "both": 0.3},
    "all differ": {"seeds": 0.03, "samples": 0.2, "both": 0.3},
}


@pytest.mark.parametrize("world", WORLDS)
def test_intervals_hold_the_truth_as_often_as_they_say(world: str) -> None:
    """Ten seeds against a deterministic search whose own scores are part of what samples add; 300 experiments."""
    rng, held = np.random.default_rng(7), 0
    groups = each_its_own(100)
    for number in range(300):
        scores = crossed(rng, 10, 100, **WORLDS[world])
        sides = {"a": one_task(scores), "b": one_task(np.zeros(100))}
        drawn = resample(sides, groups, fixed=["b"], resamples=199, seed=number)
        low, high = estimate(drawn["a"], drawn["b"], seed=number).interval or (1.0, 1.0)
        held += low <= 0 <= high
    assert 0.91 <= held / 300 <= 0.985, held


def test_percentiles_would_not() -> None:
    """Why draws are divided by their own error: percentiles are too narrow or too wide, depending on what differs."""
    rng = np.random.default_rng(8)
    held = {"seeds differ": 0, "only pairs differ": 0}
    for world in held:
        for _ in range(300):
            scores = crossed(rng, 10, 40, **WORLDS[world])
            seeds = rng.multinomial(10, np.full(10, 0.1), size=199) / 10
            groups = rng.multinomial(40, np.full(40, 1 / 40), size=199) / 40
            low, high = np.quantile(np.einsum("bs,sg,bg->b", seeds, scores, groups), [0.025, 0.975])
            held[world] += low <= 0 <= high
    assert held["seeds differ"] < 0.93 * 300
    assert held["only pairs differ"] > 0.985 * 300


def test_nothing_is_found_where_nothing_is_and_something_where_something_is() -> None:
    """Four searches as good as the reference and, in every second experiment, one that is better."""
    rng = np.random.default_rng(9)
    false, found = 0, 0
    for number in range(120):
        scores = {name: crossed(rng, 10, 40, seeds=0.03, samples=0.0, both=0.2) for name in "abcdr"}
        scores["a"] += 0.15 * (number % 2)
        everywhere = 0.4 * rng.normal(size=40)  # samples are easy or hard for all searches alike
        entries = {name: one_task(made + everywhere) for name, made in scores.items()}
        drawn = resample(entries, each_its_own(40), resamples=499, seed=number)
        p_values = [estimate(drawn[name], drawn["r"], seed=number).p_value or 1.0 for name in "abcd"]
        rejected = [p <= 0.05 for p in holm(p_values)]
        found += rejected[0] and number % 2
        false += any(rejected[number % 2 :])
    assert false <= 12, false
    assert found >= 45, found
