"""The learned frontier: schedule parameters by gradients through the relaxed model, one budget after another.

For each budget b: minimise KL(teacher || student) over the family's free parameters subject to
flops_ratio <= b, by the augmented Lagrangian method; start from the neighbouring budget's solution; snap the
result to the budget (bisection on the monotone cost, so that the realised ratio is never above it); compare
it with the neighbouring shapes on the calibration split; measure the winner with the shared evaluator.

After arXiv 2604.15188. Deviations: static parameters per budget, no predictor network; the violation is
normalised by the budget; several primal steps per dual step; the penalty is capped; exact FLOPs.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vispco.costs import layer_flops
from vispco.errors import MeasurementError
from vispco.pruning.schedules import Schedule
from vispco.search.augmented_lagrangian import AugmentedLagrangian
from vispco.search.base import SEARCHES, Options, Search, SearchContext
from vispco.search.calibration import Calibration

TIE = 1e-12


class LagrangianOptions(Options):
    """``dual_steps`` times ``primal_steps`` Adam steps of ``batch`` samples per budget.

    ``sharpness`` goes from the first to the second value over these steps: a blunt schedule feels the effect of
    layers further away. ``check`` calibration samples decide between the result and its neighbouring shapes
    (0: no check).
    """

    dual_steps: int = Field(3, ge=1)
    primal_steps: int = Field(6, ge=1)
    batch: int = Field(16, ge=1)
    learning_rate: float = Field(0.3, gt=0)
    penalty: float = Field(20.0, gt=0)
    penalty_cap: float = Field(200.0, gt=0)
    temperature: float = Field(0.1, gt=0)
    sharpness: tuple[float, float] = (1.5, 10.0)
    check: int = Field(128, ge=0)


@SEARCHES.register("lagrangian")
class LagrangianSearch(Search):
    """One trial per budget, from the largest budget to the smallest."""

    kind: ClassVar[str] = "lagrangian"
    Options: ClassVar[type[Options]] = LagrangianOptions

    def __init__(self, context: SearchContext, options: LagrangianOptions) -> None:
        super().__init__(context, options)
        self._lengths = self._search_lengths()

    def run(self) -> None:
        context = self.context
        budgets = sorted(context.budgets, reverse=True)
        done = {trial.user_attrs["budget"]: trial for trial in context.log.complete()}
        calibration: Calibration | None = None
        free: Tensor | None = None
        for number, budget in enumerate(budgets):
            if budget in done:
                free = torch.tensor(done[budget].user_attrs["free"], dtype=torch.float64)
            else:
                started = time.monotonic()
                if calibration is None:
                    calibration = Calibration(context.evaluator, context.method, self.options.batch, context.seed)
                    # The teacher is paid once, by the first budget; a resumed search has paid it already.
                    calibration.charged *= number == 0
                free = self._solve(calibration, number, budget, free, started)
            context.advance(number + 1, len(budgets), f"budget {budget:.3f}")

    def _solve(
        self, calibration: Calibration, number: int, budget: float, warm: Tensor | None, started: float
    ) -> Tensor:
        context, options, family = self.context, self.options, self.context.family
        rng = random.Random(f"lagrangian/{context.seed}/{number}")
        start = family.starts()[0] if warm is None else warm
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
            loss = calibration.loss(batch, ratios.float(), options.temperature)
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
        solution = free.detach()
        schedule = self._finish(calibration, family.discrete(solution), budget)
        # Later budgets start where this one really ended.
        solution = family.invert(schedule, solution)
        context.store.save_steps(context.log.name, f"budget-{number}", trajectory)
        self.measure(
            schedule,
            propose_flops=calibration.charged,
            started=started,
            attributes={
                "budget": budget,
                "multiplier": lagrangian.multiplier,
                "penalty": lagrangian.penalty,
                "violation": (context.evaluator.flops_ratio(schedule, "search", context.method) - budget) / budget,
                "loss": trajectory[-1]["loss"],
                "steps": len(trajectory),
                "trajectory": f"budget-{number}",
                "free": solution.tolist(),
            },
        )
        calibration.charged = 0
        return solution

    def _finish(self, calibration: Calibration, schedule: Schedule, budget: float) -> Schedule:
        """Snap to the budget; of the neighbouring shapes, take the one nearest to the teacher."""
        family, options = self.context.family, self.options

        def fits(candidate: Schedule) -> bool:
            ratio = self.context.evaluator.flops_ratio(candidate, "search", self.context.method)
            return ratio <= budget + TIE

        shapes = [schedule, *(family.neighbours(schedule) if options.check else [])]
        candidates = list(dict.fromkeys(family.snap(shape, fits) for shape in shapes))
        if len(candidates) == 1:
            return candidates[0]
        batches = max(1, options.check // options.batch)
        losses = {candidate: calibration.pruned_loss(candidate, batches) for candidate in candidates}
        return min(candidates, key=lambda candidate: losses[candidate])

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
