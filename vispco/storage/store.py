"""One database for everything: Optuna's storage, our tables, and the only functions that read and write them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import optuna
from numpy.typing import NDArray
from sqlalchemy import Column, Connection, Table, bindparam, delete, select

from vispco.config import content_hash
from vispco.errors import StorageError, VispcoError
from vispco.evaluation.records import Evaluation
from vispco.storage.faults import DATABASE_ERRORS, PATIENCE_SECONDS, UNREADABLE, Patience, damaged, failure
from vispco.storage.lock import Held, LockTimes, driver_lock, holders
from vispco.storage.migrations import MIGRATIONS, tables_version
from vispco.storage.opening import DEFAULT_URL as DEFAULT_URL
from vispco.storage.opening import default_url as default_url
from vispco.storage.opening import open_database
from vispco.storage.opening import redact as redact
from vispco.storage.sessions import fence_sessions
from vispco.storage.tables import blocks, evaluations, experiments, groups, links, steps, workers
from vispco.storage.trials import METRICS, TrialLog
from vispco.storage.upsert import insert_missing, upsert

CHUNK = 500  # values in one IN (...)
CREATE_TRIES = 20  # to load or create a study, in turn with others who do the same

Result = TypeVar("Result")
BlockRow = tuple[str, str, int, NDArray[Any]]


class Store:
    """Experiments, evaluations and trials of one database.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql+psycopg://...``; default ``VISPCO_STORAGE`` or ``sqlite:///vispco.db``.
        create: False refuses a database that does not exist or has no tables of ours.
        read_only: for commands that only read: the database is left as it is, whatever version its tables have.
        patience: seconds that reading and writing are tried again while the database is away or busy.

    Raises:
        StorageError: the database cannot be opened, or was written by a newer version.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        create: bool = True,
        read_only: bool = False,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.url = url or default_url()
        self.patience = patience
        self.optuna = open_database(self.url, create=create, patience=patience, read_only=read_only)
        self.engine = self.optuna.engine
        self._persist = Patience(redact(self.url), patience)
        self._held: dict[str, Held] = {}
        fence_sessions(self.optuna, lambda: list(self._held.values()))
        self._tables = self._read(tables_version) if read_only else len(MIGRATIONS)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that only reads: one state of the database, no waiting for a writer on SQLite."""
        with self.engine.connect().execution_options(vispco_read=True) as connection:
            yield connection

    def _read(self, query: Callable[[Connection], Result]) -> Result:
        """Result of ``query``, tried again while the database is away."""

        def once() -> Result:
            with self.reading() as connection:
                return query(connection)

        return self._persist(once)

    def _write(self, change: Callable[[Connection], object]) -> None:
        """Make ``change`` in one transaction that only commits while the locks that this store holds are ours.

        It is made again when the answer was lost, so it must not add to itself.
        """

        def once() -> None:
            with self.engine.begin() as connection:
                for held in self._held.values():
                    held.fence(connection)
                change(connection)

        self._persist(once)

    # --- experiments -----------------------------------------------------------------------------

    def experiment_names(self) -> list[str]:
        if not self._tables:
            return []
        query = select(experiments.c.name).order_by(experiments.c.created)
        return self._read(lambda connection: list(connection.execute(query).scalars()))

    def experiment(self, name: str) -> dict[str, Any] | None:
        """Spec text and hash, identity, facts and provenance; None if there is no such experiment."""
        if not self._tables:
            return None

        def read(connection: Connection) -> dict[str, Any] | None:
            row = connection.execute(select(experiments).where(experiments.c.name == name)).first()
            if row is None:
                return None
            found = dict(row._mapping)
            if not isinstance(found["spec_text"], str):
                raise TypeError(f"the study of experiment {name!r} is no text")
            for key in ("identity", "facts", "provenance"):
                found[key] = json.loads(found[key])
                if not isinstance(found[key], dict):
                    raise TypeError(f"{key} of experiment {name!r} is no mapping")
            return found

        return self._read(read)

    def require_experiment(self, name: str) -> dict[str, Any]:
        found = self.experiment(name)
        if found is None:
            known = self.experiment_names()
            has = f"it has {', '.join(known)}" if known else "it has none yet"
            raise StorageError(f"no experiment {name!r} in {redact(self.url)}; {has}")
        return found

    def save_experiment(
        self,
        name: str,
        *,
        spec_text: str,
        spec_hash: str,
        identity: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> None:
        """Insert the experiment, or update its text; facts and creation time of an existing one stay."""
        values = {
            "spec_text": spec_text,
            "spec_hash": spec_hash,
            "identity": json.dumps(identity),
            "provenance": json.dumps(provenance),
        }

        def change(connection: Connection) -> None:
            changed = connection.execute(experiments.update().where(experiments.c.name == name).values(**values))
            if changed.rowcount == 0:
                connection.execute(experiments.insert().values(name=name, facts="{}", created=_now(), **values))

        self._write(change)

    def save_facts(self, name: str, facts: Mapping[str, Any]) -> None:
        query = experiments.update().where(experiments.c.name == name).values(facts=json.dumps(facts))
        self._write(lambda connection: connection.execute(query))

    def delete_experiment(self, name: str) -> None:
        """Remove an experiment with its studies; measured evaluations stay, they are cached by content."""

        def delete_studies() -> None:
            for study in self.study_names(name):
                optuna.delete_study(study_name=study, storage=self.optuna)

        def change(connection: Connection) -> None:
            connection.execute(delete(steps).where(steps.c.study.startswith(f"{name}/", autoescape=True)))
            for table in (links, workers):
                connection.execute(delete(table).where(table.c.experiment == name))
            connection.execute(delete(experiments).where(experiments.c.name == name))

        self._persist(delete_studies)
        self._write(change)

    def delete_study(self, experiment: str, study: str) -> None:
        """Remove one study with its trajectories, and what its experiment notes of it."""

        def delete_trials() -> None:
            with suppress(KeyError):
                optuna.delete_study(study_name=study, storage=self.optuna)

        self._persist(delete_trials)
        self._write(lambda connection: connection.execute(delete(steps).where(steps.c.study == study)))
        facts = self.require_experiment(experiment)["facts"]
        facts.get("studies", {}).pop(study, None)
        self.save_facts(experiment, facts)

    @contextmanager
    def lock(
        self, experiment: str, *, times: LockTimes | None = None, waiting: Callable[[str], None] | None = None
    ) -> Iterator[Held]:
        """Drive ``experiment`` inside the block; whatever this store writes there is fenced by the lock.

        Args:
            times: heartbeat and expiry.
            waiting: told, now and then, whose silent lock on another machine is being watched before it is taken.

        Raises:
            LockedError: another driver holds it, or, in the middle of the block, took it.
        """
        with driver_lock(self.engine, experiment, times=times, patience=self._persist, waiting=waiting) as held:
            self._held[experiment] = held
            try:
                yield held
            finally:
                del self._held[experiment]

    def holders(self) -> dict[str, str]:
        """Experiments that are being run now -> by whom."""
        return self._read(holders) if self._tables else {}

    # --- studies ---------------------------------------------------------------------------------

    def study_names(self, experiment: str) -> list[str]:
        """Names of the experiment's studies, in the order of their creation."""
        summaries = self._persist(self.optuna.get_all_studies)
        ordered = sorted(summaries, key=lambda study: study._study_id)
        return [study.study_name for study in ordered if study.study_name.startswith(f"{experiment}/")]

    def trial_log(self, study_name: str) -> TrialLog:
        """Open a study, or create it with our directions and metric names, the second of which is the experiment's
        cost."""
        stored = self.experiment(study_name.rpartition("/")[0])
        facts = stored["facts"] if stored else {}
        cost, terms = facts.get("cost"), facts.get("cost_terms")
        metrics = [METRICS[0], cost or METRICS[1]]
        study = self._persist(lambda: self._study(study_name, metrics))
        return TrialLog(study, self._read, self._write, cost, terms["unpruned"]["search"] if terms else 1.0)

    def _study(self, study_name: str, metrics: list[str]) -> optuna.Study:
        sampler = optuna.samplers.RandomSampler()
        study: optuna.Study | None = None
        for remaining in reversed(range(CREATE_TRIES)):
            try:
                study = optuna.load_study(study_name=study_name, storage=self.optuna, sampler=sampler)
            except KeyError:
                with suppress(optuna.exceptions.DuplicatedStudyError):  # somebody else was faster: load theirs
                    study = optuna.create_study(
                        study_name=study_name, storage=self.optuna, directions=["maximize", "minimize"], sampler=sampler
                    )
            if study is not None:
                break
            if not remaining:  # rows that belong to no study keep a new one from their number
                raise StorageError(
                    f"cannot create study {study_name!r} in {redact(self.url)}: rows of one that was deleted by hand "
                    "are in its way; restore the database from a copy, or run into another (--storage)"
                )
        assert study is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if study.metric_names != metrics:
                study.set_metric_names(metrics)
        return study

    # --- evaluations -----------------------------------------------------------------------------

    def get_evaluation(self, evaluation_id: str) -> Evaluation | None:
        return self.get_evaluations([evaluation_id]).get(evaluation_id)

    def get_evaluations(self, ids: Iterable[str]) -> dict[str, Evaluation]:
        wanted = sorted(set(ids))

        def read(connection: Connection) -> dict[str, Evaluation]:
            rows = _select_in(connection, evaluations, evaluations.c.id, wanted)
            return {row.id: _evaluation(row) for row in rows}

        return self._read(read)

    def put_evaluation(self, evaluation: Evaluation, sample_groups: Mapping[str, Sequence[str]]) -> None:
        self.put_evaluations([evaluation], sample_groups)

    def put_evaluations(self, finished: Iterable[Evaluation], sample_groups: Mapping[str, Sequence[str]]) -> None:
        """Store what is missing and forget the blocks of these evaluations, in one transaction.

        Args:
            finished: evaluations of one split.
            sample_groups: group of each sample, per task.
        """
        groups_of: dict[tuple[str, ...], dict[str, Any]] = {}
        rows = []
        for evaluation in finished:
            names = tuple(sorted(evaluation.scores))
            if names not in groups_of:
                text = json.dumps({name: list(sample_groups[name]) for name in names})
                groups_of[names] = {"id": content_hash(text), "groups": text}
            rows.append(_row(evaluation, names, groups_of[names]["id"]))
        if not rows:
            return

        def change(connection: Connection) -> None:
            insert_missing(connection, groups, list(groups_of.values()), ["id"])
            insert_missing(connection, evaluations, rows, ["id"])
            connection.execute(
                delete(blocks).where(blocks.c.evaluation == bindparam("finished")),
                [{"finished": row["id"]} for row in rows],
            )

        self._write(change)

    # --- parts of evaluations ----------------------------------------------------------------------

    def save_blocks(self, rows: Iterable[BlockRow]) -> None:
        """Store scores of parts of evaluations that are not finished, in one transaction; replaces what is there.

        Args:
            rows: (evaluation id, task, block number, scores [S] of that block, kept as float32).
        """
        now = _now()
        values = {
            (evaluation, task, int(block)): {
                "evaluation": evaluation,
                "task": task,
                "block": int(block),
                "scores": np.asarray(scores, dtype="<f4").tobytes(),
                "created": now,
            }
            for evaluation, task, block, scores in rows
        }
        if values:
            keys = ["evaluation", "task", "block"]
            self._write(lambda connection: upsert(connection, blocks, list(values.values()), keys))

    def load_blocks(self, ids: Iterable[str]) -> dict[str, dict[tuple[str, int], NDArray[np.float64]]]:
        """evaluation id -> (task, block number) -> scores [S]; evaluations without blocks are left out."""
        found: dict[str, dict[tuple[str, int], NDArray[np.float64]]] = {}
        wanted = sorted(set(ids))
        for row in self._read(lambda connection: _select_in(connection, blocks, blocks.c.evaluation, wanted)):
            scores = np.frombuffer(row.scores, dtype="<f4").astype(np.float64)
            found.setdefault(row.evaluation, {})[row.task, row.block] = scores
        return found

    # --- workers -----------------------------------------------------------------------------------

    def save_workers(self, experiment: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the experiment's rows: worker, host, pid, doing, since, done, seen."""
        values = [{**row, "experiment": experiment} for row in rows]

        def change(connection: Connection) -> None:
            connection.execute(delete(workers).where(workers.c.experiment == experiment))
            upsert(connection, workers, values, ["experiment", "worker"])

        self._write(change)

    def workers(self, experiment: str) -> list[dict[str, Any]]:
        """Who works on what, in the order of their names."""
        if self._tables < 2:
            return []
        query = select(workers).where(workers.c.experiment == experiment).order_by(workers.c.worker)
        return self._read(lambda connection: [dict(row._mapping) for row in connection.execute(query)])

    # --- groups ------------------------------------------------------------------------------------

    def groups_of(self, evaluation_id: str) -> dict[str, list[str]]:
        """Group of each sample, per task."""
        query = (
            select(groups.c.groups)
            .join(evaluations, evaluations.c.groups_id == groups.c.id)
            .where(evaluations.c.id == evaluation_id)
        )

        def read(connection: Connection) -> dict[str, list[str]]:
            text = connection.execute(query).scalar()
            found = json.loads(text) if text else {}
            if not isinstance(found, dict):
                raise TypeError(f"the groups of evaluation {evaluation_id} are no mapping")
            return found

        return self._read(read)

    # --- links and trajectories --------------------------------------------------------------------

    def link(self, experiment: str, role: str, key: str, evaluation: Evaluation) -> None:
        """Note that ``evaluation`` answers ``role``/``key`` on its split."""
        self.link_all(experiment, role, [(key, evaluation)])

    def link_all(self, experiment: str, role: str, rows: Iterable[tuple[str, Evaluation]]) -> None:
        """Note for each (key, evaluation) that it answers ``role``/``key`` on its split, in one transaction."""
        values = {
            (key, evaluation.split): {
                "experiment": experiment,
                "role": role,
                "key": key,
                "split": evaluation.split,
                "evaluation": evaluation.id,
            }
            for key, evaluation in rows
        }
        if values:
            keys = ["experiment", "role", "key", "split"]
            self._write(lambda connection: upsert(connection, links, list(values.values()), keys))

    def linked(self, experiment: str, role: str) -> dict[tuple[str, str], str]:
        """(key, split) -> evaluation id."""
        query = select(links).where(links.c.experiment == experiment, links.c.role == role)
        rows = self._read(lambda connection: connection.execute(query).all())
        return {(row.key, row.split): row.evaluation for row in rows}

    def save_steps(self, study: str, trial_key: str, trajectory: Sequence[Mapping[str, Any]]) -> None:
        """Replace the trajectory of one trial, in one transaction."""
        rows = [
            {"study": study, "trial_key": trial_key, "step": number, "data": json.dumps(data)}
            for number, data in enumerate(trajectory)
        ]

        def change(connection: Connection) -> None:
            connection.execute(delete(steps).where(steps.c.study == study, steps.c.trial_key == trial_key))
            if rows:
                connection.execute(steps.insert(), rows)

        self._write(change)

    def trajectory(self, study: str) -> dict[str, list[dict[str, Any]]]:
        """trial key -> its steps."""
        found: dict[str, list[dict[str, Any]]] = {}
        query = select(steps).where(steps.c.study == study).order_by(steps.c.trial_key, steps.c.step)
        for row in self._read(lambda connection: connection.execute(query).all()):
            found.setdefault(row.trial_key, []).append(json.loads(row.data))
        return found


@contextmanager
def read_results(store: Store) -> Iterator[None]:
    """Inside, only what is stored is read: what fails there is what somebody changed, said in one line."""
    try:
        yield
    except VispcoError:
        raise
    except UNREADABLE as error:
        raise damaged(redact(store.url), error) from error


@contextmanager
def open_store(
    url: str | None, *, create: bool = True, read_only: bool = False, patience: float = PATIENCE_SECONDS
) -> Iterator[Store]:
    """A store that is closed at the end; database errors inside become one line."""
    store = Store(url, create=create, read_only=read_only, patience=patience)
    only_reads = read_only or not create
    try:
        # Whoever runs a model inside may have other reasons to fail than what is stored.
        with read_results(store) if only_reads else nullcontext():
            yield store
    except DATABASE_ERRORS as error:
        raise failure(redact(store.url), error) from error
    finally:
        store.engine.dispose()


def _select_in(connection: Connection, table: Table, column: Column[str], wanted: Sequence[str]) -> list[Any]:
    """Rows whose ``column`` is one of ``wanted``."""
    rows: list[Any] = []
    for start in range(0, len(wanted), CHUNK):
        rows += connection.execute(select(table).where(column.in_(wanted[start : start + CHUNK]))).all()
    return rows


def _row(evaluation: Evaluation, names: Sequence[str], groups_id: str) -> dict[str, Any]:
    return {
        "id": evaluation.id,
        "split": evaluation.split,
        "method": evaluation.method,
        "schedule": evaluation.schedule,
        "keep_ratio": json.dumps(evaluation.keep_ratio),
        "accuracy": evaluation.accuracy,
        "flops_ratio": evaluation.flops_ratio,
        "flops": evaluation.flops,
        "kv_bytes": evaluation.kv_bytes,
        "tasks": json.dumps(evaluation.tasks),
        "scores": b"".join(np.asarray(evaluation.scores[name], dtype="<f4").tobytes() for name in names),
        "score_counts": json.dumps({name: len(evaluation.scores[name]) for name in names}),
        "groups_id": groups_id,
        "created": _now(),
    }


def _evaluation(row: Any) -> Evaluation:
    sizes: dict[str, int] = json.loads(row.score_counts)
    flat = np.frombuffer(row.scores, dtype="<f4").astype(np.float64)
    ends = np.cumsum(list(sizes.values()))
    scores = dict(zip(sizes, np.split(flat, ends[:-1]), strict=True))
    return Evaluation(
        id=row.id,
        split=row.split,
        method=row.method,
        schedule=row.schedule,
        keep_ratio=tuple(json.loads(row.keep_ratio)),
        accuracy=row.accuracy,
        flops_ratio=row.flops_ratio,
        flops=row.flops,
        spent_flops=0,
        kv_bytes=row.kv_bytes,
        tasks=json.loads(row.tasks),
        scores=scores,
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
