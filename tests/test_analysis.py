"""Selection, indicators and statistics: closed forms, slow twins, invariants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vispco.analysis import bootstrap
from vispco.analysis.bootstrap import difference, group_bootstrap, group_bootstraps, interval, mean_scores
from vispco.analysis.indicators import additive_epsilon, hypervolume, igd_plus
from vispco.fronts import choose, front, trials_to_confirm


@dataclass
class Trial:
    number: int
    values: list[float]
    user_attrs: dict[str, Any] = field(default_factory=dict)


def trials(*points: tuple[float, float]) -> list[Trial]:
    return [Trial(i, list(p), {"schedule": f"s{i}"}) for i, p in enumerate(points)]


POINTS = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=20)


@given(points=POINTS)
def test_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    found = [tuple(t.values) for t in front(trials(*points))]
    assert found == sorted(found, key=lambda v: v[1])
    for accuracy, ratio in set(points):
        dominated = any((a >= accuracy and r <= ratio and (a, r) != (accuracy, ratio)) for a, r in points)
        assert ((accuracy, ratio) in found) != dominated
    assert len(found) == len(set(found))


@given(points=POINTS, budget=st.integers(0, 10))
def test_choice_is_the_best_that_fits(points: list[tuple[int, int]], budget: int) -> None:
    chosen = choose(trials(*points), budget)
    fitting = [p for p in points if p[1] <= budget]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        assert chosen.values[0] == max(a for a, _ in fitting)
        assert chosen.values[1] == min(r for a, r in fitting if a == chosen.values[0])


def test_selection_edges() -> None:
    assert choose([], 0.5) is None
    assert front([]) == []
    assert trials_to_confirm([], [0.5]) == []
    three = trials((0.9, 0.9), (0.5, 0.2), (0.4, 0.3))
    assert [trial.user_attrs["schedule"] for trial in trials_to_confirm(three, [0.25, 1.0])] == ["s1", "s0"]
    # A budget that the realised ratio misses by rounding still fits.
    assert choose(trials((0.5, 0.3 + 1e-12)), 0.3).values == [0.5, 0.3 + 1e-12]  # type: ignore[union-attr]


@given(points=POINTS)
def test_hypervolume_against_a_count_of_cells(points: list[tuple[int, int]]) -> None:
    cells = sum(any(a > x and r <= y for a, r in points) for x in range(10) for y in range(10))
    assert hypervolume(points, reference=(0, 10)) == pytest.approx(cells)


def test_indicators_closed_form_and_edges() -> None:
    reference = [[0.5, 0.5], [0.9, 0.8]]
    assert igd_plus(reference, reference_set=reference) == 0.0
    assert additive_epsilon(reference, reference_set=reference) == 0.0
    assert additive_epsilon([[0.5, 0.5], [0.8, 0.8]], reference_set=reference) == pytest.approx(0.1)
    assert igd_plus([[0.5, 0.5]], reference_set=reference) == pytest.approx(0.4 / 2)
    assert hypervolume([], reference=(0, 1)) == 0.0
    assert hypervolume([[0.2, 1.1]], reference=(0.3, 1.0)) == 0.0
    with pytest.raises(ValueError, match="finite"):
        hypervolume([[float("nan"), 0.5]], reference=(0, 1))
    points = np.array(reference)
    points.setflags(write=False)
    hypervolume(points, reference=(0, 1))


def test_bootstrap_matches_theory() -> None:
    """Standard error of a mean over groups: sd of group means over sqrt(groups); more than if rows were independent."""
    rng = np.random.default_rng(0)
    group_values = rng.normal(size=200)
    scores = {"t": np.repeat(group_values, 3)}
    groups = {"t": [str(i) for i in np.repeat(np.arange(200), 3)]}
    draws = group_bootstrap(scores, groups, resamples=4000)
    expected = group_values.std() / np.sqrt(200)
    assert draws.mean() == pytest.approx(group_values.mean(), abs=0.01)
    assert draws.std() == pytest.approx(expected, rel=0.06)
    rows = {"t": [str(i) for i in range(600)]}
    assert group_bootstrap(scores, rows, resamples=4000).std() < 0.7 * expected
    low, high = interval(draws)
    assert low == pytest.approx(group_values.mean() - 1.96 * expected, abs=0.02)
    assert high == pytest.approx(group_values.mean() + 1.96 * expected, abs=0.02)


def test_bootstrap_of_tasks_and_pairs() -> None:
    groups = {"a": ["1", "1", "2"], "b": ["x", "y"]}
    scores = {"a": np.array([1.0, 1.0, 1.0]), "b": np.array([0.0, 0.0])}
    assert set(group_bootstrap(scores, groups, resamples=50).tolist()) == {0.5}
    zero = difference(scores, scores)
    assert interval(group_bootstrap(zero, groups, resamples=50)) == [0.0, 0.0]
    mean = mean_scores([scores, {"a": np.array([0.0, 1.0, 0.0]), "b": np.array([1.0, 0.0])}])
    assert mean["a"].tolist() == [0.5, 1.0, 0.5]
    same = group_bootstrap({"a": np.arange(3.0)}, groups, resamples=50, seed=3)
    assert same.tolist() == group_bootstrap({"a": np.arange(3.0)}, groups, resamples=50, seed=3).tolist()


@pytest.mark.parametrize("block", [1, 1000, 2**30])
def test_bootstraps_drawn_together_equal_those_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """The same seed gives the same draws, however many score vectors share them and however they are cut up."""
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    groups = {"b": [f"g{i // 3}" for i in range(40)], "a": [str(i) for i in range(7)], "unused": ["x"]}
    scores = [{"b": rng.random(40), "a": rng.integers(0, 2, 7).astype(float)} for _ in range(5)]
    drawn = group_bootstraps(scores, groups, resamples=150, seed=3)
    assert drawn.shape == (5, 150)
    for number, one in enumerate(scores):
        np.testing.assert_allclose(drawn[number], group_bootstrap(one, groups, resamples=150, seed=3), rtol=1e-13)
    np.testing.assert_allclose(
        drawn.mean(axis=0), group_bootstrap(mean_scores(scores), groups, resamples=150, seed=3), rtol=1e-12
    )
    np.testing.assert_allclose(
        drawn[1] - drawn[4],
        group_bootstrap(difference(scores[1], scores[4]), groups, resamples=150, seed=3),
        rtol=0,
        atol=1e-13,
    )
    assert group_bootstraps([], groups).shape == (0, bootstrap.RESAMPLES)
