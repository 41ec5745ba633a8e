"""One driver per experiment: a lock row with a heartbeat."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from vispco.errors import LockedError
from vispco.storage.tables import locks

BEAT_SECONDS = 10.0
EXPIRES_SECONDS = 60.0


def _process_start(pid: int) -> str:
    """When a process of this machine started, or '' if it does not run; tells a reused pid from the old one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "unknown"
    return "unknown"


def _is_held(row: Any) -> bool:
    if row.host == socket.gethostname():
        return bool(_process_start(row.pid) == row.process_start)
    return bool(time.time() - row.heartbeat < EXPIRES_SECONDS)


@contextmanager
def driver_lock(engine: Engine, experiment: str) -> Iterator[None]:
    """Hold ``experiment`` inside the block.

    A driver that died on this machine is noticed at once, one on another machine after 60 seconds.

    Raises:
        LockedError: another driver holds it; the message says who.
    """
    owner = uuid.uuid4().hex
    with engine.begin() as connection:
        row = connection.execute(select(locks).where(locks.c.experiment == experiment)).first()
        if row is not None and _is_held(row):
            raise LockedError(
                f"experiment {experiment!r} is being run by process {row.pid} on {row.host} "
                f"(last sign of life {max(0, time.time() - row.heartbeat):.0f} s ago); "
                "wait for it, or stop it and try again"
            )
        connection.execute(locks.delete().where(locks.c.experiment == experiment))
        connection.execute(
            locks.insert().values(
                experiment=experiment,
                owner=owner,
                host=socket.gethostname(),
                pid=os.getpid(),
                process_start=_process_start(os.getpid()),
                heartbeat=time.time(),
            )
        )
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            try:
                with engine.begin() as connection:
                    connection.execute(locks.update().where(locks.c.owner == owner).values(heartbeat=time.time()))
            except SQLAlchemyError:
                continue

    thread = threading.Thread(target=beat, name="vispco-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with engine.begin() as connection:
            connection.execute(locks.delete().where(locks.c.owner == owner))


def holders(engine: Engine) -> dict[str, str]:
    """Experiments that are being run now: name -> who."""
    with engine.connect() as connection:
        rows = connection.execute(select(locks)).all()
    return {row.experiment: f"process {row.pid} on {row.host}" for row in rows if _is_held(row)}
