"""Many trials in one transaction, as Optuna's rows: ``study.add_trial`` takes tens of statements for each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, delete, select

from vispco.storage.optuna_sql.tables import TRIAL_PARTS, studies, trial_system_attributes, trials

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
Rows = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class StoredTrial:
    """One trial as the database has it, without its ids: equal content is equal.

    Times are naive UTC. ``parts`` are the rows of each of ``TRIAL_PARTS``: parameters in their order, the others by
    their first column.
    """

    number: int
    state: TrialState
    datetime_start: datetime | None
    datetime_complete: datetime | None
    parts: tuple[Rows, ...]

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


def stored(trial: FrozenTrial) -> StoredTrial:
    """What ``study.add_trial(trial)`` would write under ``trial.number``."""
    stored_value = models.TrialValueModel.value_to_stored_repr
    stored_step = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    results = [(objective, *stored_value(value)) for objective, value in enumerate(trial.values or [])]
    steps = [(step, *stored_step(value)) for step, value in sorted(trial.intermediate_values.items())]
    parameters = [(name, *_parameter(trial.distributions[name], value)) for name, value in trial.params.items()]
    user, system = (
        sorted((key, json.dumps(value)) for key, value in attrs.items())
        for attrs in (trial.user_attrs, trial.system_attrs)
    )
    parts: tuple[list[Any], ...] = (parameters, results, steps, user, system)
    times = _utc(trial.datetime_start), _utc(trial.datetime_complete)
    return StoredTrial(trial.number, trial.state, *times, tuple(map(tuple, parts)))


def read_stored(connection: Connection, study: int) -> dict[int, StoredTrial]:
    """Number -> trial, in the order of numbers."""
    parts: list[dict[int, list[tuple[Any, ...]]]] = []
    for place, (table, key, columns) in enumerate(TRIAL_PARTS):
        query = (
            select(table.c.trial_id, *(table.c[name] for name in columns))
            .join_from(trials, table, trials.c.trial_id == table.c.trial_id)
            .where(trials.c.study_id == study)
            .order_by(table.c[key] if place == 0 else table.c[columns[0]])
        )
        rows: dict[int, list[tuple[Any, ...]]] = {}
        for trial_id, *row in connection.execute(query):
            rows.setdefault(trial_id, []).append(tuple(row))
        parts.append(rows)
    for attributes in parts[-2:]:  # databases sort texts by rules of their own
        for found in attributes.values():
            found.sort()
    query = select(trials).where(trials.c.study_id == study).order_by(trials.c.number)
    return {
        number: StoredTrial(number, state, begun, complete, tuple(tuple(rows.get(key, ())) for rows in parts))
        for key, number, _, state, begun, complete in connection.execute(query)
    }


def newest(connection: Connection, study: int) -> tuple[int, int] | None:
    """(id, number) of the study's newest trial, at the same price for any number of trials."""
    query = select(trials.c.trial_id, trials.c.number).where(trials.c.study_id == study)
    row = connection.execute(query.order_by(trials.c.trial_id.desc()).limit(1)).first()
    return None if row is None else (row.trial_id, row.number)


def lock_study(connection: Connection, study: int) -> None:
    """Other writers to the study wait until this transaction ends."""
    connection.execute(select(studies.c.study_id).where(studies.c.study_id == study).with_for_update()).first()


def has_system_attribute(connection: Connection, study: int, name: str, text: str) -> bool:
    """Whether a trial of the study has the system attribute ``name`` with this JSON text."""
    table = trial_system_attributes
    query = select(table.c.key).join_from(trials, table, trials.c.trial_id == table.c.trial_id)
    query = query.where(trials.c.study_id == study, table.c.key == name, table.c.value_json == text)
    return connection.execute(query).first() is not None


def write_stored(connection: Connection, study: int, new: Iterable[StoredTrial]) -> dict[int, int]:
    """Insert trials under their numbers, or replace unfinished ones of the same number; returns number -> trial id."""
    ordered = sorted(new, key=lambda trial: trial.number)
    if not ordered:
        return {}
    there = _ids(connection, study, [trial.number for trial in ordered])
    _insert(connection, trials, [_row(trial, study) for trial in ordered if trial.number not in there])
    for trial in (t for t in ordered if t.number in there):
        key = there[trial.number]
        connection.execute(trials.update().where(trials.c.trial_id == key).values(_row(trial, study)))
        for table, _, _ in TRIAL_PARTS:
            connection.execute(delete(table).where(table.c.trial_id == key))
    ids = _ids(connection, study, [trial.number for trial in ordered])
    _insert_parts(connection, ordered, ids)
    return ids


def append(connection: Connection, study: int, new: Sequence[FrozenTrial]) -> dict[int, int]:
    """Store trials under the next numbers, in their order; returns number -> trial id."""
    lock_study(connection, study)
    last = newest(connection, study) or (-1, -1)
    ordered = [replace(stored(trial), number=last[1] + 1 + i) for i, trial in enumerate(new)]
    _insert(connection, trials, [_row(trial, study) for trial in ordered])
    query = select(trials.c.number, trials.c.trial_id)
    rows = connection.execute(query.where(trials.c.study_id == study, trials.c.trial_id > last[0]))
    ids = {row.number: row.trial_id for row in rows}
    _insert_parts(connection, ordered, ids)
    return ids


def _insert_parts(connection: Connection, ordered: Sequence[StoredTrial], ids: Mapping[int, int]) -> None:
    for place, (table, _, columns) in enumerate(TRIAL_PARTS):
        rows = [
            {"trial_id": ids[trial.number], **dict(zip(columns, row, strict=True))}
            for trial in ordered
            for row in trial.parts[place]
        ]
        _insert(connection, table, rows)


def _ids(connection: Connection, study: int, numbers: Sequence[int]) -> dict[int, int]:
    query = select(trials.c.number, trials.c.trial_id).where(
        trials.c.study_id == study, trials.c.number.between(min(numbers), max(numbers))
    )
    wanted = set(numbers)
    return {number: key for number, key in connection.execute(query) if number in wanted}


def _insert(connection: Connection, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        connection.execute(table.insert(), rows)


def _row(trial: StoredTrial, study: int) -> dict[str, Any]:
    return {
        "number": trial.number,
        "study_id": study,
        "state": trial.state,
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
    }


def _parameter(distribution: BaseDistribution, value: Any) -> tuple[float, str]:
    return float(distribution.to_internal_repr(value)), distribution_to_json(distribution)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
