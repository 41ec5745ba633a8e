"""A connection to the database: reading, writing inside a lock, and trying again while it is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import Connection

from vispco.storage.faults import PATIENCE_SECONDS, Patience
from vispco.storage.lock import Held, LockTimes, driver_lock, holders
from vispco.storage.migrations import MIGRATIONS, tables_version
from vispco.storage.opening import default_url, open_database, redact
from vispco.storage.sessions import fence_sessions

Result = TypeVar("Result")


class Database:
    """Optuna's storage and our tables behind one URL; for the arguments see :class:`vispco.storage.store.Store`."""

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
        self.persist = Patience(redact(self.url), patience)
        self._held: dict[str, Held] = {}
        fence_sessions(self.optuna, lambda: list(self._held.values()))
        self.version = self.read(tables_version) if read_only else len(MIGRATIONS)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that only reads: one state of the database, no waiting for a writer on SQLite."""
        with self.engine.connect().execution_options(vispco_read=True) as connection:
            yield connection

    def read(self, query: Callable[[Connection], Result]) -> Result:
        """Result of ``query``, tried again while the database is away."""

        def once() -> Result:
            with self.reading() as connection:
                return query(connection)

        return self.persist(once)

    def write(self, change: Callable[[Connection], object]) -> None:
        """Make ``change`` in one transaction that only commits while the locks that this store holds are ours.

        It is made again when the answer was lost, so it must not add to itself.
        """

        def once() -> None:
            with self.engine.begin() as connection:
                for held in self._held.values():
                    held.fence(connection)
                change(connection)

        self.persist(once)

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
        with driver_lock(self.engine, experiment, times=times, patience=self.persist, waiting=waiting) as held:
            self._held[experiment] = held
            try:
                yield held
            finally:
                del self._held[experiment]

    def holders(self) -> dict[str, str]:
        """Experiments that are being run now -> by whom."""
        return self.read(holders) if self.version else {}


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
