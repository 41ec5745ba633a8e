"""The studies of an experiment, read from the database in one state of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import TrialState

from vispco.analysis.study_result import StudyResult
from vispco.fronts import is_measured
from vispco.storage.importing import IMPORTED
from vispco.storage.reading import TrialRecord, read_trials, snapshot, study_ids
from vispco.storage.store import Store
from vispco.storage.trials import owed_by

# What analysis reads of a trial, and the only types that it believes: an imported study may use these names otherwise.
ATTRIBUTES: dict[str, type | tuple[type, ...]] = {
    "schedule": str,
    "evaluation": str,
    "method": str,
    "charged_flops": int,
    "full_flops": int,
    "spent_flops": int,
    "propose_flops": int,
    "propose_spent": int,
    "budget": (int, float),
    "flops_ratio": (int, float),
    "limit_excess": (int, float),
    "relaxed_flops_ratio": (int, float),
    "relaxed_cost_ratio": (int, float),
    "stationarity": (int, float),
    "feasibility": (int, float),
    "complementarity": (int, float),
}


def read_studies(
    store: Store, experiment: str, facts: Mapping[str, Mapping[str, Any]], wholes: Sequence[float] | None
) -> tuple[list[StudyResult], dict[str, int]]:
    """Studies in the order of ``facts``, and the database's number of each.

    Args:
        facts: what the experiment notes of its studies, by their names; those without a study are left out.
        wholes: what each value is divided by to be a share, of an accuracy 1; None: all are shares already.
    """
    with snapshot(store.engine) as connection:
        known = study_ids(connection, experiment)
        noted = {name: own for name, own in facts.items() if name in known}
        stored = read_trials(
            connection,
            [known[name] for name in noted],
            states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL),
            attributes=ATTRIBUTES,
            with_params=False,
        )
    studies, objectives = [], 2 if wholes is None else len(wholes)
    for name, own in noted.items():
        trials = stored[known[name]]
        if own["kind"] == IMPORTED:
            trials = [_believed(trial) for trial in trials]
        if wholes is not None:
            trials = [_as_shares(trial, wholes) for trial in trials]
        complete = [t for t in trials if t.state == TrialState.COMPLETE and is_measured(t, objectives)]
        stopped = [t for t in trials if t.state == TrialState.PRUNED]
        owed = {} if own["kind"] == IMPORTED else _owed(trials)
        studies.append(StudyResult.of(name.removeprefix(f"{experiment}/"), name, own, complete, stopped, owed))
    return studies, known


def _owed(trials: Sequence[TrialRecord]) -> dict[str, int]:
    """What it took to propose what failed at the end, by the attributes that sums are of."""
    found = owed_by(trials)
    flops, spent = (sum(t.user_attrs.get(name, 0) for t in found) for name in ("propose_flops", "propose_spent"))
    return {"charged_flops": flops, "propose_flops": flops, "spent_flops": spent} if found else {}


def _as_shares(trial: TrialRecord, wholes: Sequence[float]) -> TrialRecord:
    if not trial.values or len(trial.values) != len(wholes):
        return trial
    return replace(trial, values=tuple(value / whole for value, whole in zip(trial.values, wholes, strict=True)))


def _believed(trial: TrialRecord) -> TrialRecord:
    """An imported trial without attributes that only share our names."""
    attrs = {k: v for k, v in trial.user_attrs.items() if isinstance(v, ATTRIBUTES[k]) and not isinstance(v, bool)}
    attrs = {k: v for k, v in attrs.items() if not isinstance(v, float) or math.isfinite(v)}
    if "charged_flops" in attrs:
        attrs.setdefault("propose_flops", 0)  # proposing was the user's own affair
    return replace(trial, user_attrs=attrs)
