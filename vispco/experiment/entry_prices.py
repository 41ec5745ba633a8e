"""What each entry of a study will be charged, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vispco.config import SearchConfig
from vispco.costs import plain_flops
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.allowances import dense_grid
from vispco.experiment.planning import Planned
from vispco.problem import Problem
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.published import PUBLISHED
from vispco.pruning.schedules import Ratios, keep_all
from vispco.search import SEARCHES
from vispco.search.gradient.distillation import relaxing_flops, whole_rounds
from vispco.search.gradient.options import GradientOptions
from vispco.search.gradient.ranking import doubling
from vispco.search.grid import measured_points
from vispco.search.study_cost import StudyCost

DRAWN = 32  # points of a family's grid that stand for what a sampler will draw


@dataclass(frozen=True)
class Price:
    """``trials``, FLOPs, and how many schedules have their ``answers`` to the search split generated; None: the search
    decides it."""

    trials: int | None
    flops: float | None
    answers: float = 0.0


class EntryPrices:
    """Prices on the search split, with samples of other splits as long as its own."""

    def __init__(self, problem: Problem, evaluator: Evaluator) -> None:
        self.problem, self.evaluator, self.cost = problem, evaluator, StudyCost(evaluator)
        self._known: dict[str, Price] = {}
        self._means: dict[str, float] = {}
        asked, tasks = problem.study.budgets, problem.tasks
        self.budgets = asked if isinstance(asked, int) else len(asked)
        searched, held_out = (sum(task.sizes.get(split, 0) for task in tasks) for split in ("search", "held_out"))
        self._held_out = held_out / searched

    def of(self, item: Planned) -> Price:
        """Of one study; seeds cost the same."""
        if item.entry not in self._known:
            self._known[item.entry] = self._priced(item.config, item.options)
        return self._known[item.entry]

    def references(self) -> Price:
        """The plain model, the model without pictures and published defaults, on both splits."""
        layers = self.problem.shape.layers
        flops = sum(self.evaluator.price(policy) for policy in (keep_all(), Ratios([0.0] * layers)))
        for known in (PUBLISHED[name] for name in self.problem.study.defaults):
            flops += self.evaluator.price(known.for_layers(layers), "search", known.make_method())
        both = 1 + self._held_out
        return Price(None, flops * both, (2 + len(self.problem.study.defaults)) * both)

    def held_out(self, items: Sequence[Planned]) -> Price:
        """One schedule of each study for each budget."""
        flops = answers = 0.0
        for item in items:
            trials = self.of(item).trials
            measured = self._held_out * (self.budgets if trials is None else min(trials, self.budgets))
            flops, answers = flops + measured * self._mean(item.config), answers + measured
        return Price(None, flops, answers)

    def _priced(self, entry: SearchConfig, options: Any) -> Price:
        if SEARCHES[entry.kind].is_reference:
            prices = self._grid(self.problem.family(entry), self.problem.method(entry))
            return Price(len(prices), float(sum(prices)), len(prices))
        compute, trials = getattr(options, "compute", None), getattr(options, "trials", None)
        if compute is not None:
            flops = self._allowed(compute)
            return Price(None, flops, 0.0 if flops is None else flops / self._mean(entry))
        if isinstance(options, GradientOptions):
            return self._gradients(entry, options.settled())
        if trials is None:
            return Price(None, None)
        return Price(trials, trials * self._mean(entry), trials)

    def _allowed(self, compute: str | float) -> float | None:
        """FLOPs that an entry may be charged: those of another, or a share of the dense grid's."""
        if isinstance(compute, str):
            return self._known[compute].flops if compute in self._known else None
        schedules, method = dense_grid(self.problem, self.cost)
        return compute * sum(self.evaluator.price(schedule, "search", method) for schedule in schedules)

    def _gradients(self, entry: SearchConfig, options: GradientOptions) -> Price:
        """The teacher, the steps, the check of neighbouring shapes, and measuring, at their most: larger budgets take
        no schedule over, no method drops out, and a climb goes on to its end."""
        parts, shape = self.evaluator.prepared("search"), self.problem.shape
        visual, text = (np.concatenate([getattr(part, name) for part in parts]) for name in ("n_visual", "n_text"))
        methods, budgets = self.problem.methods(entry), self.budgets
        several, checks = len(methods) > 1, options.check and options.predictor != "input"
        tasks = self.problem.calibration_tasks
        there = sum(task.sizes["calibration"] for task in tasks)
        samples = min(there, options.samples or there)
        # Answers longer than a token are generated first, and then read.
        passes = float(np.mean([2 if task.max_new_tokens > 1 else 1 for task in tasks]))
        teacher = passes * samples * float(np.mean(plain_flops(shape, visual + text)))
        descents = budgets if options.predictor == "static" else 1
        seen = descents * (options.dual_steps or 0) * options.primal_steps * min(options.batch, samples)
        steps = seen * sum(relaxing_flops(shape, one, visual, text, options.recompute) for one in methods) / len(text)

        rounds = max(1, (options.check or 0) // options.batch)
        checked = min(samples, options.batch * whole_rounds(self.problem, rounds))
        shapes = self._shapes(self.problem.family(entry), options) if checks else 1
        between = 0 if several or options.predictor == "input" else options.between or 0
        # About half of the shapes that are compared drop out on the way; between budgets there are two of them.
        passed = checked / 2 * (len(methods) * budgets * shapes + 2 * between) if checks else 0.0
        if several:  # and once halfway, on the first quarter, and once at the end with each other
            passed += len(methods) * budgets * (checked / 4 + checked)
        each = len(methods) if several else shapes
        trials = budgets * (1 if options.predictor == "input" else min(options.measure, each)) + between
        mean = self._mean(entry)
        return Price(trials, teacher + steps + (passed / len(text) + trials) * mean, trials)

    def _shapes(self, family: ScheduleFamily, options: GradientOptions) -> int:
        """How many shapes are compared for one budget."""
        start = family.discrete(family.start())
        if not options.climb:
            return 1 + len(family.neighbours(start))
        around = sum(len(family.neighbours(start, by)) for by in doubling(family.layers // 3))
        return 1 + options.climb * around

    def _mean(self, entry: SearchConfig) -> float:
        """FLOPs of a schedule, on average over the family and the entry's methods."""
        key = repr(entry)
        if key not in self._means:
            family, methods = self.problem.family(entry), self.problem.methods(entry)
            self._means[key] = float(np.mean([np.mean(self._grid(family, one, DRAWN)) for one in methods]))
        return self._means[key]

    def _grid(self, family: ScheduleFamily, method: Method, most: int | None = None) -> list[int]:
        """FLOPs of each schedule that a grid of the family measures, or of ``most`` of the family's, spread evenly."""
        try:
            points = list(family.dense_grid())
        except ConfigError:  # too many parameters for a grid: its two ends stand for it
            points = [family.cheapest(), keep_all()]
        if most is None:
            points = measured_points(points, family, method, self.cost)
        step = 1 if most is None else max(1, len(points) // most)
        return [self.evaluator.price(schedule, "search", method) for schedule in points[::step]]
