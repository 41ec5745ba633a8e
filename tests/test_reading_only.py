"""Commands that read leave a database as it is, whosever it is; a stranger's is refused before anything is written."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import text

from conftest import Cli
from vispco.analysis.comparison import Comparison
from vispco.errors import StorageError
from vispco.storage.importing import import_trials
from vispco.storage.store import Store

DATA = Path(__file__).parent / "data"
READING = (
    ["status"],
    ["status", "old"],
    ["status", "--workers"],
    ["ls", "experiments"],
    ["compare", "old"],
    ["compare", "old", "--json"],
    ["layers", "old"],
    ["report", "old", "-o", "r.html"],
    ["plot", "old", "-o", "f.svg"],
    ["export", "old", "--budget", "0.9"],
    ["doctor"],
)


def contents(path: Path) -> tuple[str, list[str], str]:
    """What reading must not change: the file's bytes, its tables, its journal mode."""
    with sqlite3.connect(path) as connection:
        names = sorted(row[0] for row in connection.execute("select name from sqlite_master"))
        (mode,) = connection.execute("pragma journal_mode").fetchone()
    connection.close()
    return hashlib.sha256(path.read_bytes()).hexdigest(), names, mode


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    path = tmp_path / "history.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table visits (url text, studies text)")
        connection.execute("insert into visits values ('here', 'there')")
    connection.close()
    return path


@pytest.fixture
def optunas(tmp_path: Path) -> Path:
    path = tmp_path / "optuna.db"
    study = optuna.create_study(study_name="theirs", storage=f"sqlite:///{path}", directions=["maximize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 0.5), n_trials=2)
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / "version-1.db", tmp_path / "old.db"))


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_reading_a_strangers_database_is_refused_and_changes_nothing(
    command: list[str], strangers: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(strangers)
    code, out, err = cli(*command, "--storage", f"sqlite:///{strangers}")
    told = out if command == ["doctor"] else err
    assert "it has the tables visits" in told
    assert code == (0 if command == ["doctor"] else 2)
    assert contents(strangers) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.db"]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_reading_an_old_database_shows_it_and_migrates_nothing(
    command: list[str], old: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(old)
    code, _, err = cli(*command, "--storage", f"sqlite:///{old}")
    assert (code, "Traceback" in err) == (0, False), err
    assert contents(old) == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that a test may make read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def test_a_read_only_file_system_is_read(
    disk: Path, old: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SQLite itself opens no database with a write-ahead log where it cannot make files beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(old, disk / "a #1%.db")
    with sqlite3.connect(disk / "a #1%.db") as connection:
        assert connection.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    connection.close()
    url = f"sqlite:///{disk}/a #1%.db"
    read_only(disk)
    for command in READING:
        code, out, err = cli(*command, "--storage", url)
        assert code == 0, (command, err)
        if "--json" in command:
            assert out == cli(*command, "--storage", f"sqlite:///{old}")[1]
    assert cli("copy", url, f"sqlite:///{tmp_path}/copied.db")[0] == 0
    for command in (["resume", "old"], ["rm", "old", "--yes"]):
        code, _, err = cli(*command, "--storage", url)
        assert code == 2
        assert "it or its folder is read-only; give a --storage URL elsewhere" in err
    assert [file.name for file in disk.iterdir()] == ["a #1%.db"]


def test_changes_that_cannot_be_read_there_are_not_left_out(disk: Path, old: Path, cli: Cli) -> None:
    connection = sqlite3.connect(old, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table vispco_more (a int)")
    for file in (old, Path(f"{old}-wal")):
        shutil.copy(file, disk / file.name)
    connection.close()
    read_only(disk)
    code, _, err = cli("status", "--storage", f"sqlite:///{disk}/old.db")
    assert code == 2
    assert f"its last changes are in {disk}/old.db-wal; copy both files" in err


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_reading_what_does_not_exist_creates_nothing(
    command: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    cli(*command, "--storage", f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


def test_studies_of_optuna_alone_are_listed_as_no_experiment_and_stay_as_they_are(optunas: Path, cli: Cli) -> None:
    before = contents(optunas)
    url = f"sqlite:///{optunas}"
    assert cli("status", "--storage", url)[:2] == (0, "nothing yet\n")
    code, _, err = cli("compare", "theirs", "--storage", url)
    assert (code, "no experiment 'theirs'" in err) == (2, True)
    assert contents(optunas) == before


def test_an_import_and_a_copy_do_not_touch_their_source(optunas: Path, old: Path, tmp_path: Path, cli: Cli) -> None:
    source, before = f"sqlite:///{optunas}", contents(optunas)
    shutil.copy(old, tmp_path / "mine.db")
    store = Store(f"sqlite:///{tmp_path}/mine.db")
    assert import_trials(store, "theirs", "old", source=source).trials == 2
    assert contents(optunas) == before
    before = contents(old)
    code, out, err = cli("copy", f"sqlite:///{old}", f"sqlite:///{tmp_path}/new.db")
    assert code == 0, (out, err)
    assert contents(old) == before
    assert Comparison(Store(f"sqlite:///{tmp_path}/new.db", read_only=True), "old").to_dict()["searches"]


@pytest.mark.parametrize(
    "command",
    [
        ["import", "theirs", "--into", "old"],
        ["import", "visits", "--into", "old"],
        ["resume", "old"],
        ["run", "study.yaml"],
    ],
    ids=" ".join,
)
def test_writing_commands_refuse_a_strangers_database(
    command: list[str], strangers: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DATA / "version-1.yaml", "study.yaml")
    before = contents(strangers)
    code, _, err = cli(*command, "--storage", f"sqlite:///{strangers}")
    assert code == 2
    assert "visits" in err
    assert contents(strangers) == before


def test_what_may_only_read_cannot_write(old: Path, database_url: str) -> None:
    Store(database_url)
    for url in (database_url, f"sqlite:///{old}"):
        store = Store(url, read_only=True, patience=0.1)
        with pytest.raises(StorageError, match=r"read.?only"):
            store.save_experiment("x", spec_text="", spec_hash="", identity={}, provenance={})
        with pytest.raises(StorageError, match=r"read.?only"):
            store.trial_log("x/y")
        assert "x" not in store.experiment_names()


def test_a_database_in_use_can_be_read(database_url: str) -> None:
    writer = Store(database_url)
    with writer.lock("x"), writer.engine.begin() as connection:
        connection.execute(text("delete from vispco_step"))
        assert "x" in Store(database_url, read_only=True, patience=0.1).holders()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
@pytest.mark.parametrize("settings", [{}, {"create": False}, {"read_only": True}], ids=str)
def test_a_database_in_memory_is_refused_as_it_would_lose_all(url: str, settings: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match="in memory: all results would be lost"):
        Store(url, **settings)
