"""The answer in a few numbers: what the searches chose near half the compute, against the grid and the published
defaults, and what it cost to find. The report puts it into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vispco.analysis.comparison import Comparison
from vispco.analysis.comparison_rows import share
from vispco.analysis.seeds import SEEDS_NEEDED, Entry, entries
from vispco.analysis.two_level import Runs, estimate, resample
from vispco.evaluation.records import Evaluation
from vispco.fronts import choose
from vispco.storage.importing import IMPORTED

HALF = 0.5
Key = tuple[str, ...]
BASELINES = ("grid", "published", IMPORTED)  # kinds that are never the search of the headline


@dataclass(frozen=True)
class Delivered:
    """Held-out measurements of what each run of an entry chose; ``fixed`` if the entry has no seeds."""

    runs: list[Evaluation]
    fixed: bool

    @property
    def accuracy(self) -> float:
        return float(np.mean([run.accuracy for run in self.runs]))


def answer(comparison: Comparison, near: float = HALF) -> dict[str, Any]:
    """What each entry delivers for the experiment's budget nearest to ``near``.

    Schedules are those of ``by_budget`` in ``vispco compare --json``, and so are the intervals of an entry with one
    run. Several runs: the mean over seeds, by :func:`estimate`. A published default is compared with what an entry
    would have chosen within *its* compute on the search split. ``headline`` is the entry that is most accurate on that
    split, of those that are neither a grid nor published; None without results. What is not measured is None.
    ``flops_ratio`` is the share of ``cost``, the one that budgets are in.
    """
    budget = min(comparison.budgets, key=lambda given: abs(given - near), default=None)
    known = entries(comparison)
    if budget is None or not known:
        return {"budget": budget, "unpruned": None, "entries": [], "defaults": [], "headline": None}
    measured: dict[Key, Delivered] = {}
    for name, entry in known.items():
        _add(measured, ("at", name), comparison, entry, budget)
    defaults = comparison.defaults()
    limits = {name: comparison.default_share(name) for name in defaults}
    for name, default in defaults.items():
        measured["default", name] = Delivered([default], True)
        if (within := limits[name]) is not None:
            for entry in known.values():
                _add(measured, ("within", name, entry.name), comparison, entry, within)
    estimates = _Estimates(comparison, measured)
    grid = comparison.grid()
    unpruned = comparison.reference("unpruned", "held_out")
    rows = [
        _row(comparison, entry, budget, estimates, grid.entry if grid else None, unpruned) for entry in known.values()
    ]
    told = [
        {
            "name": name,
            "flops_ratio": default.flops_ratio if comparison.unpruned_cost is None else limits[name],
            "accuracy_held_out": default.accuracy,
            "accuracy_ci": comparison.interval_of(default),
            "entries": [
                {
                    "entry": entry,
                    "accuracy_held_out": measured["within", name, entry].accuracy,
                    **estimates.difference(("within", name, entry), ("default", name)),
                }
                for entry in known
                if ("within", name, entry) in measured
            ],
            "nothing": {entry.name: _nothing(comparison, entry, limits[name]) for entry in known.values()},
        }
        for name, default in defaults.items()
    ]
    return {
        "budget": budget,
        "cost": comparison.cost,
        "score": comparison.score,
        "unpruned": unpruned.accuracy if unpruned else None,
        "grid": grid.entry if grid else None,
        "seeds_needed": SEEDS_NEEDED,
        "entries": rows,
        "defaults": told,
        "headline": _headline(rows),
    }


def _nothing(comparison: Comparison, entry: Entry, within: float | None) -> int | None:
    """How many runs of an entry have no schedule that is as cheap as a default; None where that has no price."""
    return None if within is None else sum(choose(comparison.front(run), within) is None for run in entry.runs)


def _add(
    measured: dict[Key, Delivered],
    key: Key,
    comparison: Comparison,
    entry: Entry,
    within: float,
) -> None:
    """What all runs of an entry deliver within a compute; nothing while one is not measured.

    A run that has nothing there delivers the model without the picture at a budget, and nothing beside a default.
    """
    chosen = [(run, choose(comparison.front(run), within)) for run in entry.runs]
    if key[0] == "within" and any(trial is None for _, trial in chosen):
        return
    held_out = [comparison.delivered_by(run, trial) for run, trial in chosen]
    runs = [evaluation for evaluation in held_out if evaluation is not None]
    if runs and len(runs) == len(held_out):
        measured[key] = Delivered(runs, entry.deterministic)


class _Estimates:
    """Intervals of what was delivered: percentiles for single runs, as ``compare`` gives them; else over seeds too."""

    def __init__(self, comparison: Comparison, measured: dict[Key, Delivered]) -> None:
        self.comparison, self.measured = comparison, measured
        several = any(len(given.runs) > 1 for given in measured.values())
        self._drawn: dict[Key, Runs] = (
            resample(
                {key: [comparison.parts.of(run) for run in given.runs] for key, given in measured.items()},
                comparison.parts.groups,
                fixed=[key for key, given in measured.items() if given.fixed],
            )
            if several
            else {}
        )

    def interval(self, key: Key) -> dict[str, Any]:
        given = self.measured[key]
        if len(given.runs) == 1:
            return {"accuracy_ci": self.comparison.interval_of(given.runs[0]), "covers": "samples"}
        made = estimate(self._drawn[key])
        return {"accuracy_ci": list(made.interval) if made.interval else None, "covers": made.covers}

    def difference(self, key: Key, other: Key) -> dict[str, Any]:
        first, second = self.measured[key], self.measured[other]
        if len(first.runs) == len(second.runs) == 1:
            difference = self.comparison.difference(first.runs[0], second.runs[0])
            return {"difference": difference["mean"], "difference_ci": difference["ci"], "difference_covers": "samples"}
        made = estimate(self._drawn[key], self._drawn[other])
        return {
            "difference": first.accuracy - second.accuracy,
            "difference_ci": list(made.interval) if made.interval else None,
            "difference_covers": made.covers,
        }


def _row(
    comparison: Comparison,
    entry: Entry,
    budget: float,
    estimates: _Estimates,
    grid: str | None,
    unpruned: Evaluation | None,
) -> dict[str, Any]:
    place = comparison.budgets.index(budget)
    choices = [comparison.chosen(run)[place] for run in entry.runs]
    chosen: list[Any] = [trial for trial in choices if trial is not None]
    blind = comparison.reference_point()[0]
    charged = [total for run in entry.runs if (total := run.total("charged_flops")) is not None]
    cost = float(np.mean(charged)) if len(charged) == len(entry.runs) else None
    paid = [total for run in entry.runs if (total := run.total("spent_flops")) is not None]
    spent = float(np.mean(paid)) if len(paid) == len(entry.runs) else None
    whole = comparison.grid_flops()
    key, known = ("at", entry.name), estimates.measured
    row: dict[str, Any] = {
        "entry": entry.name,
        "kind": entry.runs[0].kind,
        "runs": len(entry.runs),
        "enough": entry.enough,
        "deterministic": entry.deterministic,
        "schedules": list(dict.fromkeys(trial.user_attrs.get("schedule") for trial in chosen)),
        "flops_ratio": float(np.mean([trial.values[1] for trial in chosen])) if chosen else None,
        "missed": len(choices) - len(chosen),
        "accuracy": float(np.mean([trial.values[0] for trial in chosen] + [blind] * (len(choices) - len(chosen)))),
        "accuracy_held_out": None,
        "accuracy_ci": None,
        "covers": None,
        "kept": None,
        "difference": None,
        "difference_ci": None,
        "difference_covers": None,
        "charged_flops": cost,
        "charged_share": share(cost, whole),
        "spent_share": share(spent, comparison.grid_spent()),
        "wall_seconds": float(np.mean([run.seconds for run in entry.runs])),
    }
    if key in known:
        row["accuracy_held_out"] = known[key].accuracy
        row["kept"] = known[key].accuracy / unpruned.accuracy if unpruned and unpruned.accuracy else None
        row.update(estimates.interval(key))
        if grid and grid != entry.name and ("at", grid) in known:
            row.update(estimates.difference(key, ("at", grid)))
    return row


def _headline(rows: list[dict[str, Any]]) -> str | None:
    measured = [row for row in rows if row["accuracy_held_out"] is not None]
    searches = [row for row in measured if row["kind"] not in BASELINES] or measured
    best = min(
        searches,
        key=lambda row: (row["missed"] > 0, -row["accuracy"], row["charged_flops"] or float("inf")),
        default=None,
    )
    return best["entry"] if best else None
