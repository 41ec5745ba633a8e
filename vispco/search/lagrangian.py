"""The learned frontier: schedule parameters by gradients through the relaxed model, one budget after another.

For each budget b: minimise KL(teacher || student) over the family's free parameters subject to
flops_ratio <= b, by the augmented Lagrangian method; start from the neighbouring budget's solution; snap the
result to the budget (bisection on the monotone cost, so that the realised ratio is never above it); compare
it with the neighbouring shapes on the calibration split; measure the best with the shared evaluator.

After arXiv 2604.15188. Deviations: static parameters per budget, no predictor network; the violation is
normalised by the budget; several primal steps per dual step; the penalty is capped; exact FLOPs.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from vispco.costs import layer_flops
from vispco.errors import MeasurementError
from vispco.pruning.schedules import Schedule, parse_schedule
from vispco.search.augmented_lagrangian import AugmentedLagrangian
from vispco.search.base import SEARCHES, Options, Proposal, Search, SearchContext
from vispco.search.calibration import Calibration

TIE = 1e-12
SHARED = ("budget", "multiplier", "penalty", "loss", "steps", "trajectory", "free")


class LagrangianOptions(Options):
    """``dual_steps`` times ``primal_steps`` Adam steps of ``batch`` samples per budget.

    ``sharpness`` goes from the first to the second value over these steps: a blunt schedule feels the effect of
    layers further away. ``check`` calibration samples decide between the result and its neighbouring shapes
    (0: no check), of which the best ``measure`` are measured on the search split, each as a trial. Of every two
    neighbouring budgets the shapes are also measured at ``between`` budgets in between, without gradient steps.
    ``micro_batch``: samples that run together, a divisor of ``batch`` (0: all of ``batch``); several processes
    share the gradients by micro-batches.
    """

    dual_steps: int = Field(3, ge=1)
    primal_steps: int = Field(6, ge=1)
    batch: int = Field(16, ge=1)
    micro_batch: int = Field(0, ge=0)
    learning_rate: float = Field(0.3, gt=0)
    penalty: float = Field(20.0, gt=0)
    penalty_cap: float = Field(200.0, gt=0)
    temperature: float = Field(0.1, gt=0)
    sharpness: tuple[float, float] = (1.5, 10.0)
    check: int = Field(128, ge=0)
    measure: int = Field(1, ge=1)
    between: int = Field(1, ge=0)

    @field_validator("micro_batch")
    @classmethod
    def _divides(cls, value: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch")
        if value and batch and batch % value:
            raise ValueError(f"micro_batch must divide batch, which is {batch}")
        return value


@SEARCHES.register("lagrangian")
class LagrangianSearch(Search):
    """Trials from the largest budget to the smallest, then between them; none exceeds its own budget."""

    kind: ClassVar[str] = "lagrangian"
    Options: ClassVar[type[Options]] = LagrangianOptions

    def __init__(self, context: SearchContext, options: LagrangianOptions) -> None:
        super().__init__(context, options)
        self._lengths = self._search_lengths()

    def run(self) -> None:
        context = self.context
        budgets = sorted(context.budgets, reverse=True)
        done: dict[float, list[Any]] = {}
        for trial in context.log.complete():
            done.setdefault(trial.user_attrs["budget"], []).append(trial)
        calibration: Calibration | None = None
        free: Tensor | None = None
        for number, budget in enumerate(budgets):
            if budget not in done:
                if calibration is None:
                    calibration = self._calibration()
                    # The teacher is paid once, by the first budget; a resumed search has paid it already.
                    calibration.charged *= number == 0
                free = self._solve(calibration, number, budget, free)
            else:
                first, *others = done[budget]
                free = torch.tensor(first.user_attrs["free"], dtype=torch.float64)
                measured = {trial.user_attrs["schedule"] for trial in (first, *others)}
                for text in first.user_attrs["candidates"]:
                    if text not in measured:
                        self._measure_runner_up(parse_schedule(text), first.user_attrs)
            context.advance(number + 1, len(budgets), f"budget {budget:.3f}")
        self._interpolate(calibration, budgets)

    def _calibration(self) -> Calibration:
        context, options = self.context, self.options
        return Calibration(
            context.evaluator,
            context.method,
            options.batch,
            context.seed,
            micro=options.micro_batch,
            team=context.team,
        )

    def _interpolate(self, calibration: Calibration | None, budgets: list[float]) -> None:
        """Between neighbouring budgets: the shapes found for both, snapped to budgets in between."""
        context, parts = self.context, self.options.between + 1
        first: dict[float, Any] = {}
        for trial in context.log.complete():
            first.setdefault(trial.user_attrs["budget"], trial)
        for above, below in itertools.pairwise(budgets):
            for part in range(1, parts):
                budget = above + (below - above) * part / parts
                if budget in first:
                    continue
                started = time.monotonic()
                if calibration is None:
                    calibration = self._calibration()
                    calibration.charged = 0
                shapes = [parse_schedule(first[b].user_attrs["schedule"]) for b in (above, below)]
                chosen = self._rank(calibration, shapes, budget)[0]
                attributes = {
                    **{key: first[above].user_attrs[key] for key in SHARED},
                    "budget": budget,
                    "violation": self._violation(chosen, budget),
                    "interpolated": True,
                }
                seconds = time.monotonic() - started
                self.measure([Proposal(chosen, None, calibration.charged, seconds, attributes)])
                calibration.charged = 0

    def _solve(self, calibration: Calibration, number: int, budget: float, warm: Tensor | None) -> Tensor:
        """Find, measure and store the schedules of one budget; returns where the next budget starts."""
        context, family, started = self.context, self.context.family, time.monotonic()
        start = family.start() if warm is None else warm
        free, lagrangian, trajectory = self._descend(calibration, number, budget, start)
        snapped = family.snap(family.discrete(free), self._fits(budget))
        shapes = [snapped, *(family.neighbours(snapped) if self.options.check else [])]
        candidates = self._rank(calibration, shapes, budget)[: self.options.measure]
        # The next budget starts where this one really ended.
        free = family.invert(candidates[0], free)
        context.store.save_steps(context.log.name, f"budget-{number}", trajectory)
        attributes = {
            "budget": budget,
            "multiplier": lagrangian.multiplier,
            "penalty": lagrangian.penalty,
            "loss": trajectory[-1]["loss"],
            "steps": len(trajectory),
            "trajectory": f"budget-{number}",
            "candidates": [candidate.text() for candidate in candidates],
            "free": free.tolist(),
        }
        first = {**attributes, "violation": self._violation(candidates[0], budget)}
        seconds = time.monotonic() - started
        self.measure([Proposal(candidates[0], None, calibration.charged, seconds, first)])
        calibration.charged = 0
        for candidate in candidates[1:]:
            self._measure_runner_up(candidate, attributes)
        return free

    def _measure_runner_up(self, schedule: Schedule, attributes: Mapping[str, Any]) -> None:
        violation = self._violation(schedule, attributes["budget"])
        kept = {key: attributes[key] for key in SHARED}
        self.measure([Proposal(schedule, attributes={**kept, "violation": violation})])

    def _violation(self, schedule: Schedule, budget: float) -> float:
        return (self.context.evaluator.flops_ratio(schedule, "search", self.context.method) - budget) / budget

    def _descend(
        self, calibration: Calibration, number: int, budget: float, start: Tensor
    ) -> tuple[Tensor, AugmentedLagrangian, list[dict[str, Any]]]:
        """Primal and dual steps; returns the free parameters, the multiplier's state and every step."""
        options, family = self.options, self.context.family
        rng = random.Random(f"lagrangian/{self.context.seed}/{number}")
        free = start.to(torch.float64).clone().requires_grad_(True)
        optimizer = torch.optim.Adam([free], lr=options.learning_rate)
        lagrangian = AugmentedLagrangian(penalty=options.penalty, cap=options.penalty_cap)
        steps = options.dual_steps * options.primal_steps
        trajectory: list[dict[str, Any]] = []
        for step in range(steps):
            blunt, sharp = options.sharpness
            sharpness = blunt * (sharp / blunt) ** (step / max(1, steps - 1))
            ratios = family.relaxed(free, sharpness)
            batch = rng.randrange(len(calibration.batches))
            loss = calibration.loss(batch, ratios, options.temperature)
            violation = (self._relaxed_flops_ratio(ratios) - budget) / budget
            objective = loss.double() + lagrangian.term(violation)
            (gradient,) = torch.autograd.grad(objective, [free])
            if not bool(torch.isfinite(gradient).all()):
                raise MeasurementError(
                    f"the gradient at budget {budget:.4f} is not finite (step {step}); lower learning_rate"
                )
            free.grad = gradient
            optimizer.step()
            trajectory.append(
                {
                    "loss": float(loss.detach()),
                    "violation": float(violation.detach()),
                    "multiplier": lagrangian.multiplier,
                    "penalty": lagrangian.penalty,
                    "sharpness": sharpness,
                    "free": free.tolist(),
                }
            )
            if (step + 1) % options.primal_steps == 0:
                with torch.no_grad():
                    reached = (self._relaxed_flops_ratio(family.relaxed(free, sharpness)) - budget) / budget
                lagrangian.dual_step(float(reached))
        return free.detach(), lagrangian, trajectory

    def _fits(self, budget: float) -> Callable[[Schedule], bool]:
        evaluator, method = self.context.evaluator, self.context.method
        return lambda schedule: evaluator.flops_ratio(schedule, "search", method) <= budget + TIE

    def _rank(self, calibration: Calibration, shapes: list[Schedule], budget: float) -> list[Schedule]:
        """The shapes, snapped to the budget, nearest to the teacher first (in the given order without a check)."""
        fits, options = self._fits(budget), self.options
        candidates = list(dict.fromkeys(self.context.family.snap(shape, fits) for shape in shapes))
        if len(candidates) > 1 and options.check:
            batches = max(1, options.check // options.batch)
            losses = {candidate: calibration.pruned_loss(candidate, batches) for candidate in candidates}
            candidates.sort(key=lambda candidate: losses[candidate])
        return candidates

    def _search_lengths(self) -> list[tuple[int, int, float]]:
        """(visual tokens, text tokens, share of the samples); tasks weigh the same. Lengths only, no answers."""
        parts = self.context.evaluator.prepared("search")
        weights: Counter[tuple[int, int]] = Counter()
        for part in parts:
            for visual, text in zip(part.n_visual.tolist(), part.n_text.tolist(), strict=True):
                weights[visual, text] += 1 / (len(part.samples) * len(parts))  # type: ignore[assignment]
        return [(visual, text, weight) for (visual, text), weight in sorted(weights.items())]

    def _relaxed_flops_ratio(self, ratios: Tensor) -> Tensor:
        """flops_ratio of real-valued counts, differentiable; scoring is left to the snap."""
        shape = self.context.evaluator.problem.shape
        total = torch.zeros((), dtype=ratios.dtype)
        for visual, text, weight in self._lengths:
            pruned = layer_flops(shape, text + visual * ratios).sum()
            total = total + weight * pruned / (shape.layers * layer_flops(shape, visual + text))
        return total
