"""How gradient searches held their budgets, seed by seed: the object of ``vispco compare --violations --json``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from vispco.analysis.comparison import Comparison, together
from vispco.analysis.seeds import entries
from vispco.analysis.study_result import StudyResult, each_method
from vispco.errors import StorageError
from vispco.fronts import HELD, relaxed_ratio
from vispco.storage.store import Store

RESIDUALS = ("stationarity", "feasibility", "complementarity")


def violations(comparison: Comparison) -> dict[str, Any]:
    """Per entry and budget (cost - budget) / budget of the relaxed solution, before the snap, of each run.

    An entry that searched among several methods has rows for each.

    ``held``: of how many (seed, budget) ``pairs`` it is at most 0.02 either way. ``over``: the most by which any
    trial is above its budget on the search split, after the snap. The Karush-Kuhn-Tucker residuals are means over runs
    (:mod:`vispco.search.gradient.kkt`); None where a search does not say.
    """
    rows_by_entry: list[dict[str, Any]] = []
    parts = [part for entry in entries(comparison).values() for part in each_method(entry.runs).items()]
    for name, found in parts:
        runs = [run for run in found if _relaxed(run)]
        if runs:
            rows = [_row(runs, budget) for budget in comparison.budgets]
            known = [value for row in rows for value in row["relaxed"] if value is not None]
            over = [
                trial.values[1] - trial.user_attrs["budget"] for run in runs for trial in run.trials if trial.values
            ]
            rows_by_entry.append(
                {
                    "entry": name,
                    "seeds": [run.seed for run in runs],
                    "budgets": rows,
                    "pairs": len(known),
                    "held": sum(abs(value) <= HELD for value in known),
                    "farthest": max(known, key=abs),
                    "over": max(over, default=None),
                }
            )
    return {"experiment": comparison.experiment, "within": HELD, "entries": rows_by_entry}


def _relaxed(run: StudyResult) -> dict[float, dict[str, Any]]:
    """Attributes of the first trial of each budget that has a relaxed solution."""
    solved: dict[float, dict[str, Any]] = {}
    for trial in run.paid:
        if relaxed_ratio(trial) is not None and "budget" in trial.user_attrs:
            solved.setdefault(trial.user_attrs["budget"], {**trial.user_attrs, "relaxed": relaxed_ratio(trial)})
    return solved


def _row(runs: Sequence[StudyResult], budget: float) -> dict[str, Any]:
    said = [_relaxed(run).get(budget, {}) for run in runs]
    row: dict[str, Any] = {
        "budget": budget,
        "relaxed": [(one["relaxed"] - budget) / budget if one else None for one in said],
    }
    for name in RESIDUALS:
        values = [one[name] for one in said if name in one]
        row[name] = fmean(values) if values else None
    return row


def compare_violations(store: Store, experiments: Sequence[str]) -> dict[str, Any]:
    """:func:`violations` of one experiment, or of several under ``experiments``.

    Raises:
        StorageError: no such experiment, one without results, or without a gradient search.
    """
    each = [violations(Comparison(store, name)) for name in experiments]
    for one in each:
        if not one["entries"]:
            raise StorageError(
                f"experiment {one['experiment']!r} has no gradient search that says how it held its budgets; "
                "run one: {kind: lagrangian}"
            )
    return together(each)
