"""Trials read and written in bulk are the trials that Optuna reads and writes."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from vispco.storage.optuna_sql.bulk import append, read_stored, stored, write_stored
from vispco.storage.reading import StudySummary, local, read_attribute, read_trials, snapshot, study_ids, summaries
from vispco.storage.store import Store

SPACE = {
    "zeta": FloatDistribution(0.0, 1.0),
    "depth": IntDistribution(1, 64, log=True),
    "kind": CategoricalDistribution(("a", None, 1.5, True)),
}

FIELDS = ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs", "datetime_start")
FIELDS += ("datetime_complete",)


def trial(number: int, state: TrialState = TrialState.COMPLETE, **more: Any) -> optuna.trial.FrozenTrial:
    made = create_trial(
        state=state,
        values=more.pop("values", [0.1 * number, 1 / 3]) if state is TrialState.COMPLETE else None,
        params={"zeta": 1 / (3 + number), "depth": 1 + number, "kind": (("a", None, 1.5)[number % 3])},
        distributions=SPACE,
        user_attrs={"schedule": f"step({number})", "Z": {"x": [1, None, "é<b>"]}, "a": 1e-300, **more},
        system_attrs={"constraints:budget": -0.1, "note": "n"},
        intermediate_values={7: 0.5, 3: float("nan"), 4: float("-inf"), 5: float("inf")} if number == 1 else {},
    )
    made.datetime_start = datetime(2026, 7, 1 + number, 23, 59, 59, 123456)
    made.datetime_complete = None if state is TrialState.RUNNING else made.datetime_start + timedelta(seconds=1.25)
    return made


TRIALS = [
    trial(0),
    trial(1, values=[float("-inf"), float("inf")]),
    trial(2, TrialState.FAIL),
    trial(3, TrialState.PRUNED),
    trial(4, TrialState.RUNNING),
    trial(5, budget=0.5),
]


def fill(store: Store, name: str) -> optuna.Study:
    study = store.trial_log(name).study
    for one in TRIALS:
        study.add_trial(one)
    study.ask()
    return study


def test_records_equal_optunas_trials(store: Store) -> None:
    fill(store, "Exp/other")  # LIKE takes Exp for exp on SQLite
    studies = {name: fill(store, name) for name in ("exp/a", "exp/b@1")}
    store.trial_log("exp/empty")
    with snapshot(store.engine) as connection:
        ids = study_ids(connection, "exp")
        found = read_trials(connection, list(ids.values()))
        complete = read_trials(
            connection, list(ids.values()), states=(TrialState.COMPLETE,), attributes=("budget",), with_params=False
        )
        summary = summaries(connection, list(ids.values()))
        budgets = read_attribute(connection, ids["exp/a"], "budget", range(7))
    assert list(ids) == ["exp/a", "exp/b@1", "exp/empty"]
    assert found[ids["exp/empty"]] == []
    assert summary[ids["exp/empty"]] == StudySummary({}, None, None)
    assert budgets == {5: 0.5}
    for name, study in studies.items():
        expected = study.get_trials()
        assert len(expected) == len(found[ids[name]]) == 7
        for ours, theirs in zip(found[ids[name]], expected, strict=True):
            for field in ("number", "state", "params", "user_attrs", "datetime_start", "datetime_complete", "duration"):
                assert getattr(ours, field) == getattr(theirs, field), field
            assert list(ours.params) == list(theirs.params)
            assert (ours.values and list(ours.values)) == theirs.values
        assert [t.number for t in complete[ids[name]]] == [0, 1, 5]
        assert [t.user_attrs for t in complete[ids[name]]] == [{}, {}, {"budget": 0.5}]
        assert [t.params for t in complete[ids[name]]] == [{}, {}, {}]
        best = max(t.values[0] for t in expected if t.state is TrialState.COMPLETE)
        last = max(t.datetime_complete for t in expected if t.state is TrialState.COMPLETE and t.datetime_complete)
        assert (summary[ids[name]].best_accuracy, local(summary[ids[name]].last)) == (best, last)
        assert summary[ids[name]].states == {
            TrialState.COMPLETE: 3,
            TrialState.FAIL: 1,
            TrialState.PRUNED: 1,
            TrialState.RUNNING: 2,
        }


def test_bulk_rows_equal_those_of_add_trial(store: Store) -> None:
    one_by_one, bulk = store.trial_log("exp/a").study, store.trial_log("exp/b").study
    for one in TRIALS:
        one_by_one.add_trial(one)
    with store.engine.begin() as connection:
        ids = study_ids(connection, "exp")
        append(connection, ids["exp/b"], TRIALS[:2])
        append(connection, ids["exp/b"], TRIALS[2:])
    with snapshot(store.engine) as connection:
        first, second = (read_stored(connection, key) for key in ids.values())
    assert first == second
    assert [t.finished for t in first.values()] == [True, True, True, True, False, True]
    for theirs, ours in zip(one_by_one.get_trials(), store.trial_log("exp/b").study.get_trials(), strict=True):
        for field in FIELDS:
            assert getattr(ours, field) == getattr(theirs, field), field
        # NaN is not equal to itself.
        assert repr(sorted(ours.intermediate_values.items())) == repr(sorted(theirs.intermediate_values.items()))
    assert bulk.study_name == "exp/b"


def test_unfinished_trials_are_replaced_in_place(store: Store) -> None:
    fill(store, "exp/a")
    with store.engine.begin() as connection:
        (study,) = study_ids(connection, "exp").values()
        before = read_stored(connection, study)
        finished = trial(4)
        finished.number = 4
        done = stored(finished)
        assert before[4] != done
        write_stored(connection, study, [done])
        after = read_stored(connection, study)
    assert after == {**before, 4: done}


@pytest.mark.slow
def test_a_snapshot_does_not_wait_for_a_writer_and_sees_one_state(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    store, other = Store(url), Store(url)
    fill(store, "exp/a")
    with other.engine.begin() as writer:  # holds the write lock
        (study,) = study_ids(writer, "exp").values()
        append(writer, study, TRIALS)
        with snapshot(store.engine) as reader:
            assert len(read_stored(reader, study)) == 7
            writer.commit()
            assert len(read_stored(reader, study)) == 7
    with snapshot(store.engine) as reader:
        assert len(read_stored(reader, study)) == 13


def same(ours: list[optuna.trial.FrozenTrial], theirs: list[optuna.trial.FrozenTrial]) -> bool:
    fields = (*FIELDS, "_trial_id", "intermediate_values")
    return [[getattr(t, f) for f in fields] for t in ours] == [[getattr(t, f) for f in fields] for t in theirs]


def test_a_log_that_remembers_equals_one_that_reads(store: Store, database_url: str) -> None:
    """After its own trials, after somebody else's, and while some are not finished."""
    from test_copying import stopped
    from test_storage import make_evaluation

    def add(log: Any, number: int, raced: bool = False) -> None:
        evaluation = make_evaluation(f"e{number}", accuracy=number / 10)
        log.add(
            stopped(evaluation) if raced else evaluation,
            parameters={"zeta": 1 / 3, "depth": 4, "kind": None},
            distributions=SPACE,
            seconds=1 / 7,
            attributes={"pair": (1, 2.5), "budget": 0.5},
        )

    log, other = store.trial_log("exp/a"), Store(database_url)
    assert log.trials() == []
    for number in range(4):
        add(log, number, raced=number == 2)
        assert same(log.trials(), other.trial_log("exp/a").trials())
    log.add_failure("s", parameters={}, distributions={}, error="e", attempt=1)
    add(other.trial_log("exp/a"), 5)
    add(log, 6)
    assert same(log.trials(), other.trial_log("exp/a").trials())
    assert [trial.number for trial in log.trials()] == list(range(7))
    running = other.trial_log("exp/a").study.ask()
    add(log, 8)
    assert [trial.number for trial in log.trials(TrialState.RUNNING)] == [7]
    other.trial_log("exp/a").study.tell(running, [0.5, 0.5])
    assert same(log.trials(), other.trial_log("exp/a").trials())
    assert log.trials(TrialState.RUNNING) == []
    log.study.ask()
    assert log.fail_running() == 1
    assert same(log.trials(), other.trial_log("exp/a").trials())
    assert [trial.number for trial in log.complete()] == [0, 1, 3, 5, 6, 7, 8]
    other.engine.dispose()
