"""Schedules: how many visual tokens enter each decoder layer, and the one rule from ratio to count.

A schedule is the constant policy. The runtime asks any policy for ``counts(n_visual[B], context)``.
"""

from __future__ import annotations

import ast
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ScheduleError, shortened
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


def _listed(values: Any, what: str) -> tuple[Any, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise ScheduleError(f"{what} is {shortened(values)}; it must be a list or a tuple") from None


class Policy(Protocol):
    """What the runtime asks: visual tokens entering each layer, int [B, L], non-increasing over layers.

    ``context`` is the batch's :class:`vispco.pruning.forward.tokens.Prompt` in a prefill, for policies that look at
    their samples; it is None where only lengths are known.
    """

    def counts(self, n_visual: Counts, layers: int, context: Any = None) -> Counts: ...


class TextPolicy(Policy, Protocol):
    """A policy that can be written down."""

    def text(self) -> str: ...


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


def _check_ratio(value: Any, what: str) -> None:
    if isinstance(value, (bool, str)) or not 0.0 <= _number(value) <= 1.0:
        raise ScheduleError(f"{what} is {shortened(value)}; a keep ratio is the share kept, from 0 to 1")


def _number(value: Any) -> float:
    """``value`` as a float, NaN if it is no number or too large for one."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


@dataclass(frozen=True)
class Step(Schedule):
    """All visual tokens enter layers before ``layer``; the share ``keep`` enters ``layer`` and later ones."""

    layer: int
    keep: float

    def __post_init__(self) -> None:
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 0:
            raise ScheduleError(f"step layer is {shortened(self.layer)}; it is the 0-based index of a decoder layer")
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
class MultiStep(Schedule):
    """Several steps: the share ``keeps[j]`` enters ``layers[j]`` and the layers after it, up to the next step."""

    layers: tuple[int, ...]
    keeps: tuple[float, ...]

    def __init__(self, layers: Sequence[int], keeps: Sequence[float]) -> None:
        object.__setattr__(self, "layers", _listed(layers, "multistep layers"))
        object.__setattr__(self, "keeps", _listed(keeps, "multistep keeps"))
        if not self.layers or len(self.layers) != len(self.keeps):
            raise ScheduleError(
                f"multistep has {len(self.layers)} layers and {len(self.keeps)} keeps; it needs one keep per layer, "
                "at least one: multistep(layers=(2, 5), keeps=(0.5, 0.25))"
            )
        for layer, keep in zip(self.layers, self.keeps, strict=True):
            Step(layer, keep)
        if list(self.layers) != sorted(set(self.layers)):
            raise ScheduleError(f"multistep layers are {shortened(self.layers)}; each must come after the one before")
        Ratios(self.keeps)

    def keep_ratio(self, layers: int) -> tuple[float, ...]:
        if self.layers[-1] >= layers:
            raise ScheduleError(
                f"{self.text()} prunes at layer {self.layers[-1]}, but the model has layers 0 to {layers - 1}"
            )
        ratios = [1.0] * layers
        for layer, keep in zip(self.layers, self.keeps, strict=True):
            ratios[layer:] = [float(keep)] * (layers - layer)
        return tuple(ratios)

    def text(self) -> str:
        return f"multistep(layers={self.layers!r}, keeps={self.keeps!r})"


class Curve(Schedule):
    """A schedule that falls along a formula; all visual tokens enter layer 0, whatever the formula says there.

    After the kernels of arXiv 2604.15188, which never prunes layer 0 either.
    """

    keep: float

    @abstractmethod
    def at(self, layer: int) -> float:
        """Keep ratio of the tokens that enter ``layer``."""

    def keep_ratio(self, layers: int) -> tuple[float, ...]:
        return (1.0, *(min(1.0, max(0.0, self.at(layer))) for layer in range(1, layers)))

    def text(self) -> str:
        values = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__.lower()}({values})"

    def _check(self, **positive: float) -> None:
        _check_ratio(self.keep, f"{type(self).__name__.lower()} keep")
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, (bool, str)) or not math.isfinite(_number(value)):
                shown = shortened(value)
                raise ScheduleError(f"{type(self).__name__.lower()} {field.name} is {shown}; it must be a number")
        for name, value in positive.items():
            if value <= 0:
                raise ScheduleError(f"{type(self).__name__.lower()} {name} is {value!r}; it must be above 0")


@dataclass(frozen=True)
class Linear(Curve):
    """Falls from 1 at layer ``start`` in a straight line to ``keep`` at layer ``start + width``."""

    start: float
    width: float
    keep: float

    def __post_init__(self) -> None:
        self._check(width=self.width)

    def at(self, layer: int) -> float:
        return 1 - (1 - self.keep) * min(1.0, max(0.0, (layer - self.start) / self.width))


@dataclass(frozen=True)
class Exponential(Curve):
    """Falls from 1 at layer ``start`` towards ``keep`` by a factor of ``exp(-rate)`` per layer."""

    start: float
    rate: float
    keep: float

    def __post_init__(self) -> None:
        self._check(rate=self.rate)

    def at(self, layer: int) -> float:
        return self.keep + (1 - self.keep) * math.exp(-self.rate * max(0.0, layer - self.start))


@dataclass(frozen=True)
class Sigmoid(Curve):
    """Falls from 1 to ``keep`` around layer ``centre``: ``1 - (1 - keep) sigmoid(slope (l - centre))``.

    With slope 10 this is the official code's kernel, nearly a step.
    """

    centre: float
    slope: float
    keep: float

    def __post_init__(self) -> None:
        self._check(slope=self.slope)

    def at(self, layer: int) -> float:
        x = self.slope * (layer - self.centre)
        return 1 - (1 - self.keep) * (1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)))


@dataclass(frozen=True)
class Ratios(Schedule):
    """Keep ratios given layer by layer."""

    ratios: tuple[float, ...]

    def __init__(self, ratios: Sequence[float]) -> None:
        given = _listed(ratios, "ratios")
        for layer, ratio in enumerate(given):
            _check_ratio(ratio, f"keep ratio {layer}")
        object.__setattr__(self, "ratios", tuple(float(ratio) for ratio in given))
        for layer, ratio in enumerate(self.ratios):
            if layer and ratio > self.ratios[layer - 1]:
                raise ScheduleError(
                    f"keep ratio rises from {self.ratios[layer - 1]} to {ratio} (number {layer}); a dropped token "
                    "cannot come back, so ratios must not increase over layers"
                )

    def keep_ratio(self, layers: int) -> tuple[float, ...]:
        if len(self.ratios) != layers:
            raise ScheduleError(f"the schedule gives {len(self.ratios)} keep ratios, but the model has {layers} layers")
        return self.ratios

    def text(self) -> str:
        return f"ratios({', '.join(repr(r) for r in self.ratios)})"


@dataclass(frozen=True)
class AtResolution(Schedule):
    """A schedule for pictures of which the processor makes about the share ``resolution`` of the visual tokens.

    Ratios are relative to the tokens of those pictures. Whoever runs it makes the pictures smaller first
    (:func:`vispco.models.resolution.rescaled`); the evaluator does.
    """

    schedule: Schedule
    resolution: float

    def __post_init__(self) -> None:
        if isinstance(self.resolution, (bool, str)) or not 0.0 < _number(self.resolution) <= 1.0:
            raise ScheduleError(
                f"resolution is {shortened(self.resolution)}; it is a share of a picture's visual tokens, above 0 and "
                "at most 1"
            )

    def keep_ratio(self, layers: int) -> tuple[float, ...]:
        return self.schedule.keep_ratio(layers)

    def text(self) -> str:
        return f"{self.schedule.text()[:-1]}, resolution={float(self.resolution)!r})"


def resolution_of(policy: Any) -> float | None:
    """Resolution that a policy was made for; None where it names none, so that pictures stay as they are."""
    if isinstance(policy, AtResolution):
        return float(policy.resolution)
    inner = getattr(policy, "schedule", None)  # of a schedule file
    return resolution_of(inner) if isinstance(inner, Schedule) else None


def policy_text(policy: Policy) -> str:
    """How a policy is written down; of one that is no schedule, its repr."""
    return policy.text() if isinstance(policy, Schedule) else repr(policy)


def keep_all() -> Schedule:
    """The schedule that prunes nothing; its text names no layer, so it fits every model."""
    return Step(layer=0, keep=1.0)


SCHEDULES: dict[str, type[Schedule]] = {
    "step": Step,
    "multistep": MultiStep,
    "linear": Linear,
    "exponential": Exponential,
    "sigmoid": Sigmoid,
}
LONGEST = 100_000  # characters of a schedule's text
EXAMPLES = "step(layer=2, keep=0.5), multistep(layers=(2, 5), keeps=(0.5, 0.25)), or ratios(1, 1, 0.5, ...)"


def parse_schedule(text: str) -> Schedule:
    """Read a schedule's text form, for example ``step(layer=2, keep=0.5)`` or ``ratios(1, 1, 0.5, 0.5)``.

    Any of them takes ``resolution=0.5`` besides, for pictures with about half of the visual tokens.

    Raises:
        ScheduleError: the text is not a known schedule.
    """
    shown = shortened(text)
    if len(text) > LONGEST:
        raise ScheduleError(f"schedule {shown} has {len(text):,} characters; none needs more than {LONGEST:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)  # numbers that run into words are no schedule
            call = ast.parse(text.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError
        name = call.func.id
        values = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ScheduleError(f"cannot read schedule {shown}; write {EXAMPLES} with a ratio per layer") from None
    if len(named) < len(call.keywords):
        raise ScheduleError(f"schedule {shown} gives a parameter twice; give it once")
    if "resolution" in named:
        share = named.pop("resolution")
        if isinstance(share, (tuple, list)):
            raise ScheduleError(f"resolution is {shortened(share)} in {shown}; a schedule has one")
        rest = ast.unparse(ast.Call(call.func, call.args, [k for k in call.keywords if k.arg != "resolution"]))
        return AtResolution(parse_schedule(rest), share)
    if name == "ratios":
        if named:
            raise ScheduleError(
                f"ratios(...) takes one ratio per layer and no names, got {shortened(', '.join(named))}"
            )
        return Ratios(values)
    if name not in SCHEDULES:
        raise ScheduleError(f"unknown schedule {shortened(name)} in {shown}; {suggest(name, [*SCHEDULES, 'ratios'])}")
    cls: Any = SCHEDULES[name]
    known = [field.name for field in fields(cls)]
    unknown = [key for key in named if key not in known]
    if unknown:
        raise ScheduleError(f"{name} has no parameter {shortened(unknown[0])}; {suggest(unknown[0], known)}")
    arguments = {**dict(zip(known, values, strict=False)), **named}
    if set(arguments) != set(known) or len(values) + len(named) != len(known):
        raise ScheduleError(f"cannot read schedule {shown}; {name} needs {', '.join(known)}")
    for key, value in arguments.items():
        if isinstance(value, (tuple, list)) != (cls is MultiStep):
            wanted = "a tuple, such as (2, 5)" if cls is MultiStep else "a number"
            raise ScheduleError(f"{name} {key} is {shortened(value)} in {shown}; it must be {wanted}")
    found: Schedule = cls(**arguments)
    return found
