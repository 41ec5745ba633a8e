"""The learned frontier: schedule parameters by gradients through the relaxed model.

For budgets b: minimise KL(teacher || student) over the family's free parameters subject to flops_ratio <= b; snap the
result to the budget (bisection on the monotone cost, so that the realised ratio is never above it); compare it with the
neighbouring shapes on the calibration split; measure the best with the shared evaluator. Then measure some more
budgets, where the front found so far leaves the largest gaps.

Three ways to parametrise (``predictor``): ``static``, free parameters for each budget, found one budget after another,
each from its neighbour's solution; ``budget``, one small network that reads the budget, trained once for all;
``input``, a network that also reads the prompt, so that every sample has its own schedule. Two ways to hold the
budget: the augmented Lagrangian (kind ``lagrangian``), and by construction (kind ``on_budget``).

After arXiv 2604.15188. Deviations: the violation is normalised by the budget; several primal steps per dual step; the
penalty is capped; exact FLOPs; a final check on the calibration split.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from vispco.errors import ConfigError, ScheduleError
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Policy, Schedule, parse_schedule
from vispco.search.base import SEARCHES, Options, Proposal, Search, SearchContext
from vispco.search.budget import RelaxedCost
from vispco.search.calibration import Calibration
from vispco.search.checking import nearest
from vispco.search.constraints import ByConstruction, ByLagrangian, Constraint
from vispco.search.descent import Descent
from vispco.search.predicted import PredictedPolicy, parse_policy, save_predictor, saved_predictor, snapped_policy
from vispco.search.predictor import ParameterTable, RatioPredictor

TIE = 1e-12
SETTLED = 0.02  # change of every keep ratio
TOLERANCE = 0.01  # of flops_ratio, within which a predictor holds every budget before it is snapped
SHARED = ("budget", "multiplier", "penalty", "loss", "steps", "trajectory", "free")


Sharpness = Annotated[float, Field(gt=0)]


class GradientOptions(Options):
    """``dual_steps`` times ``primal_steps`` Adam steps of ``batch`` samples: per budget if static, else in all.

    ``sharpness`` goes from the first to the second value over these steps: a blunt schedule feels the effect of
    layers further away. At most ``check`` calibration samples decide between the result and its neighbouring shapes
    (0: no check), of which the best ``measure`` are measured on the search split, each as a trial. ``climb`` goes on,
    at most so many times, from the nearest to the teacher to its own neighbours, those 2, 4, ... layers away and what
    was found for the budget above included: in deep models gradients of a layer stop before layers far from it.
    ``between``: how many more budgets are tried where the front found so far leaves gaps.
    ``micro_batch``: samples that run together, a divisor of ``batch`` (0: all of ``batch``); several processes
    share the gradients by micro-batches. ``recompute``: run each layer again in the backward pass instead of keeping
    its activations.
    """

    predictor: Literal["static", "budget", "input"] = "static"
    dual_steps: int | None = Field(None, ge=1)
    primal_steps: int = Field(6, ge=1)
    batch: int = Field(16, ge=1)
    micro_batch: int = Field(0, ge=0)
    recompute: bool = False
    learning_rate: float | None = Field(None, gt=0)
    penalty: float = Field(20.0, gt=0)
    penalty_cap: float = Field(200.0, gt=0)
    temperature: float = Field(0.1, gt=0)
    sharpness: tuple[Sharpness, Sharpness] = (1.5, 10.0)
    check: int = Field(128, ge=0)
    climb: int = Field(0, ge=0)
    measure: int = Field(1, ge=1)
    between: int = Field(6, ge=0)

    @field_validator("micro_batch")
    @classmethod
    def _divides(cls, value: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch")
        if value and batch and batch % value:
            raise ValueError(f"micro_batch must divide batch, which is {batch}")
        return value

    def settled(self) -> GradientOptions:
        """With defaults that depend on the predictor filled in."""
        static = self.predictor == "static"
        given = {"dual_steps": 3 if static else 12, "learning_rate": 0.3 if static else 0.01}
        return self.model_copy(update={k: v for k, v in given.items() if getattr(self, k) is None})


class GradientSearch(Search):
    """Trials from the largest budget to the smallest, then between them; none exceeds its own budget."""

    Options: ClassVar[type[Options]] = GradientOptions
    reads_calibration: ClassVar[bool] = True
    tolerance: ClassVar[float | None] = None

    @classmethod
    def check(cls, options: Any, method: Method, family: ScheduleFamily) -> None:
        if not method.differentiable:
            raise ConfigError(
                f"method {method.name!r} is not differentiable, so kind {cls.kind!r} cannot use it; "
                "use grid, random or tpe"
            )

    def __init__(self, context: SearchContext, options: GradientOptions) -> None:
        super().__init__(context, options.settled())
        self._cost = RelaxedCost(context.evaluator)
        self._calibration: Calibration | None = None

    def constraint(self, budgets: Tensor) -> Constraint:
        """What holds ``budgets`` [K]."""
        raise NotImplementedError

    def run(self) -> None:
        context = self.context
        budgets = sorted(context.budgets, reverse=True)
        if self.options.predictor == "static":
            self._static(budgets)
        else:
            self._predicted(budgets)
        self._between(budgets)

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
                micro=options.micro_batch,
                recompute=options.recompute,
                team=context.team,
            )
            if context.log.complete():
                self._calibration.charged = 0
        return self._calibration

    def _paid(self) -> int:
        """What was charged since the last time."""
        charged, self.calibration.charged = self.calibration.charged, 0
        return charged

    # --- free parameters of their own for every budget -------------------------------------------------

    def _static(self, budgets: list[float]) -> None:
        done = self._done()
        free: Tensor = self.context.family.start()
        for number, budget in enumerate(budgets):
            if budget in done:
                first, *others = done[budget]
                free = torch.tensor(first.user_attrs["free"], dtype=torch.float64)
                self._runners_up(first, {trial.user_attrs["schedule"] for trial in (first, *others)})
            else:
                free = self._solve(number, budget, free)
            self.context.advance(number + 1, len(budgets) + self.options.between, f"budget {budget:.3f}")

    def _solve(self, number: int, budget: float, start: Tensor) -> Tensor:
        """Find, measure and store the schedules of one budget; returns where the next budget starts."""
        started = time.monotonic()
        budgets = torch.tensor([budget], dtype=torch.float64)
        descent = self._descent(
            ParameterTable(start, 1),
            budgets,
            f"{self.kind}/{self.context.seed}/{number}",
            settled=self._settles(budget),
        )
        descent.run()
        free = descent.free().detach()[0]
        return self._store(number, budget, free, descent, started)

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
        missing = [budget for budget in budgets if budget not in done]
        if not missing:
            return
        study = context.log.name
        descent = self._predictor(budgets, save=lambda text: save_predictor(context.store, study, text))
        descent.calibration = self.calibration
        if (kept := saved_predictor(context.store, study)) is not None:
            descent.restore(kept)
        elif reads:
            descent.standardise()
        descent.run()
        descent.save(descent.text())
        if done:
            self.calibration.charged = 0
        frees = None if reads else descent.free().detach()
        for number, budget in enumerate(budgets):
            if budget in missing and frees is not None:
                self._store(number, budget, frees[number], descent, started)
            elif budget in missing:
                self._store_policy(number, budget, descent, started)
            context.advance(number + 1, len(budgets) + options.between, f"budget {budget:.3f}")
            started = time.monotonic()

    def _store_policy(self, number: int, budget: float, descent: Descent, started: float) -> None:
        """Measure an input-conditioned policy, moved so that its mean flops_ratio fits."""
        context = self.context
        policy = PredictedPolicy.of(descent, context.log.name, budget)
        policy = snapped_policy(policy, context.evaluator, context.method, budget + TIE)
        attributes = {
            **self._attributes(number, budget, descent),
            "relaxed_flops_ratio": descent.realised()[number],
            "violation": self._violation(policy, budget),
        }
        seconds = time.monotonic() - started
        self.measure([Proposal(policy, {}, self._paid(), seconds, attributes)])

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
            tolerance=self.tolerance if options.predictor != "static" else None,
            **more,
        )

    def _attributes(self, number: int, budget: float, descent: Descent) -> dict[str, Any]:
        at = number if len(descent.budgets) > 1 else 0
        trajectory = descent.trajectory[at]
        self.context.store.save_steps(self.context.log.name, f"budget-{number}", trajectory)
        last = trajectory[-1]
        return {
            "budget": budget,
            "multiplier": last["multiplier"],
            "penalty": last["penalty"],
            "loss": last["loss"],
            "steps": len(trajectory),
            "trajectory": f"budget-{number}",
            "free": last["free"],
        }

    def _store(self, number: int, budget: float, free: Tensor, descent: Descent, started: float) -> Tensor:
        """Snap, check, measure and store; free parameters of where it really ended, from which the next may start."""
        family: ScheduleFamily = self.context.family
        snapped = family.snap(family.discrete(free), self._fits(budget))
        candidates = self._nearest(snapped, budget)[: self.options.measure]
        free = family.invert(candidates[0], free)
        attributes = {
            **self._attributes(number, budget, descent),
            "free": free.tolist(),
            "relaxed_flops_ratio": descent.realised()[number if len(descent.budgets) > 1 else 0],
            "candidates": [candidate.text() for candidate in candidates],
            "violation": self._violation(candidates[0], budget),
        }
        seconds = time.monotonic() - started
        self.measure([Proposal(candidates[0], None, self._paid(), seconds, attributes)])
        for candidate in candidates[1:]:
            self._measure_runner_up(candidate, attributes)
        return free

    def _runners_up(self, first: Any, measured: set[str]) -> None:
        for text in first.user_attrs.get("candidates", []):
            if text not in measured:
                self._measure_runner_up(parse_schedule(text), first.user_attrs)

    def _measure_runner_up(self, schedule: Schedule, attributes: Mapping[str, Any]) -> None:
        violation = self._violation(schedule, attributes["budget"])
        kept = {key: attributes[key] for key in SHARED}
        self.measure([Proposal(schedule, attributes={**kept, "violation": violation})])

    def _between(self, budgets: list[float]) -> None:
        """More budgets, each in the middle of the gap in which the front found so far may gain most.

        Between two neighbouring measured budgets at most (difference in budget) x (difference in accuracy) of
        hypervolume is missed; the shapes found for both are tried, without gradient steps.
        """
        context, options = self.context, self.options
        if options.predictor == "input":
            return
        for number in range(options.between):
            done = self._done()
            points = [(budget, done[budget][0]) for budget in sorted(done)]
            extra = sum(trial.user_attrs.get("interpolated", False) for _, trial in points)
            if extra >= options.between or len(points) < 2:
                return
            (low, below), (high, above) = max(
                itertools.pairwise(points),
                key=lambda pair: (pair[1][0] - pair[0][0]) * max(1e-6, pair[1][1].values[0] - pair[0][1].values[0]),
            )
            budget, started = (low + high) / 2, time.monotonic()
            shapes = [parse_schedule(trial.user_attrs["schedule"]) for trial in (above, below)]
            chosen = self._rank(shapes, budget)[0]
            attributes = {
                **{key: above.user_attrs[key] for key in SHARED},
                "budget": budget,
                "violation": self._violation(chosen, budget),
                "interpolated": True,
            }
            self.measure([Proposal(chosen, None, self._paid(), time.monotonic() - started, attributes)])
            context.advance(len(budgets) + number + 1, len(budgets) + options.between, f"budget {budget:.3f}")

    def _done(self) -> dict[float, list[Any]]:
        done: dict[float, list[Any]] = {}
        for trial in self.context.log.complete():
            done.setdefault(trial.user_attrs["budget"], []).append(trial)
        return done

    def _flops_ratio(self, policy: Policy) -> float:
        return self.context.evaluator.flops_ratio(policy, "search", self.context.method)

    def _violation(self, policy: Policy, budget: float) -> float:
        return (self._flops_ratio(policy) - budget) / budget

    def _fits(self, budget: float) -> Callable[[Schedule], bool]:
        return lambda schedule: self._flops_ratio(schedule) <= budget + TIE

    def _nearest(self, snapped: Schedule, budget: float) -> list[Schedule]:
        """A schedule and its neighbouring shapes, nearest to the teacher first."""
        family, options = self.context.family, self.options
        if not options.check:
            return [snapped]
        if not options.climb:
            return self._rank([snapped, *family.neighbours(snapped)], budget)
        return self._climb(snapped, budget)

    def _climb(self, snapped: Schedule, budget: float) -> list[Schedule]:
        """Pattern search: neighbours 1, 2, 4, ... steps away of the nearest so far, until none of them is nearer."""
        family, fits = self.context.family, self._fits(budget)
        above = [trials[0] for asked, trials in sorted(self._done().items()) if asked > budget]
        starts = [snapped, *(parse_schedule(trial.user_attrs["schedule"]) for trial in above[:1])]
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
        """The shapes, snapped to the budget, nearest to the teacher first (in the given order without a check)."""
        fits, options = self._fits(budget), self.options
        candidates = list(dict.fromkeys(self.context.family.snap(shape, fits) for shape in shapes))
        if len(candidates) > 1 and options.check:
            most = max(1, options.check // options.batch)
            return nearest(self.calibration, candidates, max(1, most // 4), most)
        return candidates


def doubling(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``; 1 at least."""
    return [2**power for power in range(max(most, 1).bit_length())]


@SEARCHES.register("lagrangian")
class LagrangianSearch(GradientSearch):
    """Budgets held by the augmented Lagrangian method.

    A predictor serves all budgets with the same weights, so that a step for one budget moves the others away from
    theirs: after every dual step it is brought back by steps on the constraints alone, which run no model.
    """

    kind: ClassVar[str] = "lagrangian"
    tolerance: ClassVar[float | None] = TOLERANCE

    def constraint(self, budgets: Tensor) -> Constraint:
        options = self.options
        return ByLagrangian(len(budgets), options.penalty, options.penalty_cap, options.predictor != "static")


@SEARCHES.register("on_budget")
class OnBudgetSearch(GradientSearch):
    """Every gradient step is on budget by construction: no multiplier, no penalty."""

    kind: ClassVar[str] = "on_budget"

    def constraint(self, budgets: Tensor) -> Constraint:
        return ByConstruction(self.context.family, self._cost, budgets)
