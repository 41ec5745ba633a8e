"""Bootstrap over groups of samples, conditional on the schedules that were found; Holm's correction.

Over seeds as well: :mod:`vispco.analysis.two_level`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
BLOCK_BYTES = 64 * 2**20  # of group weights that are held at a time
Scores = Mapping[str, NDArray[np.float64]]


def mean_scores(evaluations: Sequence[Scores]) -> dict[str, NDArray[np.float64]]:
    """Per-sample mean over several evaluations of the same split, per task."""
    return {task: np.mean([scores[task] for scores in evaluations], axis=0) for task in evaluations[0]}


def difference(first: Scores, second: Scores) -> dict[str, NDArray[np.float64]]:
    """Paired per-sample difference, per task."""
    return {task: first[task] - second[task] for task in first}


def group_bootstrap(
    scores: Scores, groups: Mapping[str, Sequence[str]], *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap distribution [resamples] of the unweighted mean over tasks of mean scores.

    Whole groups are drawn with replacement (several questions about one picture are not independent); tasks are
    resampled independently. NaN where a task has a single group: then it cannot be known. For many score vectors over
    the same groups see :func:`group_bootstraps`.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for task in sorted(scores):
        values = np.asarray(scores[task], dtype=np.float64)
        _, member = np.unique(np.asarray(groups[task]), return_inverse=True)
        sums = np.bincount(member, weights=values)
        sizes = np.bincount(member)
        draws = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
        total += (draws @ sums) / (draws @ sizes) if len(sizes) > 1 else np.nan
    return total / len(scores)


def group_bootstraps(
    scores: Sequence[Scores], groups: Mapping[str, Sequence[str]], *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """:func:`group_bootstrap` of each of ``scores``, [len(scores), resamples]; they share their tasks.

    The draws depend on the groups and the seed alone: they are made once, in blocks, and multiplied with all score
    vectors together.
    """
    totals = np.zeros((len(scores), resamples))
    if not scores:
        return totals
    rng = np.random.default_rng(seed)
    for task in sorted(scores[0]):
        _, member = np.unique(np.asarray(groups[task]), return_inverse=True)
        sizes = np.bincount(member).astype(np.float64)
        if len(sizes) == 1:
            totals[:] = np.nan
            continue
        sums = np.stack(
            [np.bincount(member, weights=np.asarray(one[task], dtype=np.float64)) for one in scores], axis=1
        )
        even = np.full(len(sizes), 1 / len(sizes))
        block = max(1, BLOCK_BYTES // (8 * len(sizes)))
        for start in range(0, resamples, block):
            end = min(start + block, resamples)
            draws = rng.multinomial(len(sizes), even, size=end - start).astype(np.float64)
            totals[:, start:end] += ((draws @ sums) / (draws @ sizes)[:, None]).T
    return totals / len(scores[0])


def interval(distribution: NDArray[np.float64], *, level: float = 0.95) -> list[float] | None:
    """Percentile interval [low, high]; None of a distribution that is not known."""
    if np.isnan(distribution).any():
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(distribution, [tail, 1 - tail])
    return [float(low), float(high)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of one family of hypotheses, in the given order.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is below one before it, none above 1.
    Rejecting those at or below 0.05 errs in one or more of the family with at most 5 % probability, whatever depends
    on what (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = least
    return adjusted
