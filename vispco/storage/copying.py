"""Copy experiments from one database to another: studies, trials, evaluations, groups, links and steps.

The source is read in one snapshot, so that a driver may go on there: its trials are only ever appended, and a later
copy brings the rest. In the destination the experiment's lock is held, evaluations and groups go first (they are named
by their content), and all the rest of an experiment is one transaction: a copy that is killed leaves nothing half done.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, delete, select

from vispco.errors import StorageError
from vispco.evaluation.content import changes, merged
from vispco.storage.optuna_sql.bulk import StoredTrial, read_stored, write_stored
from vispco.storage.optuna_sql.tables import directions, studies, study_system_attributes, study_user_attributes
from vispco.storage.optuna_sql.tables import trials as trial_table
from vispco.storage.reading import snapshot, study_ids
from vispco.storage.store import Store, redact
from vispco.storage.tables import evaluations, experiments, groups, links, steps
from vispco.storage.upsert import insert_missing, upsert

CHUNK = 200  # evaluations, with their scores, that are held at a time
EXTENDABLE = ("spec_text", "spec_hash", "facts", "provenance")
TRIAL_NOTE = re.compile(r"dashboard:(?:artifacts:)?(\d+):")


@dataclass(frozen=True)
class Copied:
    """What was new to the destination."""

    experiment: str
    studies: int
    trials: int
    evaluations: int


@dataclass(frozen=True)
class _Study:
    """A study of the source without its ids; notes on trials name the trials' numbers."""

    name: str
    directions: list[tuple[int, Any]]
    user: dict[str, str]
    system: dict[str, str]
    trials: dict[int, StoredTrial]
    numbers: dict[int, int]


@dataclass(frozen=True)
class _Source:
    row: dict[str, Any]
    studies: list[_Study]
    links: list[dict[str, Any]]
    steps: list[dict[str, Any]]

    def evaluations(self) -> list[str]:
        """Ids of all evaluations that trials or links name."""
        named = {link["evaluation"] for link in self.links}
        for study in self.studies:
            for trial in study.trials.values():
                named |= {json.loads(text) for key, text in trial.parts[3] if key == "evaluation" and text[:1] == '"'}
        return sorted(named)


def copy_experiments(source: Store, destination: Store, names: Sequence[str] | None = None) -> list[Copied]:
    """Copy the named experiments, or all; what the destination has already stays.

    Raises:
        StorageError: no such experiment; the destination holds another one under its name.
        LockedError: the destination's is being run.
    """
    if _place(source) == _place(destination):
        raise StorageError(f"source and destination are both {redact(source.url)}; name two databases")
    wanted = list(names) if names else source.experiment_names()
    for name in wanted:
        source.require_experiment(name)
    return [_copy(source, destination, name) for name in wanted]


def _place(store: Store) -> tuple[Any, ...]:
    url = store.engine.url
    file = os.path.realpath(url.database) if url.get_backend_name() == "sqlite" and url.database else url.database
    return url.get_backend_name(), url.host, url.port, file, tuple(sorted(url.query.items()))


def _copy(source: Store, destination: Store, name: str) -> Copied:
    with destination.lock(name):
        with snapshot(source.engine) as connection:
            experiment = _read(connection, name)
            with snapshot(destination.engine) as there:
                _check(there, experiment, name, redact(destination.url))
            evaluated = _copy_evaluations(connection, destination, experiment.evaluations())
        done: list[Copied] = []

        def change(connection: Connection) -> None:
            _check(connection, experiment, name, redact(destination.url))
            new_studies, new_trials = _write(connection, experiment, name)
            done.append(Copied(name, new_studies, new_trials, evaluated))

        destination.write(change)
        return done[-1]


def _read(connection: Connection, name: str) -> _Source:
    row = connection.execute(select(experiments).where(experiments.c.name == name)).one()
    copied = []
    for study, key in study_ids(connection, name).items():
        numbers = select(trial_table.c.trial_id, trial_table.c.number).where(trial_table.c.study_id == key)
        ways = select(directions.c.objective, directions.c.direction).where(directions.c.study_id == key)
        copied.append(
            _Study(
                study,
                [(objective, way) for objective, way in connection.execute(ways.order_by(directions.c.objective))],
                _attributes(connection, study_user_attributes, key),
                _attributes(connection, study_system_attributes, key),
                read_stored(connection, key),
                {row.trial_id: row.number for row in connection.execute(numbers)},
            )
        )
    linked = connection.execute(select(links).where(links.c.experiment == name)).all()
    stepped = [
        dict(row._mapping)
        for study in copied
        for row in connection.execute(select(steps).where(steps.c.study == study.name))
    ]
    return _Source(dict(row._mapping), copied, [dict(link._mapping) for link in linked], stepped)


def _attributes(connection: Connection, table: Table, study: int) -> dict[str, str]:
    query = select(table.c.key, table.c.value_json).where(table.c.study_id == study)
    return {row[0]: row[1] for row in connection.execute(query)}


def _check(there: Connection, source: _Source, name: str, shown: str) -> None:
    """Refuse a destination that is no earlier state of the source."""
    row = there.execute(select(experiments).where(experiments.c.name == name)).first()
    ids = study_ids(there, name)
    way_out = "copy into another database, or copy the other way if that one has gone on"
    if row is not None:
        theirs, mine = json.loads(row.identity), json.loads(source.row["identity"])
        named = {**theirs, **mine}.keys() - {"content"}
        differ = sorted(repr(key) for key in named if theirs.get(key) != mine.get(key))
        differ = differ or changes(theirs.get("content") or {}, mine.get("content") or {})
        if differ:
            raise StorageError(f"{shown} holds another experiment {name!r}: its {differ[0]} differs; {way_out}")
        known = json.loads(source.row["facts"]).get("studies", {})
        more = [study for study in json.loads(row.facts).get("studies", {}) if study not in known]
        if more:
            raise StorageError(f"{shown} has study {more[0]!r}, which the source has not; {way_out}")
    ours = {study.name: study for study in source.studies}
    for study, key in ids.items():
        copied = ours[study].trials if study in ours else {}
        for number, trial in read_stored(there, key).items():
            if number not in copied:
                raise StorageError(
                    f"{shown} has trial {number} of study {study!r}, which the source has not; {way_out}"
                )
            if trial.finished and trial != copied[number]:
                raise StorageError(f"trial {number} of study {study!r} differs in {shown}; {way_out}")


def _copy_evaluations(source: Connection, destination: Store, ids: Sequence[str]) -> int:
    with snapshot(destination.engine) as connection:
        there = set(connection.execute(select(evaluations.c.id)).scalars())
    missing = [key for key in ids if key not in there]
    copied = 0
    for start in range(0, len(missing), CHUNK):
        part = evaluations.c.id.in_(missing[start : start + CHUNK])
        rows = [dict(row._mapping) for row in source.execute(select(evaluations).where(part))]
        named = {row["groups_id"] for row in rows}
        grouped = [dict(row._mapping) for row in source.execute(select(groups).where(groups.c.id.in_(named)))]

        def change(connection: Connection, rows: Any = rows, grouped: Any = grouped) -> None:
            insert_missing(connection, groups, grouped, ["id"])
            insert_missing(connection, evaluations, rows, ["id"])

        destination.write(change)
        copied += len(rows)
    return copied


def _write(connection: Connection, source: _Source, name: str) -> tuple[int, int]:
    """Returns how many studies and trials were new."""
    named = experiments.c.name == name
    row = connection.execute(select(experiments.c.name).where(named)).first()
    if row is None:
        connection.execute(experiments.insert().values(source.row))
    else:
        values = {key: source.row[key] for key in EXTENDABLE}
        there_is = json.loads(connection.execute(select(experiments.c.identity).where(named)).scalar_one())
        mine = json.loads(source.row["identity"])
        if content := merged(there_is.get("content") or {}, mine.get("content") or {}):
            values["identity"] = json.dumps({**mine, "content": content})
        connection.execute(experiments.update().where(experiments.c.name == name).values(values))
    upsert(connection, links, source.links, ["experiment", "role", "key", "split"])
    ids = study_ids(connection, name)
    new_trials = 0
    for study in source.studies:
        key = ids.get(study.name)
        if key is None:
            connection.execute(studies.insert().values(study_name=study.name))
            key = connection.execute(select(studies.c.study_id).where(studies.c.study_name == study.name)).scalar_one()
            rows = [{"study_id": key, "objective": i, "direction": way} for i, way in study.directions]
            connection.execute(directions.insert(), rows)
        there = read_stored(connection, key)
        changed = [trial for number, trial in study.trials.items() if there.get(number) != trial]
        write_stored(connection, key, changed)
        new_trials += len(changed)
        _write_attributes(connection, study_user_attributes, key, study.user)
        _write_attributes(connection, study_system_attributes, key, _renamed(connection, key, study))
        connection.execute(delete(steps).where(steps.c.study == study.name))
    if source.steps:
        connection.execute(steps.insert(), source.steps)
    return len([study for study in source.studies if study.name not in ids]), new_trials


def _write_attributes(connection: Connection, table: Table, study: int, wanted: dict[str, str]) -> None:
    there = _attributes(connection, table, study)
    changed = {key: text for key, text in wanted.items() if there.get(key) != text}
    if changed:
        connection.execute(delete(table).where(table.c.study_id == study, table.c.key.in_(list(changed))))
        connection.execute(table.insert(), [{"study_id": study, "key": k, "value_json": v} for k, v in changed.items()])


def _renamed(connection: Connection, key: int, study: _Study) -> dict[str, str]:
    """System attributes with the destination's trial ids: optuna-dashboard keeps its notes on trials by their ids."""
    query = select(trial_table.c.number, trial_table.c.trial_id).where(trial_table.c.study_id == key)
    ids = {row.number: row.trial_id for row in connection.execute(query)}
    renamed = {}
    for name, text in study.system.items():
        match = TRIAL_NOTE.match(name)
        if match is not None:
            trial = ids[study.numbers[int(match[1])]] if int(match[1]) in study.numbers else None
            if trial is None:  # a note on a trial that is not there any more
                continue
            name = f"{name[: match.start(1)]}{trial}{name[match.end(1) :]}"
        renamed[name] = text
    return renamed
