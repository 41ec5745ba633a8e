"""What one step at a layer costs: accuracy lost against compute saved, from the trials of a method's single steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispco.analysis.bootstrap import group_bootstraps, interval
from vispco.analysis.comparison import Comparison
from vispco.errors import ScheduleError
from vispco.pruning.schedules import Step, parse_schedule
from vispco.storage.reading import TrialRecord

REFERENCE_KEEP = 0.3  # where layers are compared: hard enough to hurt, and nearly every grid has it
Place = tuple[int, float]


def sensitivity_table(method: str, unpruned: float, cells: Mapping[Place, tuple[float, ...]]) -> dict[str, Any] | None:
    """Cost of one step at each layer, or None where no two layers were measured at the same keep ratio.

    Keep ratios that less than half as many layers have as the commonest one (chance hits of random draws) are left out.

    Args:
        unpruned: accuracy without pruning.
        cells: (layer, keep) -> (accuracy, flops_ratio).
    """
    counts: dict[float, int] = {}
    for _, keep in cells:
        counts[keep] = counts.get(keep, 0) + 1
    most = max(counts.values(), default=0)
    keeps = sorted(keep for keep, count in counts.items() if count >= max(2, most / 2))
    layers = sorted({layer for layer, keep in cells if keep in keeps})
    if not keeps:
        return None
    reference = min((k for k in keeps if counts[k] == most), key=lambda keep: (abs(keep - REFERENCE_KEEP), keep))

    def column(value: Callable[..., float]) -> list[list[float | None]]:
        return [[value(*cells[layer, k]) if (layer, k) in cells else None for k in keeps] for layer in layers]

    table: dict[str, Any] = {
        "method": method,
        "unpruned": unpruned,
        "layers": layers,
        "keeps": keeps,
        "accuracy": column(lambda accuracy, flops_ratio: accuracy),
        "lost": column(lambda accuracy, flops_ratio: unpruned - accuracy),
        "saved": column(lambda accuracy, flops_ratio: 1 - flops_ratio),
        "reference_keep": reference,
        "lost_ci": [None] * len(layers),
        "per_compute": [None] * len(layers),
        "per_compute_ci": [None] * len(layers),
    }
    common = common_keeps(table)
    if common:
        lost, saved = (np.array(table[name], dtype=np.float64)[:, common].sum(axis=1) for name in ("lost", "saved"))
        table["per_compute"] = (lost / saved).tolist()
    return table


def common_keeps(table: Mapping[str, Any]) -> list[int]:
    """Columns measured at every layer, at each of which something was saved: layers are compared on these alone."""
    saved = table["saved"]
    return [i for i in range(len(table["keeps"])) if all(row[i] is not None and row[i] > 0 for row in saved)]


def sensitivity(comparison: Comparison) -> list[dict[str, Any]]:
    """One table per method, from all its single-step trials; those that a race stopped are no measurements."""
    unpruned = comparison.reference("unpruned", "search")
    if unpruned is None:
        return []
    found: dict[str, dict[Place, TrialRecord]] = {}
    cells: dict[str, dict[Place, tuple[float, ...]]] = {}
    names: dict[str, str] = {}
    for search in comparison.searches:
        if search.is_imported:
            continue
        for trial in search.trials:
            own = search.of_trial(trial)
            key, method = str(own.method_key), str(own.method)
            if key not in names:
                names[key] = key if method in names.values() else method
            place, share = _one_step(trial.user_attrs.get("schedule")), comparison.flops_ratio(search, trial)
            if place is not None and share is not None:
                found.setdefault(key, {}).setdefault(place, trial)
                cells.setdefault(key, {}).setdefault(place, (trial.accuracy, share))
    tables = []
    for key, trials in found.items():
        table = sensitivity_table(names[key], unpruned.accuracy, cells[key])
        if table is not None:
            _add_intervals(comparison, table, trials)
            tables.append(table)
    return tables


def _one_step(text: str | None) -> Place | None:
    if not text or not text.startswith("step("):
        return None
    try:
        schedule = parse_schedule(text)
    except ScheduleError:
        return None
    if not isinstance(schedule, Step):  # at another resolution
        return None
    return (schedule.layer, schedule.keep) if schedule.keep < 1 else None


def _add_intervals(comparison: Comparison, table: dict[str, Any], trials: Mapping[Place, TrialRecord]) -> None:
    """Paired bootstraps over groups of samples, conditional on nothing but the samples: no schedule was chosen."""
    unpruned = comparison.reference("unpruned", "search")
    assert unpruned is not None
    places = [(layer, keep) for layer in table["layers"] for keep in table["keeps"] if (layer, keep) in trials]
    ids = {place: trials[place].user_attrs.get("evaluation", "") for place in places}
    stored = comparison.store.get_evaluations(ids.values())
    measured = {place: stored[ids[place]] for place in places if ids[place] in stored}
    groups = comparison.store.groups_of(unpruned.id)
    if not groups or any(e.scores.keys() != unpruned.scores.keys() for e in measured.values()):
        return
    parts = comparison.parts_of(groups, [unpruned, *measured.values()])
    whole, *each = group_bootstraps([parts.of(e) for e in (unpruned, *measured.values())], parts.groups)
    lost: dict[Place, NDArray[np.float64]] = {place: whole - drawn for place, drawn in zip(measured, each, strict=True)}
    common, reference = [table["keeps"][i] for i in common_keeps(table)], table["reference_keep"]
    for row, layer in enumerate(table["layers"]):
        if (layer, reference) in lost:
            table["lost_ci"][row] = interval(lost[layer, reference])
        if common and all((layer, keep) in lost for keep in common):
            saved = sum(table["saved"][row][i] for i in common_keeps(table))
            table["per_compute_ci"][row] = interval(sum(lost[layer, keep] for keep in common) / saved)
