"""Which trials matter: the front, and the choice a search would have made for each budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

FITS = 1e-9


class Measured(Protocol):
    """A finished trial with values (accuracy, flops_ratio) and user attributes."""

    number: int
    values: Any
    user_attrs: dict[str, Any]


def is_measured(trial: Any) -> bool:
    """Whether a COMPLETE trial has a finite accuracy and flops_ratio; others are on no front and chosen for nothing."""
    return trial.values is not None and len(trial.values) == 2 and all(map(math.isfinite, trial.values))


def front(trials: Sequence[Any]) -> list[Any]:
    """Non-dominated trials (more accuracy, less flops_ratio), by flops_ratio; of equal points the first."""
    from moocore import is_nondominated

    if not trials:
        return []
    points = np.array([trial.values for trial in trials], dtype=float)
    keep = is_nondominated(points, maximise=[True, False])
    return sorted((t for t, k in zip(trials, keep, strict=True) if k), key=lambda trial: trial.values[1])


def choose(trials: Sequence[Any], budget: float) -> Any | None:
    """What a search would pick for ``budget``: the best accuracy within it, then the cheapest, then the first.

    If nothing fits, the cheapest trial; None without trials.
    """
    if not trials:
        return None
    fitting = [trial for trial in trials if trial.values[1] <= budget + FITS]
    if fitting:
        return min(fitting, key=lambda trial: (-trial.values[0], trial.values[1], trial.number))
    return min(trials, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))


def points_to_confirm(trials: Sequence[Any], budgets: Sequence[float]) -> list[str]:
    """Schedules to measure on the held-out split: the choices for the budgets, and the front."""
    chosen = [choose(trials, budget) for budget in budgets]
    wanted = [trial for trial in [*chosen, *front(trials)] if trial is not None]
    return list(dict.fromkeys(trial.user_attrs["schedule"] for trial in wanted))
