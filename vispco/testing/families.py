"""What every schedule family must pass."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from vispco.errors import ConfigError
from vispco.pruning.families.base import ScheduleFamily
from vispco.pruning.schedules import Schedule, parse_schedule, ratio_counts

TOKENS = 576


class FamilyConformance:
    """Set ``family``, the class.

    ``tightness``: how far below its budget a snapped schedule may stay, as a share of all tokens.
    """

    family: ClassVar[type[ScheduleFamily]]
    tightness: ClassVar[float] = 0.005

    @pytest.fixture(params=[2, 4, 8, 33])
    def made(self, request: Any) -> ScheduleFamily:
        return self.family(request.param)

    def draws(self, made: ScheduleFamily, count: int = 60) -> list[dict[str, Any]]:
        import optuna

        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        return [dict(study.ask(fixed_distributions=made.distributions()).params) for _ in range(count)]

    def frees(self, made: ScheduleFamily, count: int = 40) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(len(made.start()), generator=generator, dtype=torch.float64) for _ in range(count)]

    def cost(self, made: ScheduleFamily, schedule: Schedule) -> float:
        return float(ratio_counts(schedule.keep_ratio(made.layers), [TOKENS]).mean()) / TOKENS

    def check_member(self, made: ScheduleFamily, schedule: Schedule) -> None:
        """Valid ratios, a text that reads back, parameters inside the bounds that give it back."""
        ratios = schedule.keep_ratio(made.layers)
        assert len(ratios) == made.layers
        assert ratios[0] == 1.0 or made.before_decoder
        assert all(0 <= b <= a <= 1 for a, b in itertools.pairwise(ratios))
        assert parse_schedule(schedule.text()) == schedule
        parameters, spaces = made.parameters(schedule), made.distributions()
        assert set(parameters) == set(spaces)
        for name, space in spaces.items():
            assert space._contains(space.to_internal_repr(parameters[name])), (name, parameters[name])
        again = made.schedule(parameters).keep_ratio(made.layers)
        assert np.allclose(again, ratios, atol=1e-3), (schedule, again)

    def test_draws_are_schedules(self, made: ScheduleFamily) -> None:
        cheapest = self.cost(made, made.cheapest())
        self.check_member(made, made.cheapest())
        for parameters in self.draws(made):
            schedule = made.schedule(parameters)
            self.check_member(made, schedule)
            assert self.cost(made, schedule) >= cheapest

    def test_differentiable_form_sharpens_to_the_discrete_one(self, made: ScheduleFamily) -> None:
        compared = 0
        for free in self.frees(made):
            sharp = made.relaxed(free, 1e6)
            nearly = made.relaxed(free + 1e-5, 1e6)
            if (sharp - nearly).abs().max() > 0.01:
                continue  # a step right on a layer: either side is right
            compared += 1
            schedule = made.discrete(free)
            self.check_member(made, schedule)
            found = torch.tensor(schedule.keep_ratio(made.layers), dtype=torch.float64)
            assert (sharp - found)[1:].abs().max() <= 2e-3, schedule
        assert compared >= 30

    def test_gradients_flow(self, made: ScheduleFamily) -> None:
        for free in (made.start().double(), *self.frees(made, 5)):
            free = free.clone().requires_grad_(True)
            ratios = made.relaxed(free, 1.5)
            assert ratios.shape == (made.layers,)
            assert bool((ratios.diff() <= 1e-9).all())
            (gradient,) = torch.autograd.grad(ratios.sum(), [free])
            assert bool(torch.isfinite(gradient).all())
            assert bool((gradient != 0).any())

    def test_many_at_once_are_each_alone(self, made: ScheduleFamily) -> None:
        frees = torch.stack(self.frees(made, 6)).view(2, 3, -1)
        together = made.relaxed(frees, 3.0)
        assert together.shape == (2, 3, made.layers)
        for at in itertools.product(range(2), range(3)):
            assert torch.equal(together[at], made.relaxed(frees[at], 3.0))

    def test_upward_adds_tokens_from_the_fewest_to_the_most(self, made: ScheduleFamily) -> None:
        up = made.upward().double()
        steps = torch.linspace(-80, 80, 81, dtype=torch.float64)[:, None]
        for free in self.frees(made, 10):
            ratios = made.relaxed(free + steps * up, 10.0)
            assert bool((ratios.diff(dim=0) >= -1e-9).all())
            assert ratios[-1].min() >= 0.98
            if not getattr(made, "neutral", None):
                cheapest = torch.tensor(made.cheapest().keep_ratio(made.layers), dtype=torch.float64)
                assert (ratios[0] - cheapest).sum() <= 0.5

    def test_search_can_start_again_from_a_schedule(self, made: ScheduleFamily) -> None:
        for free in self.frees(made):
            schedule = made.discrete(free)
            again = made.discrete(made.invert(schedule, free))
            difference = np.abs(np.subtract(again.keep_ratio(made.layers), schedule.keep_ratio(made.layers))).max()
            assert difference <= 0.1, (schedule, again)

    def test_snap_fits_and_is_tight(self, made: ScheduleFamily) -> None:
        floor = self.cost(made, made.cheapest())
        for number, free in enumerate(self.frees(made)):
            budget = floor + (number + 0.5) / 40 * (1 - floor)
            snapped = made.snap(made.discrete(free), lambda s, b=budget: self.cost(made, s) <= b)  # type: ignore[misc]
            self.check_member(made, snapped)
            assert budget - self.tightness - 2 / TOKENS <= self.cost(made, snapped) <= budget, (budget, snapped)

    def test_snap_without_a_fit_is_the_cheapest(self, made: ScheduleFamily) -> None:
        assert made.snap(made.discrete(made.start()), lambda schedule: False) == made.cheapest()

    def test_neighbours_are_members(self, made: ScheduleFamily) -> None:
        for free in self.frees(made, 10):
            schedule = made.discrete(free)
            for neighbour in made.neighbours(schedule):
                assert neighbour != schedule
                self.check_member(made, neighbour)

    def test_grid_repeats_nothing(self, made: ScheduleFamily) -> None:
        if made.layers > 8:
            return
        try:
            grid = list(made.dense_grid())
        except ConfigError:
            return  # too many parameters, and it says so
        assert len({schedule.text() for schedule in grid}) == len(grid)
        for schedule in grid:
            self.check_member(made, schedule)
