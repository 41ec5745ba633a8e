"""The trials of one study: finished trials in, finished trials out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from vispco.evaluation.records import Evaluation, Stopped

METRICS = ("accuracy", "flops_ratio")


class TrialLog:
    """A study that one driver writes.

    Trials enter when they are finished, in one transaction: a driver that dies leaves no RUNNING trial.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        self.name: str = study.study_name

    def complete(self) -> list[FrozenTrial]:
        """COMPLETE trials, oldest first."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def schedules(self) -> set[str]:
        """Text forms of the schedules that are done."""
        return {trial.user_attrs["schedule"] for trial in self.complete()}

    def charged_flops(self) -> int:
        return sum(int(trial.user_attrs["charged_flops"]) for trial in self.complete())

    def add(
        self,
        evaluation: Evaluation | Stopped,
        *,
        parameters: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        seconds: float,
        propose_flops: int = 0,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Store a measured schedule as a COMPLETE trial.

        ``charged_flops`` is the whole price, measuring and proposing, as if nothing had been cached.
        """
        trial = create_trial(
            values=[evaluation.accuracy, evaluation.flops_ratio],
            params=dict(parameters),
            distributions=dict(distributions),
            user_attrs={
                "schedule": evaluation.schedule,
                "keep_ratio": list(evaluation.keep_ratio),
                "evaluation": evaluation.id,
                "charged_flops": evaluation.flops + propose_flops,
                "spent_flops": evaluation.spent_flops + propose_flops,
                "propose_flops": propose_flops,
                **(attributes or {}),
            },
        )
        trial.datetime_complete = datetime.now()
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=seconds)
        self.study.add_trial(trial)

    def settled(self, attempts: int) -> list[FrozenTrial]:
        """Trials whose schedule needs no further work: COMPLETE, PRUNED, or failed ``attempts`` times; oldest first."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        return [t for t in trials if t.state != TrialState.FAIL or t.user_attrs.get("attempt", 0) >= attempts]

    def attempts(self, schedule: str) -> int:
        """How often ``schedule`` has failed."""
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return sum(trial.user_attrs.get("schedule") == schedule for trial in failed)

    def add_failure(
        self,
        schedule: str,
        *,
        error: str,
        attempt: int,
        parameters: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Store a schedule that could not be measured as a FAIL trial that says why."""
        trial = create_trial(
            state=TrialState.FAIL,
            params=dict(parameters),
            distributions=dict(distributions),
            user_attrs={"schedule": schedule, "error": error, "attempt": attempt, **(attributes or {})},
        )
        self.study.add_trial(trial)

    def fail_running(self) -> int:
        """Mark trials that a dead process left RUNNING as FAIL; returns how many."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            self.study.tell(trial.number, state=TrialState.FAIL)
        return len(running)
