"""How a gradient search holds its budgets: by the augmented Lagrangian, or by construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vispco.pruning.families import ScheduleFamily
from vispco.search.gradient.augmented_lagrangian import AugmentedLagrangian
from vispco.search.gradient.relaxed_cost import Relaxed, on_budget


class Constraint(Protocol):
    """One constraint, cost = budget, for each of K budgets."""

    def place(self, free: Tensor, sharpness: float) -> Tensor:
        """Free parameters [..., K, P] as they are used."""

    def term(self, violation: Tensor) -> Tensor:
        """What is added to the objective, from violations [K] relative to the budgets."""

    def dual_step(self, violation: list[float]) -> None:
        """After some primal steps."""

    def state(self, number: int) -> dict[str, float]:
        """``multiplier`` and ``penalty`` of budget ``number``."""

    def to_list(self) -> list[list[float]]:
        """Everything that :meth:`restore` needs."""

    def restore(self, state: list[list[float]]) -> None: ...


class ByLagrangian:
    """A multiplier and a penalty for every budget; ``equality`` where a network serves all budgets together."""

    def __init__(self, budgets: int, penalty: float, cap: float, equality: bool) -> None:
        self._each = [AugmentedLagrangian(penalty=penalty, cap=cap, equality=equality) for _ in range(budgets)]

    def place(self, free: Tensor, sharpness: float) -> Tensor:
        return free

    def term(self, violation: Tensor) -> Tensor:
        return torch.stack([one.term(v) for one, v in zip(self._each, violation, strict=True)]).mean()

    def dual_step(self, violation: list[float]) -> None:
        for one, value in zip(self._each, violation, strict=True):
            one.dual_step(value)

    def state(self, number: int) -> dict[str, float]:
        one = self._each[number]
        return {"multiplier": one.multiplier, "penalty": one.penalty}

    def to_list(self) -> list[list[float]]:
        return [[one.multiplier, one.penalty, one.last_violation] for one in self._each]

    def restore(self, state: list[list[float]]) -> None:
        for one, (multiplier, penalty, last) in zip(self._each, state, strict=True):
            one.multiplier, one.penalty, one.last_violation = multiplier, penalty, last


class Limits:
    """Further inequalities, a limited cost over its bound at most 1, each with a multiplier for every budget."""

    def __init__(self, relaxed: Sequence[Relaxed], budgets: int, penalty: float, cap: float) -> None:
        self._relaxed = relaxed
        self._each = [ByLagrangian(budgets, penalty, cap, equality=False) for _ in relaxed]

    def __bool__(self) -> bool:
        return bool(self._relaxed)

    def violations(self, ratios: Tensor) -> Tensor:
        """[J, K] of ``ratios`` [..., K, L]; of many samples the mean."""
        over = [relaxed(ratios) - 1 for relaxed in self._relaxed]
        return torch.stack([one.view(-1, one.shape[-1]).mean(dim=0) for one in over])

    def term(self, violations: Tensor) -> Tensor:
        return torch.stack([each.term(row) for each, row in zip(self._each, violations, strict=True)]).sum()

    def dual_step(self, violations: Tensor) -> None:
        for each, row in zip(self._each, violations.tolist(), strict=True):
            each.dual_step(row)

    def state(self, number: int) -> list[dict[str, float]]:
        """``multiplier`` and ``penalty`` of each limit, at budget ``number``."""
        return [each.state(number) for each in self._each]

    def to_list(self) -> list[list[list[float]]]:
        return [each.to_list() for each in self._each]

    def restore(self, state: Sequence[list[list[float]]]) -> None:
        for each, own in zip(self._each, state, strict=True):
            each.restore(own)


class ByConstruction:
    """Every step is on budget: parameters are moved along the family's ``upward`` until the cost fits."""

    def __init__(self, family: ScheduleFamily, cost: Relaxed, budgets: Tensor) -> None:
        self._family, self._cost, self._budgets = family, cost, budgets

    def place(self, free: Tensor, sharpness: float) -> Tensor:
        return on_budget(self._family, self._cost, free, self._budgets.expand(free.shape[:-1]), sharpness)

    def term(self, violation: Tensor) -> Tensor:
        return violation.new_zeros(())

    def dual_step(self, violation: list[float]) -> None:
        return None

    def state(self, number: int) -> dict[str, float]:
        return {"multiplier": 0.0, "penalty": 0.0}

    def to_list(self) -> list[list[float]]:
        return []

    def restore(self, state: list[list[float]]) -> None:
        return None
