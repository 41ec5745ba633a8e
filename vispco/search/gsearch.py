"""G-Search: layer after layer, the fewest visual tokens that the calibration split allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from vispco.pruning.schedules import Ratios, Schedule
from vispco.search.base import SEARCHES, Options
from vispco.search.calibration import Calibration
from vispco.search.fitting import TIE, Fit, FittingSearch

DECADES = 4.0


class GSearchOptions(Options):
    """``samples`` of the calibration split, in mini-batches of ``batch``, show the loss of a schedule.

    ``levels``: keep ratios tried are multiples of one part in so many.
    """

    samples: int = Field(64, ge=1)
    batch: int = Field(32, ge=1)
    levels: int = Field(16, ge=2)
    order: Literal["shallow", "deep"] = "shallow"
    even: bool = True


@SEARCHES.register("gsearch")
class GSearch(FittingSearch):
    """Greedy search, layer by layer: the fewest visual tokens whose loss on the calibration split is tolerated.

    ...
    """

    kind: ClassVar[str] = "gsearch"
    Options: ClassVar[type[Options]] = GSearchOptions
    steps: ClassVar[int] = 32
    _calibration: Calibration | None = None

    def fit(self, number: int) -> Fit:
        calibration = self._ready()
        known: dict[str, float] = {}
        for fit in self.fits():
            known.update(fit["losses"])
        new: dict[str, float] = {}
        batches = -(-self.options.samples // self.options.batch)

        def loss(kept: Sequence[int]) -> float:
            schedule = self._ratios(kept)
            text = schedule.text()
            if text not in known:
                known[text] = new[text] = calibration.pruned_loss(schedule, batches)
            return known[text]

        layers, levels = self.context.family.layers, self.options.levels
        worst = loss([levels] + [0] * (layers - 1))
        tolerance = worst * 10 ** (-DECADES * (1 - number / self.steps))
        kept = greedy(layers, levels, tolerance, loss, self.options.order, self.options.even)
        flops, calibration.charged = calibration.charged, 0
        return {"tolerance": tolerance, "kept": kept, "losses": new, "flops": flops}

    def reaches(self, fit: Fit, budget: float) -> bool:
        return self._ratio(self._ratios(fit["kept"])) <= budget + TIE

    def schedule(self, fit: Fit, budget: float) -> Schedule:
        return self._ratios(fit["kept"])

    def _ratios(self, kept: Sequence[int]) -> Ratios:
        return Ratios([level / self.options.levels for level in kept])

    def _ready(self) -> Calibration:
        """The calibration split; its teacher is charged to the first fit ever."""
        if self._calibration is None:
            context = self.context
            self._calibration = Calibration(
                context.evaluator, context.method, self.options.batch, context.seed, team=context.team
            )
            self._calibration.charged *= not self.fits()
        return self._calibration


def greedy(
    layers: int,
    levels: int,
    tolerance: float,
    loss: Callable[[Sequence[int]], float],
    order: str = "shallow",
    even: bool = True,
) -> list[int]:
    """Levels kept at each layer..."""
    kept = [levels] * layers
    for done, layer in enumerate(range(1, layers) if order == "shallow" else range(layers - 1, 0, -1), start=1):
        allowed = tolerance * done / (layers - 1) if even else tolerance
        make = _lower_rest if order == "shallow" else _lower_one
        high = kept[layer]
        low = -1 if order == "shallow" or layer == layers - 1 else kept[layer + 1] - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if loss(make(kept, layer, middle)) <= allowed else (middle, high)
        kept = make(kept, layer, high)
    return kept


def _lower_rest(kept: list[int], layer: int, level: int) -> list[int]:
    return kept[:layer] + [level] * (len(kept) - layer)


def _lower_one(kept: list[int], layer: int, level: int) -> list[int]:
    return [*kept[:layer], level, *kept[layer + 1 :]]
