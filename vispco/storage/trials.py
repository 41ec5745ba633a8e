"""The trials of one study: finished trials in, finished trials out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection

from vispco.errors import StorageError, shortened
from vispco.evaluation.records import Evaluation, Stopped
from vispco.storage.optuna_sql.bulk import append, has_system_attribute, lock_study, newest
from vispco.storage.redaction import redact_text

if TYPE_CHECKING:
    from vispco.costs.bounds import Priced

Read = Callable[[Callable[[Connection], Any]], Any]
Write = Callable[[Callable[[Connection], object]], None]
TOKEN = "vispco:token"
METRICS = ("accuracy", "flops_ratio")
ATTEMPTS = 3
CONSTRAINTS = "constraints"  # where Optuna's samplers and its dashboard look for them
# What searches read of their own trials.
ATTRIBUTES: dict[str, type | tuple[type, ...]] = {
    "schedule": str,
    "evaluation": str,
    "keep_ratio": list,
    "error": str,
    "method": str,
    **dict.fromkeys(("attempts", "charged_flops", "spent_flops", "propose_flops", "full_flops", "proposal"), int),
    "propose_spent": int,
    "budget": (int, float),
    "limit_excess": (int, float),
}
ERROR_LENGTH = 500


class TrialLog:
    """A study that one driver writes.

    In an experiment whose budgets are in another cost than FLOPs, the second value of a stored trial is ``cost``, in
    its unit. Trials that are read here have it as a share of ``whole``, the unpruned model's, as budgets are. Values of
    ``further`` costs come after it, stored and read likewise; it says how much the unpruned model has of each.

    Trials enter when they are finished, in one transaction: a driver that dies leaves no RUNNING trial. A trial
    whose transaction lost its answer is tried again and stored once, told by a token among its system attributes.
    """

    def __init__(
        self,
        study: optuna.Study,
        read: Read,
        write: Write,
        cost: str | None = None,
        whole: float = 1.0,
        further: Mapping[str, float] | None = None,
    ) -> None:
        self.study, self.cost, self.whole, self.further = study, cost, whole, dict(further or {})
        # What each value that is no share is divided by; None where all of them are.
        self._wholes = [1.0, 1.0 if cost is None else whole, *self.further.values()] if cost or further else None
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
            self._known = self._read(lambda _: [self._checked(t) for t in self.study.get_trials(deepcopy=False)])
            self._finished = all(trial.state.is_finished() for trial in self._known)
        return [trial for trial in self._known if not states or trial.state in states]

    def _checked(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial, whose attributes say in one line what they lack: a database may have been changed by hand.

        Raises:
            StorageError: an attribute that searches read is of another kind.
        """
        where = f"trial {trial.number} of study {self.name!r}"
        if self._wholes is not None:
            trial = copy(trial)  # the storage keeps the one that it gave
        for name, kind in ATTRIBUTES.items():
            value = trial.user_attrs.get(name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or value != value):
                raise _unusable(where, f"attribute {name!r} is {shortened(value)}")
        if trial.state == TrialState.COMPLETE and (
            not trial.values or len(trial.values) != len(METRICS) + len(self.further)
        ):
            raise _unusable(where, "is complete without its values")
        trial.user_attrs = _Attributes(trial.user_attrs, where)
        if self._wholes is not None and trial.values:
            trial.values = [value / whole for value, whole in zip(trial.values, self._wholes, strict=True)]
        return trial

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

    def attempts(self, method: str | None = None) -> dict[str, int]:
        """Schedules that failed -> how often at most, whether or not they were measured later.

        ``method``: with which, where a search has several.
        """
        found: dict[str, int] = {}
        for trial in self.trials(TrialState.FAIL):
            if "schedule" in trial.user_attrs and trial.user_attrs.get("method") == method:
                schedule, attempts = trial.user_attrs["schedule"], trial.user_attrs["attempts"]
                found[schedule] = max(found.get(schedule, 0), attempts)
        return found

    def schedules(self) -> set[str]:
        """Text forms of the schedules that are done."""
        return {trial.user_attrs["schedule"] for trial in self.complete()}

    def owed(self) -> list[FrozenTrial]:
        """FAIL trials that say what proposing them took, and that no later trial has borne it for.

        The next that lands bears it all, whichever process measures it.
        """
        return owed_by(self.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))

    def charged_flops(self) -> int:
        """Compute that the search would have cost alone; schedules stopped early count with what they cost, and of
        what failed at the end what it took to propose it."""
        counted = self.trials(TrialState.COMPLETE, TrialState.PRUNED)
        owed = sum(int(trial.user_attrs["propose_flops"]) for trial in self.owed())
        return owed + sum(int(trial.user_attrs["charged_flops"]) for trial in counted)

    def spent_flops(self) -> int:
        """Compute that the search did cost, after sharing and the cache."""
        counted = self.trials(TrialState.COMPLETE, TrialState.PRUNED)
        owed = sum(int(trial.user_attrs["propose_spent"]) for trial in self.owed())
        return owed + sum(int(trial.user_attrs["spent_flops"]) for trial in counted)

    def add(
        self,
        evaluation: Evaluation | Stopped,
        *,
        parameters: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        seconds: float,
        propose_flops: int = 0,
        propose_spent: int | None = None,
        attributes: Mapping[str, Any] | None = None,
        priced: Priced | None = None,
    ) -> None:
        """Store a measured schedule, COMPLETE, or one that a race stopped, PRUNED.

        ``charged_flops`` is the whole price, measuring and proposing, as if nothing had been cached or shared;
        ``spent_flops`` what was run, of proposing ``propose_spent`` (None: all of ``propose_flops``). A PRUNED trial
        has no values, so that it can be on no front; ``accuracy`` so far and ``flops_ratio`` become user attributes
        beside ``samples``, the number of samples seen, and
        ``full_flops``, what measuring all would have cost.

        ``priced``: of an experiment in other costs than FLOPs, or with limits. The trial then has the attributes
        ``flops_ratio`` and ``cost_ratio``, those costs that have a limit by their names, and ``limit_excess``, the
        largest of the constraints that Optuna knows it by: above 0 it is not within a limit.

        Raises:
            LockedError: another driver took the experiment; nothing was stored.
            StorageError: the database did not work for too long; nothing was stored.
        """
        propose_spent = propose_flops if propose_spent is None else propose_spent
        measured = [evaluation.accuracy, evaluation.flops_ratio]
        stopped: dict[str, Any] = {}
        if isinstance(evaluation, Stopped):
            stopped = {**dict(zip(METRICS, measured, strict=True)), "samples": evaluation.samples}
            stopped["full_flops"] = evaluation.full_flops
        costs, constraints = self._costs(evaluation.flops_ratio, priced)
        if self.cost is not None and priced is not None:
            measured[1] = priced.value
        if self.further and priced is not None:
            measured += [priced.further[name] for name in self.further]
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
                "spent_flops": evaluation.spent_flops + propose_spent,
                "propose_flops": propose_flops,
                "propose_spent": propose_spent,
                **stopped,
                **costs,
                **(attributes or {}),
            },
            system_attrs={TOKEN: uuid.uuid4().hex, **constraints},
        )
        self._add(trial, seconds)

    def _costs(self, flops_ratio: float, priced: Priced | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """User and system attributes that say what a schedule costs beside its value."""
        if priced is None:
            return {}, {}
        costs: dict[str, Any] = dict(priced.limited)
        if self.cost is not None:
            costs |= {"flops_ratio": flops_ratio, "cost_ratio": priced.ratio}
        if not priced.excess:
            return costs, {}
        over = list(priced.excess.values())
        return {**costs, "limit_excess": max(over)}, {CONSTRAINTS: over}

    def add_failure(
        self,
        schedule: str,
        *,
        parameters: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        error: BaseException | str,
        attempt: int,
        seconds: float = 0.0,
        propose_flops: int = 0,
        propose_spent: int | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Store a schedule that could not be measured as a FAIL trial with ``error`` and ``attempts``, and with what
        it took to propose it, which the next that lands bears (:meth:`owed`).

        Args:
            schedule: its text form.
            error: what went wrong; stored in one line, without passwords.
            attempt: 1 for the first try.

        Raises:
            LockedError, StorageError: as :meth:`add`.
        """
        spent = propose_flops if propose_spent is None else propose_spent
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
        trial = create_trial(
            state=TrialState.FAIL,
            params=dict(parameters),
            distributions=dict(distributions),
            user_attrs={
                "schedule": schedule,
                "error": redact_text(" ".join(text.split()))[:ERROR_LENGTH],
                "attempts": attempt,
                **({"propose_flops": propose_flops, "propose_spent": spent} if propose_flops or spent else {}),
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
            self._known.append(self._checked(_as_read(trial, *placed)) if self._wholes else _as_read(trial, *placed))

    def fail_running(self) -> int:
        """Mark trials that a dead process left RUNNING as FAIL; returns how many."""
        found = self.trials(TrialState.RUNNING)

        def once(_: Connection) -> None:
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)

        self._read(once)
        return len(found)


def owed_by(trials: Sequence[Any]) -> list[Any]:
    """FAIL trials among ``trials``, oldest first, after the last that landed, that say what proposing them took."""
    owed: list[Any] = []
    for trial in reversed(trials):
        if trial.state != TrialState.FAIL:
            break
        if trial.user_attrs.get("propose_flops") or trial.user_attrs.get("propose_spent"):
            owed.append(trial)
    return owed[::-1]


class _Attributes(dict[str, Any]):
    """User attributes of a trial; one that is read and not there is said with the trial's name."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise _unusable(self.where, f"has no attribute {name!r}")


def _unusable(where: str, what: str) -> StorageError:
    return StorageError(
        f"{where} {what}; if the database was changed by hand, restore it from a copy, or start over with --fresh"
    )


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
