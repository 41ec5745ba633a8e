"""What the gradient searches have in common: the calibration split, descents, and the proposals made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, ClassVar

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from vispco.errors import ConfigError, ScheduleError
from vispco.fronts import HELD, relaxed_ratio
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Policy, Schedule, parse_schedule
from vispco.search.base import Options, Proposal, Search, SearchContext
from vispco.search.gradient.all_together import AllTogether
from vispco.search.gradient.between import measure_between
from vispco.search.gradient.constraints import Constraint, Limits
from vispco.search.gradient.descent import Descent
from vispco.search.gradient.distillation import Calibration
from vispco.search.gradient.kkt import residuals
from vispco.search.gradient.method_race import MethodRace
from vispco.search.gradient.one_by_one import OneByOne
from vispco.search.gradient.options import GradientOptions
from vispco.search.gradient.predicted import PredictedPolicy, parse_policy, saved_predictor
from vispco.search.gradient.predictor import RatioPredictor
from vispco.search.gradient.ranking import Ranking
from vispco.search.gradient.relaxed_cost import relaxed_cost, relaxed_limits

# What all trials of a budget have in common.
SHARED = ("budget", "trained_for", "multiplier", "penalty", "loss", "steps", "trajectory", "free")


class GradientSearch(Search):
    """Trials from the largest budget to the smallest, then between them; none exceeds its own budget."""

    Options: ClassVar[type[Options]] = GradientOptions
    reads_calibration: ClassVar[bool] = True
    among_methods: ClassVar[bool] = True
    defaults: ClassVar[int] = 4
    tolerance: ClassVar[float | None] = None
    any_cost: ClassVar[bool] = True
    several_costs: ClassVar[bool] = True

    @classmethod
    def as_begun(cls, options: Any, defaults: int) -> Any:
        return options if defaults >= cls.defaults else options.as_begun(defaults)

    @classmethod
    def check(cls, options: Any, method: Method, family: ScheduleFamily) -> None:
        if not method.differentiable:
            raise ConfigError(
                f"method {method.name!r} is not differentiable, so kind {cls.kind!r} cannot use it; "
                "use grid, random or tpe"
            )
        if options.race is not None and options.predictor == "static":
            raise ConfigError("race: needs the schedules of all budgets together; remove it, or predictor: static")

    @classmethod
    def check_several(cls, options: Any) -> None:
        super().check_several(options)
        if options.predictor != "budget":
            raise ConfigError("predictor: budget alone searches among several methods; write an entry for each method")

    def __init__(self, context: SearchContext, options: GradientOptions) -> None:
        super().__init__(context, options.settled())
        self._idle = _without_effect(options, several=len(context.methods) > 1)
        self._cost = relaxed_cost(context.cost, context.evaluator, context.family, context.method)
        self._limits = relaxed_limits(context.cost, context.family, context.method)
        self._calibration: Calibration | None = None
        self.label = ""  # of its trajectories, where several methods of one study have some for the same budget
        self.ranking = Ranking(self)

    def constraint(self, budgets: Tensor) -> Constraint:
        """What holds ``budgets`` [K]."""
        raise NotImplementedError

    def run(self) -> None:
        context, before = self.context, len(self.context.log.complete())
        budgets = sorted(context.budgets, reverse=True)
        if self._idle:
            context.say(self._idle)
        if further := ", ".join(model.name for model in context.cost.further):
            context.say(
                f"kind {self.kind!r} maximises accuracy within budgets of {context.cost.name}; {further} of its "
                "schedules is stored and not minimised (limits: bounds it)"
            )
        if context.methods:
            MethodRace(self).run()
        elif self.options.predictor == "static":
            OneByOne(self).run(budgets)
        else:
            AllTogether(self).run(budgets)
        if not context.methods:
            measure_between(self, budgets)
        if len(context.log.complete()) > before and (told := not_held(context.log.settled())):
            context.say(told)

    # --- the calibration split -----------------------------------------------------------------------

    @property
    def calibration(self) -> Calibration:
        """Made when first needed. The teacher is paid once, by the first trial: a resumed search has paid it."""
        if self._calibration is None:
            context, options = self.context, self.options
            self._calibration = Calibration(
                context.evaluator,
                context.method,
                options.batch,
                context.seed,
                samples=options.samples,
                micro=options.micro_batch,
                recompute=options.recompute,
                team=context.team,
            )
            if context.log.settled():
                self.forget_costs()
        return self._calibration

    def forget_costs(self) -> None:
        """An earlier run has paid for what this one did again."""
        if self._calibration is not None:
            self._calibration.charged = self._calibration.spent = 0

    def share_teacher(self, other: GradientSearch) -> None:
        """Take the teacher's answers from ``other``, which has another method."""
        self._calibration = other.calibration.with_method(self.context.method)

    # --- descents ------------------------------------------------------------------------------------

    def descent(self, module: torch.nn.Module, budgets: Tensor, name: str, **more: Any) -> Descent:
        """Gradient steps on the parameters that ``module`` gives for ``budgets`` [K]; ``more``: further arguments."""
        context, options = self.context, self.options
        return Descent(
            calibration=more.pop("calibration") if "calibration" in more else self.calibration,
            cost=self._cost,
            family=context.family,
            module=module,
            constraint=self.constraint(budgets),
            options=options,
            budgets=budgets,
            span=(min(context.budgets), max(context.budgets)),
            name=name,
            total=options.dual_steps * options.primal_steps,
            tolerance=self.tolerance,
            limits=Limits(self._limits, len(budgets), options.penalty, options.penalty_cap),
            **more,
        )

    def network(self, budgets: list[float], **more: Any) -> Descent:
        """The descent of one network for all budgets, untrained and without a calibration split."""
        context, reads = self.context, self.options.predictor == "input"
        features = 2 * context.evaluator.problem.shape.hidden if reads else 0
        module = RatioPredictor(context.family.start(), reads=features, seed=context.seed)
        wanted = torch.tensor(budgets, dtype=torch.float64)
        name = f"{self.kind}/{context.seed}"
        return self.descent(module, wanted, name, calibration=None, reads=reads, **more)

    def policy(self, text: str) -> Policy:
        """The policy of a trial's ``schedule``; predictors are read from the database."""

        def load(study: str, budget: float) -> PredictedPolicy:
            kept = saved_predictor(self.context.store, study)
            if kept is None:
                raise ScheduleError(f"the predictor of {study!r} is not in this database; run the experiment again")
            descent = self.network(sorted(self.context.budgets, reverse=True))
            descent.restore(kept)
            return PredictedPolicy.of(descent, study, budget)

        return parse_policy(text, load)

    def attributes(self, number: int, budget: float, descent: Descent) -> dict[str, Any]:
        """What a trial says of its budget's descent, the KKT residuals of where it ended among it."""
        at = number if len(descent.budgets) > 1 else 0
        trajectory, key = descent.trajectory[at], f"{self.label}budget-{number}"
        if any(trials[0].user_attrs.get("trajectory") == key for trials in self.done().values()):
            key = f"{self.label}budget-{budget!r}"  # a budget that was added later has another one's number
        self.context.store.save_steps(self.context.log.name, key, trajectory)
        last, realised = trajectory[-1], descent.realised()[at]
        slopes = [step["slope"] for step in trajectory[len(trajectory) // 2 :] if "slope" in step]
        reached = {"feasibility": max(0.0, (realised - budget) / budget)}
        if slopes and not descent.reads and not self._limits:
            slope = [fmean(layer) for layer in zip(*slopes, strict=True)]
            free, sharpness = descent.free().detach()[at], descent.sharpness
            reached = residuals(self.context.family, self._cost, free, sharpness, slope, budget)
        return {
            "budget": budget,
            "trained_for": len(descent.budgets),
            "multiplier": last["multiplier"],
            "penalty": last["penalty"],
            "loss": last["loss"],
            "steps": len(trajectory),
            "trajectory": key,
            "free": last["free"],
            "relaxed_flops_ratio" if self.context.cost.in_flops else "relaxed_cost_ratio": realised,
            **reached,
        }

    # --- proposals -----------------------------------------------------------------------------------

    def snapped(self, free: Tensor, budget: float) -> Schedule:
        """The largest schedule of these free parameters that fits the budget."""
        family: ScheduleFamily = self.context.family
        return family.snap(family.discrete(free), self.fits(budget))

    def fits(self, budget: float) -> Callable[[Schedule], bool]:
        """Whether a schedule is within the budget, and within the study's limits on costs."""
        return self.context.cost.fits(budget, self.context.method)

    def violation(self, policy: Policy, budget: float) -> float:
        """Cost above the budget, as a share of it; negative below."""
        return (self.context.ratio(policy) - budget) / budget

    def proposals(
        self, number: int, budget: float, free: Tensor, ranked: Sequence[Schedule], descent: Descent, batch: int
    ) -> tuple[Tensor, list[Proposal]]:
        """The first of a budget's candidates, the others to be measured, and where the first one's parameters are.

        ``batch``: number of the budgets that are measured together.
        """
        candidates = ranked[: self.options.measure]
        free = self.context.family.invert(candidates[0], free)
        attributes = {
            **self.attributes(number, budget, descent),
            "free": free.tolist(),
            "candidates": [candidate.text() for candidate in candidates],
            "violation": self.violation(candidates[0], budget),
            "batch": batch,
        }
        first = Proposal(candidates[0], attributes=attributes)
        return free, [first, *(self.runner_up(candidate, attributes) for candidate in candidates[1:])]

    def runners_up(self, trials: Sequence[FrozenTrial]) -> list[Proposal]:
        """Candidates of a budget that were to be measured too and are not among its ``trials``."""
        first, measured = trials[0], {trial.user_attrs["schedule"] for trial in trials}
        texts = [text for text in first.user_attrs.get("candidates", []) if text not in measured]
        return [self.runner_up(parse_schedule(text), first.user_attrs) for text in texts]

    def runner_up(self, schedule: Schedule, attributes: Mapping[str, Any], **more: Any) -> Proposal:
        """A further schedule for a budget, from the attributes of its first trial; ``more``: its own attributes."""
        own = {**{key: attributes[key] for key in (*SHARED, "batch") if key in attributes}, **more}
        return Proposal(schedule, attributes={**own, "violation": self.violation(schedule, own["budget"])})

    def billed(self, proposals: list[Proposal], started: float) -> list[Proposal]:
        """The proposals, the first of which bears what was paid for all."""
        if not proposals:
            return []
        calibration, seconds = self._calibration, time.monotonic() - started
        charged, spent = (calibration.charged, calibration.spent) if calibration is not None else (0, 0)
        self.forget_costs()
        return [replace(proposals[0], seconds=seconds, propose_flops=charged, propose_spent=spent), *proposals[1:]]

    def done(self) -> dict[float, list[FrozenTrial]]:
        """Trials of each budget that are measured, or were stopped by a race.

        One that was tried between others is not there: it has no schedule of its own, also where it is asked later.
        """
        done: dict[float, list[FrozenTrial]] = {}
        for trial in self._paid_trials():
            if not trial.user_attrs.get("interpolated", False):
                done.setdefault(trial.user_attrs["budget"], []).append(trial)
        return done

    def between(self) -> set[float]:
        """Budgets that were tried between those of the study."""
        return {t.user_attrs["budget"] for t in self._paid_trials() if t.user_attrs.get("interpolated", False)}

    def _paid_trials(self) -> list[FrozenTrial]:
        return self.context.log.trials(TrialState.COMPLETE, TrialState.PRUNED)


def not_held(trials: Sequence[FrozenTrial]) -> str:
    """One line on the budgets that relaxed solutions miss by more than 2 %; empty if none does.

    Of several methods, each has its own solution for a budget.
    """
    over: dict[tuple[float, str], float] = {}
    for trial in trials:
        relaxed = relaxed_ratio(trial)
        if relaxed is not None:
            budget = trial.user_attrs["budget"]
            over.setdefault((budget, trial.user_attrs.get("method", "")), (relaxed - budget) / budget)
    missed = [
        f"{budget:.3f}{method and f' with {method}'} ({by:+.0%})"
        for (budget, method), by in sorted(over.items())
        if abs(by) > HELD
    ]
    if not missed:
        return ""
    return f"{len(missed)} of {len(over)} budgets not held within {HELD:.0%} before the snap: {', '.join(missed)}"


def _without_effect(options: GradientOptions, several: bool) -> str:
    """What to say of options that somebody set and that do nothing; "" where there are none."""
    names: tuple[str, ...] = ()
    where = ""
    if options.predictor == "input":
        names, where = ("check", "climb", "measure", "between", "enough"), "predictor: input"
    elif several:
        names, where = ("between", "enough"), "several methods"
    idle = [name for name in names if name in options.model_fields_set and getattr(options, name)]
    return f"with {where}, {', '.join(idle)} has no effect" if idle else ""
