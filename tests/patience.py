"""Waiting for other processes, however slow the machine: only one that does nothing any more has failed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STILL = 900.0  # seconds without any progress, after which a process hangs
HANGS = 3600.0  # seconds after which even one that is busy does


def cpu_ticks(pid: int) -> int:
    """CPU time of a process and of the children that it has waited for, in the kernel's ticks; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


def outlast(process: subprocess.Popen[str], progress: Callable[[], Any] | None = None) -> tuple[str, str]:
    """What ``process`` writes until its end; it is given up when ``progress`` (default: its CPU time) stands still."""
    began = since = time.monotonic()
    last: Any = None
    while True:
        try:
            return process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            pass
        now, found = time.monotonic(), progress() if progress is not None else cpu_ticks(process.pid)
        if found != last:
            last, since = found, now
        if now - since > STILL or now - began > HANGS:
            process.kill()
            out, errors = process.communicate()
            raise AssertionError(f"no progress for {now - since:.0f} s of {now - began:.0f} s: {out}{errors}")


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """The first true result of ``condition``; given up when ``process`` has ended without it."""
    end = time.monotonic() + HANGS
    while not (found := condition()):
        ended = process is not None and process.poll() is not None
        if ended and not (found := condition()):
            assert process is not None
            raise AssertionError(process.communicate())
        if found:
            break
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found
