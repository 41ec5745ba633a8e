"""Schedule files: small versioned JSON, written by ``vispco export``, read by ``vispco.prune``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vispco.errors import ScheduleError, shortened
from vispco.files import read_text
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.schedules import Schedule, parse_schedule

FORMAT = "vispco-schedule"
VERSION = 2  # 1 had no method_parameters


@dataclass(frozen=True)
class ScheduleFile:
    """A schedule, the method that it was measured with, and everything else the file says (``facts``)."""

    schedule: Schedule
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def make_method(self) -> Method:
        return make_method(self.method, self.parameters)


def read_schedule_file(path: str | Path) -> ScheduleFile:
    """Read a file written by ``vispco export``, of this version or an older one.

    Raises:
        ScheduleError: the file cannot be read, is no export, or was written by a newer version.
    """
    try:
        data = json.loads(read_text(path))
    except OSError as error:
        raise ScheduleError(f"cannot read schedule file {shortened(str(path))}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ScheduleError(
            f"{path} is not JSON; write it with: vispco export EXPERIMENT --budget 0.5 -o {path}"
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ScheduleError(f"{path} is no exported schedule; write one with: vispco export EXPERIMENT --budget 0.5")
    version = data.get("version")
    if not isinstance(version, int) or version < 1:
        raise ScheduleError(f"{path} has format version {version!r}; export it again")
    if version > VERSION:
        raise ScheduleError(f"{path} has format version {version}, this vispco reads up to {VERSION}; upgrade vispco")
    parameters = data.get("method_parameters", {})
    if not isinstance(data.get("method"), str) or not isinstance(parameters, dict):
        raise ScheduleError(f"{path} does not name its method; export it again")
    return ScheduleFile(parse_schedule(str(data.get("schedule"))), data["method"], parameters, data)


def load_schedule(path: str | Path) -> Schedule:
    """The schedule of a file written by ``vispco export``.

    Raises:
        ScheduleError: as :func:`read_schedule_file`.
    """
    return read_schedule_file(path).schedule
