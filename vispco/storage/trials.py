"""The trials of one study: finished trials in, finished trials out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from copy import copy
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection

from vispco.evaluation.records import Evaluation, Stopped
from vispco.storage.bulk import append, has_system_attribute, lock_study, newest
from vispco.storage.redaction import redact_text

Read = Callable[[Callable[[Connection], Any]], Any]
Write = Callable[[Callable[[Connection], object]], None]
TOKEN = "vispco:token"
METRICS = ("accuracy", "flops_ratio")
ATTEMPTS = 3
ERROR_LENGTH = 500


class TrialLog:
    """A study that one driver writes.

    Trials enter when they are finished, in one transaction: a driver that dies leaves no RUNNING trial. A trial
    whose transaction lost its answer is tried again and stored once, told by a token among its system attributes.
    """

    def __init__(self, study: optuna.Study, read: Read, write: Write) -> None:
        self.study = study
        self.name: str = study.study_name
        self._read, self._write = read, write
        self._known: list[FrozenTrial] = []
        self._finished = False  # whether all of ``_known`` are: finished trials never change

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in one of ``states``, or all, oldest first.

        Read again only if there are new ones, or some were not finished.
        """
        last = self._read(lambda connection: newest(connection, self.study._study_id))
        if not self._finished or (last and last[0]) != self._newest():
            self._known = self._read(lambda _: self.study.get_trials(deepcopy=False))
            self._finished = all(trial.state.is_finished() for trial in self._known)
        return [trial for trial in self._known if not states or trial.state in states]

    def _newest(self) -> int | None:
        return self._known[-1]._trial_id if self._known else None

    def complete(self) -> list[FrozenTrial]:
        """COMPLETE trials, oldest first."""
        return self.trials(TrialState.COMPLETE)

    def settled(self, attempts: int = ATTEMPTS) -> list[FrozenTrial]:
        """Trials that need no more work, oldest first: COMPLETE, PRUNED, and FAIL at its last attempt.

        Trials that a dead process left, which have no schedule, count as nothing.
        """
        return [
            trial
            for trial in self.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
            if trial.state != TrialState.FAIL or trial.user_attrs.get("attempts", 0) >= attempts
        ]

    def attempts(self) -> dict[str, int]:
        """Schedules that failed -> how often at most, whether or not they were measured later."""
        found: dict[str, int] = {}
        for trial in self.trials(TrialState.FAIL):
            if "schedule" in trial.user_attrs:
                schedule, attempts = trial.user_attrs["schedule"], trial.user_attrs["attempts"]
                found[schedule] = max(found.get(schedule, 0), attempts)
        return found

    def schedules(self) -> set[str]:
        """Text forms of the schedules that are done."""
        return {trial.user_attrs["schedule"] for trial in self.complete()}

    def charged_flops(self) -> int:
        """Compute that the search would have cost alone; schedules stopped early count with what they cost."""
        counted = self.trials(TrialState.COMPLETE, TrialState.PRUNED)
        return sum(int(trial.user_attrs["charged_flops"]) for trial in counted)

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
        """Store a measured schedule, COMPLETE, or one that a race stopped, PRUNED.

        ``charged_flops`` is the whole price, measuring and proposing, as if nothing had been cached. A PRUNED trial
        has no values, so that it can be on no front; ``accuracy`` so far and ``flops_ratio`` become user attributes
        beside ``samples``, the number of samples seen.

        Raises:
            LockedError: another driver took the experiment; nothing was stored.
            StorageError: the database did not work for too long; nothing was stored.
        """
        measured = [evaluation.accuracy, evaluation.flops_ratio]
        stopped: dict[str, Any] = {}
        if isinstance(evaluation, Stopped):
            stopped = {**dict(zip(METRICS, measured, strict=True)), "samples": evaluation.samples}
        trial = create_trial(
            state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
            values=None if stopped else measured,
            params=dict(parameters),
            distributions=dict(distributions),
            user_attrs={
                "schedule": evaluation.schedule,
                "keep_ratio": list(evaluation.keep_ratio),
                "evaluation": evaluation.id,
                "charged_flops": evaluation.flops + propose_flops,
                "spent_flops": evaluation.spent_flops + propose_flops,
                "propose_flops": propose_flops,
                **stopped,
                **(attributes or {}),
            },
            system_attrs={TOKEN: uuid.uuid4().hex},
        )
        self._add(trial, seconds)

    def add_failure(
        self,
        schedule: str,
        *,
        parameters: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        error: BaseException | str,
        attempt: int,
        seconds: float = 0.0,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Store a schedule that could not be measured as a FAIL trial with ``error`` and ``attempts``.

        Args:
            schedule: its text form.
            error: what went wrong; stored in one line, without passwords.
            attempt: 1 for the first try.

        Raises:
            LockedError, StorageError: as :meth:`add`.
        """
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
        trial = create_trial(
            state=TrialState.FAIL,
            params=dict(parameters),
            distributions=dict(distributions),
            user_attrs={
                "schedule": schedule,
                "error": redact_text(" ".join(text.split()))[:ERROR_LENGTH],
                "attempts": attempt,
                **(attributes or {}),
            },
            system_attrs={TOKEN: uuid.uuid4().hex},
        )
        self._add(trial, seconds)

    def _add(self, trial: FrozenTrial, seconds: float) -> None:
        trial.datetime_complete = datetime.now()
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=seconds)

        token = TOKEN, json.dumps(trial.system_attrs[TOKEN])
        tries, placed = 0, (0, 0)
        alone = False

        def change(connection: Connection) -> None:
            nonlocal tries, placed, alone
            tries += 1
            # Looked for only once the study is locked, so that a commit still under way on the server is seen.
            lock_study(connection, self.study._study_id)
            last = newest(connection, self.study._study_id)
            if tries > 1 and has_system_attribute(connection, self.study._study_id, *token):
                alone = False
                return
            alone = (last and last[0]) == self._newest()
            (placed,) = append(connection, self.study._study_id, [trial]).items()

        self._write(change)
        if self._finished and alone:
            self._known.append(_as_read(trial, *placed))

    def fail_running(self) -> int:
        """Mark trials that a dead process left RUNNING as FAIL; returns how many."""
        found = self.trials(TrialState.RUNNING)

        def once(_: Connection) -> None:
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)

        self._read(once)
        return len(found)


def _as_read(trial: FrozenTrial, number: int, key: int) -> FrozenTrial:
    """A trial that was just stored, as the database would give it."""
    read = copy(trial)
    read.number, read._trial_id = number, key
    read.params = {
        name: distribution.to_external_repr(distribution.to_internal_repr(trial.params[name]))
        for name, distribution in trial.distributions.items()
    }
    read.user_attrs = json.loads(json.dumps(trial.user_attrs))
    read._system_attrs = json.loads(json.dumps(trial.system_attrs))
    return read
