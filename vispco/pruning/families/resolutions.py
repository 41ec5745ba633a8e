"""A schedule family at several resolutions: one more dimension beside the family's own parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vispco.errors import ConfigError
from vispco.pruning.families.base import Fits, ScheduleFamily
from vispco.pruning.schedules import AtResolution, Ratios, Schedule, resolution_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from torch import Tensor


class Resolutions(ScheduleFamily):
    """Schedules of ``family``, each for pictures at one of ``shares``; a share of 1 leaves picture and text alone.

    There is no gradient through a picture's size, so gradient searches cannot use it.
    """

    def __init__(self, family: ScheduleFamily, shares: Sequence[float]) -> None:
        super().__init__(family.layers)
        self.family, self.shares = family, sorted(shares, reverse=True)
        self.name, self.before_decoder = family.name, family.before_decoder  # type: ignore[misc]

    def at(self, schedule: Schedule, share: float) -> Schedule:
        return schedule if share == 1 else AtResolution(schedule, share)

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import CategoricalDistribution

        return {**self.family.distributions(), "resolution": CategoricalDistribution(self.shares)}

    def schedule(self, parameters: dict[str, Any]) -> Schedule:
        own = {key: value for key, value in parameters.items() if key != "resolution"}
        return self.at(self.family.schedule(own), parameters["resolution"])

    def parameters(self, schedule: Schedule) -> dict[str, Any]:
        inner = schedule.schedule if isinstance(schedule, AtResolution) else schedule
        return {**self.family.parameters(inner), "resolution": resolution_of(schedule) or 1.0}

    def cheapest(self) -> Schedule:
        return self.at(self.family.cheapest(), self.shares[-1])

    def dense_grid(self) -> Iterator[Schedule]:
        """The family's grid at each resolution, largest first."""
        for share in self.shares:
            for schedule in self.family.dense_grid():
                yield self.at(schedule, share)

    def like(self, schedule: Schedule) -> Schedule | None:
        share = resolution_of(schedule) or 1.0
        inner = self.family.like(Ratios(schedule.keep_ratio(self.layers)))
        return None if inner is None or share not in self.shares else self.at(inner, share)

    def start(self) -> Tensor:
        self._no_gradient()

    def relaxed(self, free: Tensor, sharpness: float) -> Tensor:
        self._no_gradient()

    def upward(self) -> Tensor:
        self._no_gradient()

    def discrete(self, free: Tensor) -> Schedule:
        self._no_gradient()

    def snap(self, schedule: Schedule, fits: Fits) -> Schedule:
        """The family's snap, at the schedule's resolution."""
        share = resolution_of(schedule) or 1.0
        inner = schedule.schedule if isinstance(schedule, AtResolution) else schedule
        return self.at(self.family.snap(inner, lambda one: fits(self.at(one, share))), share)

    def _no_gradient(self) -> NoReturn:
        raise ConfigError(
            f"resolutions {', '.join(f'{share:g}' for share in self.shares)} have no gradient; use grid, random, tpe, "
            "nsga2 or gp, or one study per model.resolution"
        )
