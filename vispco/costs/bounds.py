"""Bounds on a cost as people write them: ``0.5`` of the unpruned model, or ``120 ms``, ``2 GiB``, ``3.5 TFLOPs``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vispco.costs.base import CostModel, make_cost
from vispco.errors import ConfigError

SLACK = 1e-9
TASKS = "tasks"  # the key of a study's limits that are on tasks
LARGEST_SHARE = 2.0  # of the unpruned model's cost that anybody would mean by a number without a unit
UNITS: dict[str, dict[str, float]] = {
    "FLOPs": {"FLOPs": 1, "MFLOPs": 1e6, "GFLOPs": 1e9, "TFLOPs": 1e12, "PFLOPs": 1e15},
    "bytes": {
        "bytes": 1,
        "B": 1,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
    },
    "ms": {"ms": 1, "s": 1e3, "us": 1e-3},
    "tokens/s": {"tokens/s": 1},
}


@dataclass(frozen=True)
class Bound:
    """A bound on ``cost``: ``value`` in its unit, or, if ``relative``, a share of the unpruned model's."""

    cost: str
    value: float
    relative: bool

    def allows(self, absolute: float, share: float) -> bool:
        """Whether a schedule is within it; of a rate, whether it reaches it."""
        given = share if self.relative else absolute
        slack = SLACK * max(1.0, abs(self.value))
        return given >= self.value - slack if make_cost(self.cost).larger_is_better else given <= self.value + slack

    def excess(self, absolute: float, share: float) -> float:
        """By how much a schedule exceeds it, as a share of it; at most 0 within it."""
        over = ((share if self.relative else absolute) - self.value) / self.value
        return -over if make_cost(self.cost).larger_is_better else over

    def text(self) -> str:
        return f"{self.value:g}" if self.relative else f"{self.value:g} {make_cost(self.cost).unit}"


@dataclass(frozen=True)
class Priced:
    """What a schedule costs: ``value`` in a cost's unit, ``ratio`` to the unpruned model's.

    ``limited``: other costs that have a limit, in their units. ``excess``: by how much each limit is exceeded, at most
    0 within it: as a share of a limit on a cost, in accuracy of one on a task's loss. ``further``: other costs that are
    minimised, in their units.
    """

    value: float
    ratio: float
    limited: Mapping[str, float] = field(default_factory=dict)
    excess: Mapping[str, float] = field(default_factory=dict)
    further: Mapping[str, float] = field(default_factory=dict)


def parse_bound(cost: str, given: float | str) -> Bound:
    """A number is a share of the unpruned model; a number with a unit is absolute.

    >>> parse_bound("prefill_ms", "0.12 s").value
    120.0

    Raises:
        ConfigError: unknown cost or unit, or no positive number.
    """
    model = make_cost(cost)
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([A-Za-z/]*)\s*", str(given))
    try:
        value = float(found[1]) if found else math.nan
    except ValueError:
        value = math.nan
    units = UNITS.get(model.unit, {model.unit: 1.0})
    unit = found[2] if found else ""
    if not math.isfinite(value) or value <= 0 or (unit and unit not in units):
        raise ConfigError(
            f"{given!r} is no bound on {cost}; write a share of the unpruned model, such as 0.5, or a number with a "
            f"unit: {', '.join(units)}"
        )
    if not unit and value > LARGEST_SHARE and not model.larger_is_better:
        raise ConfigError(
            f"{given!r} as a bound on {cost} is a share, {value:g} times the unpruned model's, which bounds nothing; "
            f"add a unit if it is an amount: {value:g} {model.unit}"
        )
    return Bound(cost, value * units[unit], False) if unit else Bound(cost, value, True)


def limits_on_costs(limits: Mapping[str, Any]) -> list[Bound]:
    """Those of a study's ``limits`` that are on costs.

    Raises:
        ConfigError: an unknown cost, or no bound.
    """
    return [parse_bound(name, given) for name, given in limits.items() if name != TASKS]


def limits_on_tasks(limits: Mapping[str, Any]) -> dict[str, float]:
    """Points that tasks may lose by a study's ``limits``."""
    return {name: float(limit["max_drop"]) for name, limit in limits.get(TASKS, {}).items()}


def excess_loss(unpruned: float, accuracy: float, points: float) -> float:
    """By how much a loss of accuracy exceeds the ``points`` that may be lost, in accuracy; at most 0 within them.

    >>> round(excess_loss(0.8, 0.75, 2), 3)
    0.03
    """
    return unpruned - accuracy - points / 100


def parse_limit(text: str) -> Bound:
    """``cost=bound``, as ``--limit`` takes it.

    Raises:
        ConfigError: as :func:`parse_bound`, or no ``=``.
    """
    cost, equals, given = text.partition("=")
    if not equals:
        raise ConfigError(f"--limit {text!r} is not cost=bound, for example --limit kv_bytes=0.5")
    return parse_bound(cost.strip(), given)


def minimised(cost: str) -> CostModel:
    """A cost that can be minimised.

    Raises:
        ConfigError: unknown, or a rate.
    """
    model = make_cost(cost)
    if model.larger_is_better:
        raise ConfigError(f"{cost} is a rate, more is better: give it as a limit, and minimise latency_ms instead")
    return model


def amount(value: float, unit: str) -> str:
    """A cost in its unit.

    >>> amount(2.5e9, "FLOPs"), amount(2048, "bytes"), amount(12.3456, "ms")
    ('2.5 GFLOPs', '2 KiB', '12.35 ms')
    """
    steps = {"FLOPs": (1000, "FLOPs kFLOPs MFLOPs GFLOPs TFLOPs"), "bytes": (1024, "B KiB MiB GiB")}
    factor, names = steps.get(unit, (1000, unit))
    *small, last = names.split()
    for name in small:
        if abs(value) < factor:
            return f"{value:.4g} {name}"
        value /= factor
    return f"{value:.4g} {last}"
