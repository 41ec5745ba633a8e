"""The learned frontier: schedule parameters by gradients through the relaxed model.

For budgets b: minimise KL(teacher || student) over the family's free parameters subject to flops_ratio <= b; snap the
result to the budget (bisection on the monotone cost, so that the realised ratio is never above it); compare it with the
neighbouring shapes on the calibration split; measure the best with the shared evaluator. Then measure some more
budgets, where the front found so far leaves the largest gaps.

Three ways to parametrise (``predictor``): ``budget``, one small network that reads the budget, trained once for all;
``static``, free parameters for each budget, found one budget after another, each from its neighbour's solution and
multiplier; ``input``, a network that also reads the prompt, so that every sample has its own schedule. Two ways to
hold the budget: the augmented Lagrangian (kind ``lagrangian``), and by construction (kind ``on_budget``).

With a predictor, the schedules of all budgets are checked together and measured together, so that what they have in
common runs once.

After arXiv 2604.15188. Deviations: the violation is normalised by the budget; several primal steps per dual step; the
penalty is capped; exact FLOPs; with every dual step the budgets are restored by steps on the constraints alone; a final
check on the calibration split.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, ClassVar

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from vispco.errors import ConfigError, ScheduleError
from vispco.fronts import HELD, choose, is_measured, relaxed_ratio
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Policy, Schedule, keep_all, parse_schedule
from vispco.search.base import SEARCHES, Options, Proposal, Search, SearchContext
from vispco.search.gradient.constraints import ByConstruction, ByLagrangian, Constraint, Limits
from vispco.search.gradient.descent import Descent
from vispco.search.gradient.distillation import Calibration
from vispco.search.gradient.kkt import residuals
from vispco.search.gradient.method_race import MethodRace
from vispco.search.gradient.options import GradientOptions
from vispco.search.gradient.predicted import (
    PredictedPolicy,
    budgets_of,
    parse_policy,
    save_predictor,
    saved_predictor,
    snapped_policy,
)
from vispco.search.gradient.predictor import ParameterTable, RatioPredictor
from vispco.search.gradient.refine import nearest, nearest_of_each
from vispco.search.gradient.relaxed_cost import relaxed_cost, relaxed_limits

TIE = 1e-12
SETTLED = 0.02  # change of every keep ratio
TOLERANCE = 0.01  # of flops_ratio, within which every budget is held before it is snapped
SHARED = ("budget", "multiplier", "penalty", "loss", "steps", "trajectory", "free")


class GradientSearch(Search):
    """Trials from the largest budget to the smallest, then between them; none exceeds its own budget."""

    Options: ClassVar[type[Options]] = GradientOptions
    reads_calibration: ClassVar[bool] = True
    among_methods: ClassVar[bool] = True
    defaults: ClassVar[int] = 3
    tolerance: ClassVar[float | None] = None
    any_cost: ClassVar[bool] = True

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
        self._cost = relaxed_cost(context.cost, context.evaluator, context.family, context.method)
        self._limits = relaxed_limits(context.cost, context.family, context.method)
        self._calibration: Calibration | None = None

    def constraint(self, budgets: Tensor) -> Constraint:
        """What holds ``budgets`` [K]."""
        raise NotImplementedError

    def run(self) -> None:
        context, before = self.context, len(self.context.log.complete())
        budgets = sorted(context.budgets, reverse=True)
        if context.methods:
            MethodRace(self).run()
        elif self.options.predictor == "static":
            self._static(budgets)
        else:
            self._predicted(budgets)
        if not context.methods:
            self._between(budgets)
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
                self._forget()
        return self._calibration

    def _forget(self) -> None:
        """An earlier run has paid for what this one did again."""
        if self._calibration is not None:
            self._calibration.charged = self._calibration.spent = 0

    # --- free parameters of their own for every budget -------------------------------------------------

    def _static(self, budgets: list[float]) -> None:
        done = self._done()
        free: Tensor = self.context.family.start()
        multiplier = 0.0
        for number, budget in enumerate(budgets):
            if budget in done:
                first = done[budget][0]
                free = torch.tensor(first.user_attrs["free"], dtype=torch.float64)
                multiplier = first.user_attrs["multiplier"]
                self.measure(self._runners_up(done[budget]))
            else:
                free, multiplier = self._solve(number, budget, free, multiplier)
            self.context.advance(number + 1, len(budgets) + self.options.between, f"budget {budget:.3f}")

    def _solve(self, number: int, budget: float, start: Tensor, multiplier: float) -> tuple[Tensor, float]:
        """Find, measure and store the schedules of one budget; returns where the next budget starts."""
        started = time.monotonic()
        budgets = torch.tensor([budget], dtype=torch.float64)
        descent = self._descent(
            ParameterTable(start, 1),
            budgets,
            f"{self.kind}/{self.context.seed}/{number}",
            settled=self._settles(budget),
        )
        descent.constraint.restore([[multiplier, self.options.penalty, math.inf]])
        descent.run()
        free = descent.free().detach()[0]
        (ranked,) = self._nearest_each([(budget, self._snapped(free, budget))])
        free, proposals = self._proposals(number, budget, free, ranked, descent)
        self.measure(self._billed(proposals, started))
        return free, proposals[0].attributes["multiplier"]

    def _settles(self, budget: float) -> Callable[[Tensor], bool]:
        """Whether the snapped schedule is the one of the dual step before."""
        family, fits = self.context.family, self._fits(budget)
        before: list[tuple[float, ...]] = []

        def settled(free: Tensor) -> bool:
            now = family.snap(family.discrete(free[0]), fits).keep_ratio(family.layers)
            same = bool(before) and max(abs(a - b) for a, b in zip(before[-1], now, strict=True)) <= SETTLED
            before.append(now)
            return same

        return settled

    # --- one network for all budgets ------------------------------------------------------------------

    def _predicted(self, budgets: list[float]) -> None:
        context, options = self.context, self.options
        reads, started = options.predictor == "input", time.monotonic()
        done = self._done()
        missing = [(number, budget) for number, budget in enumerate(budgets) if budget not in done]
        if not missing:
            self._measure_together([], done)
            return
        study = context.log.name
        descent = self._predictor(budgets, save=lambda text: save_predictor(context.store, study, text))
        descent.calibration = self.calibration
        kept = saved_predictor(context.store, study)
        if kept is not None and (known := budgets_of(kept)) != len(budgets):
            if reads:
                raise ConfigError(
                    f"its network was trained for {known} budgets and is needed by its trials; the study has "
                    f"{len(budgets)} now: give the entry another name"
                )
            kept = None  # trained again, for all; schedules that are there keep theirs
        if kept is not None:
            descent.restore(kept)
        elif reads:
            descent.standardise()
        descent.run()
        descent.save(descent.text())
        if done:
            self._forget()
        elif self._enough is not None:  # alone, it would have to measure the plain model
            self.calibration.charged += context.evaluator.price(keep_all(), "search")
        seen: list[float] = []
        for group in self._groups(budgets):
            before = {budget: done[budget] for _, budget in group if budget in done}
            proposals = self._proposed([one for one in group if one[1] not in before], descent)
            if before:
                self._forget()
            self._measure_together(self._billed(proposals, started), before)
            started, seen = time.monotonic(), [*seen, *(budget for _, budget in group)]
            if (best := self._good_enough(seen)) is not None:
                rest = [one for one in enumerate(budgets) if one[1] > max(seen) and one[1] not in done]
                self._take_over(best, rest, descent)
                return

    @property
    def _enough(self) -> float | None:
        """Loss of accuracy with which larger budgets need no schedule of their own."""
        options = self.options
        all_together = options.race is not None or options.predictor != "budget"
        return None if options.enough == "never" or all_together else options.enough

    def _groups(self, budgets: list[float]) -> list[list[tuple[int, float]]]:
        """Numbers and budgets that are measured together, from the least up; in a group the largest first.

        The lower half, of which most are needed, then one, two, three, ...
        """
        numbered = list(enumerate(budgets))
        if self._enough is None:
            return [numbered]
        end = len(numbered) // 2
        groups = [numbered[end:]]
        while end > 0:
            start = max(0, end - len(groups))
            groups.append(numbered[start:end])
            end = start
        return groups

    def _proposed(self, wanted: Sequence[tuple[int, float]], descent: Descent) -> list[Proposal]:
        """Schedules or policies to be measured for budgets, from a finished training."""
        if self.options.predictor == "input":
            return [self._policy_proposal(number, budget, descent) for number, budget in wanted]
        proposals = []
        frees = descent.free().detach()
        snapped = [(budget, self._snapped(frees[number], budget)) for number, budget in wanted]
        for (number, budget), ranked in zip(wanted, self._nearest_each(snapped), strict=True):
            proposals += self._proposals(number, budget, frees[number], ranked, descent)[1]
        return proposals

    def _good_enough(self, seen: Sequence[float]) -> FrozenTrial | None:
        """The trial of the budgets ``seen`` that serves all larger ones too, if there is one."""
        context, enough = self.context, self._enough
        if enough is None:
            return None
        trials = [t for t in context.log.complete() if t.user_attrs["budget"] in seen and is_measured(t)]
        best: FrozenTrial | None = choose(trials, max(seen))
        plain = context.evaluator.unpruned("search").accuracy
        return best if best is not None and best.values[0] >= plain - enough - TIE else None

    def _take_over(self, best: FrozenTrial, wanted: Sequence[tuple[int, float]], descent: Descent) -> None:
        """Trials of larger budgets with the schedule of ``best``, which is not paid again."""
        schedule, proposals = parse_schedule(best.user_attrs["schedule"]), []
        for number, budget in wanted:
            attributes = {
                **self._attributes(number, budget, descent),
                "violation": self._violation(schedule, budget),
                "taken_over": best.number,
                "charged_flops": 0,
            }
            proposals.append(Proposal(schedule, attributes=attributes))
        self.measure(proposals)

    def _measure_together(self, proposals: list[Proposal], done: Mapping[float, list[FrozenTrial]]) -> None:
        """Measure the budgets' proposals, and what an earlier run left to measure of the budgets that are ``done``."""
        context, race = self.context, self.options.race
        solved = [trials for trials in done.values() if not trials[0].user_attrs.get("interpolated", False)]
        wanted = [*proposals, *(one for trials in solved for one in self._runners_up(trials))]
        known = None
        if race is not None and wanted:
            texts = [trial.user_attrs["schedule"] for trials in solved for trial in trials]
            texts += [proposal.schedule.text() for proposal in wanted]
            known = self.race([parse_schedule(text) for text in dict.fromkeys(texts)], race)
        total = len(context.budgets) + self.options.between
        before = sum(not trials[0].user_attrs.get("interpolated", False) for trials in self._done().values())

        def tell(landed: int) -> None:
            context.advance(min(total, before + landed), total, f"budget {wanted[landed - 1].attributes['budget']:.3f}")

        self.measure(wanted, tell, known)

    def _policy_proposal(self, number: int, budget: float, descent: Descent) -> Proposal:
        """An input-conditioned policy, moved so that its mean flops_ratio fits."""
        context = self.context
        policy = PredictedPolicy.of(descent, context.log.name, budget)
        policy = snapped_policy(policy, context.evaluator, context.method, budget + TIE, context.cost)
        attributes = {**self._attributes(number, budget, descent), "violation": self._violation(policy, budget)}
        return Proposal(policy, {}, attributes=attributes)

    def _predictor(self, budgets: list[float], **more: Any) -> Descent:
        """Untrained, without a calibration split."""
        context, reads = self.context, self.options.predictor == "input"
        features = 2 * context.evaluator.problem.shape.hidden if reads else 0
        module = RatioPredictor(context.family.start(), reads=features, seed=context.seed)
        wanted = torch.tensor(budgets, dtype=torch.float64)
        name = f"{self.kind}/{context.seed}"
        return self._descent(module, wanted, name, calibration=None, reads=reads, **more)

    def policy(self, text: str) -> Policy:
        """The policy of a trial's ``schedule``; predictors are read from the database."""

        def load(study: str, budget: float) -> PredictedPolicy:
            kept = saved_predictor(self.context.store, study)
            if kept is None:
                raise ScheduleError(f"the predictor of {study!r} is not in this database; run the experiment again")
            descent = self._predictor(sorted(self.context.budgets, reverse=True))
            descent.restore(kept)
            return PredictedPolicy.of(descent, study, budget)

        return parse_policy(text, load)

    # --- what both have in common ----------------------------------------------------------------------

    def _descent(self, module: torch.nn.Module, budgets: Tensor, name: str, **more: Any) -> Descent:
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

    def _attributes(self, number: int, budget: float, descent: Descent) -> dict[str, Any]:
        """What a trial says of its budget's descent, the KKT residuals of where it ended among it."""
        at = number if len(descent.budgets) > 1 else 0
        trajectory, key = descent.trajectory[at], f"budget-{number}"
        if any(trials[0].user_attrs.get("trajectory") == key for trials in self._done().values()):
            key = f"budget-{budget!r}"  # a budget that was added later has another one's number
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
            "multiplier": last["multiplier"],
            "penalty": last["penalty"],
            "loss": last["loss"],
            "steps": len(trajectory),
            "trajectory": key,
            "free": last["free"],
            "relaxed_flops_ratio" if self.context.cost.in_flops else "relaxed_cost_ratio": realised,
            **reached,
        }

    def _snapped(self, free: Tensor, budget: float) -> Schedule:
        family: ScheduleFamily = self.context.family
        return family.snap(family.discrete(free), self._fits(budget))

    def _proposals(
        self, number: int, budget: float, free: Tensor, ranked: Sequence[Schedule], descent: Descent
    ) -> tuple[Tensor, list[Proposal]]:
        """The first of a budget's candidates, the others to be measured, and where the first one's parameters are."""
        candidates = ranked[: self.options.measure]
        free = self.context.family.invert(candidates[0], free)
        attributes = {
            **self._attributes(number, budget, descent),
            "free": free.tolist(),
            "candidates": [candidate.text() for candidate in candidates],
            "violation": self._violation(candidates[0], budget),
        }
        first = Proposal(candidates[0], attributes=attributes)
        return free, [first, *(self._runner_up(candidate, attributes) for candidate in candidates[1:])]

    def _billed(self, proposals: list[Proposal], started: float) -> list[Proposal]:
        """The proposals, the first of which bears what was paid for all."""
        if not proposals:
            return []
        calibration, seconds = self._calibration, time.monotonic() - started
        charged, spent = (calibration.charged, calibration.spent) if calibration is not None else (0, 0)
        self._forget()
        return [replace(proposals[0], seconds=seconds, propose_flops=charged, propose_spent=spent), *proposals[1:]]

    def _runners_up(self, trials: Sequence[FrozenTrial]) -> list[Proposal]:
        """Candidates of a budget that were to be measured too and are not among its ``trials``."""
        first, measured = trials[0], {trial.user_attrs["schedule"] for trial in trials}
        texts = [text for text in first.user_attrs.get("candidates", []) if text not in measured]
        return [self._runner_up(parse_schedule(text), first.user_attrs) for text in texts]

    def _runner_up(self, schedule: Schedule, attributes: Mapping[str, Any]) -> Proposal:
        violation = self._violation(schedule, attributes["budget"])
        return Proposal(schedule, attributes={**{key: attributes[key] for key in SHARED}, "violation": violation})

    def _between(self, budgets: list[float]) -> None:
        """More budgets, each in the middle of a gap in which the front found so far may gain most.

        Between two neighbouring measured budgets at most (difference in budget) x (difference in accuracy) of
        hypervolume is missed; of the half of a gap a quarter. The shapes found at both ends are tried, without
        gradient steps.
        """
        context, options, started = self.context, self.options, time.monotonic()
        done = self._done()
        solved = {b: t[0] for b, t in sorted(done.items()) if not t[0].user_attrs.get("interpolated", False)}
        extra = len(done) - len(solved)
        ends = [(budget, trial) for budget, trial in solved.items() if trial.state == TrialState.COMPLETE]
        if options.predictor == "input" or extra >= options.between or len(ends) < 2:
            return
        wanted = [gap for gap in widest(ends, options.between) if gap[0] not in done][: options.between - extra]
        shapes = [[parse_schedule(end.user_attrs["schedule"]) for end in (above, below)] for _, above, below in wanted]
        ranked = self._rank_each([(gap[0], both) for gap, both in zip(wanted, shapes, strict=True)])
        proposals = []
        for (budget, above, _), (chosen, *_others) in zip(wanted, ranked, strict=True):
            attributes = {
                **{key: above.user_attrs[key] for key in SHARED},
                "budget": budget,
                "violation": self._violation(chosen, budget),
                "interpolated": True,
            }
            proposals.append(Proposal(chosen, attributes=attributes))
        if extra:
            self._forget()
        total = len(budgets) + options.between
        self.measure(
            self._billed(proposals, started),
            lambda landed: context.advance(len(budgets) + extra + landed, total, "between budgets"),
        )

    def _done(self) -> dict[float, list[FrozenTrial]]:
        """Trials of each budget that are measured, or were stopped by a race."""
        done: dict[float, list[FrozenTrial]] = {}
        for trial in self.context.log.trials(TrialState.COMPLETE, TrialState.PRUNED):
            done.setdefault(trial.user_attrs["budget"], []).append(trial)
        return done

    def _violation(self, policy: Policy, budget: float) -> float:
        return (self.context.ratio(policy) - budget) / budget

    def _fits(self, budget: float) -> Callable[[Schedule], bool]:
        """Whether a schedule is within the budget, and within the study's limits on costs."""
        return self.context.cost.fits(budget, self.context.method)

    def _nearest_each(self, snapped: Sequence[tuple[float, Schedule]]) -> list[list[Schedule]]:
        """Of each budget its schedule and the neighbouring shapes, nearest to the teacher first."""
        family, options = self.context.family, self.options
        if not options.check:
            return [[schedule] for _, schedule in snapped]
        if not options.climb:
            return self._rank_each([(budget, [one, *family.neighbours(one)]) for budget, one in snapped])
        found: list[list[Schedule]] = []
        for budget, schedule in snapped:
            above = found[-1][0] if found else self._above(budget)
            found.append(self._climb(schedule, budget, above))
        return found

    def _above(self, budget: float) -> Schedule | None:
        """What was found for the next larger budget."""
        above = [trials[0] for asked, trials in sorted(self._done().items()) if asked > budget]
        return parse_schedule(above[0].user_attrs["schedule"]) if above else None

    def _climb(self, snapped: Schedule, budget: float, above: Schedule | None) -> list[Schedule]:
        """Pattern search: neighbours 1, 2, 4, ... steps away of the nearest so far, until none of them is nearer."""
        family, fits = self.context.family, self._fits(budget)
        starts = [snapped] if above is None else [snapped, above]
        ranked, best, tried = self._rank(starts, budget), None, set[Schedule]()
        for _ in range(self.options.climb):
            if ranked[0] == best:
                break
            best = ranked[0]
            tried.update(ranked)
            around = [shape for by in doubling(family.layers // 3) for shape in family.neighbours(best, by)]
            further = dict.fromkeys(family.snap(shape, fits) for shape in around)
            ranked = self._rank([best, *(shape for shape in further if shape not in tried)], budget)
        return ranked

    def _rank(self, shapes: list[Schedule], budget: float) -> list[Schedule]:
        """The shapes, snapped to the budget, nearest to the teacher first."""
        candidates = self._candidates(shapes, budget)
        return nearest(self.calibration, candidates, *self._batches()) if len(candidates) > 1 else candidates

    def _rank_each(self, groups: Sequence[tuple[float, list[Schedule]]]) -> list[list[Schedule]]:
        """:meth:`_rank` of several budgets' shapes, together; in the given order without a check."""
        candidates = [self._candidates(shapes, budget) for budget, shapes in groups]
        if not self.options.check or all(len(group) == 1 for group in candidates):
            return candidates
        return nearest_of_each(self.calibration, candidates, *self._batches())

    def _candidates(self, shapes: list[Schedule], budget: float) -> list[Schedule]:
        fits = self._fits(budget)
        return list(dict.fromkeys(self.context.family.snap(shape, fits) for shape in shapes))

    def _batches(self) -> tuple[int, int]:
        """Mini-batches of a check: at first, and at most."""
        most = max(1, self.options.check // self.options.batch)
        return max(1, most // 4), most


def widest(ends: Sequence[tuple[float, FrozenTrial]], count: int) -> list[tuple[float, FrozenTrial, FrozenTrial]]:
    """Middles of the ``count`` largest gaps between measured budgets, with the trials above and below the gap.

    Half a gap counts as if its end had the accuracy in the middle.
    """
    gaps = []
    for (low, below), (high, above) in itertools.pairwise(ends):
        gain = max(1e-6, above.values[0] - below.values[0])
        gaps.append((low, high, (high - low) * gain, above, below))
    found = []
    for _ in range(count):
        place = max(range(len(gaps)), key=lambda n: gaps[n][2])
        low, high, missed, above, below = gaps.pop(place)
        middle = (low + high) / 2
        found.append((middle, above, below))
        gaps[place:place] = [(low, middle, missed / 4, above, below), (middle, high, missed / 4, above, below)]
    return found


def not_held(trials: Sequence[FrozenTrial]) -> str:
    """One line on the budgets that relaxed solutions miss by more than 2 %; empty if none does."""
    over: dict[float, float] = {}
    for trial in trials:
        relaxed = relaxed_ratio(trial)
        if relaxed is not None:
            budget = trial.user_attrs["budget"]
            over.setdefault(budget, (relaxed - budget) / budget)
    missed = [f"{budget:.3f} ({by:+.0%})" for budget, by in sorted(over.items()) if abs(by) > HELD]
    if not missed:
        return ""
    return f"{len(missed)} of {len(over)} budgets not held within {HELD:.0%} before the snap: {', '.join(missed)}"


def doubling(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``; 1 at least."""
    return [2**power for power in range(max(most, 1).bit_length())]


@SEARCHES.register("lagrangian")
class LagrangianSearch(GradientSearch):
    """Budgets held by the augmented Lagrangian method.

    A few primal steps per dual step move a relaxed schedule away from its budget faster than the multiplier brings it
    back, and a step of a predictor for one budget moves all others. So with every dual step the budgets are restored by
    steps on the constraints alone, which run no model.
    """

    kind: ClassVar[str] = "lagrangian"
    tolerance: ClassVar[float | None] = TOLERANCE

    def constraint(self, budgets: Tensor) -> Constraint:
        options = self.options
        equality = options.predictor != "static" and not self._limits  # a limit may keep a budget from being reached
        return ByLagrangian(len(budgets), options.penalty, options.penalty_cap, equality)


@SEARCHES.register("on_budget")
class OnBudgetSearch(GradientSearch):
    """Every gradient step is on budget by construction: no multiplier, no penalty."""

    kind: ClassVar[str] = "on_budget"

    def constraint(self, budgets: Tensor) -> Constraint:
        return ByConstruction(self.context.family, self._cost, budgets)
