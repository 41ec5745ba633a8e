"""One driver per experiment: a lock row whose heartbeat is counted.

No wall clocks are compared. A driver on this machine is judged by its process. A driver elsewhere is watched: if its
count does not move for a stated time of this process's own steady clock, it is taken for dead. Should it come back,
a laptop that slept for example, its next write finds the row gone and fails with nothing written.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, literal_column, select
from sqlalchemy.exc import IntegrityError

from vispco.errors import LockedError, StorageError
from vispco.storage.faults import DATABASE_ERRORS, Patience
from vispco.storage.processes import held_here, is_alive, machine, process_start
from vispco.storage.tables import locks

RELEASE_SECONDS = 5.0


@dataclass(frozen=True)
class LockTimes:
    """Seconds: between heartbeats, until a heartbeat that does not move means death, between two looks at it."""

    beat: float = 10.0
    expires: float = 60.0
    look: float = 1.0


def _server_clock(engine: Engine) -> Any:
    """The database server's clock, seconds since 1970."""
    if engine.name == "postgresql":
        return literal_column("extract(epoch from clock_timestamp())::double precision")
    return literal_column("(julianday('now') - 2440587.5) * 86400.0")


def _steady() -> float:
    """Seconds on a clock that nobody sets; where there is one, it goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _who(row: Any) -> str:
    return f"process {row.pid} on {row.host}"


class Held:
    """A lock that this process holds, as long as nobody took it."""

    def __init__(self, engine: Engine, experiment: str, owner: str, times: LockTimes) -> None:
        self.engine, self.experiment, self.owner, self.times = engine, experiment, owner, times
        self._beaten = _steady()
        self._lost: str | None = None

    def fence(self, connection: Connection) -> None:
        """Count one beat in the caller's transaction, which can then only commit if the lock is still ours.

        Raises:
            LockedError: somebody took it.
        """
        began = _steady()
        changed = connection.execute(
            locks.update()
            .where(locks.c.owner == self.owner)
            .values(beats=locks.c.beats + 1, heartbeat=_server_clock(self.engine))
        )
        if changed.rowcount == 0:
            row = connection.execute(select(locks).where(locks.c.experiment == self.experiment)).first()
            self._lost = (
                f"lost the lock on experiment {self.experiment!r} to {_who(row) if row else 'one who has finished'}; "
                "stopped so that nothing is written twice; run again when the other is done"
            )
            raise LockedError(self._lost)
        self._beaten = began

    def check(self) -> None:
        """Ask the database if the last heartbeat is old; else it is enough that none was refused.

        Raises:
            LockedError: somebody took it.
        """
        if self._lost is not None:
            raise LockedError(self._lost)
        if _steady() - self._beaten > 1.5 * self.times.beat:
            with suppress(*DATABASE_ERRORS):  # not to be asked now; whatever is written is fenced anyway
                self._beat()

    def _beat(self) -> None:
        with self.engine.begin() as connection:
            self.fence(connection)

    def _keep_beating(self, stop: threading.Event) -> None:
        while not stop.wait(self.times.beat):
            try:
                self._beat()
            except DATABASE_ERRORS:
                continue
            except LockedError:
                return


class _Watch:
    """How long a row did not move, in time that this process was awake to see it."""

    def __init__(self, times: LockTimes) -> None:
        self.times = times
        self.reset()

    def reset(self) -> None:
        self._seen: tuple[Any, ...] | None = None
        self._looked = self.seconds = 0.0

    def look(self, row: Any) -> bool:
        """Note what is seen; False if it moved since the last look."""
        # Version 1 did not count its beats, but its heartbeat moved: as a mark, not as a time, it will do.
        mark, now = (row.owner, row.beats, row.heartbeat), time.monotonic()
        if self._seen is not None and self._seen != mark:
            return False
        if self._seen is not None:
            self.seconds += min(now - self._looked, 2 * self.times.look)
        self._seen, self._looked = mark, now
        return True


class _Contender:
    """Tries to get the lock; ``step`` looks once."""

    def __init__(self, engine: Engine, experiment: str, owner: str, times: LockTimes) -> None:
        self.engine, self.experiment, self.owner, self.times = engine, experiment, owner, times
        self.watch = _Watch(times)

    def step(self) -> str | None:
        """None when the lock is ours, else whom we watch.

        Raises:
            LockedError: its driver lives.
        """
        try:
            with self.engine.begin() as connection:
                row = connection.execute(select(locks).where(locks.c.experiment == self.experiment)).first()
                if row is not None:
                    if row.owner == self.owner:  # taken in a transaction whose answer was lost
                        return None
                    alive = is_alive(row)
                    if alive or not self.watch.look(row):
                        raise LockedError(
                            f"experiment {self.experiment!r} is being run by {_who(row)}; "
                            "wait for it, or stop it and try again"
                        )
                    if alive is None and self.watch.seconds < self.times.expires:
                        return _who(row)
                    gone = connection.execute(
                        locks.delete().where(locks.c.owner == row.owner, locks.c.beats == row.beats)
                    )
                    if gone.rowcount == 0:
                        return _who(row)
                self._insert(connection)
                return None
        except IntegrityError:  # somebody else inserted first; the next look tells who
            self.watch.reset()
            return "another process that started at the same moment"
        except DATABASE_ERRORS:  # nobody can beat while the database is away
            self.watch.reset()
            raise

    def _insert(self, connection: Connection) -> None:
        connection.execute(
            locks.insert().values(
                experiment=self.experiment,
                owner=self.owner,
                host=socket.gethostname(),
                pid=os.getpid(),
                process_start=f"{machine()}:{process_start(os.getpid())}",
                heartbeat=_server_clock(self.engine),
                beats=0,
            )
        )


@contextmanager
def driver_lock(
    engine: Engine,
    experiment: str,
    *,
    times: LockTimes | None = None,
    patience: Patience | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[Held]:
    """Hold ``experiment`` inside the block.

    A driver that died on this machine is noticed at once. A lock that another machine left is watched for
    ``times.expires`` seconds and then taken; ``waiting`` is told about it, again with every ``times.beat`` seconds.

    Raises:
        LockedError: another driver holds it; the message says who.
    """
    times = times or LockTimes()
    patience = patience or Patience("of the lock")
    contender = _Contender(engine, experiment, uuid.uuid4().hex, times)
    held = Held(engine, experiment, contender.owner, times)
    held_here.add(held.owner)
    stop = threading.Event()
    thread = threading.Thread(target=held._keep_beating, args=(stop,), name="vispco-heartbeat", daemon=True)
    told = -float("inf")
    try:
        while (whom := patience(contender.step)) is not None:
            if waiting is not None and contender.watch.seconds - told >= times.beat:
                told = contender.watch.seconds
                waiting(
                    f"experiment {experiment!r} is held by {whom}, which cannot be seen from here; watching whether "
                    f"its heartbeat moves, for {max(0.0, times.expires - told):.0f} s more"
                )
            time.sleep(min(times.look, times.expires / 4))
        thread.start()
        yield held
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join()
        held_here.discard(held.owner)
        with suppress(StorageError):  # a lock that cannot be released now expires
            Patience(patience.shown, min(RELEASE_SECONDS, patience.seconds))(lambda: _release(engine, held.owner))


def _release(engine: Engine, owner: str) -> None:
    with engine.begin() as connection:
        connection.execute(locks.delete().where(locks.c.owner == owner))


def holders(connection: Connection) -> dict[str, str]:
    """Experiments that are being run now, or that another machine left: name -> who, and for how long it was silent."""
    found = {}
    now = connection.execute(select(_server_clock(connection.engine))).scalar() or 0.0
    # Version 1 of the table, which is read as it is, has no column for beats.
    for row in connection.execute(select(*(column for column in locks.c if column.name != "beats"))):
        alive = is_alive(row)
        if alive is not False:
            silent = now - row.heartbeat
            note = f", silent for {silent:.0f} s" if alive is None and silent > LockTimes().expires else ""
            found[row.experiment] = f"{_who(row)}{note}"
    return found
