"""G-Search: layer after layer, the fewest visual tokens that the calibration split allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field

from vispco.errors import MeasurementError
from vispco.pruning.schedules import Ratios, Schedule
from vispco.search.base import SEARCHES, Options
from vispco.search.gradient.distillation import Calibration, whole_rounds
from vispco.search.recipes.fitting import TIE, Fit, FittingSearch

DECADES = 4.0


class GSearchOptions(Options):
    """``samples`` of the calibration split, in mini-batches of ``batch``, show the loss of a schedule.

    ``levels``: keep ratios tried are multiples of one part in so many.
    """

    samples: int = Field(64, ge=1)
    batch: int = Field(32, ge=1)
    levels: int = Field(16, ge=2)


@SEARCHES.register("gsearch")
class GSearch(FittingSearch):
    """Greedy search, from the first layer to the last: the fewest visual tokens whose loss is tolerated.

    The loss is KL(teacher || pruned) on calibration samples; at each layer the least count is found by bisection, with
    what follows kept at the same count (:func:`greedy`). Its tolerance is the scalar of a budget: a share, between
    0.01 % and 100 % on a logarithmic scale, of the loss without any visual token from layer 1 on. Charged are the
    teacher and every schedule that was tried, each once.

    Source: arXiv 2412.00556, which goes from shallow to deep layers and keeps the model's output the same at each.
    Deviations: a loss against a tolerance in place of equal answers, so that there is a schedule for every budget; the
    tolerance grows evenly from layer to layer, or the first layers would use up all of it; no parametric fit.
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
        batches = whole_rounds(self.context.evaluator.problem, -(-self.options.samples // self.options.batch))

        def loss(kept: Sequence[int]) -> float:
            schedule = self._ratios(kept)
            text = schedule.text()
            if text not in known:
                known[text] = new[text] = calibration.pruned_loss(schedule, batches)
                if not math.isfinite(known[text]):
                    raise MeasurementError(f"the loss of {text} is {known[text]}; check the model's weights and dtype")
            return known[text]

        layers, levels = self.context.family.layers, self.options.levels
        worst = loss([levels] + [0] * (layers - 1))
        tolerance = worst * 10 ** (-DECADES * (1 - number / self.steps))
        kept = greedy(layers, levels, tolerance, loss)
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
                *(context.evaluator, context.method, self.options.batch, context.seed),
                samples=self.options.samples,
                team=context.team,
            )
            self._calibration.charged *= not self.fits()
        return self._calibration


def greedy(layers: int, levels: int, tolerance: float, loss: Callable[[Sequence[int]], float]) -> list[int]:
    """Levels [L], 0 to ``levels``, that enter each layer; all enter layer 0, and levels never rise.

    Layer l of 1 to L-1 may use up l/(L-1) of ``tolerance``, with its level kept to the end. Where the loss is not
    monotone in the level, bisection finds one level that is tolerated and whose next is not.
    """
    kept = [levels] * layers
    for layer in range(1, layers):
        allowed = tolerance * layer / (layers - 1)
        low, high = -1, kept[layer]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if loss(_lowered(kept, layer, middle)) <= allowed else (middle, high)
        kept = _lowered(kept, layer, high)
    return kept


def _lowered(kept: list[int], layer: int, level: int) -> list[int]:
    return kept[:layer] + [level] * (len(kept) - layer)
