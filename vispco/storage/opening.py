"""Opening a database: Optuna's storage and our tables, also when several processes open a new one at once."""

from __future__ import annotations

import os
import random
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages._rdb import models
from sqlalchemy import URL, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from vispco.errors import StorageError
from vispco.storage.faults import DATABASE_ERRORS, UNREADABLE, is_passing, reason
from vispco.storage.migrations import migrate, tables_version
from vispco.storage.redaction import redact_text

DEFAULT_URL = "sqlite:///vispco.db"
BACKENDS = ("sqlite", "postgresql")
OPEN_TRIES = 20


def default_url() -> str:
    return os.environ.get("VISPCO_STORAGE") or DEFAULT_URL


def redact(url: str) -> str:
    """A database URL without its password, also one in its query."""
    try:
        return redact_text(make_url(url).render_as_string(hide_password=True))
    except (ArgumentError, ValueError):
        return "<unreadable URL>"


def open_database(url: str, *, create: bool, patience: float, read_only: bool = False) -> optuna.storages.RDBStorage:
    """Optuna's storage with our tables beside its own, tuned.

    Args:
        create: False refuses a database that does not exist or has no tables of ours.
        patience: seconds that a statement waits for other writers of a SQLite file.
        read_only: nothing is written: no table is made or migrated, no journal mode is set. The database must exist
            and have Optuna's tables; it may have none of ours, or those of an older version.

    Raises:
        StorageError: the database cannot be opened, is another program's, or was written by a newer version.
    """
    try:
        url.encode()  # no name of a file has a surrogate
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StorageError(
            "storage is no database URL; write sqlite:///vispco.db or postgresql+psycopg://..."
        ) from None
    shown, backend = redact(url), parsed.get_backend_name()
    if backend not in BACKENDS:
        raise StorageError(
            f"cannot open database {shown}: it is neither SQLite nor PostgreSQL; "
            "write sqlite:///vispco.db or postgresql+psycopg://..."
        )
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")  # SQLAlchemy 2.0 would take psycopg2
    if backend == "sqlite" and _in_memory(parsed):
        raise StorageError(
            f"{shown} is a database in memory: all results would be lost at the end; name a file, such as {DEFAULT_URL}"
        )
    if (read_only or not create) and backend == "sqlite" and not os.path.exists(parsed.database or ""):
        raise StorageError(f"no database at {shown}; run a study first (vispco run studies/quickstart.yaml)")
    if not read_only and backend == "sqlite" and not _is_written(parsed.database or ""):
        raise StorageError(
            f"cannot write database {shown}: it or its folder is read-only; give a --storage URL elsewhere, "
            "and take along what is in it with: vispco copy"
        )
    # Optuna fills a template in the URL, so braces are doubled.
    text = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if backend == "sqlite":
        settings["connect_args"] = {"timeout": patience}
    reading = {**settings, "execution_options": {"vispco_read": True, "postgresql_readonly": True}}
    if backend == "sqlite":
        reading["connect_args"] = {"timeout": patience, "factory": _ReadOnlyConnection}
    try:
        _check_contents(parsed, reading, shown, create=create, read_only=read_only)
        storage = _open_optuna(text, reading if read_only else settings, create=not read_only)
        if backend == "sqlite":
            tune_sqlite(storage.engine, patience, read_only=read_only)
        if not read_only:
            migrate(storage.engine)
    except StorageError:
        raise
    except (*DATABASE_ERRORS, *UNREADABLE, ImportError, RuntimeError) as error:
        why = _why_not_read(parsed.database or "") if backend == "sqlite" and read_only else None
        raise StorageError(
            f"cannot open database {shown}: {why or f'{reason(error)}; give another --storage URL'}"
        ) from error
    return storage


class _ReadOnlyConnection(sqlite3.Connection):
    """A connection whose every statement that would change the database fails."""

    def __init__(self, database: str, **settings: Any) -> None:
        if os.path.isfile(database) and not os.access(_folder(database), os.W_OK) and not _log_of(database):
            # SQLite would make files beside it, even to read; nobody who writes has it open, or there would be a log.
            database, settings = f"{Path(database).resolve().as_uri()}?immutable=1", {**settings, "uri": True}
        super().__init__(database, **settings)
        self.execute("PRAGMA query_only=ON")


def _folder(database: str) -> str:
    return os.path.dirname(os.path.abspath(database))


def _log_of(database: str) -> str | None:
    """The file of changes that are not in the database's own file yet."""
    log = f"{database}-wal"
    return log if os.path.exists(log) and os.path.getsize(log) else None


def _is_written(database: str) -> bool:
    """Whether SQLite can write; True also for what is not there, which it refuses with a reason of its own."""
    places = (database, _folder(database))
    return all(os.access(place, os.W_OK) for place in places if os.path.exists(place))


def _why_not_read(database: str) -> str | None:
    """Why a database in a read-only folder cannot be read; None where that is not the reason."""
    log = _log_of(database)
    if log is None or os.access(_folder(database), os.W_OK):
        return None
    return f"its folder is read-only, and its last changes are in {log}; copy both files to a folder that is not"


def _in_memory(url: URL) -> bool:
    name = url.database or ""
    return name in ("", ":memory:") or name.startswith("file::memory:") or url.query.get("mode") == "memory"


def _check_contents(url: URL, settings: dict[str, Any], shown: str, *, create: bool, read_only: bool) -> None:
    """Refuse, before anything is written, a database that is not what the caller needs."""
    if url.get_backend_name() == "sqlite" and not os.path.exists(url.database or ""):
        return
    engine = create_engine(url, **settings)
    try:
        with engine.connect() as connection:
            names = set(inspect(connection).get_table_names())
            version = tables_version(connection)
    finally:
        engine.dispose()
    optuna_names = set(models.BaseModel.metadata.tables) | {"alembic_version"}
    others = sorted(name for name in names - optuna_names if not name.startswith("vispco_"))
    is_optuna = {"studies", "trials", "version_info"} <= names
    if (read_only and not is_optuna) or not (read_only or create or version):
        has = (
            f"it has the tables {', '.join(others[:3])}{', ...' * (len(others) > 3)}" if others else "it has no tables"
        )
        raise StorageError(
            f"no experiments in {shown}: {'it has studies of other programs only' if is_optuna else has}; "
            "give another --storage URL, or run a study first"
        )
    if others and not is_optuna and url.get_backend_name() == "sqlite":
        raise StorageError(
            f"{shown} is a database of another program: it has the table {others[0]!r} and no studies; "
            "give another --storage URL"
        )


def _open_optuna(url: str, settings: dict[str, Any], create: bool = True) -> optuna.storages.RDBStorage:
    """Optuna creates its tables step by step without a lock; whoever comes second to a step tries again."""
    for remaining in reversed(range(OPEN_TRIES)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.storages.RDBStorage(url, engine_kwargs=dict(settings), skip_table_creation=not create)
        except (DatabaseError, AssertionError, optuna.exceptions.StorageInternalError) as error:
            if not remaining or not _came_second(error):
                raise
        time.sleep(random.random() / 5)
    raise AssertionError("not reached")


def _came_second(error: BaseException) -> bool:
    """Whether another process was creating the same tables."""
    if isinstance(error, AssertionError):  # Optuna's version table is there, its row not yet
        return True
    words = reason(error).lower()
    return "already exists" in words or "unique" in words or (is_passing(error) and "locked" in words)


def tune_sqlite(engine: Engine, patience: float, *, read_only: bool = False) -> None:
    """WAL, a long busy timeout, and write transactions that take the lock at once (no upgrade deadlocks).

    A connection with the execution option ``vispco_read`` only reads: it sees one state of the database, and neither
    waits for a writer nor keeps one waiting.
    """

    @event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _: Any) -> None:
        dbapi.isolation_level = None
        writing = () if read_only else ("journal_mode=WAL", "synchronous=NORMAL")
        for pragma in (f"busy_timeout={int(1000 * patience)}", *writing):
            dbapi.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        reads = connection.get_execution_options().get("vispco_read")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    engine.dispose()
