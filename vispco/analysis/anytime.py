"""Anytime performance: what a search would have delivered, had it been stopped at some charged compute.

The number is ``score_within_budget``: a budget for which nothing was found yet counts as the model without a picture.
``budget_score`` would start near the accuracy of the unpruned model, since a search with one expensive trial answers
every budget with it, and fall as the search gets better.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from vispco.analysis.comparison import Comparison, Searched
from vispco.analysis.entries import Entry, entries
from vispco.analysis.selection import choices_at
from vispco.analysis.statistics import Scores, mean_scores
from vispco.analysis.two_level import Estimate, estimate, resample
from vispco.errors import StorageError
from vispco.evaluation.records import Evaluation
from vispco.storage.reading import TrialRecord
from vispco.storage.store import Store

CURVE_POINTS = 80  # of the search-split curve, evenly on a log scale

Choices = list[TrialRecord | None]


def anytime(comparison: Comparison) -> dict[str, Any]:
    """Curves of all entries whose trials say what they were charged, over shares of the dense grid's naive cost.

    ``checkpoints``: mean over runs of the held-out score at each of the study's ``anytime`` shares, with a two-level
    interval; None where something chosen there was not measured on held_out, as it is for shares that the study did
    not list. ``end``: the same when each run had ended, at its mean charge. ``search_curve``: the score on the search
    split after any charge, where schedules were chosen by that same score: optimistic, and for shape only. A run that
    has ended stays at its last score. A dense grid has an end but no way there: its order says nothing.

    Raises:
        StorageError: the dense grid's cost is not known.
    """
    grid_flops = comparison.grid_flops()
    if not grid_flops:
        raise StorageError(
            f"experiment {comparison.experiment!r} has no complete grid, so compute has no scale; "
            "add an entry {kind: grid}, or anytime: true, to the study and run it"
        )
    shares = [float(share) for share in comparison.facts.get("anytime", {}).get("shares", [])]
    found = [entry for entry in entries(comparison).values() if all(r.total("charged_flops") for r in entry.runs)]
    curves = [_curve(comparison, entry, shares, grid_flops) for entry in found]
    return {
        "experiment": comparison.experiment,
        "grid_flops": grid_flops,
        "shares": shares,
        "no_image": {split: _no_image(comparison, split) for split in ("search", "held_out")},
        "entries": curves,
    }


def _no_image(comparison: Comparison, split: str) -> float | None:
    found = comparison.reference("no_image", split)
    return found.accuracy if found else None


def _curve(comparison: Comparison, entry: Entry, shares: Sequence[float], grid_flops: int) -> dict[str, Any]:
    charged = [float(run.total("charged_flops") or 0) for run in entry.runs]
    is_grid = entry.runs[0].facts["kind"] == "grid"
    inside = [] if is_grid else list(shares)
    limits = [*(share * grid_flops for share in inside), max(charged)]
    choices = [choices_at(run.paid, comparison.budgets, limits) for run in entry.runs]
    pairs = zip(entry.runs, choices, strict=True)
    comparison.load_held_out((run, t) for run, rows in pairs for row in rows for t in row if t is not None)
    made = _held_out(comparison, entry, [list(row) for row in zip(*choices, strict=True)])
    points = [
        {
            "share": share,
            "flops": limit,
            "score": estimated.value if estimated else None,
            "score_ci": list(estimated.interval) if estimated and estimated.interval else None,
            "covers": estimated.covers if estimated else None,
            "budgets_missed": float(np.mean([row[place].count(None) for row in choices])),
            "runs_ended": sum(total <= limit for total in charged),
        }
        for place, (share, limit, estimated) in enumerate(
            zip([*inside, np.mean(charged) / grid_flops], [*limits[:-1], float(np.mean(charged))], made, strict=True)
        )
    ]
    return {
        "entry": entry.name,
        "runs": len(entry.runs),
        "checkpoints": points[:-1],
        "end": points[-1],
        "search_curve": [] if is_grid else _search_curve(comparison, entry, max(charged), grid_flops),
    }


def _held_out(comparison: Comparison, entry: Entry, moments: list[list[Choices]]) -> list[Estimate | None]:
    """Estimate of the score at each moment from its choices [runs][budgets]; None while one is not measured."""
    scored: dict[int, list[Scores]] = {}
    for place, rows in enumerate(moments):
        found = [_scores(comparison, run, row) for run, row in zip(entry.runs, rows, strict=True)]
        measured = [scores for scores in found if scores is not None]
        if len(measured) == len(found):
            scored[place] = measured
    drawn = resample(scored, comparison.groups, fixed=list(scored) if entry.deterministic else ())
    return [estimate(drawn[place]) if place in drawn else None for place in range(len(moments))]


def _scores(comparison: Comparison, run: Searched, choices: Choices) -> Scores | None:
    blind = comparison.reference("no_image", "held_out")
    found: list[Evaluation] = []
    for trial in choices:
        evaluation = blind if trial is None else comparison.held_out(run, trial)
        if evaluation is None:
            return None
        found.append(evaluation)
    return mean_scores([evaluation.scores for evaluation in found])


def _search_curve(comparison: Comparison, entry: Entry, end: float, grid_flops: int) -> list[dict[str, float]]:
    """Mean over runs of the score on the search split, from the first trial of any run to the end of all."""
    blind = _no_image(comparison, "search") or 0.0
    first = max(1, min(min(run.paid, key=lambda t: t.number).user_attrs["charged_flops"] for run in entry.runs))
    limits = np.geomspace(first, end, CURVE_POINTS).tolist()
    scores = np.zeros(len(limits))
    for run in entry.runs:
        for place, row in enumerate(choices_at(run.paid, comparison.budgets, limits)):
            accuracies = [blind if trial is None or trial.values is None else trial.values[0] for trial in row]
            scores[place] += float(np.mean(accuracies)) / len(entry.runs)
    pairs = [(limit / grid_flops, score) for limit, score in zip(limits, scores.tolist(), strict=True)]
    # A step that changes nothing says nothing.
    kept = [pairs[0], *(now for before, now in pairwise(pairs) if now[1] != before[1])]
    return [{"share": share, "score": score} for share, score in kept]


def compare_anytime(store: Store, experiments: Sequence[str]) -> dict[str, Any]:
    """:func:`anytime` of one experiment, or of several under ``experiments``.

    Raises:
        StorageError: no such experiment, one without results, or one of which the dense grid's cost is not known.
    """
    found = [anytime(Comparison(store, name)) for name in experiments]
    return found[0] if len(found) == 1 else {"experiments": found}
