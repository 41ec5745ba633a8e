"""Gradients on several processes: what two find is what one finds, and nobody outlives the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import python
from patience import HANGS, outlast
from vispco.errors import ConfigError, VispcoError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Step
from vispco.search.gradient.distillation import Calibration
from vispco.search.gradient.team import Alone, is_follower, launched, leading
from vispco.storage.store import Store

STUDY = """
experiment: shared
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 24, search: 8, held_out: 8}}
budgets: 2
batch_size: 8
searches:
  lagrangian: {kind: lagrangian, dual_steps: 2, primal_steps: 2, batch: 8, micro_batch: 4, check: 16, measure: 2}
"""
LONG = STUDY.replace("primal_steps: 2", "primal_steps: 500")
# Notes which process has which teacher, then is the command line.
SCRIPT = """
import os, sys
from pathlib import Path
from vispco.search.gradient.distillation import Calibration
from vispco.cli.main import main

taught = Calibration._teacher
def noted(self, *args):
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(os.environ.get("RANK", "0"))
    return taught(self, *args)
Calibration._teacher = noted
main()
"""


def found(database: Path) -> dict[str, Any]:
    """Trials and every gradient step; tokens and seconds are each run's own."""
    store = Store(f"sqlite:///{database}", create=False)
    return {
        name: (
            [
                (trial.values, {k: v for k, v in trial.user_attrs.items() if k not in ("token", "seconds")})
                for trial in store.trial_log(name).complete()
            ],
            store.trajectory(name),
        )
        for name in store.study_names("shared")
    }


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def settings(database: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "VISPCO_STORAGE": f"sqlite:///{database}", "OMP_NUM_THREADS": "1", **more}


@pytest.fixture
def processes() -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Starts a driver and a follower by hand, as a launcher would; the follower could open no database."""
    started: list[subprocess.Popen[str]] = []

    def start(study: Path, database: Path) -> list[subprocess.Popen[str]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        for rank, file in enumerate([database, Path("/nowhere/at/all.db")]):
            words = [str(study)] if rank == 0 else ["/nowhere/at/all.yaml"]
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "vispco", "run", *words],
                    env=settings(file, RANK=str(rank), LOCAL_RANK=str(rank), **meeting),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_steps(database: Path, process: subprocess.Popen[str]) -> None:
    """Until the driver searches: its study is there."""
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        try:
            if Store(f"sqlite:///{database}", create=False).study_names("shared"):
                time.sleep(3)
                return
        except VispcoError:
            pass
        time.sleep(0.2)
    raise AssertionError("no search began")


@pytest.mark.slow
def test_two_processes_find_what_one_finds(study: Path, tmp_path: Path) -> None:
    script = tmp_path / "noted.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for name, launcher in (("one", []), ("two", torchrun)):
        environment = settings(tmp_path / f"{name}.db", NOTES=str(tmp_path / name))
        done = python(*launcher, script, "run", study, env=environment, timeout=HANGS)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("accuracy on held-out samples") == 1
    assert (tmp_path / "one").read_text() == "0" * 6
    assert sorted((tmp_path / "two").read_text()) == list("000111")
    one, two = found(tmp_path / "one.db"), found(tmp_path / "two.db")
    assert one == two
    trials, steps = one["shared/lagrangian"]
    assert len(trials) >= 3
    assert {key: len(rows) for key, rows in steps.items() if key != "predictor"} == {"budget-0": 4, "budget-1": 4}


@pytest.mark.slow
def test_a_follower_that_dies_ends_the_run_and_nothing_is_lost(
    study: Path, tmp_path: Path, processes: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    study.write_text(LONG)
    database = tmp_path / "a.db"
    driver, follower = processes(study, database)
    wait_for_steps(database, driver)
    follower.kill()
    _, errors = outlast(driver)
    assert driver.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("vispco:")]
    assert "a process of the gradient search is gone" in line
    assert "run the same command to go on" in line
    assert Store(f"sqlite:///{database}").holders() == {}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_followers_end_with_their_driver(
    how: signal.Signals, study: Path, tmp_path: Path, processes: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    study.write_text(LONG)
    database = tmp_path / "a.db"
    driver, follower = processes(study, database)
    wait_for_steps(database, driver)
    driver.send_signal(how)
    _, errors = outlast(driver)
    if how != signal.SIGKILL:
        assert len([line for line in errors.splitlines() if line.startswith("vispco:")]) == 1, errors
        assert driver.returncode == (1 if how == signal.SIGTERM else 130)
    outlast(follower)


@pytest.mark.slow
def test_followers_end_when_the_driver_finishes_or_fails_at_once(
    study: Path, tmp_path: Path, processes: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    driver, follower = processes(tmp_path / "missing.yaml", tmp_path / "a.db")
    _, errors = outlast(driver)
    assert driver.returncode == 2
    assert "cannot read study" in errors
    out, errors = outlast(follower)
    assert (follower.returncode, out) == (0, ""), errors


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert not launched()
    assert not is_follower()
    with leading() as team:
        assert isinstance(team, Alone)
        assert team.collect([[1.0], [2.0]], 1) == [[1.0], [2.0]]


def test_micro_batches_are_a_part_of_the_definition() -> None:
    study = STUDY.replace("micro_batch: 4", "micro_batch: 3")
    with pytest.raises(ConfigError, match=r"searches.lagrangian.micro_batch = 3: micro_batch must divide batch"):
        validate(Problem.from_text(study))


def test_micro_batches_add_up_to_the_mini_batch() -> None:
    problem = Problem.from_text(STUDY)
    evaluator, method = Evaluator(problem), make_method("fastv")
    whole = Calibration(evaluator, method, 8, seed=0)
    cut = Calibration(evaluator, method, 8, seed=0, micro=4)
    assert whole.batches == [[0], [1], [2]]
    assert cut.batches == [[0, 1], [2, 3], [4, 5]]
    assert whole.charged == cut.charged
    for number in range(3):
        rows = [cut.micros[n].batch.rows.tolist() for n in cut.batches[number]]
        assert [row for part in rows for row in part] == whole.micros[number].batch.rows.tolist()
        found = []
        for calibration in (whole, cut):
            ratios = torch.full((8,), 0.6, dtype=torch.float64, requires_grad=True)
            loss = calibration.loss(number, ratios, 0.1)
            (gradient,) = torch.autograd.grad(loss, [ratios])
            found.append(torch.cat([loss.detach()[None], gradient]))
        assert float(found[0].abs().max()) > 1e-3
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)
    assert whole.charged == cut.charged
    losses = [calibration.pruned_loss(Step(2, 0.25), 2) for calibration in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
