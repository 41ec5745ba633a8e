"""Units on Ray actors: the same trials as in the process, whoever dies."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import VISPCO
from patience import outlast, wait_for
from vispco.errors import ConfigError, ModelError, VispcoError
from vispco.evaluation.board import Board, Worker
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.ray_workers import Apart, RayWorkers, UnitWorker
from vispco.evaluation.units import Unit, UnitResult
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.pruning.schedules import Step
from vispco.storage.store import Store

pytest.importorskip("ray")

SMALL = """
experiment: small
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 16, search: 24, held_out: 12}}
budgets: 2
batch_size: 4
searches:
  lagrangian: {kind: lagrangian, dual_steps: 1, primal_steps: 2, batch: 8, check: 8}
  random: {kind: random, compute: lagrangian}
  tpe: {kind: tpe, trials: 8, batch: 4}
"""
SCHEDULES = [Step(layer=layer, keep=keep) for layer in (2, 3, 5) for keep in (0.25, 0.5)]


def children_of(pid: int) -> set[int]:
    """Processes below ``pid``, at any depth."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


def trials(store: Store, experiment: str = "small") -> dict[str, list[Any]]:
    """What must not depend on where the work was done."""
    found = {}
    for name in store.study_names(experiment):
        found[name] = [
            (
                trial.values,
                *(
                    trial.user_attrs[key]
                    for key in ("schedule", "keep_ratio", "evaluation", "charged_flops", "spent_flops")
                ),
            )
            for trial in store.trial_log(name).complete()
        ]
    return found


def assert_same(found: list[Any], expected: list[Any], *, spent: bool = True) -> None:
    """``spent`` False: a unit that was with a dying worker may have been measured apart, which shares less."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.id == theirs.id
        assert (ours.accuracy, ours.flops) == (theirs.accuracy, theirs.flops)
        assert ours.spent_flops == theirs.spent_flops if spent else ours.spent_flops >= theirs.spent_flops
        for task, scores in theirs.scores.items():
            np.testing.assert_array_equal(ours.scores[task], scores)


@pytest.fixture(scope="module")
def small() -> Problem:
    return Problem.from_text(SMALL)


@pytest.fixture(scope="module")
def expected(small: Problem) -> list[Any]:
    """What the process itself measures."""
    return Evaluator(small).evaluate(SCHEDULES)


class Pool:
    """Two workers, and others in their place for a while. Every start loads a model, so there are few."""

    def __init__(self, problem: Problem) -> None:
        self.executor = RayWorkers(problem, 2)
        self._sound = self.executor._actors
        self._members = list(self.executor.members)

    def sound(self) -> RayWorkers:
        if self.executor._actors is not self._sound:
            self._put_in(self._sound, 2)
        return self.executor

    def others(self, actor: type, count: int) -> RayWorkers:
        """``count`` workers of another class, sent as what they are: actors cannot import this file."""
        import ray.cloudpickle

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        self._put_in(self.executor.ray.remote(num_cpus=1, max_restarts=0)(actor), count)
        return self.executor

    def _put_in(self, actors: Any, count: int) -> None:
        for member in self.executor.members:
            self.executor.ray.kill(member.actor)
        self.executor._actors, self.executor.members = actors, self._members[:count]
        for member in self.executor.members:
            member.failed_starts = 0
            self.executor._start(member)


@pytest.fixture(scope="module")
def pool(small: Problem) -> Iterator[Pool]:
    pool = Pool(small)
    yield pool
    pool.executor.close()


@pytest.fixture
def workers(pool: Pool) -> RayWorkers:
    return pool.sound()


class Fragile(UnitWorker):
    """Dies of one policy in batch 1, so many times; a file counts them."""

    settings: tuple[str, int, Path]

    def run(self, unit: Unit) -> tuple[str, UnitResult]:
        deadly, times, record = self.settings
        if deadly in unit.names and unit.batch == 1:
            deaths = len(record.read_text()) if record.exists() else 0
            if deaths < times:
                with record.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().run(unit)


def fragile(deadly: str, times: int, record: Path) -> type[Fragile]:
    class Prepared(Fragile):
        settings = deadly, times, record

    return Prepared


def test_the_same_trials_in_the_process_and_on_workers(tmp_path: Path, small: Problem, workers: RayWorkers) -> None:
    found = []
    for executor in (None, workers):
        store = Store(f"sqlite:///{tmp_path}/{len(found)}.db")
        assert Run(small, store, executor=executor).run() > 10
        found.append(trials(store))
        assert store.workers("small") == []
    assert found[0] == found[1]
    assert set(found[0]) == {"small/lagrangian", "small/random", "small/tpe"}


def test_both_workers_work_and_are_shown(small: Problem, expected: list[Any], workers: RayWorkers) -> None:
    shown: list[list[Mapping[str, Any]]] = []
    workers.wait()
    before = {worker.name: worker.done for worker in workers.workers()}
    workers.board = Board(lambda rows: shown.append(list(rows)), every=0.0)
    assert_same(Evaluator(small, executor=workers).evaluate(SCHEDULES), expected)
    done = {worker.name: worker.done - before[worker.name] for worker in workers.workers()}
    assert set(done) == {"ray-0", "ray-1"}
    assert min(done.values()) > 0
    doing = {row["doing"] for rows in shown for row in rows}
    assert any(re.fullmatch(r"step\(.*\) and \d+ more, mosaic-vqa, search, batch \d of 6", text) for text in doing)
    assert len({row["pid"] for row in shown[-1]}) == 2
    assert os.getpid() not in {row["pid"] for row in shown[-1]}
    assert all(worker.doing == "" for worker in workers.workers())


def test_units_are_read_as_work_gets_done(small: Problem, expected: list[Any], workers: RayWorkers) -> None:
    evaluator = Evaluator(small)
    (counts,) = evaluator.counts(SCHEDULES[0], "search")
    taken = 0
    batches = evaluator.prepared("search")[0].batches

    def units() -> Iterator[tuple[int, Unit]]:
        nonlocal taken
        for number in range(12):
            taken += 1
            rows = batches[number % 6].rows
            yield number, Unit("search", 0, number % 6, small.default_method, ("a",), counts[rows][None])

    workers.attach(evaluator.runner)
    landed = 0
    for _ in workers.run(units()):
        landed += 1
        assert taken - landed <= 4
    assert landed == 12


def test_a_worker_killed_in_mid_unit_costs_nothing(small: Problem, expected: list[Any], workers: RayWorkers) -> None:
    """Killed from outside, again and again, while units run: the answers are the same."""
    killed: list[int] = []

    def kill(done: int) -> None:
        busy = [member.pid for member in workers.members if member.starting is None and member.tasks]
        if busy and len(killed) < 2 and busy[0] not in killed:
            killed.append(busy[0])
            os.kill(busy[0], signal.SIGKILL)

    # Whether somebody is busy when a result lands is a matter of luck, so it may take several rounds to kill twice.
    for _ in range(20):
        workers.wait()
        assert_same(list(Evaluator(small, executor=workers).outcomes(SCHEDULES, watch=kill)), expected)
        if len(killed) == 2:
            break
    assert len(killed) == 2
    assert not alive(set(killed))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer deaths than usual, for each takes as long as the start of a worker."""
    monkeypatch.setattr("vispco.evaluation.ray_workers.TRIES", 2)
    monkeypatch.setattr("vispco.evaluation.ray_workers.TRIES_TOGETHER", 1)
    monkeypatch.setattr("vispco.evaluation.ray_workers.STARTS", 2)


@pytest.mark.usefixtures("impatient")
def test_a_policy_that_kills_its_workers_fails_alone(
    small: Problem, expected: list[Any], pool: Pool, tmp_path: Path
) -> None:
    poisoned = 2
    workers = pool.others(fragile(SCHEDULES[poisoned].text(), 99, tmp_path / "deaths"), 2)
    outcomes = list(Evaluator(small, executor=workers).outcomes(SCHEDULES))
    assert re.match(r"its worker died 2 times, in batch 2; .* smaller batch_size", outcomes.pop(poisoned).error)
    assert_same(outcomes, [e for number, e in enumerate(expected) if number != poisoned], spent=False)
    # Once together, twice alone, and once while it is not known which of its worker's two units killed.
    assert len((tmp_path / "deaths").read_text()) in (1 + 2, 1 + 1 + 2)


@pytest.mark.usefixtures("impatient")
def test_a_policy_that_kills_once_is_tried_again(
    small: Problem, expected: list[Any], pool: Pool, tmp_path: Path
) -> None:
    workers = pool.others(fragile(SCHEDULES[0].text(), 2, tmp_path / "deaths"), 2)
    assert_same(list(Evaluator(small, executor=workers).outcomes(SCHEDULES)), expected)
    assert len((tmp_path / "deaths").read_text()) == 2


class Raising(UnitWorker):
    def run(self, unit: Unit) -> tuple[str, UnitResult]:
        raise ModelError("the model went away; bring it back")


class Unable(UnitWorker):
    def start(self, *settings: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Stranger(UnitWorker):
    def start(self, *settings: Any) -> dict[str, Any]:
        told = super().start(*settings)
        return {**told, "identity": {**told["identity"], "torch": "0.1"}}


class OtherData(UnitWorker):
    def run(self, unit: Unit) -> tuple[str, UnitResult]:
        return "other", super().run(unit)[1]


@pytest.mark.parametrize(
    ("actor", "error", "text"),
    [
        (Raising, ModelError, "the model went away; bring it back"),
        (Unable, VispcoError, "workers died 2 times while they loaded the model"),
        (Stranger, ConfigError, r"worker ray-\d on .* has other torch \(0.1 there"),
        (OtherData, ConfigError, r"other samples in split 'search' of task 'mosaic-vqa' \(other there"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_what_a_worker_raises_arrives_as_itself(
    small: Problem, pool: Pool, actor: type, error: type, text: str
) -> None:
    workers = pool.others(actor, 1)
    with pytest.raises(error, match=text) as raised:
        Evaluator(small, executor=workers).evaluate(SCHEDULES)
    assert type(raised.value) is error


def test_apart_and_together_again() -> None:
    unit = Unit("search", 0, 0, None, ("a", "b"), np.zeros((2, 3, 4), dtype=np.int64))  # type: ignore[arg-type]
    apart = Apart(unit)
    assert not apart.put(1, UnitResult(np.ones((1, 3), np.float32), {}, 5))
    assert apart.put(0, UnitResult(np.full((1, 3), np.nan, np.float32), {0: "broken"}, 2))
    assert apart.result.errors == {0: "broken"}
    assert apart.result.recomputed_flops == 7
    np.testing.assert_array_equal(apart.result.scores, [[np.nan] * 3, [1] * 3])


def test_the_board_is_written_now_and_then() -> None:
    written: list[Any] = []
    board = Board(written.append, every=60.0)
    worker = Worker("a")
    worker.begin("this")
    for _ in range(3):
        board.show([worker])
    ((row,),) = written
    assert row["doing"] == "this"
    assert row["pid"] == os.getpid()
    assert row["seen"] >= row["since"]


def test_a_loaded_model_cannot_be_sent(small: Problem) -> None:
    given = Problem(small.study, model=small.model, processor=small.processor)
    with pytest.raises(ConfigError, match="cannot be sent"):
        RayWorkers(given, 1)
    with pytest.raises(ConfigError, match="0 workers"):
        RayWorkers(small, 0)


# --- the command line, in processes of its own -----------------------------------------------------


def command(*words: str, database: Path, text: str = SMALL, **settings: str) -> subprocess.Popen[str]:
    study = database.with_suffix(".yaml")
    study.write_text(text)
    return subprocess.Popen(
        [sys.executable, *VISPCO, *words, str(study)],
        env={**os.environ, "VISPCO_STORAGE": f"sqlite:///{database}", "OMP_NUM_THREADS": "1", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LONG = SMALL.replace("search: 24", "search: 64").replace("trials: 8", "trials: 200").replace("random:", "grid2:")
LONG = LONG.replace("kind: random, compute: lagrangian", "kind: grid")


def working(database: Path) -> list[dict[str, Any]]:
    """Rows of workers that measure."""
    try:
        rows = Store(f"sqlite:///{database}", create=False).workers("small")
    except VispcoError:
        return []
    return [row for row in rows if "batch" in row["doing"]]


def done_so_far(database: Path) -> Any:
    """What changes while a run goes on: units that workers have done, and trials."""
    try:
        store = Store(f"sqlite:///{database}", read_only=True)
        rows = [(row["worker"], row["doing"], row["done"]) for row in store.workers("small")]
        return rows, [len(store.trial_log(study).trials()) for study in store.study_names("small")]
    except VispcoError:
        return None


def listening(pids: set[int]) -> set[str]:
    """Addresses on which processes listen, from the kernel's tables."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            inodes.update(re.findall(r"socket:\[(\d+)\]", target))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_survives_its_driver(how: signal.Signals, tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    driver = command("run", "--workers", "1", database=database, text=LONG)
    try:
        rows = wait_for(lambda: working(database), driver)
        below = children_of(driver.pid)
        assert {row["pid"] for row in rows} <= below
        loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
        ports = listening(below | {driver.pid})
        assert ports
        assert ports <= loopback
        os.kill(driver.pid, how)
        _, errors = outlast(driver)
        if how == signal.SIGINT:
            assert driver.returncode == 130
            assert errors.strip().splitlines()[-1].startswith("vispco: stopped")
            assert Store(f"sqlite:///{database}").workers("small") == []
        wait_for(lambda: not alive({row["pid"] for row in rows}))
        wait_for(lambda: not alive(below))
    finally:
        driver.kill()


@pytest.mark.slow
def test_without_ray_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('no ray here')\n")
    done = command("run", "--workers", "2", database=tmp_path / "a.db", PYTHONPATH=str(tmp_path))
    _, errors = outlast(done)
    assert done.returncode == 2
    assert errors.splitlines() == ["vispco: workers need Ray, which is not installed; run: pip install 'vispco[ray]'"]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://somewhere", "nonsense"])
def test_no_cluster_is_one_line(tmp_path: Path, address: str) -> None:
    done = command("run", "--ray", address, database=tmp_path / "a.db")
    _, errors = outlast(done)
    assert done.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"vispco: no Ray cluster at '{address}'")


# `ray start` takes the machine's outward address where it is told 127.0.0.1; here it stays on the loopback.
RAY_START = """
from ray._private import services
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts.scripts import main
main()
"""
MEDIUM = SMALL.replace("{kind: tpe, trials: 8, batch: 4}", "{kind: grid}")


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


@pytest.fixture
def head_and_worker() -> Iterator[tuple[str, dict[str, str], subprocess.Popen[bytes]]]:
    """A cluster of two nodes with a CPU each: its address, the settings of who joins it, the second node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    folder = tempfile.mkdtemp(prefix="ray-")  # the path of a socket must be short
    common = ["--block", "--node-ip-address", "127.0.0.1", "--num-cpus", "1", "--object-store-memory", "80000000"]
    head = ["--head", "--port", address.rpartition(":")[2], "--include-dashboard", "false", "--temp-dir", folder]
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for words in (head, ["--address", address]):
            node = subprocess.Popen(
                [sys.executable, "-c", RAY_START, "start", *words, *common],
                env={**others, **settings, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            nodes.append(node)
            wait_for(lambda: any("raylet" in name_of(child) for child in children_of(nodes[-1].pid)))
            time.sleep(3)
        yield address, {**settings, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}, nodes[1]
    finally:
        below = {pid for node in nodes for pid in children_of(node.pid)}
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)
        wait_for(lambda: not alive(below))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_head_and_a_worker_run_the_same_experiment_though_the_worker_leaves(
    tmp_path: Path, head_and_worker: tuple[str, dict[str, str], subprocess.Popen[bytes]]
) -> None:
    address, settings, node = head_and_worker
    database = tmp_path / "cluster.db"
    driver = command("run", "--ray", address, database=database, text=MEDIUM, **settings)
    try:
        wait_for(lambda: len(working(database)) == 2, driver)
        (raylet,) = [pid for pid in children_of(node.pid) if "raylet" in name_of(pid)]
        os.kill(raylet, signal.SIGKILL)
        output, errors = outlast(driver, lambda: done_so_far(database))
    finally:
        driver.kill()
    assert driver.returncode == 0, errors
    assert output.startswith("small: accuracy on held-out samples")
    store = Store(f"sqlite:///{tmp_path}/process.db")
    Run(Problem.from_text(MEDIUM), store).run()
    assert trials(Store(f"sqlite:///{database}")) == trials(store)


@pytest.mark.slow
def test_ray_is_not_imported_unless_asked() -> None:
    modules = "vispco.cli.main, vispco.evaluation.ray_workers, vispco.experiment.run"
    code = f"import sys, {modules}; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
