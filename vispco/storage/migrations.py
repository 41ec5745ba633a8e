"""Ordered migrations of our tables; each runs once, in a transaction."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Engine, inspect, select

from vispco.errors import StorageError
from vispco.storage.tables import metadata, version


def _create(connection: Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS: list[Callable[[Connection], None]] = [_create]


def migrate(engine: Engine) -> None:
    """Bring our tables to the newest version.

    Raises:
        StorageError: the database was written by a newer vispco.
    """
    with engine.begin() as connection:
        current = 0
        if inspect(connection).has_table(version.name):
            current = connection.execute(select(version.c.version)).scalar() or 0
        if current > len(MIGRATIONS):
            raise StorageError(
                f"the database has vispco tables of version {current}, this vispco knows up to {len(MIGRATIONS)}; "
                "upgrade vispco (pip install -U vispco)"
            )
        for migration in MIGRATIONS[current:]:
            migration(connection)
        if current < len(MIGRATIONS):
            connection.execute(version.delete())
            connection.execute(version.insert().values(version=len(MIGRATIONS)))
