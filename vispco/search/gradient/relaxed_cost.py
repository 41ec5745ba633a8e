"""The compute of relaxed schedules, and schedules that are on budget by construction."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from vispco.costs import CostModel, decoder_flops, make_cost, plain_flops
from vispco.search.study_cost import FLOPS, StudyCost

if TYPE_CHECKING:
    from vispco.evaluation.evaluator import Evaluator
    from vispco.pruning.families import ScheduleFamily
    from vispco.pruning.methods.base import Method

REACH = 80.0
HALVINGS = 48


class Relaxed(Protocol):
    def __call__(self, ratios: Tensor) -> Tensor:
        """Relaxed cost, float64 [...], of ``ratios`` [..., L]."""


class RelaxedCost:
    """``flops_ratio`` of real-valued keep ratios on the search split, differentiable; scoring is left out.

    Reads the split's lengths only, no answers.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        parts = evaluator.prepared("search")
        weights: Counter[tuple[int, int]] = Counter()
        for part in parts:
            for visual, text in zip(part.n_visual.tolist(), part.n_text.tolist(), strict=True):
                weights[visual, text] += 1 / (len(part.samples) * len(parts))  # type: ignore[assignment]
        self.shape = evaluator.problem.shape
        lengths = torch.tensor([[visual, text] for visual, text in sorted(weights)], dtype=torch.float64)
        self._visual, self._text = lengths[:, 0, None], lengths[:, 1, None]
        share = torch.tensor([weights[key] for key in sorted(weights)], dtype=torch.float64)
        whole = plain_flops(self.shape, (self._visual + self._text)[:, 0])
        self._weight = share / whole

    def __call__(self, ratios: Tensor) -> Tensor:
        """float64 [...] of ``ratios`` [..., L]."""
        tokens = self._text + self._visual * ratios.double()[..., None, :]
        cost: Tensor = (decoder_flops(self.shape, tokens) * self._weight).sum(dim=-1)
        return cost


class RelaxedShare:
    """Any cost of real-valued keep ratios on the search split, as a share of ``whole``, differentiable.

    ``each``: the mean of each prompt's share of its own unpruned cost, which ``whole`` is then a part of.

    What scoring and hooks add is a constant, ``added``, in the cost's unit: the relaxed model drops nothing. Piecewise
    linear through the points of a profile, so that the slope at a step of a staircase is that of the step.
    """

    def __init__(self, cost: StudyCost, model: CostModel, whole: float, added: float, *, each: bool = False) -> None:
        self._model, self._whole, self._added = model, whole, added
        self._setting, weights = cost.relaxed_parts()
        lengths = torch.tensor(list(weights), dtype=torch.float64)
        self._visual, self._text = lengths[:, 0], lengths[:, 1]
        self._weight = torch.tensor(list(weights.values()), dtype=torch.float64)
        if each:
            visual, text = np.array(list(weights)).T
            self._weight /= torch.from_numpy(model.unpruned(self._setting, visual, text))

    def __call__(self, ratios: Tensor) -> Tensor:
        """float64 [...] of ``ratios`` [..., L]."""
        kept = self._visual[:, None] * ratios.double()[..., None, :]
        visual, text = self._visual.expand(kept.shape[:-1]), self._text.expand(kept.shape[:-1])
        values: Tensor = self._model.relaxed(self._setting, kept, visual, text)
        return ((values * self._weight).sum(dim=-1) + self._added) / self._whole


def relaxed_cost(cost: StudyCost, evaluator: Evaluator, family: ScheduleFamily, method: Method) -> Relaxed:
    """The study's cost, relaxed."""
    if cost.in_flops:
        return RelaxedCost(evaluator)
    return RelaxedShare(cost, cost.model, cost.whole(), cost.added_by_pruning(cost.model, family, method))


def relaxed_limits(cost: StudyCost, family: ScheduleFamily, method: Method) -> list[Relaxed]:
    """Each limit on a cost, relaxed: the limited cost over its bound, at most 1 within it.

    A limit on a rate is one on its inverse.
    """
    found: list[Relaxed] = []
    for bound in cost.bounds:
        model = make_cost(bound.cost)
        each = bound.relative and model.name == FLOPS  # as StudyCost has it
        most = bound.value * (cost.whole_of(model) if bound.relative and not each else 1.0)
        one = RelaxedShare(cost, model, most, cost.added_by_pruning(model, family, method, each=each), each=each)
        found.append(_inverse(one) if model.larger_is_better else one)
    return found


def _inverse(relaxed: Relaxed) -> Relaxed:
    return lambda ratios: 1 / relaxed(ratios)


def on_budget(family: ScheduleFamily, cost: Relaxed, free: Tensor, budgets: Tensor, sharpness: float) -> Tensor:
    """``free`` [..., P] moved along the family's :meth:`upward` so that its relaxed cost is ``budgets`` [...].

    The distance is found by bisection, since the cost only rises along that direction; its gradient is that of the
    implicit function: at cost(free + t u) = b, dt/dfree = -(dcost/dfree) / (dcost/dt). Out of reach, it stops at
    the nearest end.
    """
    up = family.upward().to(free)
    with torch.no_grad():
        low = torch.full_like(budgets, -REACH)
        high = torch.full_like(budgets, REACH)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            fits = cost(family.relaxed(free + middle[..., None] * up, sharpness)) <= budgets
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    with torch.enable_grad():
        move = low.detach().clone().requires_grad_(True)
        reached = cost(family.relaxed(free.detach() + move[..., None] * up, sharpness))
        (slope,) = torch.autograd.grad(reached.sum(), [move])
    here = cost(family.relaxed(free + low[..., None] * up, sharpness))
    # Where the cost no longer moves, neither does the distance.
    step = torch.where(slope > 1e-9, (here - here.detach()) / slope.clamp(min=1e-9), torch.zeros_like(slope))
    return free + (low - step)[..., None] * up
