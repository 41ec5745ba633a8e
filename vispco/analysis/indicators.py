"""Quality of a front, from points (accuracy, flops_ratio): pure functions over moocore.

Accuracy is maximised, flops_ratio minimised. Inputs are array-likes [n, 2] and are not changed. A hypervolume may be of
more costs, [n, 1 + costs].
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

MAXIMISE = [True, False]


def _points(values: ArrayLike, width: int = 2) -> NDArray[np.float64]:
    points = np.array(values, dtype=np.float64).reshape(-1, width)
    if not np.isfinite(points).all():
        raise ValueError(f"points must be finite, got {points[~np.isfinite(points).all(axis=1)][0]}")
    return points


def hypervolume(points: ArrayLike, *, reference: Sequence[float]) -> float:
    """Area that the points dominate up to ``reference`` = (accuracy, flops_ratio, ...); 0 for no points.

    Points that do not dominate the reference contribute nothing.

    >>> hypervolume([[0.5, 0.5]], reference=(0.0, 1.0))
    0.25
    >>> hypervolume([[0.5, 0.5, 0.5]], reference=(0.0, 1.0, 1.0))
    0.125
    """
    values = _points(points, len(reference))
    if not len(values):
        return 0.0
    maximise = [True, *[False] * (len(reference) - 1)]
    return float(moocore.hypervolume(values, ref=np.asarray(reference, dtype=float), maximise=maximise))


def _some(values: ArrayLike) -> NDArray[np.float64]:
    """At least one point: moocore ends the process where there is none."""
    points = _points(values)
    if not len(points):
        raise ValueError("the indicator needs one point or more, got none")
    return points


def igd_plus(points: ArrayLike, *, reference_set: ArrayLike) -> float:
    """IGD+ (Ishibuchi et al. 2015): mean distance by which the reference set is missed; 0 is best."""
    return float(moocore.igd_plus(_some(points), ref=_some(reference_set), maximise=MAXIMISE))


def additive_epsilon(points: ArrayLike, *, reference_set: ArrayLike) -> float:
    """Additive epsilon (Zitzler et al. 2003): the shift after which every reference point is weakly dominated."""
    return float(moocore.epsilon_additive(_some(points), ref=_some(reference_set), maximise=MAXIMISE))
