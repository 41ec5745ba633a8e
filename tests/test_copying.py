"""vispco copy: both ways, again, half-way, and refused where two databases have gone different ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import select

from conftest import VISPCO, python
from report_data import study_facts
from test_reading import FIELDS, TRIALS
from vispco.analysis.comparison import compare
from vispco.errors import LockedError, StorageError
from vispco.evaluation.records import Evaluation, Stopped
from vispco.pruning.families import StepFamily
from vispco.pruning.schedules import Step
from vispco.storage.copying import Copied, copy_experiments
from vispco.storage.reading import snapshot
from vispco.storage.store import Store
from vispco.storage.tables import evaluations, experiments, groups, links, steps

GROUPS = {"x": [f"g{i // 2}" for i in range(40)]}

STEP = {"loss": 1.5, "violation": 0.1, "multiplier": 0.2, "penalty": 20.0}


def measured(name: str, split: str, accuracy: float, ratio: float) -> Evaluation:
    scores = (np.random.default_rng(abs(hash((accuracy, ratio))) % 2**32).random(40) < accuracy).astype(float)
    task = {"accuracy": float(scores.mean()), "flops_ratio": ratio}
    return Evaluation(
        id=name,
        split=split,
        method="fastv",
        schedule=Step(layer=2, keep=ratio).text(),
        keep_ratio=(1.0, 1.0, ratio, ratio),
        accuracy=task["accuracy"],
        flops_ratio=ratio,
        flops=2**60 + 1,
        spent_flops=2**60 + 1,
        kv_bytes=1 / 3,
        tasks={"x": task},
        scores={"x": scores},
    )


def stopped(evaluation: Evaluation) -> Stopped:
    """The same measurement, as if a race had stopped it."""
    names = {field.name for field in fields(Stopped)} & {field.name for field in fields(Evaluation)}
    same = {name: getattr(evaluation, name) for name in names if name != "seconds"}
    return Stopped(**same, samples=3, full_flops=2 * evaluation.flops)


def fill(store: Store, experiment: str, points: int = 4) -> None:
    """An experiment with a grid, a seeded search with odd trials, held-out measurements and steps."""
    names = {"grid": ("grid", points), "tpe@3": ("tpe", None)}
    store.save_experiment(
        experiment,
        spec_text=f"experiment: {experiment}\npurpose: é",
        spec_hash="h1",
        identity={"model": {"name": "demo"}, "tasks": [1]},
        provenance={"versions": {}, "python": "3", "platform": "p"},
    )
    facts = {
        f"{experiment}/{name}": study_facts(name.partition("@")[0], kind, seed=3, points=count)
        for name, (kind, count) in names.items()
    }
    store.save_facts(experiment, {"accounting": "exact", "floor": 0.1, "budgets": [0.3, 0.8], "studies": facts})
    for split in ("search", "held_out"):
        for key, accuracy in (("unpruned", 0.9), ("no_image", 0.2)):
            reference = measured(f"{key}-{split}", split, accuracy, 1.0)
            store.put_evaluation(reference, GROUPS)
            store.link(experiment, "reference", key, reference)
    for name in names:
        log = store.trial_log(f"{experiment}/{name}")
        for number in range(points):
            add(store, experiment, log.name, number)
    for trial in TRIALS:
        if trial.state != TrialState.COMPLETE:
            store.trial_log(f"{experiment}/tpe@3").study.add_trial(trial)
    store.save_steps(f"{experiment}/tpe@3", "budget-0", [STEP, {**STEP, "loss": 1e-300}])


def add(store: Store, experiment: str, study: str, number: int) -> None:
    ratio = 0.1 + 0.1 * number
    held_out = measured(f"h{number}", "held_out", 0.3 + 0.1 * number, ratio)
    evaluation = measured(f"s{number}", "search", 0.3 + 0.1 * number, ratio)
    store.put_evaluation(held_out, GROUPS)
    store.put_evaluation(evaluation, GROUPS)
    store.link(experiment, "schedule", f"fastv|{evaluation.schedule}", held_out)
    store.trial_log(study).add(
        evaluation,
        parameters={"layer": 2, "keep": 0.25},
        distributions=StepFamily(4).distributions(),
        seconds=1 / 3,
        attributes={"budget": 0.5} if number % 2 else {},
    )


def rows(store: Store) -> dict[str, Any]:
    """All of our own tables that describe experiments, in one order."""
    found: dict[str, Any] = {}
    with snapshot(store.engine) as connection:
        for table in (experiments, evaluations, groups, links, steps):
            listed = [tuple(row) for row in connection.execute(select(table))]
            found[table.name] = sorted(listed, key=repr)
    return found


def trials(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in optuna.get_all_study_names(store.optuna):
        study = optuna.load_study(study_name=name, storage=store.optuna)
        found[name] = (
            study.directions,
            study.metric_names,
            study.user_attrs,
            [[getattr(trial, field) for field in FIELDS] for trial in study.get_trials()],
            [repr(sorted(trial.intermediate_values.items())) for trial in study.get_trials()],
        )
    return found


@pytest.fixture
def open_url(tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    opened: list[Store] = []

    def make(url: str) -> Store:
        opened.append(Store(url if "://" in url else f"sqlite:///{tmp_path}/{url}.db"))
        return opened[-1]

    yield make
    for store in opened:
        store.engine.dispose()


def test_there_and_back(open_url: Callable[[str], Store], pg_url: str) -> None:
    """SQLite -> PostgreSQL -> SQLite, experiments interleaved with other studies so that ids differ."""
    first, second, third = open_url("a"), open_url(pg_url), open_url("b")
    fill(first, "exp")
    fill(first, "exp_")
    third.trial_log("unrelated/grid").study.ask()
    first.trial_log("exp/grid").study.set_user_attr("fact", {"a": [1, None]})
    done = copy_experiments(first, second)
    assert done == [Copied("exp", 2, 11, 12), Copied("exp_", 2, 11, 0)]
    assert copy_experiments(second, third, ["exp"]) == [Copied("exp", 2, 11, 12)]
    copy_experiments(second, third)
    assert rows(first) == rows(second) == rows(third)
    other = trials(third)
    assert other.pop("unrelated/grid")
    assert trials(first) == trials(second) == other
    names = ["exp", "exp_"]
    expected = json.dumps(compare(first, names))
    assert expected == json.dumps(compare(second, names)) == json.dumps(compare(third, names))
    assert json.loads(expected)["experiments"][0]["searches"][0]["budget_score_ci"]


def test_again_and_more(open_url: Callable[[str], Store], database_url: str) -> None:
    source, destination = open_url("source"), open_url(f"{database_url}")
    fill(source, "exp")
    copy_experiments(source, destination)
    assert copy_experiments(source, destination) == [Copied("exp", 0, 0, 0)]
    add(source, "exp", "exp/tpe@3", 7)
    (running,) = (t for t in source.trial_log("exp/tpe@3").study.get_trials() if t.state == TrialState.RUNNING)
    source.trial_log("exp/tpe@3").study.tell(running.number, [0.5, 0.25])
    source.trial_log("exp/random")
    source.save_steps("exp/tpe@3", "budget-0", [{"loss": 3.0}])
    assert copy_experiments(source, destination) == [Copied("exp", 1, 2, 2)]
    assert trials(source) == trials(destination)
    assert rows(source) == rows(destination)


def test_notes_of_the_dashboard_stay_with_their_trials(open_url: Callable[[str], Store]) -> None:
    from optuna_dashboard import save_note
    from optuna_dashboard._note import get_note_from_system_attrs

    source, destination = open_url("a"), open_url("b")
    fill(source, "exp")
    fill(destination, "other")
    study = source.trial_log("exp/grid").study
    save_note(study, "of the study")
    save_note(optuna.trial.Trial(study, study.get_trials()[2]._trial_id), "of trial 2")
    copy_experiments(source, destination)
    copied = destination.trial_log("exp/grid").study
    attributes = destination.optuna.get_study_system_attrs(copied._study_id)
    ids = [trial._trial_id for trial in copied.get_trials()]
    assert ids != [trial._trial_id for trial in study.get_trials()]
    notes = [get_note_from_system_attrs(attributes, key)["body"] for key in (None, *ids)]
    assert notes == ["of the study", "", "", "of trial 2", ""]


def test_what_is_refused(open_url: Callable[[str], Store]) -> None:
    source, destination = open_url("a"), open_url("b")
    fill(source, "exp")
    with pytest.raises(StorageError, match="no experiment 'exq'"):
        copy_experiments(source, destination, ["exq"])
    with pytest.raises(StorageError, match="name two databases"):
        copy_experiments(source, open_url("a"))
    copy_experiments(source, destination)
    before = trials(destination), rows(destination)

    @contextmanager
    def refused(message: str) -> Iterator[None]:
        with pytest.raises(StorageError, match=message) as caught:
            yield
        assert "copy into another database, or copy the other way" in str(caught.value)
        assert "\n" not in str(caught.value)

    add(destination, "exp", "exp/grid", 8)
    with refused("has trial 4 of study 'exp/grid', which the source has not"):
        copy_experiments(source, destination)
    add(source, "exp", "exp/grid", 9)
    with refused("trial 4 of study 'exp/grid' differs"):
        copy_experiments(source, destination)
    other = open_url("c")
    fill(other, "exp")
    other.save_experiment("exp", spec_text="", spec_hash="", identity={"model": {"name": "other"}}, provenance={})
    with refused("its 'model' differs"):
        copy_experiments(other, destination)
    assert trials(destination)["exp/tpe@3"] == before[0]["exp/tpe@3"]
    with destination.lock("exp"), pytest.raises(LockedError):
        copy_experiments(source, open_url("b"))


def test_the_source_may_be_driven_meanwhile(open_url: Callable[[str], Store]) -> None:
    source, destination = open_url("a"), open_url("b")
    fill(source, "exp")
    with source.lock("exp"):
        assert copy_experiments(source, destination) == [Copied("exp", 2, 11, 12)]


KILLED = """
import os, sys
import vispco.storage.copying as copying
from vispco.storage.store import Store
point, count = sys.argv[3], 0
real = getattr(copying, point)

def dies(*arguments):
    global count
    count += 1
    if count == int(sys.argv[4]):
        os.kill(os.getpid(), 9)
    return real(*arguments)

setattr(copying, point, dies)
copying.CHUNK = 5
copying.copy_experiments(Store(sys.argv[1]), Store(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("point", "count"), [("insert_missing", 4), ("write_stored", 2), ("_write_attributes", 4)])
def test_killed_half_way(open_url: Callable[[str], Store], database_url: str, point: str, count: int) -> None:
    source, destination = open_url("source"), open_url(database_url)
    fill(source, "exp")
    url = destination.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", KILLED, source.url, url, point, str(count)]
    assert subprocess.run(command, check=False, env={**os.environ}).returncode == -signal.SIGKILL
    assert trials(destination) == {}
    assert rows(destination)["vispco_experiment"] == []
    copy_experiments(source, destination)
    assert trials(source) == trials(destination)
    assert rows(source) == rows(destination)


@pytest.mark.slow
def test_the_command(open_url: Callable[[str], Store], tmp_path: Path) -> None:
    fill(open_url("a"), "exp")
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in "ab"]
    for expected in ([2, 11, 12], [0, 0, 0]):
        done = python(*VISPCO, "copy", *urls, "--json", check=True)
        (row,) = json.loads(done.stdout)
        assert row == {"experiment": "exp", **dict(zip(("studies", "trials", "evaluations"), expected, strict=True))}
    secret = "postgresql+psycopg://me:secret@127.0.0.1:1/db?connect_timeout=1"
    done = python(*VISPCO, "copy", urls[0], secret)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr
