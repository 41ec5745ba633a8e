"""Whether the driver of a lock row runs, as far as this process can see."""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import Any

# Locks that this process holds; a row with our pid and another owner was left by a lock that could not be released.
held_here: set[str] = set()


def process_start(pid: int) -> str:
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


@cache
def machine() -> str:
    """This machine since it was started, or this container: where a pid means what it means here."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append(str(uuid.getnode()))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def is_alive(row: Any) -> bool | None:
    """Whether the driver of a row runs; None if it cannot be seen from here."""
    where, _, start = row.process_start.rpartition(":")
    here = where == machine() if where else row.host == socket.gethostname()  # version 1 knew hosts only
    if not here:
        return None
    if row.pid == os.getpid() and row.owner not in held_here:
        return False
    return bool(start) and process_start(row.pid) == start
