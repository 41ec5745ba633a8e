"""The best-known front of an experiment, from everything that was ever found for it: what regret is measured against.

A run's regret is the ``budget_score`` of the best-known front less its own. Both choose on the search split and are
judged on the held-out split; so a regret may be below 0, by chance of the samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.study_result import StudyResult
from vispco.errors import ScheduleError, StorageError
from vispco.evaluation.content import changes
from vispco.evaluation.records import Evaluation
from vispco.fronts import choose
from vispco.pruning.schedules import parse_schedule, resolution_of
from vispco.storage.reading import TrialRecord

BEST_KNOWN = "best-known"
WITHIN = {"step": {"step"}, "multistep": {"step", "multistep"}}  # families that a family contains
SAME = ("model", "tasks", "budgets", "score", "cost", "limits")


@dataclass(frozen=True)
class BestKnown:
    """``delivered``: held-out measurements of the best-known choice for each budget; a missed one has no picture.

    ``left_out``: trials of other experiments at resolutions of the pictures that this one does not search.
    """

    experiments: list[str]
    trials: int
    charged_flops: int
    delivered: list[Evaluation]
    schedules: list[str | None]
    left_out: int

    def facts(self) -> dict[str, Any]:
        return {
            "experiments": self.experiments,
            "trials": self.trials,
            "charged_flops": self.charged_flops,
            "schedules": self.schedules,
            "left_out": self.left_out,
        }


def best_known(comparison: Comparison) -> BestKnown:
    """Over all experiments of the database with the same model, data, score, cost, limits and budgets, and all entries
    with the experiment's method and its family, or one that this contains, at the resolutions of pictures that this
    one searches; the experiment's own entries always.

    Raises:
        StorageError: a choice was not measured on the held-out split.
    """
    pool: list[tuple[Comparison, StudyResult, TrialRecord]] = []
    names, charged, left_out, known = [], 0, 0, _resolutions(comparison)
    for name in comparison.store.experiment_names():
        other = comparison if name == comparison.experiment else _alike(comparison, name)
        if other is None:
            continue
        searches = [search for search in other.searches if other is comparison or _fits(comparison, search)]
        for search in searches:
            trials = [one for one in search.trials if other is comparison or _resolution(other, one) in known]
            left_out += len(search.trials) - len(trials)
            if other is comparison or trials:
                names.append(name)
                charged += search.total("charged_flops") or 0
            pool += [(other, search, trial) for trial in trials]
    delivered, schedules = [], []
    candidates = [_Candidate(number, trial) for number, (_, _, trial) in enumerate(pool)]
    for budget in comparison.budgets:
        best = choose(candidates, budget)
        if best is None:
            where, found, schedule = comparison, comparison.reference("no_image", "held_out"), None
        else:
            where, search, trial = pool[best.number]
            found, schedule = where.held_out(search, trial), trial.user_attrs.get("schedule")
        if found is None:
            raise StorageError(
                f"the best-known schedule for budget {budget:.3f} was not measured on held_out; "
                f"run its experiment to the end (vispco resume {where.experiment})"
            )
        delivered.append(found)
        schedules.append(schedule)
    return BestKnown(list(dict.fromkeys(names)), len(pool), charged, delivered, schedules, left_out)


class _Candidate:
    """A trial of the pool, numbered in it."""

    def __init__(self, number: int, trial: TrialRecord) -> None:
        self.number, self.values, self.user_attrs = number, trial.values, trial.user_attrs


def _alike(comparison: Comparison, name: str) -> Comparison | None:
    """Another experiment on the same samples; None if it is on others, or has no results."""
    stored = comparison.store.require_experiment(name)
    ours, theirs = comparison.stored.identity, stored.identity
    if not stored.facts or any(ours.get(key) != theirs.get(key) for key in SAME):
        return None
    same = stored.facts["budgets"] == comparison.budgets
    measured = [identity.get("content") or {} for identity in (ours, theirs)]
    return Comparison(comparison.store, name) if same and not changes(*measured) else None


def _home(comparison: Comparison) -> float:
    """Resolution of the pictures of a schedule that names none."""
    return float(comparison.stored.identity.get("model", {}).get("resolution", 1.0))


def _resolution(comparison: Comparison, trial: TrialRecord) -> float:
    try:
        found = resolution_of(parse_schedule(str(trial.user_attrs.get("schedule"))))
    except ScheduleError:  # a policy that reads prompts
        found = None
    return _home(comparison) if found is None else found


def _resolutions(comparison: Comparison) -> set[float]:
    """Those that an experiment's entries search, or have found."""
    ours = [search for search in comparison.searches if not search.is_imported]
    found = {_resolution(comparison, trial) for search in ours for trial in search.trials}
    for search in ours:
        own = comparison.facts["studies"][search.study].get("settings", {}).get("resolution")
        found.update(own or comparison.stored.identity.get("resolution") or [_home(comparison)])
    return found


def _fits(comparison: Comparison, search: StudyResult) -> bool:
    """Whether an entry of another experiment searched among this one's schedules, by this one's method."""
    own = {(key, ours.family) for ours in comparison.searches if not ours.is_imported for key in ours.methods}
    family = search.family
    return not search.is_imported and all(
        any(method == key and (of == "layerwise" or family in WITHIN.get(str(of), {of})) for key, of in own)
        for method in search.methods
    )
