"""The database: round trips, unreadable files, nothing left behind."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import optuna
import pytest
from sqlalchemy import inspect

from vispco.errors import StorageError
from vispco.evaluation.records import Evaluation
from vispco.pruning.families import StepFamily
from vispco.storage.store import Store


def make_evaluation(name: str = "a", accuracy: float = 0.5, flops: int = 3_000_000_000_000) -> Evaluation:
    return Evaluation(
        id=name,
        split="search",
        method="fastv",
        schedule="step(layer=2, keep=0.5)",
        keep_ratio=(1.0, 1.0, 0.5),
        accuracy=accuracy,
        flops_ratio=0.7,
        flops=flops,
        spent_flops=flops,
        kv_bytes=12.5,
        tasks={"x": {"accuracy": accuracy, "flops_ratio": 0.7}, "b": {"accuracy": 0.0, "flops_ratio": 0.7}},
        scores={"x": np.array([1.0, 0.25, 0.0]), "b": np.array([0.5])},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/a.db")


def test_evaluation_round_trip(store: Store) -> None:
    evaluation = make_evaluation()
    groups = {"x": ["g1", "g1", "g2"], "b": ["h"]}
    store.put_evaluation(evaluation, groups)
    store.put_evaluation(evaluation, groups)
    found = store.get_evaluation("a")
    assert found is not None
    for field in ("schedule", "keep_ratio", "accuracy", "flops_ratio", "flops", "kv_bytes", "tasks", "split", "method"):
        assert getattr(found, field) == getattr(evaluation, field)
    assert {k: v.tolist() for k, v in found.scores.items()} == {k: v.tolist() for k, v in evaluation.scores.items()}
    assert store.groups_of("a") == groups
    assert store.get_evaluation("b") is None
    assert set(store.get_evaluations(["a", "b"])) == {"a"}


def test_trials_are_ordinary_optuna_trials(store: Store, tmp_path: Path) -> None:
    log = store.trial_log("exp/grid")
    log.add(
        make_evaluation(),
        parameters={"layer": 2, "keep": 0.5},
        distributions=StepFamily(8).distributions(),
        seconds=1.5,
        propose_flops=10,
        attributes={"budget": 0.7},
    )
    study = optuna.load_study(study_name="exp/grid", storage=f"sqlite:///{tmp_path}/a.db")
    assert study.metric_names == ["accuracy", "flops_ratio"]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    trial = study.best_trials[0]
    assert trial.values == [0.5, 0.7]
    assert trial.params == {"layer": 2, "keep": 0.5}
    assert trial.user_attrs["charged_flops"] == trial.user_attrs["spent_flops"] == 3_000_000_000_010
    assert trial.user_attrs["keep_ratio"] == [1.0, 1.0, 0.5]
    assert trial.duration is not None
    assert trial.duration.total_seconds() == pytest.approx(1.5)
    assert log.charged_flops() == 3_000_000_000_010
    assert log.schedules() == {"step(layer=2, keep=0.5)"}


def test_running_trials_of_a_dead_driver_fail(store: Store) -> None:
    log = store.trial_log("exp/grid")
    log.study.ask()
    assert log.fail_running() == 1
    assert [t.state.name for t in log.study.get_trials()] == ["FAIL"]
    assert log.complete() == []


def test_wal_and_own_tables(store: Store) -> None:
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    names = set(inspect(store.engine).get_table_names())
    assert {"vispco_evaluation", "vispco_version", "studies", "alembic_version"} <= names


def test_unreadable_databases(tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        Store(f"sqlite:///{broken}")
    with pytest.raises(StorageError, match="unable to open"):
        Store(f"sqlite:///{tmp_path}/no/such/folder/a.db")
    with pytest.raises(StorageError, match="run a study first"):
        Store(f"sqlite:///{tmp_path}/none.db", create=False)
    for url in ("just some words", "sqlite:///\ud800.db"):
        with pytest.raises(StorageError, match="no database URL"):
            Store(url)
    with pytest.raises(StorageError, match="cannot open database"):
        Store("nosuchdialect://x/y")
    assert not (tmp_path / "none.db").exists()


def test_a_newer_database_is_refused(store: Store, tmp_path: Path) -> None:
    store.engine.dispose()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("update vispco_version set version = 99")
    with pytest.raises(StorageError, match="upgrade vispco"):
        Store(f"sqlite:///{tmp_path}/a.db")


def test_steps_are_replaced_not_appended(store: Store) -> None:
    store.save_steps("exp/lagrangian", "budget-0", [{"loss": 1.0}, {"loss": 2.0}])
    store.save_steps("exp/lagrangian", "budget-0", [{"loss": 3.0}])
    assert store.trajectory("exp/lagrangian") == {"budget-0": [{"loss": 3.0}]}


def test_deleting_an_experiment_spares_the_others(store: Store) -> None:
    for name in ("exp", "exp2", "ex_p", "EXP"):
        store.save_experiment(name, spec_text="x", spec_hash="h", identity={}, provenance={})
        store.trial_log(f"{name}/grid")
        store.save_steps(f"{name}/grid", "k", [{"a": 1}])
        store.link(name, "reference", "unpruned", make_evaluation())
    store.delete_experiment("exp")
    assert store.experiment_names() == ["exp2", "ex_p", "EXP"]
    assert store.study_names("exp") == []
    assert store.study_names("exp2") == ["exp2/grid"]
    assert store.trajectory("exp/grid") == {}
    assert store.trajectory("ex_p/grid") == store.trajectory("EXP/grid") == {"k": [{"a": 1}]}
    assert store.linked("exp", "reference") == {}
    assert store.linked("exp2", "reference") == {("unpruned", "search"): "a"}
