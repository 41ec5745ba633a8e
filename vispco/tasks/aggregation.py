"""From scores of samples to a benchmark's one number, and each sample's part in it, which a bootstrap can draw.

A rule gives every group of samples a value; the number is the mean of these values, or the mean over strata of their
means. The part of a sample is

    number + samples * (value of its group - mean of its stratum) / (strata * groups of the stratum * group size)

so that parts have the number as their mean, and draws of whole groups move their mean as they move the number, to
first order (the influence function: Davison and Hinkley 1997, 2.7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MEAN = "mean"


@dataclass(frozen=True)
class Rule:
    """``value``: (means [G], least scores [G]) of the groups -> their values [G], in [0, 1].

    ``stratified``: groups are averaged within their strata first, the stratum being a group's name up to its first "/".
    """

    value: Callable[[Floats, Floats], Floats]
    stratified: bool = False


RULES = {
    # A question counts if it is right under every rotation of its options (MMBench).
    "all-right": Rule(lambda means, least: least),
    # Kinds of questions count alike (MLVU).
    "kinds": Rule(lambda means, least: means, stratified=True),
    # Half for the questions about a picture, half for all of them being right; categories count alike (MME).
    "pairs": Rule(lambda means, least: (means + (least == 1)) / 2, stratified=True),
}


def aggregate(rule: str, scores: Floats, groups: Sequence[str]) -> float:
    """The number of scores [S] in groups [S]: ``mean``, or one of :data:`RULES`."""
    if rule == MEAN:
        return float(np.mean(scores))
    return float(np.mean(_Grouped(rule, scores, groups).means))


def parts(rule: str, scores: Floats, groups: Sequence[str]) -> Floats:
    """What each sample adds to the number, [S]; the scores themselves where that is their mean."""
    if rule == MEAN:
        return scores
    found = _Grouped(rule, scores, groups)
    weight = len(scores) / (len(found.means) * found.sizes[found.stratum] * found.members)
    moved = weight * (found.values - found.means[found.stratum])
    return np.asarray(found.means.mean() + moved[found.member])


class _Grouped:
    """Groups [G] with ``values``, ``members`` (how many samples) and ``stratum``; strata [T] with ``means``, ``sizes``.

    ``member`` [S] is each sample's group.
    """

    def __init__(self, rule: str, scores: Floats, groups: Sequence[str]) -> None:
        names, self.member = np.unique(np.asarray(groups), return_inverse=True)
        self.members = np.bincount(self.member)
        least = np.full(len(names), np.inf)
        np.minimum.at(least, self.member, scores)
        self.values = RULES[rule].value(np.bincount(self.member, weights=scores) / self.members, least)
        strata = [str(name).split("/", 1)[0] if RULES[rule].stratified else "" for name in names]
        _, self.stratum = np.unique(strata, return_inverse=True)
        self.sizes = np.bincount(self.stratum)
        self.means = np.bincount(self.stratum, weights=self.values) / self.sizes
