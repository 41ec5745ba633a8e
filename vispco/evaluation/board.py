"""Who works on what: one row per worker, shown to others now and then."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vispco.evaluation.units import Unit, UnitRunner

EVERY_SECONDS = 2.0


@dataclass
class Worker:
    """One process that measures. ``since``: Unix time at which it began what it is ``doing``; ``done``: units."""

    name: str
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    doing: str = ""
    since: float = field(default_factory=time.time)
    done: int = 0

    def begin(self, doing: str) -> None:
        if doing != self.doing:
            self.doing, self.since = doing, time.time()

    def row(self) -> dict[str, Any]:
        return {
            "worker": self.name,
            "host": self.host,
            "pid": self.pid,
            "doing": self.doing,
            "since": self.since,
            "done": self.done,
            "seen": time.time(),
        }


class Board:
    """Passes the workers' rows on, at most every ``every`` seconds."""

    def __init__(
        self, write: Callable[[Sequence[Mapping[str, Any]]], None] | None = None, every: float = EVERY_SECONDS
    ) -> None:
        self.write, self.every = write, every
        self._last = -float("inf")

    def show(self, workers: Sequence[Worker]) -> None:
        if self.write is not None and time.monotonic() - self._last >= self.every:
            self.write([worker.row() for worker in workers])
            self._last = time.monotonic()


def describe(unit: Unit, runner: UnitRunner) -> str:
    """A unit in words; batches are counted from 1."""
    part = runner.prepared(unit.split)[unit.task]
    more = f" and {len(unit.names) - 1} more" if len(unit.names) > 1 else ""
    return f"{unit.names[0]}{more}, {part.task.name}, {unit.split}, batch {unit.batch + 1} of {len(part.batches)}"
