"""One database for everything: Optuna's storage, our tables, and the only functions that read and write them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import optuna
from sqlalchemy import Engine, delete, event, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from vispco.config import content_hash
from vispco.errors import StorageError
from vispco.evaluation.records import Evaluation
from vispco.storage.lock import driver_lock, holders
from vispco.storage.migrations import migrate
from vispco.storage.tables import evaluations, experiments, groups, links, steps
from vispco.storage.trials import METRICS, TrialLog

DEFAULT_URL = "sqlite:///vispco.db"


def default_url() -> str:
    return os.environ.get("VISPCO_STORAGE") or DEFAULT_URL


def redact(url: str) -> str:
    """A database URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "<unreadable URL>"


def _tune_sqlite(engine: Engine) -> None:
    """WAL, a long busy timeout, and write transactions that take the lock at once (no upgrade deadlocks)."""

    @event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _: Any) -> None:
        dbapi.isolation_level = None
        for pragma in ("busy_timeout=60000", "journal_mode=WAL", "synchronous=NORMAL"):
            dbapi.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()


class Store:
    """Experiments, evaluations and trials of one database.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql+psycopg://...``; default ``VISPCO_STORAGE`` or ``sqlite:///vispco.db``.
        create: False refuses a SQLite file that does not exist, for commands that only read.

    Raises:
        StorageError: the database cannot be opened, or was written by a newer version.
    """

    def __init__(self, url: str | None = None, *, create: bool = True) -> None:
        self.url = url or default_url()
        shown = redact(self.url)
        try:
            parsed = make_url(self.url)
        except ArgumentError:
            raise StorageError(
                "storage is no database URL; write sqlite:///vispco.db or postgresql+psycopg://..."
            ) from None
        file = parsed.database if parsed.get_backend_name() == "sqlite" else None
        if not create and file and not os.path.exists(file):
            raise StorageError(f"no database at {shown}; run a study first (vispco run studies/quickstart.yaml)")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.optuna = optuna.storages.RDBStorage(self.url.replace("{", "{{").replace("}", "}}"))
            self.engine = self.optuna.engine
            if self.engine.name == "sqlite":
                _tune_sqlite(self.engine)
            migrate(self.engine)
        except StorageError:
            raise
        except (SQLAlchemyError, ImportError, RuntimeError) as error:
            raise StorageError(f"cannot open database {shown}: {_reason(error)}; give another --storage URL") from error

    # --- experiments -----------------------------------------------------------------------------

    def experiment_names(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(experiments.c.name).order_by(experiments.c.created)).scalars())

    def experiment(self, name: str) -> dict[str, Any] | None:
        """Spec text and hash, identity, facts and provenance; None if there is no such experiment."""
        with self.engine.connect() as connection:
            row = connection.execute(select(experiments).where(experiments.c.name == name)).first()
        if row is None:
            return None
        found = dict(row._mapping)
        for key in ("identity", "facts", "provenance"):
            found[key] = json.loads(found[key])
        return found

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
        with self.engine.begin() as connection:
            changed = connection.execute(experiments.update().where(experiments.c.name == name).values(**values))
            if changed.rowcount == 0:
                connection.execute(experiments.insert().values(name=name, facts="{}", created=_now(), **values))

    def save_facts(self, name: str, facts: Mapping[str, Any]) -> None:
        with self.engine.begin() as connection:
            connection.execute(experiments.update().where(experiments.c.name == name).values(facts=json.dumps(facts)))

    def delete_experiment(self, name: str) -> None:
        """Remove an experiment with its studies; measured evaluations stay, they are cached by content."""
        for study in self.study_names(name):
            optuna.delete_study(study_name=study, storage=self.optuna)
        with self.engine.begin() as connection:
            connection.execute(delete(steps).where(steps.c.study.startswith(f"{name}/", autoescape=True)))
            connection.execute(delete(links).where(links.c.experiment == name))
            connection.execute(delete(experiments).where(experiments.c.name == name))

    def lock(self, experiment: str) -> AbstractContextManager[None]:
        return driver_lock(self.engine, experiment)

    def holders(self) -> dict[str, str]:
        return holders(self.engine)

    # --- studies ---------------------------------------------------------------------------------

    def study_names(self, experiment: str) -> list[str]:
        """Names of the experiment's studies, in the order of their creation."""
        summaries = self.optuna.get_all_studies()
        ordered = sorted(summaries, key=lambda study: study._study_id)
        return [study.study_name for study in ordered if study.study_name.startswith(f"{experiment}/")]

    def trial_log(self, study_name: str) -> TrialLog:
        """Open a study, or create it with our directions and metric names."""
        sampler = optuna.samplers.RandomSampler()
        try:
            study = optuna.load_study(study_name=study_name, storage=self.optuna, sampler=sampler)
        except KeyError:
            study = optuna.create_study(
                study_name=study_name, storage=self.optuna, directions=["maximize", "minimize"], sampler=sampler
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if study.metric_names != list(METRICS):
                study.set_metric_names(list(METRICS))
        return TrialLog(study)

    # --- evaluations -----------------------------------------------------------------------------

    def get_evaluation(self, evaluation_id: str) -> Evaluation | None:
        with self.engine.connect() as connection:
            row = connection.execute(select(evaluations).where(evaluations.c.id == evaluation_id)).first()
        return _evaluation(row) if row is not None else None

    def get_evaluations(self, ids: Sequence[str]) -> dict[str, Evaluation]:
        found: dict[str, Evaluation] = {}
        wanted = sorted(set(ids))
        with self.engine.connect() as connection:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                for row in connection.execute(select(evaluations).where(evaluations.c.id.in_(part))):
                    found[row.id] = _evaluation(row)
        return found

    def put_evaluation(self, evaluation: Evaluation, sample_groups: Mapping[str, Sequence[str]]) -> None:
        names = sorted(evaluation.scores)
        text = json.dumps({name: list(sample_groups[name]) for name in names})
        groups_id = content_hash(text)
        packed = b"".join(np.asarray(evaluation.scores[name], dtype="<f4").tobytes() for name in names)
        with self.engine.begin() as connection:
            if connection.execute(select(groups.c.id).where(groups.c.id == groups_id)).first() is None:
                connection.execute(groups.insert().values(id=groups_id, groups=text))
            if connection.execute(select(evaluations.c.id).where(evaluations.c.id == evaluation.id)).first():
                return
            connection.execute(
                evaluations.insert().values(
                    id=evaluation.id,
                    split=evaluation.split,
                    method=evaluation.method,
                    schedule=evaluation.schedule,
                    keep_ratio=json.dumps(evaluation.keep_ratio),
                    accuracy=evaluation.accuracy,
                    flops_ratio=evaluation.flops_ratio,
                    flops=evaluation.flops,
                    kv_bytes=evaluation.kv_bytes,
                    tasks=json.dumps(evaluation.tasks),
                    scores=packed,
                    score_counts=json.dumps({name: len(evaluation.scores[name]) for name in names}),
                    groups_id=groups_id,
                    created=_now(),
                )
            )

    def groups_of(self, evaluation_id: str) -> dict[str, list[str]]:
        """Group of each sample, per task."""
        query = (
            select(groups.c.groups)
            .join(evaluations, evaluations.c.groups_id == groups.c.id)
            .where(evaluations.c.id == evaluation_id)
        )
        with self.engine.connect() as connection:
            text = connection.execute(query).scalar()
        found: dict[str, list[str]] = json.loads(text) if text else {}
        return found

    # --- links and trajectories --------------------------------------------------------------------

    def link(self, experiment: str, role: str, key: str, evaluation: Evaluation) -> None:
        """Note that ``evaluation`` answers ``role``/``key`` on its split."""
        where = {"experiment": experiment, "role": role, "key": key, "split": evaluation.split}
        with self.engine.begin() as connection:
            connection.execute(delete(links).filter_by(**where))
            connection.execute(links.insert().values(**where, evaluation=evaluation.id))

    def linked(self, experiment: str, role: str) -> dict[tuple[str, str], str]:
        """(key, split) -> evaluation id."""
        with self.engine.connect() as connection:
            rows = connection.execute(select(links).where(links.c.experiment == experiment, links.c.role == role)).all()
        return {(row.key, row.split): row.evaluation for row in rows}

    def save_steps(self, study: str, trial_key: str, trajectory: Sequence[Mapping[str, Any]]) -> None:
        """Replace the trajectory of one trial, in one transaction."""
        with self.engine.begin() as connection:
            connection.execute(delete(steps).where(steps.c.study == study, steps.c.trial_key == trial_key))
            if trajectory:
                connection.execute(
                    steps.insert(),
                    [
                        {"study": study, "trial_key": trial_key, "step": number, "data": json.dumps(data)}
                        for number, data in enumerate(trajectory)
                    ],
                )

    def trajectory(self, study: str) -> dict[str, list[dict[str, Any]]]:
        """trial key -> its steps."""
        found: dict[str, list[dict[str, Any]]] = {}
        query = select(steps).where(steps.c.study == study).order_by(steps.c.trial_key, steps.c.step)
        with self.engine.connect() as connection:
            for row in connection.execute(query):
                found.setdefault(row.trial_key, []).append(json.loads(row.data))
        return found


@contextmanager
def open_store(url: str | None, *, create: bool = True) -> Iterator[Store]:
    """A store that is closed at the end; database errors inside become one line."""
    store = Store(url, create=create)
    try:
        yield store
    except DatabaseError as error:
        raise StorageError(
            f"database {redact(store.url)} failed: {_reason(error)}; what was finished is safe, "
            "run again when it is back"
        ) from error
    finally:
        store.engine.dispose()


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


def _reason(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())[:200] or type(error).__name__
