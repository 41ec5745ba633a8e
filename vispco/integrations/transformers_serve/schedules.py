"""Which schedules a server offers, each under a model name of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from vispco.errors import ConfigError, ScheduleError
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.prune import prune
from vispco.pruning.published import named_schedule
from vispco.pruning.schedule_file import read_schedule_file
from vispco.pruning.schedules import Schedule, resolution_of
from vispco.pruning.session import PruningSession

UNPRUNED = "unpruned"
NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Served:
    """A model name that clients may ask for. ``schedule`` and ``method`` are None for the plain model.

    ``measured_on``: the model that the schedule's file was exported for, if it is from a file; ``conditions``: how
    model and pictures were given there, where not as they come.
    """

    name: str
    schedule: Schedule | None = None
    method: Method | None = None
    measured_on: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def about(self) -> str:
        if self.schedule is None or self.method is None:
            return "no pruning"
        return f"{self.method.name}, {self.schedule.text()}"

    def pruning(self, model: Any) -> AbstractContextManager[PruningSession | None]:
        """The block in which ``model`` generates."""
        if self.schedule is None:
            return nullcontext()
        return prune(model, method=self.method, schedule=self.schedule)


def served_schedules(model: str, given: Sequence[str], layers: int) -> dict[str, Served]:
    """By name: ``model`` alone (the first of ``given``), ``model@NAME`` for each, and ``model@unpruned``.

    Each of ``given`` is a file of ``vispco export``, a published name or a schedule's text, and may begin with
    ``NAME=``. Without it, NAME is a file's budget, or what was given.

    Raises:
        ScheduleError: a schedule cannot be read or does not fit a decoder of ``layers`` layers.
        ConfigError: two have one name.
    """
    found: dict[str, Served] = {}
    for text in given:
        named = NAMED.fullmatch(text)
        source = named[2] if named else text
        schedule, method = named_schedule(source, layers)
        schedule.keep_ratio(layers)
        if (share := resolution_of(schedule)) not in (None, 1.0):
            raise ScheduleError(
                f"--schedule {text!r} is for pictures at resolution {share:g}, and the server leaves pictures as they "
                "are; serve a schedule without a resolution"
            )
        facts = read_schedule_file(source).facts if source.endswith(".json") else {}
        conditions = facts.get("conditions") or {}
        if "resolution" in conditions:
            raise ScheduleError(
                f"--schedule {text!r} was measured on pictures at resolution {conditions['resolution']}, and the "
                "server leaves pictures as they are; serve a schedule of whole pictures"
            )
        budget = facts.get("budget")
        suffix = named[1] if named else f"{budget:g}" if isinstance(budget, (int, float)) else source
        name = f"{model}@{suffix}"
        if name in found or suffix == UNPRUNED:
            raise ConfigError(
                f"--schedule {text!r} would be served as {name!r}, and that name is taken; give it another one: "
                f"--schedule NAME={source}"
            )
        found[name] = Served(name, schedule, method or make_method("fastv"), facts.get("model"), conditions)
    first = next(iter(found.values()))
    alone = replace(first, name=model)
    return {model: alone, **found, f"{model}@{UNPRUNED}": Served(f"{model}@{UNPRUNED}")}
