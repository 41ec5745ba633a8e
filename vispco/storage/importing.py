"""Take any multi-objective Optuna study into an experiment, as an entry to compare with."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection

from vispco.errors import ConfigError, StorageError
from vispco.registry import suggest
from vispco.storage.optuna_sql.bulk import FINISHED, append
from vispco.storage.reading import read_trials, study_ids
from vispco.storage.store import Store, open_store, redact

IMPORTED = "imported"  # the kind of such an entry
NUMBER = "imported_number"
VALUES = "imported_values"


@dataclass(frozen=True)
class Imported:
    """What an import did: trials that were new, trials that were there, and what the user should know."""

    study: str
    trials: int
    known: int
    notes: tuple[str, ...]


def import_trials(
    store: Store,
    study_name: str,
    experiment: str,
    *,
    source: str | None = None,
    entry: str | None = None,
    accuracy: int | None = None,
    cost: int | None = None,
) -> Imported:
    """Copy a study's finished trials to ``<experiment>/<entry>``; done again, it adds what is new.

    Trials keep their parameters, states, times and attributes; their number in the source becomes the user attribute
    ``imported_number``, and if the study has more than two objectives all of them ``imported_values``.

    Args:
        source: database URL of the study; default ``store``'s own.
        entry: name of the entry; default the study's name, with other characters than an entry may have replaced.
        accuracy, cost: indices of the objectives; default 0 and 1 of a study that maximises and minimises these two.

    Raises:
        StorageError: no such experiment or study.
        ConfigError: objectives that cannot be compared, or an entry that is no import of this study.
        LockedError: the experiment is being run.
    """
    held = store.require_experiment(experiment).facts
    asked = [*([held["cost"]] if "cost" in held else []), *held.get("further_costs", ()), *held.get("limits", ())]
    if asked:
        raise ConfigError(
            f"experiment {experiment!r} has costs or limits other than FLOPs ({', '.join(asked)}), and an imported "
            "study does not say what its trials have of them; import it into an experiment without cost and limits"
        )
    chosen = entry or re.sub(r"[^A-Za-z0-9_.+-]+", "-", study_name)
    if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,100}", chosen):
        raise ConfigError(f"entry name {chosen!r}: use up to 100 letters, digits, _ . + and -; choose one with --as")
    if source is None:
        directions, trials = _read(store, study_name)
        origin = _shown(store)
    else:
        with open_store(source, read_only=True) as other:
            directions, trials = _read(other, study_name)
            origin = _shown(other)
    indices = _indices(study_name, directions, accuracy, cost)
    name = f"{experiment}/{chosen}"
    if name == study_name and source is None:
        raise ConfigError(f"study {study_name!r} is part of the experiment already; there is nothing to import")
    facts = {
        "entry": chosen,
        "seed": None,
        "kind": IMPORTED,
        "method": None,
        "method_parameters": {},
        "method_key": None,
        "family": None,
        "points": None,
        "source": {"storage": origin, "study": study_name, "accuracy": indices[0], "cost": indices[1]},
    }
    finished = [trial for trial in trials if trial.state in FINISHED]
    with store.lock(experiment):
        added = _store(store, experiment, name, facts, [_taken(trial, indices) for trial in finished])
    return Imported(name, added, len(finished) - added, tuple(_notes(finished, len(trials), indices)))


def _read(store: Store, name: str) -> tuple[list[StudyDirection], list[FrozenTrial]]:
    try:
        study = optuna.load_study(study_name=name, storage=store.optuna)
    except KeyError:
        names = optuna.get_all_study_names(store.optuna)
        has = suggest(name, names) if names else "it has no studies"
        raise StorageError(f"no study {name!r} in {redact(store.url)}; {has}") from None
    return study.directions, study.get_trials(deepcopy=False)


def _shown(store: Store) -> str:
    """The same database by the same name, whatever folder the command is run in; without its password."""
    url = store.engine.url
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=os.path.realpath(url.database))
    return url.render_as_string(hide_password=True)


def _indices(
    name: str, directions: Sequence[StudyDirection], accuracy: int | None, cost: int | None
) -> tuple[int, int]:
    """The two objectives, checked."""
    ways = ", ".join(f"{i} {way.name.lower()}" for i, way in enumerate(directions))
    if len(directions) < 2:
        raise ConfigError(f"study {name!r} has one objective; a comparison needs an accuracy and a cost")
    default = (0, 1) if len(directions) == 2 else (None, None)
    first, second = (default[i] if given is None else given for i, given in enumerate((accuracy, cost)))
    if first is None or second is None:
        raise ConfigError(f"study {name!r} has {len(directions)} objectives ({ways}); name two: --accuracy I --cost J")
    for option, index in (("--accuracy", first), ("--cost", second)):
        if not 0 <= index < len(directions):
            raise ConfigError(f"{option} {index}: study {name!r} has objectives {ways}")
    if first == second:
        raise ConfigError(f"--accuracy and --cost are both objective {first}; study {name!r} has {ways}")
    if directions[first] != StudyDirection.MAXIMIZE or directions[second] != StudyDirection.MINIMIZE:
        swapped = directions[second] == StudyDirection.MAXIMIZE and directions[first] == StudyDirection.MINIMIZE
        way_out = (
            f"give --accuracy {second} --cost {first}"
            if swapped
            else "accuracy must be maximised and cost minimised: choose others, or turn the values round in a copy"
        )
        raise ConfigError(
            f"study {name!r} has objectives {ways}; objective {first} as accuracy, {second} as cost: {way_out}"
        )
    return first, second


def _taken(trial: FrozenTrial, indices: tuple[int, int]) -> FrozenTrial:
    """The trial with our two values, and its number kept."""
    attributes = {**trial.user_attrs, NUMBER: trial.number}
    values = trial.values if trial.state == TrialState.COMPLETE else None
    if values is not None and (len(values) != 2 or indices != (0, 1)):
        attributes[VALUES] = values
    taken = create_trial(
        state=trial.state,
        values=[values[index] for index in indices] if values is not None else None,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attributes,
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )
    taken.datetime_start, taken.datetime_complete = trial.datetime_start, trial.datetime_complete
    return taken


def _store(store: Store, experiment: str, name: str, facts: Mapping[str, Any], trials: list[FrozenTrial]) -> int:
    """Returns how many trials were new."""
    held = dict(store.require_experiment(experiment).facts)
    if not held:
        raise StorageError(f"experiment {experiment!r} has no results yet; run it first (vispco resume {experiment})")
    known = held.get("studies", {}).get(name)
    if known is not None and known["kind"] != IMPORTED:
        raise ConfigError(
            f"entry {facts['entry']!r} of {experiment!r} is a {known['kind']} search; choose another --as"
        )
    if known is not None and known["source"] != facts["source"]:
        was = known["source"]
        raise ConfigError(
            f"entry {facts['entry']!r} of {experiment!r} was imported from {was['study']!r} in {was['storage']} "
            f"(accuracy {was['accuracy']}, cost {was['cost']}); choose another --as"
        )
    store.save_facts(experiment, {**held, "studies": {**held.get("studies", {}), name: facts}})
    store.trial_log(name)
    added: list[int] = []

    def change(connection: Connection) -> None:
        key = study_ids(connection, experiment)[name]
        there = read_trials(connection, [key], attributes=(NUMBER,), with_params=False)[key]
        numbers = {trial.user_attrs.get(NUMBER) for trial in there}
        new = [trial for trial in trials if trial.user_attrs[NUMBER] not in numbers]
        append(connection, key, new)
        added.append(len(new))

    store.write(change)
    return added[-1]


def _notes(finished: Sequence[FrozenTrial], total: int, indices: tuple[int, int]) -> list[str]:
    notes = [
        f"objective {indices[0]} is taken as accuracy, and objective {indices[1]} as flops_ratio, the share of the "
        "unpruned model's FLOPs; a study of another cost does not belong on one front with these"
    ]
    if total > len(finished):
        notes.append(f"{total - len(finished)} trials are not finished yet; import again when they are")
    measured = [trial.values for trial in finished if trial.state == TrialState.COMPLETE]
    if any(not all(math.isfinite(values[i]) for i in indices) for values in measured):
        notes.append("trials with infinite values are kept, and are on no front")
    if any(math.isfinite(values[i]) and not 0 <= values[i] <= 1 for values in measured for i in indices):
        notes.append("some values lie outside [0, 1]: are they an accuracy and a flops_ratio?")
    return notes
