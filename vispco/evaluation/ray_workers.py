"""Units of work on Ray actors, each with a model of its own. This process hands out, collects, and alone writes.

Every worker has at most two units: one that it runs and one that waits. A worker that dies is replaced; what it had
is handed out again, now each as the only one of its worker, so that it is known which unit kills. A unit of several
policies whose worker died twice is taken apart, and a policy alone with three dead workers fails.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vispco.config import content_hash
from vispco.errors import ConfigError, VispcoError
from vispco.evaluation.board import Board, Worker, describe
from vispco.evaluation.content import model_content, split_content
from vispco.evaluation.ray_cluster import Cluster
from vispco.evaluation.units import Unit, UnitResult, UnitRunner
from vispco.plugin_files import load_sources, loaded_sources

if TYPE_CHECKING:
    from vispco.evaluation.prepared import PreparedSplit
    from vispco.problem import Problem

IN_FLIGHT = 2
TRIES, TRIES_TOGETHER = 3, 2
STARTS = 3
DEATH_SECONDS = 10.0  # until all units of a dead worker are known to be lost
LOOK_SECONDS = 1.0
SECONDS_WITHOUT_WORKERS = 900.0


class UnitWorker:
    """What runs inside an actor."""

    def start(self, text: str, device: str, threads: int, folder: str, plugins: Mapping[str, str]) -> dict[str, Any]:
        """Load the model; tells where that was, and with which software and weights."""
        import socket

        import torch

        from vispco.config import parse_study
        from vispco.problem import Problem

        if os.path.isdir(folder):
            os.chdir(folder)
        torch.set_num_threads(threads)
        load_sources(plugins)
        study = parse_study(text)
        study = study.model_copy(update={"model": study.model.model_copy(update={"device": device})})
        self._runner = UnitRunner(Problem(study, text), study.memory_limit)
        self._samples: dict[tuple[str, int, float | None], str] = {}
        return {"host": socket.gethostname(), "pid": os.getpid(), "identity": identity(self._runner)}

    def run(self, unit: Unit) -> tuple[str, UnitResult]:
        """The result, and the identity of the samples that it is about."""
        key = unit.split, unit.task, unit.resolution
        if key not in self._samples:
            part = self._runner.at(unit.resolution).prepared(unit.split)[unit.task]
            self._samples[key] = samples_identity(part)
        return self._samples[key], self._runner.run(unit)


@dataclass(frozen=True, eq=False)
class Task:
    """A unit, or one policy of it, on its way.

    ``suspect``: a worker that had it died; it gets a worker to itself. ``deaths`` of workers that had nothing else.
    """

    number: int
    unit: Unit
    policy: int | None = None
    deaths: int = 0
    suspect: bool = False

    def sent(self) -> Unit:
        if self.policy is None:
            return self.unit
        one = slice(self.policy, self.policy + 1)
        return replace(self.unit, names=self.unit.names[one], counts=self.unit.counts[one])


@dataclass(eq=False)
class Member(Worker):
    """A worker as the driver sees it; ``tasks`` by their futures, in the order in which it gets them."""

    actor: Any = None
    starting: Any = None
    failed_starts: int = 0
    tasks: dict[Any, Task] = field(default_factory=dict)


class RayWorkers:
    """An executor on Ray.

    Args:
        problem: every worker loads it from its text, and the model by its name.
        workers: how many on this machine; with ``address`` the most to take.
        address: of a running Ray cluster, ``host:port`` or ``auto``.
        threads: of the CPU, per worker.

    Raises:
        ConfigError: Ray is missing, not reachable or too small, or the problem was given a loaded model.
    """

    def __init__(
        self, problem: Problem, workers: int | None = None, *, address: str | None = None, threads: int = 1
    ) -> None:
        if problem.has_given_model:
            raise ConfigError("workers load the model by its name; a model that is loaded already cannot be sent")
        if workers is None and address is None:
            raise ConfigError("give a number of workers, or the address of a Ray cluster")
        if workers is not None and workers < 1:
            raise ConfigError(f"{workers} workers can do nothing; ask for 1 or more")
        self.board = Board()
        self.runner = UnitRunner(problem)
        self.cluster = Cluster(address, workers, problem.study.model.device, threads)
        self.ray, room = self.cluster.ray, self.cluster.room
        self._settings = (
            problem.portable_text,
            "cuda" if room.gpus else problem.study.model.device,
            threads,
            os.getcwd(),
            loaded_sources(),
        )
        # Not restarted by Ray: only here is known whom to blame.
        self._actors = self.ray.remote(num_cpus=room.threads, num_gpus=room.gpus, max_restarts=0)(UnitWorker)
        self.members = [Member(f"ray-{number}") for number in range(self.cluster.workers)]
        for member in self.members:
            self._start(member)
        self._samples: dict[tuple[str, int, float | None], str] = {}
        self._alive = time.monotonic()

    def attach(self, runner: UnitRunner) -> None:
        """``runner`` is this process's own, which has the splits prepared."""
        self.runner = runner

    def workers(self) -> list[Worker]:
        return list(self.members)

    def close(self) -> None:
        """End the workers, and Ray if it was started for them."""
        for member in self.members:
            if member.actor is not None:
                self.ray.kill(member.actor)
        self.members = []
        self.cluster.close()

    def wait(self) -> None:
        """Until every worker has loaded its model."""
        while any(member.starting is not None for member in self.members):
            self._collect(deque())

    # --- running units -----------------------------------------------------------------------------

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, UnitResult]]:
        """Numbered units in, their results out, each once.

        Raises:
            VispcoError: no worker can be kept alive, or what a worker raised, as it raised it.
        """
        source = (Task(number, unit) for number, unit in units)
        again: deque[Task] = deque()
        apart: dict[int, Apart] = {}
        self._alive = time.monotonic()
        try:
            while self._hand_out(again, source) or again or any(member.tasks for member in self.members):
                self.board.show(self.members)
                for task, result in self._collect(again):
                    if task.policy is None:
                        yield task.number, result
                    elif apart.setdefault(task.number, Apart(task.unit)).put(task.policy, result):
                        yield task.number, apart.pop(task.number).result
        finally:
            for member in self.members:
                member.tasks.clear()
                member.begin("")

    def _hand_out(self, again: deque[Task], source: Iterator[Task]) -> bool:
        """Fill the workers up, the emptiest first; False when ``source`` is at its end."""
        more = True
        for depth in range(IN_FLIGHT):
            for member in self.members:
                busy = len(member.tasks) > depth or any(task.suspect for task in member.tasks.values())
                if member.starting is not None or busy:
                    continue
                task = again.popleft() if again and not member.tasks else next(source, None)
                if task is None:
                    more = False
                    continue
                member.tasks[member.actor.run.remote(task.sent())] = task
                self._tell(member)
        return more

    def _collect(self, again: deque[Task]) -> list[tuple[Task, UnitResult]]:
        """What has come back since; what was lost is put into ``again``."""
        waiting = {future: member for member in self.members for future in member.tasks}
        waiting.update({member.starting: member for member in self.members if member.starting is not None})
        if self.ray.wait(list(waiting), timeout=LOOK_SECONDS)[0]:
            ready, _ = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        else:
            ready = []
        found: list[tuple[Task, UnitResult]] = []
        for future in ready:
            member = waiting[future]
            if future is member.starting:
                self._started(member)
            elif future in member.tasks:
                found += self._finished(member, future, again)
        if any(member.starting is None for member in self.members):
            self._alive = time.monotonic()
        elif time.monotonic() - self._alive > SECONDS_WITHOUT_WORKERS:
            raise VispcoError(
                f"no worker could be started within {SECONDS_WITHOUT_WORKERS:.0f} s; see that the cluster has free "
                "CPUs or GPUs (ray status), and run the same command to go on"
            )
        return found

    def _finished(self, member: Member, future: Any, again: deque[Task]) -> list[tuple[Task, UnitResult]]:
        result = self._get(member, future)
        if result is None:
            return self._died(member, again)
        task = member.tasks.pop(future)
        member.done += 1
        self._tell(member)
        return [(task, result)]

    def _get(self, member: Member, future: Any) -> UnitResult | None:
        """A unit's result; None if its worker died."""
        try:
            samples, result = self.ray.get(future)
        except self.ray.exceptions.RayActorError:
            return None
        except self.ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", error) from None
        unit = member.tasks[future].unit
        key = unit.split, unit.task, unit.resolution
        if key not in self._samples:
            part = self.runner.at(unit.resolution).prepared(unit.split)[unit.task]
            self._samples[key] = samples_identity(part)
        task = self.runner.problem.tasks[unit.task].name
        _compare(member, f"samples in split {unit.split!r} of task {task!r}", samples, self._samples[key])
        checked: UnitResult = result
        return checked

    def _tell(self, member: Member) -> None:
        first = next(iter(member.tasks.values()), None)
        member.begin("" if first is None else describe(first.sent(), self.runner))

    # --- births and deaths -------------------------------------------------------------------------

    def _start(self, member: Member) -> None:
        member.actor = self._actors.remote()
        member.starting = member.actor.start.remote(*self._settings)
        member.begin("starting")

    def _started(self, member: Member) -> None:
        try:
            told = self.ray.get(member.starting)
        except self.ray.exceptions.RayActorError as error:
            member.failed_starts += 1
            if member.failed_starts < STARTS:
                self._start(member)
                return
            self.members.remove(member)
            if not self.members:
                raise VispcoError(
                    f"workers died {STARTS} times while they loaded the model; if memory ran out, ask for fewer "
                    f"workers or a smaller model ({' '.join(str(error).split())[:200]})"
                ) from None
            return
        except self.ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", error) from None
        member.starting, member.failed_starts = None, 0
        member.host, member.pid = told["host"], told["pid"]
        member.begin("")
        ours = identity(self.runner)
        for what, theirs in told["identity"].items():
            _compare(member, what, theirs, ours[what])

    def _died(self, member: Member, again: deque[Task]) -> list[tuple[Task, UnitResult]]:
        """Replace a worker. What it had finished is taken, the rest handed out again; a single unit is blamed."""
        self.ray.wait(list(member.tasks), num_returns=len(member.tasks), timeout=DEATH_SECONDS)
        self.ray.kill(member.actor)
        found: list[tuple[Task, UnitResult]] = []
        lost: list[Task] = []
        for future, task in member.tasks.items():
            result = self._get(member, future)
            if result is None:
                lost.append(task)
            else:
                found.append((task, result))
        member.tasks.clear()
        self._start(member)
        for task in lost:
            blamed = replace(task, suspect=True, deaths=task.deaths + (len(lost) == 1))
            if len(blamed.unit.names) > 1 and blamed.policy is None and blamed.deaths >= TRIES_TOGETHER:
                policies = range(len(blamed.unit.names))
                again.extend(Task(blamed.number, blamed.unit, policy, suspect=True) for policy in policies)
            elif blamed.deaths >= TRIES:
                found.append((blamed, _given_up(blamed)))
            else:
                again.append(blamed)
        return found


class Apart:
    """Puts a unit together again of whose policies each ran alone."""

    def __init__(self, unit: Unit) -> None:
        self._missing = set(range(len(unit.names)))
        self._scores: NDArray[np.float32] = np.full(unit.counts.shape[:2], np.nan, np.float32)
        self._errors: dict[int, str] = {}
        self._recomputed = 0

    def put(self, policy: int, result: UnitResult) -> bool:
        """Note the result of one policy; True when none is missing."""
        self._scores[policy] = result.scores[0]
        self._errors.update(dict.fromkeys([policy] if result.errors else [], result.errors.get(0, "")))
        self._recomputed += result.recomputed_flops
        self._missing.discard(policy)
        return not self._missing

    @property
    def result(self) -> UnitResult:
        return UnitResult(self._scores, self._errors, self._recomputed)


def _given_up(task: Task) -> UnitResult:
    unit = task.sent()
    why = f"its worker died {task.deaths} times, in batch {unit.batch + 1}; if memory ran out, use a smaller batch_size"
    return UnitResult(np.full(unit.counts.shape[:2], np.nan, np.float32), {0: why})


def identity(runner: UnitRunner) -> dict[str, str]:
    """What must be the same wherever results shall be the same."""
    packages = {name: version(name) for name in ("vispco", "torch", "transformers")}
    content = model_content(runner.problem)
    parts = {f"{part} of the model": content_hash(values) for part, values in content.items() if part != "model"}
    return {**packages, "weights of the model": content["model"]["weights"], **parts}


def samples_identity(part: PreparedSplit) -> str:
    """All that a split's samples say, their pictures, and the tokens that are read."""
    return content_hash([split_content(part), part.n_visual.tolist(), part.n_text.tolist()])


def _compare(member: Member, what: str, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise ConfigError(
            f"worker {member.name} on {member.host} has other {what} ({theirs} there, {ours} here), so its results "
            "would differ; give every machine the same software and data"
        )
