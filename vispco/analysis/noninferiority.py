"""Paired non-inferiority: is one schedule no more than a margin worse than the plain model, on the same samples?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispco.analysis.bootstrap import Scores

POWER = 0.8
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NonInferiority:
    """``difference``: mean of the first minus the second. ``low``: with the asked confidence the true one is above it.
    ``confirmed``: ``low`` is not below minus the margin. ``needed``: samples with which a test would confirm it in 80 %
    of cases, if the true loss is the one seen here and no gain; None if that loss is the margin or more."""

    difference: float
    low: float
    confirmed: bool
    samples: int
    needed: int | None


def noninferiority(
    first: Scores, second: Scores, groups: Mapping[str, Sequence[str]], margin: float, sure: float
) -> NonInferiority | None:
    """One-sided test of ``first`` against ``second``, whole groups of samples being what is independent.

    The bound is ``d - t e`` with the t quantile of ``sure`` and the smallest task's groups less one degrees of
    freedom. e squared is the variance over the G groups of a task, at least ``m (1 - m) / G``, that of a schedule which
    loses nothing but the margin m: a test must err seldom where the loss is the margin, and a few losses that were not
    seen would make the variance too small (the idea of a score test, Tango 1998). ``1 / (G + 2)^2`` is added, half a
    group won and half a group lost: no number of equal answers makes two schedules equal (Agresti and Min 2005).

    Args:
        first, second: parts of the number per sample, by task, whose mean over samples is a task's accuracy.
        groups: group of each sample, by task.
        margin: as a share of one, 0.01 for a point.
        sure: confidence, 0.95.

    Returns None where a task has a single group, which says nothing of others.
    """
    from scipy.stats import norm, t

    apart = {task: _apart(first[task], second[task], groups[task]) for task in first}
    if any(count < 2 for _, _, count in apart.values()):
        return None
    fewest = min(count for _, _, count in apart.values())
    samples = sum(len(values) for values in first.values())
    mean = sum(value for value, _, _ in apart.values()) / len(first)
    least = margin * (1 - margin)
    each = [max(variance, least / count) + 1 / (count + 2) ** 2 for _, variance, count in apart.values()]
    error = math.sqrt(sum(each)) / len(first)
    low = mean - float(t.ppf(sure, fewest - 1)) * error
    room = margin + min(0.0, mean)
    needed = None
    if room > 0:
        factor = ((float(norm.ppf(sure)) + float(norm.ppf(POWER))) * error / room) ** 2
        needed = math.ceil(samples * factor)
    return NonInferiority(mean, low, low >= -margin - 1e-12, samples, needed)


def paired_error(first: Scores, second: Scores, groups: Mapping[str, Sequence[str]]) -> float:
    """Standard error of the accuracy of ``first`` less that of ``second``, over groups; infinite where a task has a
    single group."""
    apart = [_apart(first[task], second[task], groups[task]) for task in first]
    return math.sqrt(sum(variance for _, variance, _ in apart)) / len(apart)


def _apart(first: Floats, second: Floats, groups: Sequence[str]) -> tuple[float, float, int]:
    """Of one task: mean difference, its variance over groups, number of groups."""
    apart = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = int(member.max()) + 1
    if count < 2:
        return float(apart.mean()), math.inf, count
    moved = np.bincount(member, weights=apart - apart.mean()) / len(apart)
    return float(apart.mean()), count / (count - 1) * float(moved @ moved), count
