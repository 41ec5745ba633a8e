"""Ordered migrations of our tables; each runs once, in a transaction.

The tables of a version are written out here, apart from :mod:`vispco.storage.tables`: what a migration did to
somebody's database years ago must not change when the tables of today do.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
    text,
)

from vispco.errors import StorageError
from vispco.storage.tables import version

ADVISORY_LOCK = 0x76697370636F  # "vispco"; one migration at a time on a PostgreSQL database


def _version_1(connection: Connection) -> None:
    """Experiments, locks, evaluations with their groups, links and steps."""
    tables = MetaData()
    Table("vispco_version", tables, Column("version", Integer, primary_key=True))
    Table(
        "vispco_experiment",
        tables,
        Column("name", String(255), primary_key=True),
        Column("spec_text", Text, nullable=False),
        Column("spec_hash", String(32), nullable=False),
        Column("identity", Text, nullable=False),
        Column("facts", Text, nullable=False),
        Column("provenance", Text, nullable=False),
        Column("created", DateTime, nullable=False),
    )
    Table(
        "vispco_lock",
        tables,
        Column("experiment", String(255), primary_key=True),
        Column("owner", String(64), nullable=False),
        Column("host", String(255), nullable=False),
        Column("pid", Integer, nullable=False),
        Column("process_start", String(64), nullable=False),
        Column("heartbeat", Float, nullable=False),
    )
    Table(
        "vispco_evaluation",
        tables,
        Column("id", String(32), primary_key=True),
        Column("split", String(32), nullable=False),
        Column("method", String(255), nullable=False),
        Column("schedule", Text, nullable=False),
        Column("keep_ratio", Text, nullable=False),
        Column("accuracy", Float, nullable=False),
        Column("flops_ratio", Float, nullable=False),
        Column("flops", BigInteger, nullable=False),
        Column("kv_bytes", Float, nullable=False),
        Column("tasks", Text, nullable=False),
        Column("scores", LargeBinary, nullable=False),
        Column("score_counts", Text, nullable=False),
        Column("groups_id", String(32), nullable=False),
        Column("created", DateTime, nullable=False),
    )
    Table(
        "vispco_groups",
        tables,
        Column("id", String(32), primary_key=True),
        Column("groups", Text, nullable=False),
    )
    Table(
        "vispco_link",
        tables,
        Column("experiment", String(255), nullable=False),
        Column("role", String(64), nullable=False),
        Column("key", String(512), nullable=False),
        Column("split", String(32), nullable=False),
        Column("evaluation", String(32), nullable=False),
        UniqueConstraint("experiment", "role", "key", "split"),
    )
    Table(
        "vispco_step",
        tables,
        Column("study", String(512), nullable=False),
        Column("trial_key", String(64), nullable=False),
        Column("step", Integer, nullable=False),
        Column("data", Text, nullable=False),
        UniqueConstraint("study", "trial_key", "step"),
    )
    tables.create_all(connection)


def _version_2(connection: Connection) -> None:
    """Parts of unfinished evaluations, who works on what, and a heartbeat that is counted."""
    connection.execute(text("ALTER TABLE vispco_lock ADD COLUMN beats INTEGER NOT NULL DEFAULT 0"))
    tables = MetaData()
    Table(
        "vispco_block",
        tables,
        Column("evaluation", String(32), nullable=False),
        Column("task", String(255), nullable=False),
        Column("block", Integer, nullable=False),
        Column("scores", LargeBinary, nullable=False),
        Column("created", DateTime, nullable=False),
        UniqueConstraint("evaluation", "task", "block"),
    )
    Table(
        "vispco_worker",
        tables,
        Column("experiment", String(255), nullable=False),
        Column("worker", String(64), nullable=False),
        Column("host", String(255), nullable=False),
        Column("pid", Integer, nullable=False),
        Column("doing", Text, nullable=False),
        Column("since", Float, nullable=False),
        Column("done", Integer, nullable=False),
        Column("seen", Float, nullable=False),
        UniqueConstraint("experiment", "worker"),
    )
    tables.create_all(connection)


def _version_3(connection: Connection) -> None:
    """Links of schedules of any length; SQLite enforces none."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("ALTER TABLE vispco_link ALTER COLUMN key TYPE TEXT"))


MIGRATIONS: list[Callable[[Connection], None]] = [_version_1, _version_2, _version_3]


def tables_version(connection: Connection) -> int:
    """Version of our tables; 0 if there are none.

    Raises:
        StorageError: they were written by a newer vispco.
    """
    found = _current(connection)
    if found > len(MIGRATIONS):
        raise _newer(found, len(MIGRATIONS))
    return found


def _newer(found: int, known: int) -> StorageError:
    return StorageError(
        f"the database has vispco tables of version {found}, this vispco knows up to {known}; "
        "upgrade vispco (pip install -U vispco)"
    )


def _current(connection: Connection) -> int:
    if not inspect(connection).has_table(version.name):
        return 0
    return connection.execute(select(version.c.version)).scalar() or 0


def migrate(engine: Engine, migrations: list[Callable[[Connection], None]] | None = None) -> None:
    """Bring our tables to the newest version; several processes may do so at once.

    Args:
        migrations: another list, for tests; default :data:`MIGRATIONS`.

    Raises:
        StorageError: the database was written by a newer vispco.
    """
    migrations = MIGRATIONS if migrations is None else migrations
    with engine.connect().execution_options(vispco_read=True) as connection:
        if _current(connection) == len(migrations):
            return
    while True:
        # One transaction per migration: what was migrated stays so if a later one fails. SQLite's begins immediately
        # (see ``tune_sqlite``), so on both databases the version is read by one process at a time.
        with engine.begin() as connection:
            if engine.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            current = _current(connection)
            if current > len(migrations):
                raise _newer(current, len(migrations))
            if current == len(migrations):
                return
            migrations[current](connection)
            connection.execute(version.delete())
            connection.execute(version.insert().values(version=current + 1))
