"""Schedule families: a few parameters -> a schedule. Each has a discrete and a differentiable form.

The discrete form is what samplers draw (Optuna distributions) and what is measured; the differentiable form
is what the lagrangian search optimises. They agree where the differentiable one is sharp (a test).
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.errors import ConfigError
from vispco.pruning.schedules import Schedule, resolution_of
from vispco.registry import Registry

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from torch import Tensor

FAMILIES = Registry("schedule family", "families", "name")
Fits = Callable[[Schedule], bool]
SHAPE_SHARE = 0.2


class ScheduleFamily(ABC):
    """Bounds, discrete form and differentiable form of one family, for a decoder of ``layers`` layers.

    ``before_decoder``: tokens are dropped before layer 0. Methods that read the layer before, and searches that
    differentiate the decoder or walk through its layers, cannot use such a family.
    """

    name: ClassVar[str]
    before_decoder: ClassVar[bool] = False

    def __init__(self, layers: int) -> None:
        if layers < 2:
            raise ConfigError(f"a decoder of {layers} layers leaves no layer to prune at; it needs at least 2")
        self.layers = layers

    @abstractmethod
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna samplers draw from."""

    @abstractmethod
    def schedule(self, parameters: dict[str, Any]) -> Schedule:
        """The schedule of drawn ``parameters``; numbers are rounded to four digits, finer than any token count."""

    @abstractmethod
    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        """Parameters whose :meth:`schedule` has the same keep ratios, for schedules of this family."""

    @abstractmethod
    def cheapest(self) -> Schedule:
        """The schedule with the least compute; it defines the floor."""

    def dense_grid(self) -> Iterator[Schedule]:
        """The family's dense grid, without repeated schedules.

        Raises:
            ConfigError: the family has too many parameters for a grid.
        """
        raise ConfigError(f"family {self.name!r} has too many parameters for a grid; use random, tpe or lagrangian")

    @abstractmethod
    def start(self) -> Tensor:
        """Free parameters [P] to start a gradient search from."""

    @abstractmethod
    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        """Keep ratios [..., L], differentiable in the free parameters [..., P]; sharp is nearly discrete."""

    @abstractmethod
    def upward(self) -> Tensor:
        """A direction [P] in free parameters along which no layer loses tokens, from the fewest tokens to the most.

        Searches that are on budget by construction move along it. What changes where pruning happens changes by
        ``SHAPE_SHARE`` of what changes how much is kept.
        """

    @abstractmethod
    def discrete(self, free: Tensor) -> Schedule:
        """The schedule that :meth:`relaxed` approaches as it sharpens."""

    @abstractmethod
    def snap(self, schedule: Schedule, fits: Fits) -> Schedule:
        """The schedule of the same shape with the most tokens that still ``fits``; the cheapest if none does."""

    def from_ratios(self, keep_ratio: Sequence[float]) -> Schedule | None:
        """The family's schedule with these keep ratios [L], the first of which is 1; None if it has none."""
        return None

    def like(self, schedule: Schedule) -> Schedule | None:
        """The family's schedule that keeps what ``schedule`` keeps, of equal pictures; None if it has none."""
        ratios = schedule.keep_ratio(self.layers)
        whole = resolution_of(schedule) in (None, 1.0)
        return self.from_ratios(ratios) if whole and ratios[0] == 1 else None

    def invert(self, schedule: Schedule, free: Tensor) -> Tensor:
        """Free parameters whose :meth:`discrete` form is near ``schedule``; ``free`` is where the search stood."""
        return free

    def neighbours(self, schedule: Schedule, by: int = 1) -> list[Schedule]:
        """Schedules of nearby shape, for a discrete check at the end of a gradient search. Default: none.

        ``by``: how far away, in the family's smallest steps.
        """
        return []


def steps_of(keep_ratio: Sequence[float]) -> list[tuple[int, float]]:
    """(layer, ratio that enters it) wherever ratios [L] fall from layer 1 on, rounded down to four digits."""
    ratios = [1.0, *map(down, keep_ratio[1:])]
    pairs = enumerate(itertools.pairwise(ratios), start=1)
    return [(layer, after) for layer, (before, after) in pairs if after < before]


def logit(p: float) -> float:
    """Inverse of the sigmoid, kept within about +-7 so that a gradient can still move it."""
    p = min(max(p, 1e-3), 1 - 1e-3)
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def largest(make: Callable[[float], Schedule], fits: Fits, low: float, high: float) -> Schedule | None:
    """``make(x)`` of the largest x in [low, high] that fits, by bisection; None if not even ``low`` does.

    The cost of ``make(x)`` must not fall with x.
    """
    if fits(make(high)):
        return make(high)
    if not fits(make(low)):
        return None
    return make(bisected(lambda x: fits(make(x)), low, high))


def bisected(fits: Callable[[float], bool], low: float, high: float, halvings: int = 40) -> float:
    """The largest x in [``low``, ``high``) that fits, where all below it do; ``low`` is taken to fit."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def down(ratio: float) -> float:
    """Four digits, never more than ``ratio``."""
    return math.floor(ratio * 1e4 + 1e-9) / 1e4
