"""Empirical attainment: which (accuracy, flops_ratio) goals how many of a search's runs reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vispco.analysis.comparison import Comparison
from vispco.analysis.seeds import entries
from vispco.analysis.study_result import StudyResult

PERCENTS = (25.0, 50.0, 75.0)


def attainment_surface(fronts: Sequence[ArrayLike], *, percent: float) -> NDArray[np.float64]:
    """Corners (accuracy, flops_ratio) [K, 2], by flops_ratio, of what at least ``percent`` % of the fronts attain.

    A front attains a goal (a, c) if one of its points has accuracy a or more at flops_ratio c or less. 50 is the median
    front; 0 is what any front attains, 100 what all do. Grunert da Fonseca, Fonseca and Hall (2001), by moocore.

    Args:
        fronts: points [n, 2] of each run; dominated ones change nothing.

    >>> attainment_surface([[[0.5, 0.5]], [[0.7, 0.6]]], percent=100).tolist()
    [[0.5, 0.6]]

    Raises:
        ValueError: a front without points, or no front.
    """
    sets = [np.array(front, dtype=np.float64).reshape(-1, 2) for front in fronts]
    if not sets or not all(map(len, sets)):
        raise ValueError("attainment needs one front or more, each with points")
    numbers = np.repeat(np.arange(1, len(sets) + 1), [len(one) for one in sets])
    # moocore minimises here.
    points = np.concatenate(sets) * [-1.0, 1.0]
    rows = moocore.eaf(points, numbers, percentiles=[percent])[:, :2] * [-1.0, 1.0]
    return np.asarray(rows[np.argsort(rows[:, 1])])


def attainment_bands(comparison: Comparison, percents: Sequence[float] = PERCENTS) -> list[dict[str, Any]]:
    """Attainment surfaces of each entry over its seeds, for fronts at search accuracy and at held-out accuracy.

    ``split`` says which; held-out accuracy is that of the schedules on the search split's front, which may there
    dominate each other. Entries of which a run is not measured on held_out are left out there; those of which a run has
    nothing within the study's limits are left out everywhere. ``no_image`` is the accuracy without a picture on that
    split, ``surfaces`` maps each percentage to corners (accuracy, flops_ratio).
    """
    rows = []
    for name, entry in entries(comparison).items():
        for split in ("search", "held_out"):
            fronts = [_front(comparison, run, split) for run in entry.runs]
            measured = [points for points in fronts if points]
            if len(measured) < len(fronts):
                continue
            no_image = comparison.reference("no_image", split)
            surfaces = {percent: attainment_surface(measured, percent=percent) for percent in percents}
            rows.append(
                {
                    "entry": name,
                    "runs": len(fronts),
                    "split": split,
                    "no_image": no_image.accuracy if no_image else None,
                    "surfaces": {f"{percent:g}": corners.tolist() for percent, corners in surfaces.items()},
                }
            )
    return rows


def _front(comparison: Comparison, run: StudyResult, split: str) -> list[tuple[float, float]] | None:
    trials = comparison.front(run)
    if split == "search":
        return [(trial.values[0], trial.values[1]) for trial in trials if trial.values is not None]
    held_out = [(evaluation, trial) for trial in trials if (evaluation := comparison.held_out(run, trial))]
    if len(held_out) < len(trials):
        return None
    return [(one.accuracy, comparison.held_out_share(one, trial)) for one, trial in held_out]
