"""Schedules: how many visual tokens enter each decoder layer, and the one rule from ratio to count.

A schedule is the constant policy. The runtime asks any policy for ``counts(n_visual[B], context)``.
"""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ScheduleError
from vispco.registry import suggest

Counts = NDArray[np.int64]


def keep_count(ratio: float, n_visual: int) -> int:
    """Number of visual tokens kept of ``n_visual`` at ``ratio``: nearest, halves up, at least 1 unless 0 is asked.

    The only place where a ratio becomes a count; methods, costs and searches all call it.

    >>> [keep_count(r, 10) for r in (0.0, 0.01, 0.25, 0.5, 1.0)]
    [0, 1, 3, 5, 10]
    """
    if n_visual == 0 or ratio <= 0.0:
        return 0
    return min(n_visual, max(1, math.floor(ratio * n_visual + 0.5)))


def ratio_counts(keep_ratio: Sequence[float], n_visual: Sequence[int] | Counts) -> Counts:
    """Counts [B, L] of visual tokens entering each layer, for ratios [L] and tokens [B]; non-increasing in L."""
    table = {int(n): [keep_count(ratio, int(n)) for ratio in keep_ratio] for n in set(np.asarray(n_visual).tolist())}
    counts = np.array([table[int(n)] for n in n_visual], dtype=np.int64).reshape(len(n_visual), len(keep_ratio))
    return np.minimum.accumulate(counts, axis=1)


class Policy(Protocol):
    """What the runtime asks: visual tokens entering each layer, int [B, L], non-increasing over layers."""

    def counts(self, n_visual: Counts, layers: int, context: Any = None) -> Counts: ...


class Schedule(ABC):
    """A constant policy: keep ratios relative to the original visual tokens, non-increasing over layers."""

    @abstractmethod
    def keep_ratio(self, layers: int) -> tuple[float, ...]:
        """Ratio of visual tokens entering each of ``layers`` decoder layers.

        Raises:
            ScheduleError: the schedule does not fit a decoder of that depth.
        """

    @abstractmethod
    def text(self) -> str:
        """Text form that :func:`parse_schedule` reads back, e.g. ``step(layer=2, keep=0.5)``."""

    def counts(self, n_visual: Counts, layers: int, context: Any = None) -> Counts:
        return ratio_counts(self.keep_ratio(layers), n_visual)

    def __str__(self) -> str:
        return self.text()


def _check_ratio(value: float, what: str) -> None:
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise ScheduleError(f"{what} is {value!r}; a keep ratio is the share kept, from 0 to 1")


@dataclass(frozen=True)
class Step(Schedule):
    """All visual tokens enter layers before ``layer``; the share ``keep`` enters ``layer`` and later ones."""

    layer: int
    keep: float

    def __post_init__(self) -> None:
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 0:
            raise ScheduleError(f"step layer is {self.layer!r}; it is the 0-based index of a decoder layer")
        _check_ratio(self.keep, "step keep")

    def keep_ratio(self, layers: int) -> tuple[float, ...]:
        if self.layer >= layers:
            raise ScheduleError(
                f"{self.text()} prunes at layer {self.layer}, but the model has layers 0 to {layers - 1}"
            )
        return (1.0,) * self.layer + (float(self.keep),) * (layers - self.layer)

    def text(self) -> str:
        return f"step(layer={self.layer}, keep={self.keep!r})"


@dataclass(frozen=True)
class Ratios(Schedule):
    """Keep ratios given layer by layer."""

    ratios: tuple[float, ...]

    def __init__(self, ratios: Sequence[float]) -> None:
        object.__setattr__(self, "ratios", tuple(float(r) for r in ratios))
        for layer, ratio in enumerate(self.ratios):
            _check_ratio(ratio, f"keep ratio of layer {layer}")
            if layer and ratio > self.ratios[layer - 1]:
                raise ScheduleError(
                    f"keep ratio rises from {self.ratios[layer - 1]} to {ratio} at layer {layer}; a dropped token "
                    "cannot come back, so ratios must not increase over layers"
                )

    def keep_ratio(self, layers: int) -> tuple[float, ...]:
        if len(self.ratios) != layers:
            raise ScheduleError(f"the schedule gives {len(self.ratios)} keep ratios, but the model has {layers} layers")
        return self.ratios

    def text(self) -> str:
        return f"ratios({', '.join(repr(r) for r in self.ratios)})"


def keep_all() -> Schedule:
    """The schedule that prunes nothing; its text names no layer, so it fits every model."""
    return Step(layer=0, keep=1.0)


def parse_schedule(text: str) -> Schedule:
    """Read a schedule's text form: ``step(layer=2, keep=0.5)`` or ``ratios(1, 1, 0.5, 0.5)``.

    Raises:
        ScheduleError: the text is not a known schedule.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError
        name = call.func.id
        values = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ScheduleError(
            f"cannot read schedule {text!r}; write step(layer=2, keep=0.5), "
            "or ratios(1, 1, 0.5, ...) with a ratio per layer"
        ) from None
    if name == "ratios":
        if named:
            raise ScheduleError(f"ratios(...) takes one ratio per layer and no names, got {', '.join(named)}")
        return Ratios(values)
    if name == "step":
        fields = ("layer", "keep")
        unknown = [key for key in named if key not in fields]
        if unknown:
            raise ScheduleError(f"step has no parameter {unknown[0]!r}; {suggest(unknown[0], list(fields))}")
        arguments = {**dict(zip(fields, values, strict=False)), **named}
        if set(arguments) != set(fields) or len(values) > 2:
            raise ScheduleError(f"cannot read schedule {text!r}; step needs layer and keep: step(layer=2, keep=0.5)")
        return Step(**arguments)
    raise ScheduleError(f"unknown schedule {name!r} in {text!r}; {suggest(name, ['step', 'ratios'])}")
