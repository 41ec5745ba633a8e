"""Schedule files: small versioned JSON, written by ``vispco export``, read by ``vispco.prune``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vispco.errors import ScheduleError, shortened
from vispco.files import read_text
from vispco.json_text import parse_json
from vispco.models.loading import DEMOS, demo_folder
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.schedules import Schedule, parse_schedule

FORMAT = "vispco-schedule"
VERSION = 2  # 1 had no method_parameters


@dataclass(frozen=True)
class ScheduleFile(Schedule):
    """A schedule, the method that it was measured with, and everything else the file says (``facts``).

    It is a schedule itself, and ``vispco.prune`` uses the method that it names.
    """

    schedule: Schedule
    method: str
    parameters: dict[str, Any] = field(default_factory=dict, compare=False)
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    def keep_ratio(self, layers: int) -> tuple[float, ...]:
        return self.schedule.keep_ratio(layers)

    def text(self) -> str:
        return self.schedule.text()

    def make_method(self) -> Method:
        return make_method(self.method, self.parameters)

    def conditions(self) -> str:
        """How model and pictures were given where it was measured, in words; "" if as they come."""
        known: dict[str, Any] = self.facts.get("conditions") or {}
        return ", ".join(f"{name} {value}" for name, value in known.items())

    def check_model(self, layers: int, config: Any = None) -> None:
        """Whether the file was made for this model: a decoder of ``layers`` layers, ``config`` as in transformers.

        Raises:
            ScheduleError: the schedule was found on a decoder of another depth, or in another model family.

        Warns:
            UserWarning: it was found on another model, as far as the names say.
        """
        again = "run its study on this model and export again, or give the schedule's text if that is what you want"
        found = self.facts.get("model")
        depth = len(self.facts.get("keep_ratio") or ()) or layers
        if depth != layers:
            raise ScheduleError(
                f"{self.text()} was found on {found!r}, which has {depth} decoder layers, and this model has {layers}; "
                f"{again}"
            )
        family, model_type = self.facts.get("model_type"), getattr(config, "model_type", None)
        if family and model_type and family != model_type:
            raise ScheduleError(
                f"{self.text()} was found on {found!r} of family {family!r}, and this model is {model_type!r}; {again}"
            )
        name = getattr(config, "_name_or_path", "")
        if found and name and not _same_model(str(found), str(name)):
            warnings.warn(
                f"{self.text()} was found on {found!r} and runs on {name!r}; what it keeps of accuracy was measured "
                "there only",
                stacklevel=3,
            )


def _same_model(found: str, name: str) -> bool:
    """Whether two names, hub ids or paths, mean one model."""
    folder = demo_folder(found) if found in DEMOS else Path(found)
    return found == name or Path(name).resolve() == folder.resolve()


def read_schedule_file(path: str | Path) -> ScheduleFile:
    """Read a file written by ``vispco export``, of this version or an older one.

    Raises:
        ScheduleError: the file cannot be read, is no export, or was written by a newer version.
    """
    try:
        data = parse_json(read_text(path))
    except OSError as error:
        raise ScheduleError(f"cannot read schedule file {shortened(str(path))}: {error.strerror or error}") from None
    except ValueError:
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


def load_schedule(path: str | Path) -> ScheduleFile:
    """The schedule of a file written by ``vispco export``; ``vispco.prune`` uses the method that the file names.

    Raises:
        ScheduleError: as :func:`read_schedule_file`.
    """
    return read_schedule_file(path)
