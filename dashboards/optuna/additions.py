"""What optuna-dashboard shows of an experiment beside its trials: figures, notes, files, and a study of all fronts."""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial
from sqlalchemy import func, select
from vispco.dashboards.axis import name_of
from vispco.dashboards.optuna import notes
from vispco.dashboards.optuna.constraints import with_constraints
from vispco.dashboards.optuna.pages import COMPARISON
from vispco.dashboards.overlay import overlay, without_bands
from vispco.dashboards.report import gradient_paths

from vispco.analysis.attainment import attainment_bands
from vispco.analysis.comparison import Comparison
from vispco.analysis.study_result import StudyResult
from vispco.errors import VispcoError
from vispco.storage.optuna_sql.tables import studies, trials
from vispco.storage.reading import snapshot
from vispco.storage.store import Store
from vispco.storage.tables import links
from vispco.storage.trials import METRICS

HEIGHT = 450  # pixels of the place that optuna-dashboard gives to a figure
TRIALS_EACH = 10**9  # places for trials of one comparison study
REST = 10.0  # an experiment is compared again after at least so many times what comparing took
AT_ONCE = 2.0  # seconds; other experiments that changed wait for the next look
PAUSE = 1.0  # seconds between looks at the database for what has changed
NOTE, ARTIFACT = "dashboard:note_str:", "artifacts:"
NAMESPACE = uuid.UUID("9d3c6a0e-5a3f-4f7c-8a64-0c1f2f0d7b11")


@dataclass
class Shown:
    """What one experiment adds: attributes and budget by study name, and its comparison study."""

    state: Any = None
    made: float = -float("inf")
    took: float = 0.0
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    budget: float | None = None
    number: int = 0
    name: str | None = None
    trials: list[FrozenTrial] = field(default_factory=list)
    placed: dict[tuple[str, int], datetime | None] = field(default_factory=dict)  # when they were complete

    @property
    def study_id(self) -> int:
        """Of the comparison study; below zero, where no database has any."""
        return -1 - self.number

    def restart(self, number: int) -> None:
        """As another study, so that no page goes on with the trials of this one."""
        self.number, self.name, self.attributes, self.facts, self.trials, self.placed = number, None, {}, {}, [], {}


class Additions:
    """What is added to each experiment, kept up to date. Safe with threads.

    Args:
        store: a database, only read.
        pause: seconds between looks for what has changed.
    """

    def __init__(self, store: Store, pause: float) -> None:
        self.store, self._pause = store, pause
        self._looked = -float("inf")
        self._lock = threading.RLock()
        self._shown: dict[str, Shown] = {}
        self._numbers = itertools.count()
        self.files: dict[str, str] = {}  # id -> CSV

    def all(self) -> list[Shown]:
        """By experiment, as of a moment ago."""
        self._refresh()
        return list(self._shown.values())

    def of_study(self, name: str) -> Shown | None:
        """The experiment that a study belongs to, or is the comparison study of."""
        return next((shown for shown in self.all() if name in shown.attributes), None)

    def _refresh(self) -> None:
        """Compare experiments again that have changed, the newest first."""
        with self._lock:
            began = time.monotonic()
            if began - self._looked < self._pause:
                return
            states = self._states()
            for name in [name for name in self._shown if name not in states]:
                del self._shown[name]
            for name, state in reversed(states.items()):
                if name not in self._shown:
                    self._shown[name] = Shown(number=next(self._numbers))
                shown, now = self._shown[name], time.monotonic()
                if state != shown.state and now - shown.made >= REST * shown.took:
                    self._compare(name, shown)
                    shown.state, shown.made = state, time.monotonic()
                    shown.took = shown.made - now
                if time.monotonic() - began > AT_ONCE:
                    break
            self._looked = time.monotonic()

    def _states(self) -> dict[str, Any]:
        """Experiment -> what changes when its results do; oldest first."""
        known: dict[str, Any] = {}
        for name in self.store.experiment_names():
            stored = self.store.experiment(name)
            if stored is not None:
                known[name] = [stored.created, stored.facts, 0, []]
        with snapshot(self.store.engine) as connection:
            query = select(links.c.experiment, func.count()).group_by(links.c.experiment)
            for name, count in connection.execute(query):
                if name in known:
                    known[name][2] = count
            query = (
                select(studies.c.study_name, trials.c.study_id, func.count(), func.max(trials.c.trial_id))
                .join(trials, trials.c.study_id == studies.c.study_id)
                .group_by(studies.c.study_name, trials.c.study_id)
                .order_by(trials.c.study_id)
            )
            for name, *rest in connection.execute(query):
                experiment = name.rpartition("/")[0]
                if experiment in known:
                    known[experiment][3].append((name, *rest))
        return known

    def _compare(self, name: str, shown: Shown) -> None:
        """One experiment that cannot be read keeps no other from being shown."""
        try:
            comparison = Comparison(self.store, name)
            there = {(s.study, t.number): t.datetime_complete for s in comparison.searches for t in s.trials}
            if any(there.get(key) != complete for key, complete in shown.placed.items()):
                shown.restart(next(self._numbers))  # trials were removed, and others may have their numbers
            if there:
                self._add(comparison, shown)
        except Exception as error:
            reason = str(error) if isinstance(error, VispcoError) else f"{type(error).__name__}: {error}"
            attributes = _note(notes.unread_note(reason))
            known = [n for n in self.store.study_names(name) if n.rpartition("/")[0] == name]
            shown.name, shown.attributes = None, dict.fromkeys(known, attributes)

    def _add(self, comparison: Comparison, shown: Shown) -> None:
        told = comparison.to_dict()
        bands = attainment_bands(comparison)
        held_out = any(point["accuracy_held_out"] is not None for s in told["searches"] for point in s["front"])
        figures = {
            f"overlay-{split}": without_bands(overlay(told, (), bands, split))
            .update_layout(height=HEIGHT, title_text=f"All fronts ({split.replace('_', '-')} split)")
            .to_json()
            for split in (("held_out", "search") if held_out else ("search",))
        }
        first = dict(list(figures.items())[:1])
        figures = {f"{COMPARISON}{name}": text for name, text in figures.items()}
        paths = gradient_paths(comparison)
        studies_of = {search.name: search for search in comparison.searches}
        attributes = {}
        for search in told["searches"]:
            study = studies_of[search["name"]]
            files = notes.study_files(told, search, paths.get(search["name"], {}))
            attributes[study.study] = {
                **_figures(first),
                **_note(notes.study_note(told, search, study)),
                **self._artifacts(study.study, files),
            }
        name = self._free(f"{comparison.experiment}: comparison")
        attributes[name] = {
            "study:metric_names": [METRICS[0], name_of(told)],
            **_figures(figures),
            "dashboard:note_ver": 1,
            **_note(notes.comparison_note(told)),
            **self._artifacts(name, notes.comparison_files(told)),
        }
        shown.budget = max(comparison.budgets)
        self._add_trials(comparison, shown)
        shown.attributes, shown.facts, shown.name = attributes, notes.experiment_facts(told), name

    def _free(self, name: str) -> str:
        """A study name that the database does not have."""
        with snapshot(self.store.engine) as connection:
            while connection.execute(select(studies.c.study_id).where(studies.c.study_name == name)).first():
                name += " of fronts"
        return name

    def _add_trials(self, comparison: Comparison, shown: Shown) -> None:
        """Trials on a front join those of the comparison study; none leaves, as pages ask only for what is new."""
        choices = [search.name for search in comparison.searches]
        for search in comparison.searches:
            for trial in comparison.front(search):
                if (search.study, trial.number) in shown.placed:
                    continue
                number = len(shown.trials)
                shown.placed[search.study, trial.number] = trial.datetime_complete
                made = create_trial(
                    values=list(trial.values or ())[:2],  # of all objectives, those that every search's budgets are in
                    params={"search": search.name},
                    distributions={"search": CategoricalDistribution(choices)},
                    user_attrs=_attributes(comparison, search, trial),
                )
                made.number, made._trial_id = number, shown.study_id * TRIALS_EACH - number
                made.datetime_start, made.datetime_complete = (
                    trial.datetime_start,
                    trial.datetime_complete,
                )
                shown.trials.append(with_constraints(made, shown.budget))

    def _artifacts(self, study: str, files: Mapping[str, str]) -> dict[str, str]:
        found = {}
        for name, text in files.items():
            key = str(uuid.uuid5(NAMESPACE, f"{study}\n{name}"))
            self.files[key] = text
            meta = {"artifact_id": key, "filename": name, "mimetype": "text/csv", "encoding": None}
            found[f"{ARTIFACT}{key}"] = json.dumps(meta)
        return found


def _figures(figures: Mapping[str, str]) -> dict[str, str]:
    return {f"dashboard:plot_data:{name}:0": text for name, text in figures.items()}


def _note(text: str) -> dict[str, Any]:
    return {f"{NOTE}0": text}


def merged(stored: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """A study's system attributes with ours: after the user's own note, and without files that are kept elsewhere."""
    kept = {key: value for key, value in stored.items() if not key.startswith((NOTE, ARTIFACT))}
    theirs = [value for key, value in sorted(stored.items(), key=_part) if key.startswith(NOTE)]
    ours = added.get(f"{NOTE}0")
    if not theirs and ours is None:
        return {**kept, **added}
    note = "\n\n---\n\n".join(part for part in ("".join(map(str, theirs)), ours) if part)
    return {"dashboard:note_ver": 1, **kept, **added, f"{NOTE}0": note}


def _part(item: tuple[str, Any]) -> int:
    number = item[0].rpartition(":")[2]
    return int(number) if item[0].startswith(NOTE) and number.isdigit() else 0


def _attributes(comparison: Comparison, search: StudyResult, trial: Any) -> dict[str, Any]:
    held_out = comparison.held_out(search, trial)
    found = {
        "schedule": trial.user_attrs.get("schedule"),
        "trial": trial.number,
        "budget": trial.user_attrs.get("budget"),
        "accuracy_held_out": held_out.accuracy if held_out else None,
    }
    return {key: value for key, value in found.items() if value is not None}
