"""Where our one rounding rule keeps another count than the official codes do, counted over every N."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vispco.pruning.methods import METHODS
from vispco.pruning.published import PUBLISHED
from vispco.pruning.schedules import keep_count, ratio_counts

MOST = 3000
OFFICIAL: dict[str, tuple[Callable[[float], int], list[float]]] = {
    "pyramiddrop": (int, [0.5, 0.25, 0.125]),
    "fastv": (round, [0.75, 0.5, 0.25, 0.125]),
    "divprune": (round, [0.5, 0.25]),
}


def differing(rule: Callable[[float], int], ratio: float) -> list[int]:
    """N from 8 on, below which the least of one token decides."""
    return [n for n in range(8, MOST) if keep_count(ratio, n) != rule(ratio * n)]


def test_truncation_differs_at_half_of_all_lengths_that_leave_a_rest() -> None:
    """``int`` keeps one token less wherever the rest is at least one half."""
    for ratio, parts in ((0.5, 2), (0.25, 4), (0.125, 8)):
        other = differing(int, ratio)
        assert other == [n for n in range(8, MOST) if (n % parts) / parts >= 0.5]
        assert {keep_count(ratio, n) - int(ratio * n) for n in other} == {1}
    assert len(differing(int, 0.5)) == sum(n % 2 for n in range(8, MOST))


@pytest.mark.parametrize(("ratio", "parts"), [(0.5, 2), (0.25, 4), (0.75, 4), (0.125, 8)])
def test_python_rounds_halves_to_even_and_differs_at_half_of_the_halves(ratio: float, parts: int) -> None:
    other = differing(round, ratio)
    halves = [n for n in range(8, MOST) if (ratio * n) % 1 == 0.5]
    assert other == [n for n in halves if int(ratio * n) % 2 == 0]
    assert abs(len(other) - len(halves) / 2) <= 1
    assert len(halves) == len([n for n in range(8, MOST) if n % parts == parts // 2])


def test_the_default_ratio_of_divprune_meets_a_half_once_in_a_thousand_lengths() -> None:
    assert [n for n in range(1, MOST) if keep_count(0.098, n) != max(1, round(0.098 * n))] == [250, 1250, 2250]


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_lengths_are_not_affected_and_the_docstring_says_so(name: str) -> None:
    rule, ratios = OFFICIAL[name]
    for ratio in ratios:
        assert keep_count(ratio, 576) == rule(ratio * 576)
    said = " ".join((METHODS[name].__doc__ or "").split())
    assert "halves up" in said or "rounded up" in said
    assert "published" in said or "576" in said


def test_published_schedules_keep_the_official_counts_of_576_tokens() -> None:
    for name, rule in (("pyramiddrop:8-16-24", int), ("fastv:k2-r50", round), ("divprune:0.098", round)):
        ratios = PUBLISHED[name].for_layers(32).keep_ratio(32)
        assert ratio_counts(ratios, [576])[0].tolist() == [rule(ratio * 576) for ratio in ratios]
