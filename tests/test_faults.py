"""kill -9 at random moments: drivers and workers, every kind of search, both databases. Nothing lost, nothing twice.

The short form runs with the slow tests, in two of the four cases; ``make faults`` kills a hundred times in all four
(``pytest tests/test_faults.py --kills 100``, a quarter of an hour on two cores).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from conftest import VISPCO
from vispco.storage.store import Store
from vispco.storage.tables import blocks, evaluations

pytestmark = pytest.mark.slow

STUDY = """
experiment: faults
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 16, search: 24, held_out: 12}}
budgets: 3
batch_size: 8
searches:
  grid: {kind: grid}
  lagrangian: {kind: lagrangian, dual_steps: 2, primal_steps: 2, batch: 8, check: 8, measure: 2}
  tpe: {kind: tpe, trials: 13, batch: 3}
  raced: {kind: random, trials: 12, family: multistep, race: {}}
"""
STUDIES = [f"faults/{entry}" for entry in ("grid", "lagrangian", "tpe", "raced")]
COMMAND = [sys.executable, *VISPCO]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LONGEST = 300.0


def outcomes(store: Store, study: str) -> list[Any]:
    """COMPLETE trials, without what a kill may change: compute that was spent twice, and time."""
    return [
        (
            t.values,
            t.params,
            {key: value for key, value in t.user_attrs.items() if key not in ("spent_flops", "propose_spent")},
        )
        for t in store.trial_log(study).complete()
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]], float]:
    """The study, what it ends in when nothing happens, and how long that takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "study.yaml").write_text(STUDY)
    url = f"sqlite:///{folder}/a.db"
    started = time.monotonic()
    run = [*COMMAND, "run", folder / "study.yaml", "--storage", url]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    store = Store(url)
    return folder / "study.yaml", {study: outcomes(store, study) for study in STUDIES}, time.monotonic() - started


def worker_processes(driver: psutil.Process) -> list[psutil.Process]:
    """Processes that hold a Ray actor of this driver; Ray's own helpers are not among them."""
    found = []
    for process in driver.children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::UnitWorker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Killer:
    """Starts a driver again and again, and kills it or one of its workers, until it has killed often enough."""

    def __init__(self, command: list[Any], rng: random.Random, span: float, log: Path) -> None:
        self.command, self.rng, self.span, self.log = command, rng, span, log
        self.killed = {"driver": 0, "worker": 0}

    def until_dead(self, workers: bool) -> int | None:
        """One driver's life: its exit code, or None if it was killed."""
        with self.log.open("a") as log:
            process = subprocess.Popen(self.command, stdout=log, stderr=log, env=ENVIRONMENT)
        deadline = time.monotonic() + LONGEST
        while True:
            moment = time.monotonic() + self.rng.uniform(0, self.span)
            while process.poll() is None and time.monotonic() < moment:
                assert time.monotonic() < deadline, f"the driver hangs: {self.log.read_text()[-2000:]}"
                time.sleep(0.01)
            if process.poll() is not None:
                return process.returncode
            if workers and self.rng.random() < 0.5:
                victims = worker_processes(psutil.Process(process.pid))
                if victims:
                    self.rng.choice(victims).kill()
                    self.killed["worker"] += 1
                continue
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            self.killed["driver"] += 1
            return None


def check_prefix(store: Store, expected: dict[str, list[Any]], complete: bool) -> None:
    for study in STUDIES:
        if study not in store.study_names("faults"):
            assert not complete
            continue
        mine, theirs = outcomes(store, study), expected[study]
        assert mine == theirs[: len(mine)], study
        if complete:
            assert len(mine) == len(theirs), study
            log = store.trial_log(study)
            assert not log.trials(optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING)
            assert not log.attempts(), "a kill is no failure of a schedule"


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return max(1, int(request.config.getoption("--kills")) // 4)


SHORT = {("sqlite", 0), ("postgresql", 2)}


@pytest.fixture
def fresh_urls(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """One database; experiments in it are started over with --fresh."""
    return f"sqlite:///{tmp_path}/k.db" if request.param == "sqlite" else request.getfixturevalue("pg_url")


@pytest.mark.parametrize("workers", [0, 2], ids=["in-process", "workers"])
@pytest.mark.parametrize("fresh_urls", ["sqlite", "postgresql"], indirect=True)
def test_kills_at_random_moments(
    fresh_urls: str,
    workers: int,
    kills: int,
    undisturbed: tuple[Path, dict[str, list[Any]], float],
    tmp_path: Path,
) -> None:
    kind = fresh_urls.partition(":")[0].partition("+")[0]
    if kills == 1 and (kind, workers) not in SHORT:
        pytest.skip("in the long form only: make faults")
    study, expected, seconds = undisturbed
    seed = random.SystemRandom().randrange(10**6)
    command = [*COMMAND, "run", study, "--storage", fresh_urls, *(["--workers", str(workers)] if workers else [])]
    killer = Killer(command, random.Random(seed), seconds * (1.3 if workers else 1.0), tmp_path / "log.txt")
    while sum(killer.killed.values()) < kills:
        code = killer.until_dead(bool(workers))
        store = Store(fresh_urls)
        try:
            check_prefix(store, expected, complete=code is not None)
            assert code in (None, 0), (seed, (tmp_path / "log.txt").read_text()[-2000:])
            if code == 0:
                # It came through: once more from the start, without what it remembers.
                store.delete_experiment("faults")
                with store.engine.begin() as connection:
                    for table in (evaluations, blocks):
                        connection.execute(table.delete())
        finally:
            store.engine.dispose()
    store = Store(fresh_urls)
    if "faults" in store.experiment_names():  # a killed run can be resumed by its name
        command[len(COMMAND) : len(COMMAND) + 2] = ["resume", "faults"]
    with (tmp_path / "log.txt").open("a") as log:
        assert subprocess.run(command, stdout=log, stderr=log, check=False, env=ENVIRONMENT).returncode == 0, seed
    check_prefix(store, expected, complete=True)
    store.engine.dispose()
    print(f"seed {seed}: killed {killer.killed}")
