"""Against a toy with a closed-form optimum: multiplier and solution."""

from __future__ import annotations

import math

import pytest
import torch

from vispco.search.gradient.augmented_lagrangian import AugmentedLagrangian


def solve(
    budget: float, weights: list[float], equality: bool = False, dual_steps: int = 30
) -> tuple[torch.Tensor, float]:
    """Minimise sum a_i exp(-3 k_i) subject to mean k_i <= budget, or = budget."""
    a = torch.tensor(weights, dtype=torch.float64)
    k = torch.full_like(a, 0.5).requires_grad_(True)
    state = AugmentedLagrangian(penalty=20.0, cap=200.0, equality=equality)
    for _ in range(dual_steps):
        optimizer = torch.optim.LBFGS([k], max_iter=50, line_search_fn="strong_wolfe")

        def closure(optimizer: torch.optim.LBFGS = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = (a * torch.exp(-3 * k)).sum() + state.term((k.mean() - budget) / budget)
            value.backward()
            return value

        optimizer.step(closure)
        state.dual_step(float((k.detach().mean() - budget) / budget))
    return k.detach(), state.multiplier


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("weights", [[1.0, 2.0], [0.5, 1.0, 1.5, 4.0]])
@pytest.mark.parametrize("equality", [False, True])
def test_water_filling(budget: float, weights: list[float], equality: bool) -> None:
    """Stationarity 3 a_i exp(-3 k_i) = lam / (n budget) gives k_i = (ln(3 a_i) - c) / 3 with mean k_i = budget."""
    n = len(weights)
    c = sum(math.log(3 * w) for w in weights) / n - 3 * budget
    expected = [(math.log(3 * w) - c) / 3 for w in weights]
    multiplier = math.exp(c) * n * budget
    found, lam = solve(budget, weights, equality)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert lam == pytest.approx(multiplier, rel=1e-3)


def test_inactive_constraint_has_no_multiplier() -> None:
    state = AugmentedLagrangian(multiplier=1.0, penalty=20.0)
    state.dual_step(-0.5)
    assert state.multiplier == 0.0
    x = torch.tensor(-0.5, requires_grad=True)
    state.term(x).backward()
    assert float(x.grad) == 0.0


def test_penalty_grows_only_without_progress_and_is_capped() -> None:
    state = AugmentedLagrangian(penalty=20.0, growth=2.0, shrink=0.5, cap=50.0)
    state.dual_step(0.4)
    assert state.penalty == 20.0
    state.dual_step(0.1)
    assert state.penalty == 20.0
    state.dual_step(0.09)
    assert state.penalty == 40.0
    state.dual_step(0.09)
    assert state.penalty == 50.0


def test_equality_pulls_up() -> None:
    """Minimise x^2 / 2 subject to x = 1: the inequality x <= 1 would leave x at 0; the multiplier is -1."""
    x = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    state = AugmentedLagrangian(penalty=5.0, cap=50.0, equality=True)
    for _ in range(20):
        optimizer = torch.optim.LBFGS([x], max_iter=20)

        def closure(optimizer: torch.optim.LBFGS = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = x**2 / 2 + state.term(x - 1)
            value.backward()
            return value

        optimizer.step(closure)
        state.dual_step(float(x.detach()) - 1)
    assert float(x) == pytest.approx(1.0, abs=1e-6)
    assert state.multiplier == pytest.approx(-1.0, abs=1e-5)
