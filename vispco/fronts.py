"""Which trials matter: the front, and the choice a search would have made for each budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from optuna.trial import TrialState

FITS = 1e-9
HELD = 0.02  # of a budget: a relaxed solution that misses it by more does not hold it


def is_measured(trial: Any, objectives: int | None = None) -> bool:
    """Whether a COMPLETE trial has a finite accuracy and costs; others are on no front and chosen for nothing.

    ``objectives``: how many values it must have; a database that was changed by hand may hold more or fewer.
    """
    values = trial.values or ()
    if objectives is not None and len(values) != objectives:
        return False
    return len(values) >= 2 and all(map(math.isfinite, values))


def within_limits(trial: Any) -> bool:
    """Whether a trial keeps its experiment's limits; others cost something, and are on no front and chosen for
    nothing."""
    return bool(trial.user_attrs.get("limit_excess", 0) <= FITS)


def relaxed_ratio(trial: Any) -> float | None:
    """Cost of the relaxed solution that a trial was snapped from, as a share; None where it says none."""
    attributes = trial.user_attrs
    ratio = attributes.get("relaxed_flops_ratio", attributes.get("relaxed_cost_ratio"))
    return None if ratio is None else float(ratio)


def front(trials: Sequence[Any]) -> list[Any]:
    """Trials within limits that none dominates in accuracy and the cost that budgets are in, by cost; of equal points
    the first."""
    return _nondominated(trials, 2)


def front_of_all(trials: Sequence[Any]) -> list[Any]:
    """Trials within limits that none dominates in accuracy and all costs, by the first cost; of equal points the
    first."""
    return _nondominated(trials, None)


def _nondominated(trials: Sequence[Any], values: int | None) -> list[Any]:
    """By the first so many values, or by all."""
    from moocore import is_nondominated

    trials = [trial for trial in trials if within_limits(trial)]
    if not trials:
        return []
    points = np.array([trial.values[:values] for trial in trials], dtype=float)
    keep = is_nondominated(points, maximise=[True, *[False] * (points.shape[1] - 1)])
    return sorted((t for t, k in zip(trials, keep, strict=True) if k), key=lambda trial: trial.values[1])


def fits(trial: Any, budget: float) -> bool:
    """Whether a trial's realised cost is within ``budget``, but for rounding, and within the experiment's limits."""
    return bool(trial.values[1] <= budget + FITS) and within_limits(trial)


def choose(trials: Sequence[Any], budget: float) -> Any | None:
    """What a search would pick for ``budget``: the best accuracy within it, then the cheapest, then the first.

    None if nothing fits: the budget is missed.
    """
    return min((trial for trial in trials if fits(trial, budget)), key=_preference, default=None)


def _preference(trial: Any) -> tuple[float, float, int]:
    return (-trial.values[0], trial.values[1], trial.number)


def choices_at(trials: Sequence[Any], budgets: Sequence[float], limits: Sequence[float]) -> list[list[Any | None]]:
    """What a search would have picked for each budget when it had been charged ``limits`` FLOPs; None if nothing fits.

    Args:
        trials: COMPLETE and PRUNED ones, with ``charged_flops``; the latter cost something and are never picked.
        limits: ascending.
    """
    best: list[Any | None] = [None] * len(budgets)
    choices: list[list[Any | None]] = []
    charged = 0
    for trial in sorted(trials, key=lambda trial: trial.number):
        charged += trial.user_attrs["charged_flops"]
        while len(choices) < len(limits) and charged > limits[len(choices)]:
            choices.append(list(best))
        if trial.state != TrialState.COMPLETE or not is_measured(trial):
            continue
        for place, budget in enumerate(budgets):
            known = best[place]
            if fits(trial, budget) and (known is None or _preference(trial) < _preference(known)):
                best[place] = trial
    return choices + [list(best)] * (len(limits) - len(choices))


def trials_to_confirm(trials: Sequence[Any], budgets: Sequence[float]) -> list[Any]:
    """Trials whose schedules to measure on the held-out split: the choices for the budgets, and the fronts."""
    return _distinct([*(choose(trials, budget) for budget in budgets), *front(trials), *front_of_all(trials)])


def checkpoints_to_confirm(trials: Sequence[Any], budgets: Sequence[float], limits: Sequence[float]) -> list[Any]:
    """Trials to measure there for a curve over charged compute: :func:`choices_at` the limits."""
    return _distinct(trial for row in choices_at(trials, budgets, limits) for trial in row)


def _distinct(trials: Iterable[Any | None]) -> list[Any]:
    """The first trial of each schedule, and of each method where there are several."""
    first: dict[tuple[str, str | None], Any] = {}
    for trial in trials:
        if trial is not None:
            first.setdefault((trial.user_attrs["schedule"], trial.user_attrs.get("method")), trial)
    return list(first.values())
