"""Anytime performance: what a search would have delivered, had it been stopped at some charged compute.

The number is ``budget_score``: a budget for which nothing was found yet counts as the model without the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from vispco.analysis.bootstrap import Scores, mean_scores
from vispco.analysis.comparison import Comparison
from vispco.analysis.seeds import Entry, entries
from vispco.analysis.study_result import StudyResult
from vispco.analysis.two_level import Estimate, estimate, resample
from vispco.errors import StorageError
from vispco.evaluation.records import Evaluation
from vispco.fronts import choices_at
from vispco.storage.reading import TrialRecord

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
    known = entries(comparison).values()
    paid = [entry for entry in known if all(r.total("charged_flops") or r.found_nothing for r in entry.runs)]
    paths = [Path(comparison, entry, [share * grid_flops for share in shares]) for entry in paid]
    measured = {(path.entry.name, place): scores for path in paths for place, scores in path.scores().items()}
    fixed = [key for key in measured if next(p.entry for p in paths if p.entry.name == key[0]).deterministic]
    drawn = resample(measured, comparison.parts.groups, fixed=fixed)
    estimates = {key: estimate(runs) for key, runs in drawn.items()}
    return {
        "experiment": comparison.experiment,
        "grid_flops": grid_flops,
        "shares": shares,
        "no_image": {split: _no_image(comparison, split) for split in ("search", "held_out")},
        "entries": [_curve(path, estimates, grid_flops) for path in paths],
    }


def _no_image(comparison: Comparison, split: str) -> float | None:
    no_image = comparison.reference("no_image", split)
    return no_image.accuracy if no_image else None


class Path:
    """What the runs of an entry had found at limits of charged compute and, last, at their ends."""

    def __init__(self, comparison: Comparison, entry: Entry, limits: Sequence[float]) -> None:
        self.comparison, self.entry = comparison, entry
        # Totals stay integers: beyond 2**53 a float could lie below the charge that it was made of.
        self.charged = [run.total("charged_flops") or 0 for run in entry.runs]
        self.is_grid = entry.runs[0].is_reference
        self.limits: list[float] = [*([] if self.is_grid else limits), max(self.charged)]
        self.choices = [choices_at(run.paid, comparison.budgets, self.limits) for run in entry.runs]
        chosen = [(run, t) for run, rows in zip(entry.runs, self.choices, strict=True) for row in rows for t in row]
        comparison.load_held_out((run, trial) for run, trial in chosen if trial is not None)

    def scores(self) -> dict[int, list[Scores]]:
        """Number of a limit -> held-out scores of each run; without limits where one is not measured."""
        scored = {}
        for place in range(len(self.limits)):
            rows = zip(self.entry.runs, self.choices, strict=True)
            per_run = [_scores(self.comparison, run, choices[place]) for run, choices in rows]
            measured = [scores for scores in per_run if scores is not None]
            if len(measured) == len(per_run):
                scored[place] = measured
        return scored


def _curve(path: Path, estimates: Mapping[tuple[str, int], Estimate], grid_flops: int) -> dict[str, Any]:
    points = []
    for place, limit in enumerate(path.limits):
        at_end = place == len(path.limits) - 1
        flops = float(np.mean(path.charged)) if at_end else limit
        estimated = estimates.get((path.entry.name, place))
        points.append(
            {
                "share": flops / grid_flops,
                "flops": flops,
                "score": estimated.value if estimated else None,
                "score_ci": list(estimated.interval) if estimated and estimated.interval else None,
                "covers": estimated.covers if estimated else None,
                "budgets_missed": float(np.mean([row[place].count(None) for row in path.choices])),
                "runs_ended": sum(total <= limit for total in path.charged),
            }
        )
    return {
        "entry": path.entry.name,
        "runs": len(path.entry.runs),
        "checkpoints": points[:-1],
        "end": points[-1],
        "search_curve": [] if path.is_grid else _search_curve(path, grid_flops),
    }


def _scores(comparison: Comparison, run: StudyResult, choices: Choices) -> Scores | None:
    delivered: list[Evaluation] = []
    for trial in choices:
        evaluation = comparison.delivered_by(run, trial)
        if evaluation is None:
            return None
        delivered.append(evaluation)
    return mean_scores([comparison.parts.of(evaluation) for evaluation in delivered])


def _search_curve(path: Path, grid_flops: int) -> list[dict[str, float]]:
    """Mean over runs of the score on the search split, from the first trial of any run to the end of all."""
    comparison, entry, end = path.comparison, path.entry, max(path.charged)
    blind = _no_image(comparison, "search") or 0.0
    begun = [min(run.paid, key=lambda t: t.number) for run in entry.runs if run.paid]
    first = max(1, min(trial.user_attrs["charged_flops"] for trial in begun))
    limits = [*np.geomspace(first, end, CURVE_POINTS).tolist()[:-1], end]
    scores = np.zeros(len(limits))
    for run in entry.runs:
        for place, row in enumerate(choices_at(run.paid, comparison.budgets, limits)):
            accuracies = [blind if trial is None or trial.values is None else trial.values[0] for trial in row]
            scores[place] += float(np.mean(accuracies)) / len(entry.runs)
    pairs = [(limit / grid_flops, score) for limit, score in zip(limits, scores.tolist(), strict=True)]
    # A step that changes nothing says nothing.
    kept = [pairs[0], *(now for before, now in pairwise(pairs) if now[1] != before[1])]
    return [{"share": share, "score": score} for share, score in kept]
