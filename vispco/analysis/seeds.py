"""Entries of an experiment over their seeds, each against one of them: the table of ``vispco compare --against``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vispco.analysis.bootstrap import Scores, holm, mean_scores
from vispco.analysis.comparison import Comparison
from vispco.analysis.comparison_rows import share
from vispco.analysis.regret import BEST_KNOWN, BestKnown, best_known
from vispco.analysis.study_result import StudyResult
from vispco.analysis.two_level import LEVEL, RESAMPLES, Estimate, Runs, estimate, resample
from vispco.errors import ConfigError
from vispco.registry import suggest

SCORES = ("budget_score", "score_within_budget")  # two names of one score
SEEDS_NEEDED = 10


@dataclass(frozen=True)
class Entry:
    """One entry of the study file with its runs, one study for each seed."""

    name: str
    runs: list[StudyResult]

    @property
    def found_nothing(self) -> int:
        """How many of its runs ended without a schedule; each misses every budget."""
        return sum(run.found_nothing for run in self.runs)

    @property
    def deterministic(self) -> bool:
        return all(run.deterministic for run in self.runs)

    @property
    def enough(self) -> bool:
        """Whether there are seeds enough for a verdict."""
        return self.deterministic or len(self.runs) >= SEEDS_NEEDED


def entries(comparison: Comparison) -> dict[str, Entry]:
    """Entries with trials, in the order of the studies, and their runs that ended without any, which miss every budget.

    A seed counts once: of a study without seeds, which runs with seed 0, and one called ``@0`` that was added later,
    the one with more trials.
    """
    by_entry: dict[str, dict[int | None, StudyResult]] = {}
    for search in comparison.searches:
        if search.trials or search.found_nothing:
            runs, seed = by_entry.setdefault(search.entry, {}), search.seed
            if seed not in runs or len(search.trials) > len(runs[seed].trials):
                runs[seed] = search
    made = {name: Entry(name, list(runs.values())) for name, runs in by_entry.items()}
    return {name: entry for name, entry in made.items() if entry.found_nothing < len(entry.runs)}


def not_run(comparison: Comparison, known: dict[str, Entry]) -> list[str]:
    """Runs of ``known`` entries that have no trials and did not say that they ended, and so count for nothing."""
    seen = {(entry.name, run.seed) for entry in known.values() for run in entry.runs}
    noted = {study: (own.get("entry"), own.get("seed")) for study, own in comparison.facts["studies"].items()}
    lacking = [study for study, (entry, seed) in noted.items() if entry in known and (entry, seed) not in seen]
    return [study.removeprefix(f"{comparison.experiment}/") for study in lacking]


def named(comparison: Comparison, name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        ConfigError: there is none with trials.
    """
    known = entries(comparison)
    if name not in known:
        raise ConfigError(
            f"experiment {comparison.experiment!r} has no entry {name!r} with trials to compare with; "
            f"{suggest(name, list(known))}"
        )
    return known[name]


def verdict(entry: Entry, reference: Entry, difference: float, p_holm: float | None) -> str:
    """What may be said of the difference, in words; ``p_holm`` is None where there was nothing to test with."""
    if not (entry.enough and reference.enough):
        fewest = min(len(e.runs) for e in (entry, reference) if not e.enough)
        return f"too few seeds: {fewest} of {SEEDS_NEEDED}"
    if p_holm is None:
        return "too few samples"
    if p_holm > 1 - LEVEL:
        return "not shown to differ"
    return "better" if difference > 0 else "worse"


def against(comparison: Comparison, reference: str, score: str = "budget_score") -> dict[str, Any]:
    """Each entry's mean ``budget_score`` over seeds, and its difference to ``reference``.

    The differences that have seeds enough for a verdict are one family for Holm's correction. Differences are those of
    means over runs; runs of two entries are not paired, since equal seeds of two searches have nothing in common.
    ``reference`` may be ``best-known``, which is no entry: see :func:`~vispco.analysis.regret.best_known`; then rows
    say their ``regret``.
    What is not measured yet is None. A run that ended without a schedule counts as the model without the picture at
    every budget (``found_nothing`` says how many of an entry); ``not_run`` are those that have none so far, which are
    left out.

    Raises:
        ConfigError: no such entry or score.
    """
    if score not in SCORES:
        raise ConfigError(f"unknown score {score!r}; {suggest(score, list(SCORES))}")
    known = entries(comparison)
    best = best_known(comparison) if reference == BEST_KNOWN and reference not in known else None
    base = Entry(BEST_KNOWN, []) if best else named(comparison, reference)
    drawn = _resampled(comparison, known, best)
    estimates = {
        name: estimate(drawn[name], drawn[reference])
        for name in known
        if name != reference and name in drawn and reference in drawn
    }
    tested = {
        name: made.p_value
        for name, made in estimates.items()
        if known[name].enough and base.enough and made.p_value is not None
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    rows = []
    for name, entry in sorted(known.items(), key=lambda item: item[0] != reference):
        row = {**_facts(comparison, entry), **_scores(drawn, name)}
        made, p_value = estimates.get(name), tested.get(name)
        told = "reference" if name == reference else "not measured"
        if made is not None:
            told = verdict(entry, base, made.value, adjusted.get(name))
        row.update(
            regret=-made.value if best and made else None,
            difference=made.value if made else None,
            difference_ci=_interval(made),
            covers=made.covers if made else None,
            p_value=p_value,
            p_holm=adjusted.get(name),
            verdict=told,
        )
        rows.append(row)
    return {
        "experiment": comparison.experiment,
        "against": reference,
        "score": score,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "comparisons": len(tested),
        "seeds_needed": SEEDS_NEEDED,
        "budgets": len(comparison.budgets),
        "grid_flops": comparison.grid_flops(),
        "best_known": {**best.facts(), **_scores(drawn, BEST_KNOWN)} if best else None,
        "entries": rows,
        "not_run": not_run(comparison, known),
    }


def _resampled(comparison: Comparison, known: dict[str, Entry], best: BestKnown | None) -> dict[str, Runs]:
    """Runs by entry, for entries of which every run is measured; the best-known front is one of them if given."""
    measured: dict[str, list[Scores]] = {}
    for name, entry in known.items():
        chosen = [comparison.delivered(run) for run in entry.runs]
        delivered = [given for given in chosen if given is not None]
        scores: list[Scores] = [mean_scores([comparison.parts.of(e) for e in given]) for given in delivered]
        if len(scores) == len(entry.runs):
            measured[name] = scores
    fixed = [name for name in measured if known[name].deterministic]
    if best is not None:
        measured[BEST_KNOWN] = [mean_scores([comparison.parts.of(evaluation) for evaluation in best.delivered])]
        fixed.append(BEST_KNOWN)
    return resample(measured, comparison.parts.groups, fixed=fixed)


def _scores(drawn: dict[str, Runs], name: str) -> dict[str, Any]:
    made = estimate(drawn[name]) if name in drawn else None
    row: dict[str, Any] = {}
    for score in SCORES:
        row[score] = made.value if made else None
        row[f"{score}_ci"] = _interval(made)
    return row


def _interval(made: Estimate | None) -> list[float] | None:
    return list(made.interval) if made and made.interval else None


def _facts(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    first, grid_flops = entry.runs[0], comparison.grid_flops()
    charged, propose = _mean_total(entry, "charged_flops"), _mean_total(entry, "propose_flops")
    spent = _mean_total(entry, "spent_flops")
    return {
        "entry": entry.name,
        "kind": first.kind,
        "method": first.method,
        "family": first.family,
        "seeds": [run.seed for run in entry.runs],
        "found_nothing": entry.found_nothing,
        "deterministic": entry.deterministic,
        "trials": float(np.mean([len(run.trials) for run in entry.runs])),
        "budgets_missed": float(np.mean([comparison.missed(run) for run in entry.runs])),
        "hypervolume_ratio_to_grid": _hypervolume_ratio(comparison, entry),
        "charged_flops": charged,
        "propose_flops": propose,
        "charged_share": share(charged, grid_flops),
        "propose_share": share(propose, grid_flops),
        "spent_flops": spent,
        "spent_share": share(spent, comparison.grid_spent()),
        "wall_seconds": float(np.mean([run.seconds for run in entry.runs])),
    }


def _mean_total(entry: Entry, name: str) -> float | None:
    totals = [run.total(name) for run in entry.runs]
    known = [total for total in totals if total is not None]
    return float(np.mean(known)) if len(known) == len(totals) else None


def _hypervolume_ratio(comparison: Comparison, entry: Entry) -> float | None:
    grid = comparison.grid()
    whole = comparison.hypervolume(grid) if grid else 0.0
    return float(np.mean([comparison.hypervolume(run) for run in entry.runs])) / whole if whole else None
