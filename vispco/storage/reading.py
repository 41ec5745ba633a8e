"""Trials for analysis: a handful of SQL queries for all studies together, into small frozen records.

Optuna builds a trial out of six queries' ORM objects and validates every distribution; a comparison of thousands of
trials needs a few columns of each.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, Engine, Select, func, select

from vispco.errors import VispcoError
from vispco.storage.faults import UNREADABLE, damaged
from vispco.storage.optuna_sql.tables import params, studies, trial_user_attributes, trials, values
from vispco.storage.redaction import redact_text

KINDS = models.TrialValueModel.TrialValueType
INFINITE = {KINDS.INF_POS: float("inf"), KINDS.INF_NEG: float("-inf")}
CHUNK = 500  # names or ids in one IN clause


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial as it is stored; equal to Optuna's in every field it has.

    ``values`` are (accuracy, flops_ratio), or whatever the study has as objectives, None unless they were stored.
    ``user_attrs`` holds the attributes that were asked for. ``start`` and ``complete`` are naive UTC as stored,
    ``datetime_start`` and ``datetime_complete`` naive local time as Optuna gives them.
    """

    number: int
    state: TrialState
    values: tuple[float, ...] | None
    params: Mapping[str, Any] = field(default_factory=dict)
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    start: datetime | None = None
    complete: datetime | None = None

    @property
    def accuracy(self) -> float:
        """The first value of a measured trial."""
        assert self.values is not None
        return self.values[0]

    @property
    def cost(self) -> float:
        """The second value of a measured trial."""
        assert self.values is not None
        return self.values[1]

    @property
    def datetime_start(self) -> datetime | None:
        return local(self.start)

    @property
    def datetime_complete(self) -> datetime | None:
        return local(self.complete)

    @property
    def duration(self) -> timedelta | None:
        return None if self.start is None or self.complete is None else self.complete - self.start


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection on which all queries see one state of the database, and which never waits for a writer."""
    level = {} if engine.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with engine.connect().execution_options(vispco_read=True, **level) as connection, connection.begin():
        try:
            yield connection
        except VispcoError:
            raise
        except UNREADABLE as error:
            raise damaged(redact_text(str(engine.url)), error) from error


def study_ids(connection: Connection, experiment: str) -> dict[str, int]:
    """Name -> id of the experiment's studies, in the order of their creation."""
    query = select(studies.c.study_name, studies.c.study_id).order_by(studies.c.study_id)
    named = connection.execute(query.where(studies.c.study_name.startswith(f"{experiment}/", autoescape=True)))
    # LIKE takes no notice of case on SQLite.
    return {name: key for name, key in named if name.startswith(f"{experiment}/")}


def read_trials(
    connection: Connection,
    ids: Sequence[int],
    *,
    states: Collection[TrialState] | None = None,
    attributes: Collection[str] | None = None,
    with_params: bool = True,
) -> dict[int, list[TrialRecord]]:
    """Study id -> its trials by number.

    Args:
        ids: studies.
        states: only trials in these; None for all.
        attributes: user attributes to read; None for all.
        with_params: False leaves ``params`` empty.
    """
    records: dict[int, list[TrialRecord]] = {key: [] for key in ids}
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        wanted = [trials.c.study_id.in_(part)]
        if states is not None:
            wanted.append(trials.c.state.in_(list(states)))
        results = _values(connection, wanted)
        attrs = _attributes(connection, wanted, attributes)
        parameters = _params(connection, wanted) if with_params else {}
        query = select(trials).where(*wanted).order_by(trials.c.study_id, trials.c.number)
        for key, number, study, state, begun, complete in connection.execute(query).all():
            records[study].append(
                TrialRecord(
                    number,
                    state,
                    results.get(key),
                    parameters.get(key, {}),
                    attrs.get(key, {}),
                    begun,
                    complete,
                )
            )
    return records


def read_attribute(connection: Connection, study: int, name: str, numbers: Collection[int]) -> dict[int, Any]:
    """Number -> value of one user attribute of some trials of a study; those without it are left out."""
    table, by_number, wanted = trial_user_attributes, {}, sorted(numbers)
    for start in range(0, len(wanted), CHUNK):
        part = trials.c.number.in_(wanted[start : start + CHUNK])
        query = _joined(select(trials.c.number, table.c.value_json), table, [trials.c.study_id == study, part])
        for number, text in connection.execute(query.where(table.c.key == name)):
            by_number[number] = json.loads(text)
    return by_number


@dataclass(frozen=True)
class StudySummary:
    """A study in a few numbers: how many trials are in which state, the best finite accuracy, the last finish (UTC)."""

    states: Mapping[TrialState, int]
    best_accuracy: float | None
    last: datetime | None


def summaries(connection: Connection, ids: Sequence[int]) -> dict[int, StudySummary]:
    """Study id -> summary."""
    by_study: dict[int, StudySummary] = {}
    complete = trials.c.state == TrialState.COMPLETE
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        within = trials.c.study_id.in_(part)
        counts = select(trials.c.study_id, trials.c.state, func.count()).where(within)
        states: dict[int, dict[TrialState, int]] = {key: {} for key in part}
        for study, state, count in connection.execute(counts.group_by(trials.c.study_id, trials.c.state)):
            states[study][state] = count
        accuracy = [values.c.objective == 0, values.c.value_type == KINDS.FINITE]
        query = _joined(select(trials.c.study_id, func.max(values.c.value)), values, [within, complete, *accuracy])
        best: dict[int, float] = {row[0]: row[1] for row in connection.execute(query.group_by(trials.c.study_id))}
        query = select(trials.c.study_id, func.max(trials.c.datetime_complete)).where(within, complete)
        last: dict[int, datetime] = {row[0]: row[1] for row in connection.execute(query.group_by(trials.c.study_id))}
        by_study.update({key: StudySummary(states[key], best.get(key), last.get(key)) for key in part})
    return by_study


def _joined(query: Select[Any], table: Any, wanted: Sequence[Any]) -> Select[Any]:
    return query.join_from(trials, table, trials.c.trial_id == table.c.trial_id).where(*wanted)


def _values(connection: Connection, wanted: Sequence[Any]) -> dict[int, tuple[float, ...]]:
    columns = select(values.c.trial_id, values.c.value, values.c.value_type)
    query = _joined(columns, values, wanted).order_by(values.c.trial_id, values.c.objective)
    by_trial: dict[int, tuple[float, ...]] = {}
    for key, value, kind in connection.execute(query).all():
        by_trial[key] = (*by_trial.get(key, ()), float(value) if kind == KINDS.FINITE else INFINITE[kind])
    return by_trial


def _attributes(
    connection: Connection, wanted: Sequence[Any], names: Collection[str] | None
) -> dict[int, dict[str, Any]]:
    table = trial_user_attributes
    query = _joined(select(table.c.trial_id, table.c.key, table.c.value_json), table, wanted)
    if names is not None:
        query = query.where(table.c.key.in_(list(names)))
    rows = connection.execute(query).all()
    # One call of the parser for all texts takes a fraction of the time of one call each.
    parsed = json.loads(f"[{','.join(text for _, _, text in rows)}]")
    by_trial: dict[int, dict[str, Any]] = {}
    for (key, name, _), value in zip(rows, parsed, strict=True):
        by_trial.setdefault(key, {})[name] = value
    return by_trial


def _params(connection: Connection, wanted: Sequence[Any]) -> dict[int, dict[str, Any]]:
    columns = select(params.c.trial_id, params.c.param_name, params.c.param_value, params.c.distribution_json)
    known: dict[str, BaseDistribution] = {}
    by_trial: dict[int, dict[str, Any]] = {}
    for key, name, value, text in connection.execute(
        _joined(columns, params, wanted).order_by(params.c.param_id)
    ).all():
        if text not in known:
            known[text] = json_to_distribution(text)
        by_trial.setdefault(key, {})[name] = known[text].to_external_repr(value)
    return by_trial


def local(moment: datetime | None) -> datetime | None:
    """Naive local time of a naive UTC time."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
