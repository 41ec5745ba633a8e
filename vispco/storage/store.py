"""One database for everything: Optuna's storage, our tables, and the only functions that read and write them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import optuna
from optuna.study import StudyDirection
from sqlalchemy import Connection, delete, select

from vispco.errors import StorageError, VispcoError
from vispco.storage.database import now
from vispco.storage.experiment_record import StoredExperiment
from vispco.storage.faults import DATABASE_ERRORS, PATIENCE_SECONDS, UNREADABLE, damaged, failure
from vispco.storage.measurements import MeasurementStore
from vispco.storage.opening import DEFAULT_URL as DEFAULT_URL
from vispco.storage.opening import default_url as default_url
from vispco.storage.opening import redact as redact
from vispco.storage.tables import experiments, links, steps, workers
from vispco.storage.trials import METRICS, TrialLog
from vispco.storage.upsert import upsert

CREATE_TRIES = 20  # to load or create a study, in turn with others who do the same


class Store(MeasurementStore):
    """Experiments, evaluations and trials of one database.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql+psycopg://...``; default ``VISPCO_STORAGE`` or ``sqlite:///vispco.db``.
        create: False refuses a database that does not exist or has no tables of ours.
        read_only: for commands that only read: the database is left as it is, whatever version its tables have.
        patience: seconds that reading and writing are tried again while the database is away or busy.

    Raises:
        StorageError: the database cannot be opened, or was written by a newer version.
    """

    # --- experiments -----------------------------------------------------------------------------

    def experiment_names(self) -> list[str]:
        if not self.version:
            return []
        query = select(experiments.c.name).order_by(experiments.c.created)
        return self.read(lambda connection: list(connection.execute(query).scalars()))

    def experiment(self, name: str) -> StoredExperiment | None:
        """None if there is no such experiment."""
        if not self.version:
            return None
        query = select(experiments).where(experiments.c.name == name)

        def read(connection: Connection) -> StoredExperiment | None:
            row = connection.execute(query).first()
            return StoredExperiment.of(row._asdict()) if row is not None else None

        return self.read(read)

    def require_experiment(self, name: str) -> StoredExperiment:
        """
        Raises:
            StorageError: there is no such experiment.
        """
        stored = self.experiment(name)
        if stored is None:
            known = self.experiment_names()
            has = f"it has {', '.join(known)}" if known else "it has none yet"
            raise StorageError(f"no experiment {name!r} in {redact(self.url)}; {has}")
        return stored

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
                connection.execute(experiments.insert().values(name=name, facts="{}", created=now(), **values))

        self.write(change)

    def save_facts(self, name: str, facts: Mapping[str, Any]) -> None:
        query = experiments.update().where(experiments.c.name == name).values(facts=json.dumps(facts))
        self.write(lambda connection: connection.execute(query))

    def delete_experiment(self, name: str) -> None:
        """Remove an experiment with its studies; measured evaluations stay, they are cached by content."""

        def delete_studies() -> None:
            for study in self.study_names(name):
                optuna.delete_study(study_name=study, storage=self.optuna)

        def change(connection: Connection) -> None:
            # LIKE knows no case on SQLite.
            stepped = connection.execute(select(steps.c.study).distinct()).scalars()
            own = [study for study in stepped if study.startswith(f"{name}/")]
            connection.execute(delete(steps).where(steps.c.study.in_(own)))
            for table in (links, workers):
                connection.execute(delete(table).where(table.c.experiment == name))
            connection.execute(delete(experiments).where(experiments.c.name == name))

        self.persist(delete_studies)
        self.write(change)

    def delete_study(self, experiment: str, study: str) -> None:
        """Remove one study with its trajectories, and what its experiment notes of it."""

        def delete_trials() -> None:
            with suppress(KeyError):
                optuna.delete_study(study_name=study, storage=self.optuna)

        self.persist(delete_trials)
        self.write(lambda connection: connection.execute(delete(steps).where(steps.c.study == study)))
        facts = self.require_experiment(experiment).facts
        facts.get("studies", {}).pop(study, None)
        self.save_facts(experiment, facts)

    # --- studies ---------------------------------------------------------------------------------

    def study_names(self, experiment: str) -> list[str]:
        """Names of the experiment's studies, in the order of their creation."""
        summaries = self.persist(self.optuna.get_all_studies)
        ordered = sorted(summaries, key=lambda study: study._study_id)
        return [study.study_name for study in ordered if study.study_name.startswith(f"{experiment}/")]

    def trial_log(self, study_name: str) -> TrialLog:
        """Open a study, or create it with our directions and metric names, the second of which is the experiment's
        cost; others that it minimises follow."""
        stored = self.experiment(study_name.rpartition("/")[0])
        facts = stored.facts if stored else {}
        cost, terms = facts.get("cost"), facts.get("cost_terms")
        further = facts.get("further_costs", {})
        metrics = [METRICS[0], cost or METRICS[1], *further]
        study = self.persist(lambda: self._study(study_name, metrics))
        whole = terms["unpruned"]["search"] if terms else 1.0
        return TrialLog(study, self.read, self.write, cost, whole, further)

    def _study(self, study_name: str, metrics: list[str]) -> optuna.Study:
        sampler = optuna.samplers.RandomSampler()
        study: optuna.Study | None = None
        for remaining in reversed(range(CREATE_TRIES)):
            try:
                study = optuna.load_study(study_name=study_name, storage=self.optuna, sampler=sampler)
            except KeyError:
                with suppress(optuna.exceptions.DuplicatedStudyError):  # somebody else was faster: load theirs
                    directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * (len(metrics) - 1)]
                    study = optuna.create_study(
                        study_name=study_name, storage=self.optuna, directions=directions, sampler=sampler
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

    # --- workers -----------------------------------------------------------------------------------

    def save_workers(self, experiment: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the experiment's rows: worker, host, pid, doing, since, done, seen."""
        values = [{**row, "experiment": experiment} for row in rows]

        def change(connection: Connection) -> None:
            connection.execute(delete(workers).where(workers.c.experiment == experiment))
            upsert(connection, workers, values, ["experiment", "worker"])

        self.write(change)

    def workers(self, experiment: str) -> list[dict[str, Any]]:
        """Who works on what, in the order of their names."""
        if self.version < 2:
            return []
        query = select(workers).where(workers.c.experiment == experiment).order_by(workers.c.worker)
        return self.read(lambda connection: [dict(row._mapping) for row in connection.execute(query)])

    # --- trajectories ------------------------------------------------------------------------------

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

        self.write(change)

    def trajectory(self, study: str) -> dict[str, list[dict[str, Any]]]:
        """trial key -> its steps."""
        found: dict[str, list[dict[str, Any]]] = {}
        query = select(steps).where(steps.c.study == study).order_by(steps.c.trial_key, steps.c.step)
        for row in self.read(lambda connection: connection.execute(query).all()):
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
