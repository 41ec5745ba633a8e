"""Gradient steps on what gives a family's free parameters, for one budget or for many budgets together.

Every step runs one mini-batch through the relaxed model. With many budgets each sample of the batch gets the schedule
of one of them, in turn; the constraints of all are known without running anything. Losses of different budgets differ
by orders of magnitude: each is divided by its own running mean. A step's record holds ``slope`` [L], the derivative of
its budget's loss in the keep ratios, where the mini-batch had samples for that budget.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vispco.errors import MeasurementError
from vispco.pruning.families import ScheduleFamily
from vispco.search.gradient.constraints import Constraint, Limits
from vispco.search.gradient.distillation import Calibration, whole_rounds
from vispco.search.gradient.predictor import RatioPredictor, from_text, to_text
from vispco.search.gradient.relaxed_cost import Relaxed

MEMORY = 0.8  # of the running mean of a budget's loss
LEVEL, LEAST = 0.3, 0.02  # what losses are scaled to, and the loss below which they no longer are
SAVE_SECONDS = 20.0
RESTORING, FINISHING = 40, 400  # most steps on the constraints alone: on the way, and at the end
PATIENCE = 10  # of Adam's steps for each least change that was allowed, where these come to a halt
RESTORING_RATE = 0.003
DAMPING = 1e-3, 1e-9, 1e6  # of Levenberg-Marquardt steps: the first, the least and the most
RESTORED_ON = 4  # mini-batches, where samples are read


@dataclass
class Descent:
    """Where a descent stands: ``trajectory`` of each budget, and how many ``steps`` are done.

    ``says_budgets``: whether its trials say for how many budgets it was trained; those of an older vispco do not.

    Args:
        module: budgets scaled to [0, 1] [K], and features [B, F] if it ``reads`` them -> free parameters.
        budgets: [K].
        name: gives, with the number of the step, the random choice of mini-batches.
        save: called now and then with text from which :meth:`restore` goes on.
        limits: of the study, on other costs. Budgets are then upper bounds only, and what is brought back is the
            tightest of a budget and the limits.
        tolerance: if given, ``module`` is brought within half of it of every budget by steps on the constraints alone,
            which run no model: before the first step, with every dual step and at the end. (The restoration phase of
            inexact-restoration methods: Martinez and Pilotta, 2000.)
    """

    calibration: Calibration | None
    cost: Relaxed
    family: ScheduleFamily
    module: nn.Module
    constraint: Constraint
    options: Any
    budgets: Tensor
    span: tuple[float, float]
    name: str
    total: int
    reads: bool = False
    settled: Callable[[Tensor], bool] = field(default=lambda free: False)
    save: Callable[[str], None] = field(default=lambda text: None)
    tolerance: float | None = None
    limits: Limits = field(default_factory=lambda: Limits((), 0, 1.0, 1.0))
    steps: int = 0
    restored: int = -1
    says_budgets: bool = True

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=self.options.learning_rate)
        self.trajectory: list[list[dict[str, Any]]] = [[] for _ in self.budgets]
        self.level: list[float | None] = [None] * len(self.budgets)
        self._features: Tensor | None = None
        low, high = self.span
        self._places = (self.budgets - low) / (high - low if high > low else 1.0)

    @property
    def sharpness(self) -> float:
        """From blunt to sharp over the steps."""
        blunt, sharp = self.options.sharpness
        return float(blunt * (sharp / blunt) ** (min(self.steps, self.total - 1) / max(1, self.total - 1)))

    def free(self, features: Tensor | None = None) -> Tensor:
        """Free parameters as they are used: [K, P], or [B, K, P] from ``features`` [B, F]."""
        return self.constraint.place(self.module(self._places, features), self.sharpness)

    def run(self, until: int | None = None) -> None:
        """All steps, or those up to number ``until``; fewer if the result has settled.

        Raises:
            MeasurementError: a gradient is not finite.
        """
        saved = time.monotonic()
        while self.steps < (self.total if until is None else min(until, self.total)):
            if self.steps % self.options.primal_steps == 0:
                self._back_on_budget()
            self._step()
            if self.steps % self.options.primal_steps == 0 and self._dual_step():
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save(self.text())
                saved = time.monotonic()
        self._back_on_budget(FINISHING)

    def _back_on_budget(self, most: int = RESTORING) -> None:
        """Nothing moves where all budgets are held, or where this was done at the same step."""
        if self.tolerance is None or self.restored == self.steps:
            return
        self.restored, features = self.steps, self._features_of(RESTORED_ON)
        before = {name: weight.detach().clone() for name, weight in self.module.state_dict().items()}
        self._least_change(most, features)
        if len(self.budgets) > 1 and float(self._over(features).detach().abs().max()) > self.tolerance / 2:
            self.module.load_state_dict(before)
            self._small_steps(PATIENCE * most, features)
            self._least_change(most, features)

    def _least_change(self, most: int, features: Tensor | None) -> None:
        """Levenberg-Marquardt steps: the least change by which, to first order, all violations vanish."""
        weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        (damping, least, largest), tolerance = DAMPING, (self.tolerance or 0.0) / 2
        violation = self._over(features)
        for _ in range(most):
            here, before = violation.detach(), [weight.detach().clone() for weight in weights]
            if float(here.abs().max()) <= tolerance or damping > largest:
                return
            slopes = _jacobian(violation, weights)
            gram = slopes @ slopes.T
            scale = gram.diagonal().clamp(min=float(gram.diagonal().mean()))
            while damping <= largest:
                damped = gram + torch.diag(damping * scale + 1e-12)
                self._move(weights, before, -torch.linalg.solve(damped, here) @ slopes)
                violation = self._over(features)
                if float(violation.detach().norm()) < float(here.norm()):
                    damping = max(least, damping / 10)
                    break
                damping *= 10
            else:
                self._move(weights, before, torch.zeros_like(slopes[0]))

    def _small_steps(self, most: int, features: Tensor | None) -> None:
        """Adam on the relative violations: a network that budgets share can end least changes in a local minimum."""
        optimizer = torch.optim.Adam(self.module.parameters(), lr=RESTORING_RATE)
        for _ in range(most):
            relative = self._tightest(self.family.relaxed(self.free(features), self.sharpness))
            if float((relative * self.budgets).detach().abs().max()) <= (self.tolerance or 0.0) / 2:
                return
            optimizer.zero_grad()
            relative.square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _over(self, features: Tensor | None) -> Tensor:
        """Relaxed flops_ratio minus budget [K], absolute."""
        relaxed = self.family.relaxed(self.free(features), self.sharpness)
        return self._tightest(relaxed) * self.budgets

    def _tightest(self, ratios: Tensor) -> Tensor:
        """Relative violation [K] of the budget, or of the limit that is exceeded most."""
        violation = self._violation(ratios)
        if not self.limits:
            return violation
        return torch.cat([violation[None], self.limits.violations(ratios)]).amax(dim=0)

    @staticmethod
    def _move(weights: Sequence[Tensor], before: Sequence[Tensor], by: Tensor) -> None:
        """Set ``weights`` to ``before`` plus their parts of ``by``, which is flat."""
        with torch.no_grad():
            parts = torch.split(by, [weight.numel() for weight in weights])
            for weight, old, part in zip(weights, before, parts, strict=True):
                weight.copy_(old + part.view_as(weight))

    def _features_of(self, most: int) -> Tensor | None:
        """[N, F] of at ``most`` so many mini-batches of the calibration split, if the module reads them."""
        if not self.reads:
            return None
        assert self.calibration is not None
        most = whole_rounds(self.calibration.problem, most)
        return torch.cat([self.calibration.features(n) for n in range(len(self.calibration.batches))[:most]])

    def standardise(self) -> None:
        """Have a predictor read what tells the calibration samples apart."""
        assert self.calibration is not None
        assert isinstance(self.module, RatioPredictor)
        features = self._features_of(len(self.calibration.batches))
        assert features is not None
        self.module.standardise(features)

    def realised(self) -> list[float]:
        """Relaxed flops_ratio [K]; where samples are read, the mean over those that budgets are held on."""
        with torch.no_grad():
            relaxed = self.family.relaxed(self.free(self._features_of(RESTORED_ON)), self.sharpness)
            return (self.budgets * (1 + self._violation(relaxed))).tolist()

    def _step(self) -> None:
        assert self.calibration is not None
        chosen = self.calibration.drawn(random.Random(f"{self.name}/{self.steps}"))
        features = self._features = self.calibration.features(chosen) if self.reads else None
        free = self.free(features)
        ratios = self.family.relaxed(free, self.sharpness)
        size, count = self.calibration.size(chosen), len(self.budgets)
        first = self.steps * size
        if self.options.rotate:
            first += random.Random(f"{self.name}/{self.steps}/budgets").randrange(count)
        which = torch.tensor([(first + i) % count for i in range(size)])
        rows = ratios[which] if features is None else ratios[torch.arange(size), which]
        losses, weights = self.calibration.losses(chosen, rows, self.options.temperature)
        violation = self._violation(ratios)
        self._watch(losses.detach(), weights, which)
        objective = (weights * losses * self._scale()[which]).sum() + self.constraint.term(violation)
        if self.limits:
            objective = objective + self.limits.term(self.limits.violations(ratios))
        (slope,) = torch.autograd.grad((weights * losses).sum(), [rows], retain_graph=True)
        gradients = torch.autograd.grad(objective, list(self.module.parameters()), allow_unused=True)
        for parameter, gradient in zip(self.module.parameters(), gradients, strict=True):
            if gradient is not None and not bool(torch.isfinite(gradient).all()):
                raise MeasurementError(
                    f"a gradient is not finite ({self.name}, step {self.steps}); lower learning_rate"
                )
            parameter.grad = gradient
        self.optimizer.step()
        self._record(free.detach(), violation.tolist(), [_mean_of(slope, weights, which == k) for k in range(count)])
        self.steps += 1

    def _violation(self, ratios: Tensor) -> Tensor:
        """Relative to the budgets [K]; of many samples the mean."""
        cost = self.cost(ratios)
        return (cost.view(-1, len(self.budgets)).mean(dim=0) - self.budgets) / self.budgets

    def _dual_step(self) -> bool:
        with torch.no_grad():
            free = self.free(self._features)
            ratios = self.family.relaxed(free, self.sharpness)
            self.constraint.dual_step(self._violation(ratios).tolist())
            if self.limits:
                self.limits.dual_step(self.limits.violations(ratios))
        return self.settled(free.detach())

    def _watch(self, losses: Tensor, weights: Tensor, which: Tensor) -> None:
        for number in set(which.tolist()):
            mine = which == number
            mean = float((losses[mine] * weights[mine]).sum() / weights[mine].sum())
            before = self.level[number]
            self.level[number] = mean if before is None else MEMORY * before + (1 - MEMORY) * mean

    def _scale(self) -> Tensor:
        """[K]; 1 for a single budget."""
        if len(self.level) == 1:
            return torch.ones(1, dtype=torch.float64)
        known = [level for level in self.level if level is not None]
        mean = sum(known) / len(known)
        levels = torch.tensor([mean if level is None else level for level in self.level], dtype=torch.float64)
        return LEVEL / (levels.clamp(min=0) + LEAST)

    def _record(self, free: Tensor, violation: Sequence[float], slopes: Sequence[list[float] | None]) -> None:
        mean = free if free.ndim == 2 else free.mean(dim=0)
        for number, trajectory in enumerate(self.trajectory):
            trajectory.append(
                {
                    "loss": self.level[number],
                    "violation": violation[number],
                    **self.constraint.state(number),
                    **({"limits": self.limits.state(number)} if self.limits else {}),
                    "sharpness": self.sharpness,
                    "free": mean[number].tolist(),
                    **({} if (slope := slopes[number]) is None else {"slope": slope}),
                }
            )

    # --- going on later ----------------------------------------------------------------------------

    def text(self) -> str:
        """State of the descent; :meth:`restore` takes it up to the last bit."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        return json.dumps(
            {
                "tensors": to_text(tensors),
                "steps": self.steps,
                "says_budgets": self.says_budgets,
                "restored": self.restored,
                "level": self.level,
                "constraint": _finite(self.constraint.to_list()),
                **({"limits": [_finite(one) for one in self.limits.to_list()]} if self.limits else {}),
                "charged": self.calibration.charged if self.calibration is not None else 0,
                "spent": self.calibration.spent if self.calibration is not None else 0,
                "trajectory": self.trajectory,
            }
        )

    def restore(self, text: str) -> None:
        state: Mapping[str, Any] = json.loads(text)
        tensors = from_text(state["tensors"])
        self.module.load_state_dict(
            {n.removeprefix("module."): v for n, v in tensors.items() if n.startswith("module.")}
        )
        adam: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, number, what = name.split(".")
                adam.setdefault(int(number), {})[what] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": adam})
        self.steps, self.level, self.trajectory = state["steps"], state["level"], state["trajectory"]
        self.restored = state["restored"]
        self.says_budgets = state.get("says_budgets", False)
        self.constraint.restore(_infinite(state["constraint"]))
        if self.limits:
            self.limits.restore([_infinite(one) for one in state["limits"]])
        if self.calibration is not None:
            self.calibration.charged = state["charged"]
            self.calibration.spent += state.get("spent", 0)


def _jacobian(values: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """[K, W] of ``values`` [K] in all weights as one vector."""
    rows = [torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True) for value in values]
    return torch.stack([_flat(row, weights) for row in rows])


def _flat(row: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    """Gradients of all weights as one vector; 0 where a weight plays no part."""
    known = (torch.zeros_like(w) if part is None else part for part, w in zip(row, weights, strict=True))
    return torch.cat([part.flatten() for part in known])


def _mean_of(slope: Tensor, weights: Tensor, mine: Tensor) -> list[float] | None:
    """Derivative [L] of the mean loss of the samples that are ``mine`` [B]; ``slope`` [B, L] is weighted already."""
    return (slope[mine].sum(dim=0) / weights[mine].sum()).tolist() if bool(mine.any()) else None


def _finite(rows: list[list[float]]) -> list[list[float | None]]:
    """JSON has no infinity."""
    return [[value if math.isfinite(value) else None for value in row] for row in rows]


def _infinite(rows: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """The other way round."""
    return [[math.inf if value is None else value for value in row] for row in rows]
