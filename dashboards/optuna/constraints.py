"""Constraints as optuna-dashboard reads them: one list per trial, each value feasible up to zero.

optuna-dashboard 0.21 reads the system attribute ``constraints`` only, not what ``trial.set_constraint`` stores, and
takes no notice of it where it lists the best trials.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vispco.fronts import FITS

LISTED = "constraints"
NAMED = "constraints:"
LARGEST = 1e300  # JSON, as a browser reads it, knows no infinity


def with_constraints(trial: FrozenTrial, budget: float | None) -> FrozenTrial:
    """The trial with the system attribute ``constraints``; itself, if it has no constraint. ``trial`` is not changed.

    The user's own constraints are taken as they are. A trial without any is infeasible if its cost, as a share, is over
    the budget that it was made for, its user attribute ``budget``; one of a study with limits also if it exceeds one.

    Args:
        budget: for trials that were made for none, the experiment's largest; None outside an experiment.
    """
    found = own_constraints(trial)
    limited = "limit_excess" in trial.user_attrs  # then they are the study's limits, and its budget is one more
    if (not found or limited) and budget is not None and trial.values is not None and len(trial.values) >= 2:
        made_for, ratio = trial.user_attrs.get("budget"), trial.user_attrs.get("cost_ratio")
        cost = float(ratio) if ratio is not None and _is_number(ratio) else trial.values[1]
        over = cost - (float(made_for) if made_for is not None and _is_number(made_for) else budget)
        found = [0.0 if 0 < over <= FITS else over, *found]
    if not found:
        return trial
    shown = copy.copy(trial)
    shown._system_attrs = {**trial._system_attrs, LISTED: [_finite(value) for value in found]}
    return shown


def own_constraints(trial: FrozenTrial) -> list[float]:
    """What the user, or a sampler, stored with the trial, in the old or the new form."""
    attributes = trial._system_attrs
    listed = attributes.get(LISTED)
    named = [value for key, value in attributes.items() if key.startswith(NAMED)]
    return [value for value in (listed if isinstance(listed, (list, tuple)) and listed else named) if _is_number(value)]


def is_feasible(trial: FrozenTrial) -> bool:
    """Of a trial as :func:`with_constraints` gives it."""
    return all(value <= 0 for value in trial._system_attrs.get(LISTED, []))


def best_trials(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """Feasible trials that no feasible trial dominates, by number; all of several equal ones."""
    from moocore import is_nondominated

    done = [trial for trial in trials if trial.state == TrialState.COMPLETE and is_feasible(trial)]
    if not done:
        return []
    ways = [way == StudyDirection.MAXIMIZE for way in directions]
    points = [[_finite(value) for value in trial.values] for trial in done]
    keep = is_nondominated(points, maximise=ways, keep_weakly=True)
    return [trial for trial, kept in zip(done, keep, strict=True) if kept]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _finite(value: float) -> float:
    return LARGEST if math.isnan(value) else max(-LARGEST, min(LARGEST, float(value)))
