"""What a study's budgets and limits are about: the cost of a policy on the search split, and by how much it is over a
limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vispco.config import CostConfig, Study
from vispco.costs import CostModel, Setting, make_cost
from vispco.costs.bounds import (
    Bound,
    Priced,
    excess_loss,
    limits_on_costs,
    limits_on_tasks,
    minimised,
    parse_bound,
)
from vispco.costs.held import held
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import vision_flops
from vispco.evaluation.records import Evaluation
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.forward.counts import checked_counts
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Counts, Policy, Ratios, Schedule, keep_all, resolution_of
from vispco.registry import suggest

if TYPE_CHECKING:
    from vispco.problem import Problem

TIE = 1e-12
UNEVEN = 0.005  # of the unpruned model's FLOPs
FLOPS = "flops"
RULES = 2  # of what limits mean; by 1, shares were means of each prompt's, and bytes as wide as on the search's machine


def has_plain_cost(study: Study) -> bool:
    """Whether budgets are in FLOPs, nothing else is minimised, and nothing is limited."""
    return study.cost.name == FLOPS and not study.cost.also and not study.limits


def check_cost(problem: Problem) -> None:
    """Refuse a cost or limits that mean nothing here, before the model is loaded.

    Raises:
        ConfigError: unknown cost, task or unit; a rate that is to be minimised; no profile for a cost in time.
    """
    study = problem.study
    limits = limits_on_costs(study.limits)
    minimal = [minimised(name) for name in (study.cost.name, *study.cost.also)]
    for model in [*minimal, *(make_cost(bound.cost) for bound in limits)]:
        if model.needs_profile and problem.profile is None:
            raise ConfigError(
                f"cost {model.name!r} is in time, so the study needs profile: FILE; measure it: "
                f"vispco profile {study.model.name} --batch {study.cost.batch} -o profile.json"
            )
    if any(bound.cost == study.cost.name for bound in limits):
        raise ConfigError(f"limits.{study.cost.name}: the study's budgets bound this cost already; leave it out")
    names = [task.name for task in problem.tasks]
    for name in limits_on_tasks(study.limits):
        if name not in names:
            raise ConfigError(f"limits.tasks: no task {name!r} in this study; {suggest(name, names)}")
    if isinstance(study.budgets, list):
        for budget in study.budgets:
            if isinstance(budget, str):
                parse_bound(study.cost.name, budget)


def check_measured(problem: Problem, methods: Sequence[Method]) -> None:
    """Refuse methods whose scoring the profile does not have, where the study has a cost or a limit in time.

    Raises:
        ConfigError: the first of them.
    """
    study, profile = problem.study, problem.profile
    names = (study.cost.name, *study.cost.also, *(bound.cost for bound in limits_on_costs(study.limits)))
    timed = [make_cost(name).needs_profile for name in names]
    if profile is not None and any(timed):
        for method in methods:
            profile.scoring(study.cost.batch, method)


@dataclass(frozen=True, eq=False)
class Row:
    """Prompts of one task: ``counts`` [P, L], ``visual`` and ``text`` tokens [P], and each sample's place among them.

    ``whole``: visual and text tokens of the same prompts with whole pictures; ``vision_flops`` of the tower, per token.
    """

    counts: Counts
    visual: Counts
    text: Counts
    which: Any
    whole: tuple[Counts, Counts]
    vision_flops: float


class StudyCost:
    """The cost of policies on a split.

    A share of ``flops`` is ``flops_ratio``, a mean of each prompt's share. Other costs are a mean over tasks of means
    over prompts, and their share is that mean over the unpruned model's, so that a bound in ms and one as a share are
    the same. Budgets, limits and ``vispco choose`` agree in this.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, study = evaluator, evaluator.problem.study
        self.terms: CostConfig = study.cost
        self.model: CostModel = minimised(study.cost.name)
        self.further: list[CostModel] = [minimised(name) for name in study.cost.also]
        self.bounds, self.drops = limits_on_costs(study.limits), limits_on_tasks(study.limits)
        self.unpruned_tasks: dict[str, float] = {}
        self._whole: dict[tuple[str, str], float] = {}
        self._vision: dict[float, float] = {}

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def in_flops(self) -> bool:
        """Whether budgets are shares of FLOPs, which need no prices."""
        return self.name == FLOPS

    @property
    def limits(self) -> list[str]:
        """Names of what has a limit, in the order of a trial's constraints."""
        return [*(bound.cost for bound in self.bounds), *(f"task {name}" for name in self.drops)]

    @cached_property
    def setting(self) -> Setting:
        """Without a method.

        Raises:
            ConfigError: the profile is of another model.
        """
        problem = self._evaluator.problem
        if problem.profile is not None:
            problem.profile.check_model(problem.study.model.name, problem.shape, held(problem.adapter))
        terms = {"answer_tokens": self.terms.answer_tokens, "batch": self.terms.batch}
        # Always: nobody knows which costs of plug-ins read it.
        vision = self.vision_flops(self._evaluator)
        return Setting.of(problem.adapter, vision_flops=vision, **terms).on(problem.profile)

    # --- the cost ------------------------------------------------------------------------------------

    def ratio(self, policy: Policy, method: Method, split: str = "search") -> float:
        """Share of the unpruned model's cost."""
        if self.in_flops:
            return self._evaluator.flops_ratio(policy, split, method)
        return self.value(policy, method, split) / self.whole(split)

    def value(self, policy: Policy, method: Method | None, split: str = "search") -> float:
        """In the cost's unit, mean over prompts."""
        return self._mean(self.model, self._distinct(policy, method, split), method)[0]

    def whole(self, split: str = "search") -> float:
        """The unpruned model's."""
        return self.whole_of(self.model, split)

    def whole_of(self, model: CostModel, split: str = "search") -> float:
        """Any cost of the unpruned model."""
        key = (model.name, split)
        if key not in self._whole:
            self._whole[key] = self._mean(model, self._distinct(keep_all(), None, split), None)[0]
        return self._whole[key]

    def ratio_of_counts(self, counts: Sequence[Counts], method: Method) -> float:
        """:meth:`ratio` from counts [S, L] of each task's samples of the search split."""
        return self._mean(self.model, self._given(counts), method)[0] / self.whole()

    def excess_of_counts(self, counts: Sequence[Counts], method: Method) -> float:
        """The largest excess over a limit on a cost; below 0 within all, -inf without limits."""
        rows = self._given(counts)
        return max((self._over(bound, rows, method)[1] for bound in self.bounds), default=-np.inf)

    # --- limits --------------------------------------------------------------------------------------

    def priced(self, policy: Policy, method: Method, evaluation: Evaluation | None = None) -> Priced:
        """Cost and limits on the search split; tasks' limits need the ``evaluation``."""
        rows = self._distinct(policy, method, "search")
        limited, excess = {}, {}
        for bound in self.bounds:
            limited[bound.cost], excess[bound.cost] = self._over(bound, rows, method)
        for name, points in self.drops.items() if evaluation is not None else ():
            assert evaluation is not None
            excess[f"task {name}"] = excess_loss(self.unpruned_tasks[name], evaluation.tasks[name]["accuracy"], points)
        ratio = self.ratio(policy, method)
        value = ratio * self.whole()
        return Priced(value, ratio, limited, excess, self._further(rows, method))

    def _further(self, rows: Sequence[Row], method: Method | None) -> dict[str, float]:
        """The other costs that are minimised, in their units."""
        return {model.name: self._mean(model, rows, method)[0] for model in self.further}

    def within_limits(self, policy: Policy, method: Method) -> bool:
        """Whether all limits on costs are kept; those on tasks are known only once measured."""
        return all(value <= TIE for value in self.priced(policy, method).excess.values())

    def fits(self, budget: float, method: Method) -> Callable[[Schedule], bool]:
        """Whether a schedule is within a budget, as a share, and within all limits on costs."""

        def within(schedule: Schedule) -> bool:
            return self.ratio(schedule, method) <= budget + TIE and (
                not self.bounds or self.within_limits(schedule, method)
            )

        return within

    def on_edge(self, schedule: Schedule, family: ScheduleFamily, method: Method) -> Schedule:
        """The schedule of the same shape with the most tokens that costs no more, in any cost that is minimised: where
        measured times are a staircase, the edge of its step."""
        if not self.model.needs_profile or (self.bounds and not self.within_limits(schedule, method)):
            return schedule  # what exceeds a limit is measured as it is, and said to exceed it
        fits = self.fits(max(self.ratio(schedule, method), 0.0), method)
        if not self.further:
            return family.snap(schedule, fits)
        most = self._further(self._distinct(schedule, method, "search"), method)

        def no_dearer(one: Schedule) -> bool:
            found = self._further(self._distinct(one, method, "search"), method) if fits(one) else None
            return found is not None and all(found[name] <= most[name] * (1 + TIE) for name in most)

        return family.snap(schedule, no_dearer)

    # --- the range -----------------------------------------------------------------------------------

    def floor(self, family: ScheduleFamily, method: Method) -> float:
        """The least share that a family and a method can reach.

        Raises:
            ConfigError: pruning saves nothing, or no schedule keeps a limit.
        """
        cheapest = family.cheapest()
        floor = self.ratio(cheapest, method)
        if floor >= 1 and not self.in_flops:
            raise ConfigError(
                f"cost {self.name!r}: even the cheapest schedule of family {family.name!r} with {method.name!r} takes "
                f"{floor:.3f} of the unpruned model's {self.whole():.4g} {self.model.unit}, so pruning saves nothing "
                f"at batch {self.terms.batch}; profile a larger batch (cost: {{name: {self.name}, batch: 16}})"
            )
        if self.bounds:
            found = self.priced(cheapest, method)
            for bound in self.bounds:
                if found.excess[bound.cost] > TIE:
                    model = make_cost(bound.cost)
                    absolute, share = self._priced(model, self._distinct(cheapest, method, "search"), method)
                    reached = f"{share:.4f}" if bound.relative else f"{absolute:.4g} {model.unit}"
                    raise ConfigError(
                        f"limits.{bound.cost} = {bound.text()} is out of reach: the cheapest schedule of family "
                        f"{family.name!r} with {method.name!r} has {reached}; loosen the limit"
                    )
        return floor

    def budgets(self, floor: float) -> list[float]:
        """The study's budgets as shares.

        Raises:
            ConfigError: one lies below the floor or above the unpruned model.
        """
        asked = self._evaluator.problem.study.budgets
        if self.in_flops and not (isinstance(asked, list) and any(isinstance(one, str) for one in asked)):
            return self._evaluator.problem.budgets(floor)
        if isinstance(asked, int):
            return [floor + (1 - floor) * (i + 0.5) / asked for i in range(asked)]
        found, whole, unit = [], self.whole(), self.model.unit
        for given in asked:
            bound = parse_bound(self.name, given)
            if self.in_flops and not bound.relative:
                self._check_even(given)
            share = bound.value if bound.relative else bound.value / whole
            if not floor <= share <= 1:
                raise ConfigError(
                    f"budget {given} lies outside [{floor:.4f}, 1]: the cheapest schedule takes {floor * whole:.4g} "
                    f"{unit} and the unpruned model {whole:.4g} {unit} in {self.name}; "
                    f"{'lower' if share > 1 else 'raise'} it, or write a number of budgets to spread them"
                )
            found.append(share)
        return sorted(found)

    def _check_even(self, budget: Any) -> None:
        """Refuse an amount of FLOPs where it is no share: of prompts that differ in length, the mean of shares, which
        budgets in FLOPs bound, is not the share of the mean."""
        problem = self._evaluator.problem
        some, method = Ratios([1.0, *[0.2] * (problem.shape.layers - 1)]), problem.default_method
        each, mean = self.ratio(some, method), self.value(some, method) / self.whole()
        if abs(each - mean) > UNEVEN:
            raise ConfigError(
                f"budget {budget}: the prompts differ in length, and budgets in FLOPs bound the mean of each prompt's "
                f"share ({each:.3f} of a schedule whose mean FLOPs are {mean:.3f} of the unpruned model's); write it "
                "as a share, or set cost: total_flops, which is bounded by its mean"
            )

    def told(self) -> str:
        """The cost with its unit and what the unpruned model has of it."""
        terms = self.terms
        more = f", answers of {terms.answer_tokens} tokens" if self.name in ("latency_ms", "total_flops") else ""
        return f"{self.name}, {self.whole():.4g} {self.model.unit} unpruned at batch {terms.batch}{more}"

    def facts(self) -> dict[str, Any]:
        """What analysis needs of a study in another cost than FLOPs, in several, or with limits; {} for any other.

        ``further_costs``: what else is minimised, and how much the unpruned model has of it.
        """
        found: dict[str, Any] = {}
        if not self.in_flops:
            found["cost"] = self.name
        if not self.in_flops or self.further:
            whole = {split: self.whole(split) for split in ("search", "held_out")}
            found["cost_terms"] = {**self.terms.model_dump(), "unpruned": whole}
        if self.further:
            found["further_costs"] = {model.name: self.whole_of(model) for model in self.further}
        limits = self._evaluator.problem.study.limits
        return {**found, **({"limits": limits, "limit_rules": RULES} if limits else {})}

    # --- parts ---------------------------------------------------------------------------------------

    def _distinct(self, policy: Policy, method: Method | None, split: str) -> list[Row]:
        """Distinct prompts, task by task; of a schedule for smaller pictures, each sample's."""
        evaluator = self._evaluator
        home = evaluator.at(resolution_of(policy))
        if not isinstance(policy, Schedule) or home is not evaluator:
            return self._given(evaluator.counts(policy, split, method), split, home)
        chosen, vision = method or evaluator.problem.default_method, self.vision_flops(evaluator)
        rows, layers = [], evaluator.problem.shape.layers
        for part in evaluator.prepared(split):
            visual, text, which = part.lengths
            counts = checked_counts(policy.counts(visual, layers), visual, layers, chosen)
            rows.append(Row(counts, visual, text, which, (visual, text), vision))
        return rows

    def _given(self, counts: Sequence[Counts], split: str = "search", home: Evaluator | None = None) -> list[Row]:
        """Each sample's, at the resolution of ``home``."""
        home = home or self._evaluator
        vision = self.vision_flops(home)
        parts = zip(counts, home.prepared(split), self._evaluator.prepared(split), strict=True)
        return [
            Row(given, part.n_visual, part.n_text, slice(None), (whole.n_visual, whole.n_text), vision)
            for given, part, whole in parts
        ]

    def vision_flops(self, home: Evaluator) -> float:
        """Of the tower per visual token, at the resolution of ``home``; counted once."""
        if home.resolution not in self._vision:
            self._vision[home.resolution] = vision_flops(home.problem)
        return self._vision[home.resolution]

    def _mean(self, model: CostModel, rows: Sequence[Row], method: Method | None) -> tuple[float, float]:
        """(absolute, share prompt by prompt), means over tasks."""
        plain, own = self.setting, self.setting.with_method(method)
        values, unpruned = [], []
        for row in rows:
            setting = own if row.vision_flops == own.vision_flops else replace(own, vision_flops=row.vision_flops)
            values.append(model.of(setting, row.counts, row.visual, row.text)[row.which])
            unpruned.append(model.unpruned(plain, *row.whole)[row.which])
        ends = np.cumsum([len(part) for part in values])[:-1]

        def mean(flat: Any) -> float:
            return float(np.mean([part.mean() for part in np.split(flat, ends)]))

        return model.averaged(mean, np.concatenate(values), np.concatenate(unpruned))

    def _priced(self, model: CostModel, rows: Sequence[Row], method: Method | None) -> tuple[float, float]:
        """A cost on the search split in its unit, and as a share of the unpruned model's."""
        absolute, each = self._mean(model, rows, method)
        return absolute, each if model.name == FLOPS else absolute / self.whole_of(model)

    def _over(self, bound: Bound, rows: Sequence[Row], method: Method) -> tuple[float, float]:
        """A limited cost in its unit, and by how much it exceeds its limit."""
        absolute, share = self._priced(make_cost(bound.cost), rows, method)
        return absolute, bound.excess(absolute, share)

    # --- for gradients -------------------------------------------------------------------------------

    def relaxed_parts(self) -> tuple[Setting, dict[tuple[int, int], float]]:
        """The setting without a method, and the weight of each distinct (visual, text) in a mean over tasks."""
        weights: dict[tuple[int, int], float] = {}
        parts = self._evaluator.prepared("search")
        for part in parts:
            for pair in zip(part.n_visual.tolist(), part.n_text.tolist(), strict=True):
                weights[pair] = weights.get(pair, 0.0) + 1 / (len(part.samples) * len(parts))
        return replace(self.setting, method=None), weights

    def added_by_pruning(
        self, model: CostModel, family: ScheduleFamily, method: Method, *, each: bool = False
    ) -> float:
        """What scoring and hooks add to a schedule in the middle of the family, which the relaxed form leaves out.

        ``each``: as a mean of shares, prompt by prompt.
        """
        rows = self._distinct(family.discrete(family.start()), method, "search")
        return self._mean(model, rows, method)[each] - self._mean(model, rows, None)[each]
