"""Trials that were stopped early or could not be measured: stored, counted, and on no front."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import TrialState

from vispco.pruning.families import StepFamily
from vispco.storage.store import Store

TRIAL: dict[str, Any] = {
    "parameters": {"layer": 2, "keep": 0.5},
    "distributions": StepFamily(8).distributions(),
    "seconds": 1.0,
}


def test_failures_are_told_with_their_attempts(store: Store) -> None:
    log = store.trial_log("exp/grid")
    for attempt in (1, 2):
        error = ValueError("NaN at\n  postgresql://me:secret@host/db " + "x" * 1000)
        log.add_failure("step(layer=1, keep=0.1)", **TRIAL, error=error, attempt=attempt)
    log.add_failure("step(layer=2, keep=0.1)", **TRIAL, error="out of memory", attempt=1)
    assert log.attempts() == {"step(layer=1, keep=0.1)": 2, "step(layer=2, keep=0.1)": 1}
    assert [t.user_attrs["attempts"] for t in log.settled(attempts=2)] == [2]
    assert log.settled() == []
    trial = log.trials(TrialState.FAIL)[0]
    assert trial.user_attrs["error"].startswith("ValueError: NaN at postgresql://me:***@host/db xxx")
    assert len(trial.user_attrs["error"]) == 500
    assert trial.duration is not None
    assert trial.duration.total_seconds() == pytest.approx(1.0)
    assert log.complete() == []
    assert log.charged_flops() == 0


def test_a_trial_left_by_a_dead_driver_is_no_attempt(store: Store) -> None:
    log = store.trial_log("exp/grid")
    log.study.ask()
    assert log.fail_running() == 1
    assert log.fail_running() == 0
    assert log.attempts() == {}
    assert log.settled() == []
