"""How much of what was learned survives on servers that run less than everything."""

from __future__ import annotations

from typing import Any

import numpy as np

from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import holds
from vispco.analysis.layers import depth
from vispco.analysis.study_result import StudyResult
from vispco.evaluation.records import Evaluation
from vispco.fronts import FITS, choose
from vispco.pruning.schedules import parse_schedule
from vispco.pruning.targets import TARGETS, Target, targets_of
from vispco.storage.store import Store


def compare_targets(store: Store, experiments: list[str]) -> dict[str, Any]:
    """One row per target, for each experiment.

    ``score`` is a budget score over all searches together: at each budget the best schedule on the search split that
    runs on the target, measured on the held-out split; a missed budget counts as the model without the picture.
    ``baseline`` is the same of the published defaults. ``survives``: the target's share of what is gained over that
    baseline where everything runs; None where nothing is gained or something was not measured.
    """
    return {"experiments": [_of(Comparison(store, name)) for name in experiments]}


def _of(comparison: Comparison) -> dict[str, Any]:
    no_image = comparison.reference("no_image", "held_out")
    baseline = _mean([_default(comparison, budget) or no_image for budget in comparison.budgets])
    rows: list[dict[str, Any]] = []
    for name, target in TARGETS.items():
        held = [
            ([t for t in s.trials if holds(comparison, s, t) and runs_on(comparison, s, t, target)], s)
            for s in comparison.searches
        ]
        delivered: list[Evaluation | None] = []
        schedules, missed = [], 0
        for budget in comparison.budgets:
            able = [(trial, search) for trials, search in held if (trial := choose(trials, budget)) is not None]
            best = min(able, key=lambda pair: (-pair[0].values[0], pair[0].values[1]), default=None)
            missed += best is None
            delivered.append(no_image if best is None else comparison.held_out(best[1], best[0]))
            if best is not None:
                schedules.append(f"{best[1].name}: {best[0].user_attrs['schedule']}")
        rows.append(
            {
                "target": name,
                "schedules": len(
                    {t.user_attrs.get("evaluation") or (s.study, t.number) for trials, s in held for t in trials}
                ),
                "budgets_missed": missed,
                "score": _mean(delivered),
                "chosen": schedules,
            }
        )
    everything = rows[0]["score"]
    gain = everything - baseline if everything is not None and baseline is not None else 0.0
    for row in rows:
        known = gain > 0 and row["schedules"] and row["score"] is not None
        row["survives"] = (row["score"] - baseline) / gain if known else None
    return {"experiment": comparison.experiment, "baseline": baseline, "targets": rows}


def runs_on(comparison: Comparison, search: StudyResult, trial: Any, target: Target | None) -> bool:
    """Whether ``target`` runs what a trial measured; no target: it runs."""
    origin = comparison.origin(search, trial)
    return target is None or (origin is not None and target.name in targets_of_trial(comparison, origin, trial))


def targets_of_trial(comparison: Comparison, origin: StudyResult, trial: Any) -> list[str]:
    """Where the schedule of a trial runs; ``origin`` is the search whose method it belongs to."""
    return targets_of(parse_schedule(trial.user_attrs["schedule"]), origin.make_method(), depth(comparison))


def _default(comparison: Comparison, budget: float) -> Evaluation | None:
    """The published default that is best on the search split within the budget, on the held-out split."""
    able = []
    for name, held_out in comparison.defaults().items():
        searched, share = comparison.default_on_search(name), comparison.default_share(name)
        if searched is not None and share is not None and share <= budget + FITS:
            able.append((searched.accuracy, held_out))
    return max(able, key=lambda pair: pair[0])[1] if able else None


def _mean(delivered: list[Evaluation | None]) -> float | None:
    known = [evaluation.accuracy for evaluation in delivered if evaluation is not None]
    return float(np.mean(known)) if len(known) == len(delivered) else None
