"""How much compute the entries of an experiment may take."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from vispco.config import SearchConfig
from vispco.errors import ConfigError, ScheduleError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.planning import Planned, plan_in
from vispco.problem import Problem
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Schedule, parse_schedule
from vispco.search import SEARCHES
from vispco.search.grid import grid_points
from vispco.search.study_cost import StudyCost
from vispco.storage.store import Store
from vispco.storage.trials import TrialLog


class Allowances:
    """How much compute an entry may be charged, or spend, where the study limits it."""

    def __init__(self, evaluator: Evaluator, store: Store, cost: StudyCost | None = None) -> None:
        self.evaluator, self.store, self.problem = evaluator, store, evaluator.problem
        self.cost = cost or StudyCost(evaluator)

    def charged(self, item: Planned) -> int | None:
        """FLOPs an entry may be charged, if they are limited: a share of the grid's cost, or what another entry was
        charged, at the same seed if it ran there, else its mean."""
        source = getattr(item.options, "compute", None)
        if source is None:
            return None
        if isinstance(source, float):
            return int(source * self.grid_flops)
        return self._mean_of(item, source, lambda other, log: log.charged_flops())

    def spent(self, item: Planned) -> int | None:
        """FLOPs an entry may spend after sharing, if they are limited: a share of what the dense grid costs when it
        is measured together, or what another entry's trials cost with nothing cached."""
        source = getattr(item.options, "spent", None)
        if source is None:
            return None
        if isinstance(source, float):
            schedules, method = self.dense_grid
            return int(source * self.evaluator.shared_price(schedules, "search", method))
        return self._mean_of(item, source, self._uncached)

    def checkpoints(self) -> dict[str, Any]:
        """The study's ``anytime`` shares, and the dense grid's naive cost that they are shares of; {} without."""
        shares = self.problem.study.checkpoints
        return {"shares": shares, "grid_flops": self.grid_flops} if shares else {}

    def _uncached(self, item: Planned, log: TrialLog) -> int:
        """What the entry's trials cost after sharing, with nothing cached."""
        trials = log.trials(TrialState.COMPLETE, TrialState.PRUNED)
        if not all("propose_spent" in trial.user_attrs for trial in trials):
            return log.spent_flops()  # of an older vispco: allowances that were drawn on stay what they were
        total: int = sum(trial.user_attrs["propose_spent"] for trial in trials)
        # Of several that measured the same, the first paid for it.
        first = {(trial.user_attrs["evaluation"], trial.user_attrs.get("samples")): trial for trial in reversed(trials)}
        together: dict[tuple[int, str], list[FrozenTrial]] = {}
        for trial in first.values():
            place = trial.user_attrs.get("batch", 0), trial.user_attrs.get("method", "")
            together.setdefault(place, []).append(trial)
        methods = {method.key(): method for method in self.problem.methods(item.config)}
        for (_, key), batch in together.items():
            try:
                schedules = [parse_schedule(trial.user_attrs["schedule"]) for trial in batch]
            except ScheduleError:
                return log.spent_flops()  # only its search can price another policy
            until = [trial.user_attrs.get("samples", 0) for trial in batch]
            method = methods.get(key) or self.problem.method(item.config)
            total += self.evaluator.shared_price(schedules, "search", method, until)
        return int(total)

    def _mean_of(self, item: Planned, source: str, total: Callable[[Planned, TrialLog], int]) -> int:
        """``total`` of entry ``source``, at the same seed if it ran there, else its mean."""
        theirs = [other for other in plan_in(self.store, self.problem.study) if other.entry == source]
        wanted = [other for other in theirs if other.seed == item.seed] or theirs
        logs = [(other, self.store.trial_log(other.study)) for other in wanted]
        if not all(log.complete() for _, log in logs):
            raise ConfigError(
                f"searches.{item.entry}: entry {source!r}, whose compute it may spend, has no trials yet; "
                f"run both: --search {source} --search {item.entry}"
            )
        totals = [total(other, log) for other, log in logs]
        if not all(totals):
            raise ConfigError(
                f"searches.{item.entry}: entry {source!r} spent nothing, as all that it measured was known before; "
                f"use compute: {source}, or a share of the grid's cost"
            )
        return sum(totals) // len(totals)

    @cached_property
    def grid_flops(self) -> int:
        """The dense grid's naive cost."""
        grid, method = self.dense_grid
        return sum(self.evaluator.price(schedule, "search", method) for schedule in grid)

    @cached_property
    def dense_grid(self) -> tuple[list[Schedule], Method]:
        """:func:`dense_grid`."""
        return dense_grid(self.problem, self.cost)


def dense_grid(problem: Problem, cost: StudyCost) -> tuple[list[Schedule], Method]:
    """What the study's first grid measures, limits and measured times included; where it has none, the dense step
    grid would."""
    entries = [entry for entry in problem.study.searches.values() if SEARCHES[entry.kind].is_reference]
    entry = entries[0] if entries else SearchConfig(kind="grid", family="step")
    method = problem.method(entry)
    return grid_points(problem.family(entry), method, cost), method
