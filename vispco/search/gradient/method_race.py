"""A learned search among several methods: short gradient runs, one for each method, of which the near ones go on.

Each method has its own network of all budgets. After half of the steps, a method goes on if at some budget its schedule
is not clearly further from the teacher than the best of the others, on the same calibration samples. At the end the
methods' schedules for a budget are compared likewise, and the nearest are measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from vispco.errors import ConfigError
from vispco.pruning.schedules import Schedule
from vispco.search.base import Proposal
from vispco.search.gradient.refine import clearly_worse

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from vispco.search.gradient.descent import Descent
    from vispco.search.gradient.search import GradientSearch

Losses = Mapping[str, tuple[list[Tensor], Tensor]]  # by method: [n] of each budget, and the samples' weights [n]


class MethodRace:
    """What a gradient search does where its entry lists several methods.

    ``measure`` of the options is the number of methods whose schedules for a budget are measured. No budgets between.
    """

    def __init__(self, search: GradientSearch) -> None:
        context = search.context
        if context.team.size > 1:
            raise ConfigError("several methods in one gradient search take one process; write an entry for each method")
        self.search, self.options = search, search.options
        self.methods = {method.key(): method for method in context.methods}
        self.runners = {
            key: type(search)(replace(context, method=method, methods=()), search.options)
            for key, method in self.methods.items()
        }
        for key, runner in self.runners.items():
            runner.label = f"{key} "

    def run(self) -> None:
        context, started = self.search.context, time.monotonic()
        budgets = sorted(context.budgets, reverse=True)
        trials = context.log.settled()
        missing = [(number, budget) for number, budget in enumerate(budgets) if not _done(trials, budget)]
        if not missing:
            return
        self._share_teacher()
        descents = {key: runner.network(budgets) for key, runner in self.runners.items()}
        for key, runner in self.runners.items():
            descents[key].calibration = runner.calibration
        proposals = self._raced(descents, budgets, missing)
        measured = {_name(trial) for trial in trials}
        proposals = [one for one in proposals if (one.attributes["budget"], *_named(one)) not in measured]
        calibrations = [runner.calibration for runner in self.runners.values()]
        if proposals and not _trained(trials, len(budgets)):  # what an earlier run paid is not paid again
            proposals[0] = replace(
                proposals[0],
                seconds=time.monotonic() - started,
                propose_flops=sum(one.charged for one in calibrations),
                propose_spent=sum(one.spent for one in calibrations),
            )
        self.search.measure(
            proposals,
            lambda landed: context.advance(landed, len(proposals), proposals[landed - 1].schedule.text()),
        )

    def _share_teacher(self) -> None:
        first, *others = self.runners.values()
        for runner in others:
            runner.share_teacher(first)

    def _raced(
        self, descents: Mapping[str, Descent], budgets: Sequence[float], missing: Sequence[tuple[int, float]]
    ) -> list[Proposal]:
        """Of the ``missing`` budgets. Methods race over all, so that they end alike wherever a run was stopped."""
        options, left = self.options, list(self.runners)
        half = max(1, options.dual_steps // 2) * options.primal_steps
        first, most = self.search.ranking.batches()
        for until in (half, options.dual_steps * options.primal_steps):
            for number, key in enumerate(left):
                self.search.context.advance(number, len(left), f"gradients with {key}")
                descents[key].run(until)
            shapes = {key: self._snapped(key, descents[key], budgets) for key in left}
            if until == half:
                left = promising(self._losses(shapes, first))
        groups = {key: list(zip(budgets, shapes[key], strict=True)) for key in left}
        ranked = {key: self.runners[key].ranking.nearest_each(groups[key]) for key in left}
        nearest = {key: [group[0] for group in ranked[key]] for key in left}
        losses = self._losses(nearest, most)
        proposals = []
        for number, budget in missing:
            order = sorted(left, key=lambda key, number=number: _mean(losses[key], number))  # type: ignore[misc]
            chosen = [(key, nearest[key][number]) for key in order[: options.measure]]
            candidates = [f"{key} {schedule.text()}" for key, schedule in chosen]
            for key, schedule in chosen:
                proposals.append(self._proposal(key, number, budget, schedule, descents[key], candidates))
        return proposals

    def _snapped(self, key: str, descent: Descent, budgets: Sequence[float]) -> list[Schedule]:
        frees = descent.free().detach()
        return [self.runners[key].snapped(free, budget) for free, budget in zip(frees, budgets, strict=True)]

    def _losses(self, shapes: Mapping[str, Sequence[Schedule]], batches: int) -> Losses:
        """KL(teacher || pruned) of each method's schedules on the first ``batches``."""
        found = {}
        for key, schedules in shapes.items():
            distinct = list(dict.fromkeys(schedules))
            calibration = self.runners[key].calibration
            values, weights = calibration.pruned_losses(distinct, 0, min(batches, len(calibration.batches)))
            found[key] = ([values[distinct.index(schedule)] for schedule in schedules], weights)
        return found

    def _proposal(
        self, key: str, number: int, budget: float, schedule: Schedule, descent: Descent, candidates: list[str]
    ) -> Proposal:
        runner = self.runners[key]
        attributes = runner.attributes(number, budget, descent)
        attributes |= {"candidates": candidates, "violation": runner.violation(schedule, budget)}
        return Proposal(schedule, attributes=attributes, method=self.methods[key])


def promising(losses: Losses) -> list[str]:
    """Methods that at some budget are not clearly further from the teacher than the nearest."""
    budgets = range(len(next(iter(losses.values()))[0]))
    going = set()
    for place in budgets:
        best = min(losses, key=lambda key, place=place: _mean(losses[key], place))  # type: ignore[misc]
        for key, (values, weights) in losses.items():
            if not clearly_worse(values[place] - losses[best][0][place], weights):
                going.add(key)
    return [key for key in losses if key in going]


def _mean(losses: tuple[list[Tensor], Tensor], place: int) -> float:
    values, weights = losses
    return float((values[place] * weights).sum() / weights.sum())


def _done(trials: Sequence[FrozenTrial], budget: float) -> bool:
    """Whether every candidate of a budget is measured, or was given up."""
    own = [trial for trial in trials if trial.user_attrs["budget"] == budget]
    measured = {" ".join(_name(trial)[1:]) for trial in own}
    return bool(own) and measured >= set(own[0].user_attrs["candidates"])


def _trained(trials: Sequence[FrozenTrial], budgets: int) -> bool:
    """Whether some trials come from a race over so many budgets, to which it was charged.

    Trials of an older vispco do not say over how many; budgets are taken to be new where all that have trials are done.
    """
    said = {trial.user_attrs["trained_for"] for trial in trials if "trained_for" in trial.user_attrs}
    if said:
        return budgets in said
    return not all(_done(trials, trial.user_attrs["budget"]) for trial in trials)


def _name(trial: FrozenTrial) -> tuple[float, str, str]:
    return trial.user_attrs["budget"], trial.user_attrs["method"], trial.user_attrs["schedule"]


def _named(proposal: Proposal) -> tuple[str, str]:
    assert proposal.method is not None
    return proposal.method.key(), proposal.schedule.text()
