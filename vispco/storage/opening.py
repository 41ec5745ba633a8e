"""Opening a database: Optuna's storage and our tables, also when several processes open a new one at once."""

from __future__ import annotations

import os
import random
import time
import warnings
from typing import Any

import optuna
from sqlalchemy import Engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from vispco.errors import StorageError
from vispco.storage.faults import is_passing, reason
from vispco.storage.migrations import migrate
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


def open_database(url: str, *, create: bool, patience: float) -> optuna.storages.RDBStorage:
    """Optuna's storage with our tables beside its own, tuned.

    Args:
        create: False refuses a SQLite file that does not exist.
        patience: seconds that a statement waits for other writers of a SQLite file.

    Raises:
        StorageError: the database cannot be opened, or was written by a newer version.
    """
    try:
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
    if not create and backend == "sqlite" and parsed.database and not os.path.exists(parsed.database):
        raise StorageError(f"no database at {shown}; run a study first (vispco run studies/quickstart.yaml)")
    # Optuna fills a template in the URL, so braces are doubled.
    text = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if backend == "sqlite":
        settings["connect_args"] = {"timeout": patience}
    try:
        storage = _open_optuna(text, settings)
        if backend == "sqlite":
            tune_sqlite(storage.engine, patience)
        migrate(storage.engine)
    except StorageError:
        raise
    except (SQLAlchemyError, ImportError, RuntimeError) as error:
        raise StorageError(f"cannot open database {shown}: {reason(error)}; give another --storage URL") from error
    return storage


def _open_optuna(url: str, settings: dict[str, Any]) -> optuna.storages.RDBStorage:
    """Optuna creates its tables step by step without a lock; whoever comes second to a step tries again."""
    for remaining in reversed(range(OPEN_TRIES)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.storages.RDBStorage(url, engine_kwargs=dict(settings))
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


def tune_sqlite(engine: Engine, patience: float) -> None:
    """WAL, a long busy timeout, and write transactions that take the lock at once (no upgrade deadlocks).

    A connection with the execution option ``vispco_read`` only reads: it sees one state of the database, and neither
    waits for a writer nor keeps one waiting.
    """

    @event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _: Any) -> None:
        dbapi.isolation_level = None
        for pragma in (f"busy_timeout={int(1000 * patience)}", "journal_mode=WAL", "synchronous=NORMAL"):
            dbapi.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        reads = connection.get_execution_options().get("vispco_read")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    engine.dispose()
