"""What a search learned about each layer: the object that ``vispco layers --json`` prints.

Three views. *Learned*: the keep ratios of the schedules that each entry chose, budget by budget, over its seeds.
*Sensitivity*: what one step at a layer costs, read off the single-step trials of a method on the search split; nothing
is chosen there, so these numbers are not flattered by a choice. *Gradient*: what keeping more tokens at one layer is
worth to the loss, where the steps of a gradient search hold a ``slope`` [L], the derivative of the loss with respect to
the keep ratios (an earlier search does not say, and has no such view).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import Any

import numpy as np

from vispco.analysis.comparison import Comparison
from vispco.analysis.layer_words import summary
from vispco.analysis.sensitivity import sensitivity
from vispco.analysis.study_result import StudyResult, each_method
from vispco.storage.reading import read_attribute, snapshot, study_ids

DROP = 1e-9


@dataclass(frozen=True)
class Choice:
    """What one seed chose for a budget: keep ratios [L], compute, held-out accuracy, text."""

    keep_ratio: tuple[float, ...]
    flops_ratio: float
    accuracy_held_out: float | None = None
    schedule: str | None = None


def halfway(keep_ratio: Sequence[float]) -> int | None:
    """Layer before which half of all the dropping is done: the layer of a step. None if nothing is dropped.

    >>> halfway([1, 1, 0.2, 0.2]), halfway([1, 0.9, 0.5, 0.1]), halfway([1, 1])
    (2, 2, None)
    """
    last = keep_ratio[-1]
    if last >= 1 - DROP:
        return None
    return next(layer for layer, ratio in enumerate(keep_ratio) if ratio <= (1 + last) / 2 + DROP)


def drops(keep_ratio: Sequence[float]) -> int:
    """At how many layers tokens are dropped."""
    before = [1.0, *keep_ratio[:-1]]
    return sum(after < ratio - DROP for ratio, after in zip(before, keep_ratio, strict=True))


def learned_row(budget: float, choices: Sequence[Choice], over: int = 0) -> dict[str, Any]:
    """One budget of one entry; ``over`` seeds have nothing that fits it."""
    row: dict[str, Any] = {"budget": budget, "seeds": len(choices), "over": over}
    if not choices:
        empty = ("keep_ratio", "low", "high", "layer", "keep", "steps", "flops_ratio", "accuracy_held_out")
        return {**row, **dict.fromkeys(empty), "schedules": []}
    ratios = np.array([choice.keep_ratio for choice in choices], dtype=np.float64)
    where = [layer for choice in choices if (layer := halfway(choice.keep_ratio)) is not None]
    measured = [c.accuracy_held_out for c in choices if c.accuracy_held_out is not None]
    last = ratios[:, -1]
    return {
        **row,
        "keep_ratio": ratios.mean(axis=0).tolist(),
        "low": ratios.min(axis=0).tolist(),
        "high": ratios.max(axis=0).tolist(),
        "layer": {"median": median_low(where), "low": min(where), "high": max(where)} if where else None,
        "keep": {"mean": float(last.mean()), "low": float(last.min()), "high": float(last.max())},
        "steps": max(drops(choice.keep_ratio) for choice in choices),
        "flops_ratio": fmean(choice.flops_ratio for choice in choices),
        "accuracy_held_out": fmean(measured) if len(measured) == len(choices) else None,
        "schedules": [choice.schedule for choice in choices],
    }


def layer_record(comparison: Comparison) -> dict[str, Any]:
    """The whole object."""
    groups: dict[str, list[StudyResult]] = {}
    for search in comparison.searches:
        if search.trials:  # one that has not run yet misses no budget
            groups.setdefault(search.entry, []).append(search)
    unpruned = comparison.reference("unpruned", "search")
    record = {
        "experiment": comparison.experiment,
        "layers": depth(comparison),
        "budgets": comparison.budgets,
        "unpruned": {"accuracy": unpruned.accuracy if unpruned else None},
        "learned": [_learned(comparison, entry, searches) for entry, searches in groups.items()],
        "sensitivity": sensitivity(comparison),
        "gradient": [
            {"entry": entry, "rows": rows}
            for found in groups.values()
            for entry, parts in each_method(found).items()
            if (rows := _gradient(comparison, parts))
        ],
    }
    return {**record, "summary": summary(record)}


def depth(comparison: Comparison) -> int:
    """Decoder layers; an experiment that does not say has them in its references."""
    unpruned = comparison.reference("unpruned", "search")
    known: int = comparison.facts.get("layers") or (len(unpruned.keep_ratio) if unpruned else 0)
    return known


def _learned(comparison: Comparison, entry: str, searches: Sequence[StudyResult]) -> dict[str, Any]:
    layers = depth(comparison)
    rows = []
    for number, budget in enumerate(comparison.budgets):
        choices, over = [], 0
        for search in searches:
            trial = comparison.chosen(search)[number]
            if trial is None:
                over += 1
                continue
            ratios, share = comparison.kept(search, trial), comparison.flops_ratio(search, trial)
            if ratios is None or len(ratios) != layers or share is None:
                continue  # an imported trial that does not say
            held_out = comparison.held_out(search, trial)
            accuracy = held_out.accuracy if held_out else None
            choices.append(Choice(tuple(ratios), share, accuracy, trial.user_attrs.get("schedule")))
        rows.append(learned_row(budget, choices, over))
    first = searches[0]
    return {
        "entry": entry,
        "kind": first.kind,
        "method": first.method,
        "family": first.family,
        "seeds": len(searches),
        "rows": rows,
    }


# --- gradient --------------------------------------------------------------------------------------------


def worth(steps: Sequence[Mapping[str, Any]], layers: int) -> list[float] | None:
    """What keeping more tokens at each layer is worth: minus the mean ``slope`` over the last half of the steps.

    None where the steps do not say, or say something else.
    """
    slopes = [slope for step in steps[len(steps) // 2 :] if _is_slope(slope := step.get("slope"), layers)]
    return (-np.mean(np.array(slopes, dtype=np.float64), axis=0) + 0.0).tolist() if slopes else None


def _is_slope(value: Any, layers: int) -> bool:
    numbers = isinstance(value, list) and len(value) == layers and all(type(v) in (int, float) for v in value)
    return numbers and all(map(math.isfinite, value))


def _gradient(comparison: Comparison, searches: Sequence[StudyResult]) -> list[dict[str, Any]]:
    """Rows by budget: ``worth`` [L], mean over seeds, with its range."""
    by_budget: dict[float, list[list[float]]] = {}
    for search in searches:
        steps = {} if search.is_imported else comparison.store.trajectory(search.study)
        steps = {key: rows for key, rows in steps.items() if any("slope" in row for row in rows)}
        for key, budget in trajectory_budgets(comparison, search).items() if steps else ():
            values = worth(steps.get(key, []), depth(comparison))
            if values is not None:
                by_budget.setdefault(budget, []).append(values)
    rows = []
    for budget, seeds in sorted(by_budget.items()):
        all_seeds = np.array(seeds)
        bounds = {"low": all_seeds.min(axis=0).tolist(), "high": all_seeds.max(axis=0).tolist()}
        rows.append({"budget": budget, "seeds": len(seeds), "worth": all_seeds.mean(axis=0).tolist(), **bounds})
    return rows


def trajectory_budgets(comparison: Comparison, search: StudyResult) -> dict[str, float]:
    """Name of a trajectory -> the budget it was for: that of the first trial that names it."""
    with snapshot(comparison.store.engine) as connection:
        study = study_ids(connection, comparison.experiment)[search.study]
        named = read_attribute(connection, study, "trajectory", [trial.number for trial in search.trials])
    budgets: dict[str, float] = {}
    for trial in search.trials:
        key, budget = named.get(trial.number), trial.user_attrs.get("budget")
        if isinstance(key, str) and budget is not None:
            budgets.setdefault(key, float(budget))
    return budgets
