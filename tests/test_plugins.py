"""Plug-ins from files: the guide's examples, and what is refused."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL, Cli, python
from pages import blocks
from vispco import plugin_files
from vispco.cli.main import plugins_first
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.identity import measuring_rules
from vispco.experiment import unchanged
from vispco.experiment.run import Run
from vispco.plugin_files import code_of
from vispco.plugins import METHODS, load_plugin
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.storage.store import Store

FIRST = """
from dataclasses import dataclass
from vispco.plugins import METHODS, Method

@METHODS.register("first-ones")
@dataclass(frozen=True)
class FirstOnes(Method):
    by: float = 1.0
    def score(self, context):
        return -context.rank.float()
"""


@pytest.fixture
def _registers() -> Iterator[None]:
    """Leave no plug-in behind."""
    before, modules = dict(METHODS._classes), set(sys.modules)
    yield
    METHODS._classes.clear()
    METHODS._classes.update(before)
    for name in {name for name in sys.modules if name.startswith(plugin_files.PREFIX)} - modules:
        del sys.modules[name]


def write_guide(folder: Path) -> None:
    for code in blocks("docs/extending.md", "python"):
        (folder / code.splitlines()[0].removeprefix("# ")).write_text(code)
    (folder / "study.yaml").write_text(*blocks("docs/extending.md", "yaml"))


def suite(folder: Path, file: str) -> int:
    """How many tests passed, in a process of its own, so that no name is registered here."""
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", file, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    return int(re.findall(r"(\d+) passed", done.stdout)[0])


@pytest.mark.slow
def test_the_plugins_of_the_guide_pass_their_suites(tmp_path: Path) -> None:
    write_guide(tmp_path)
    assert suite(tmp_path, "test_plugins.py") > 100


@pytest.mark.slow
def test_the_model_family_of_the_guide_passes_its_suite(tmp_path: Path) -> None:
    write_guide(tmp_path)
    assert suite(tmp_path, "test_vipllava.py") > 100


@pytest.mark.slow
def test_the_study_of_the_guide_runs(tmp_path: Path) -> None:
    """As its commands say, each in a process of its own."""
    write_guide(tmp_path)
    said = {}
    for line in blocks("docs/extending.md", "bash")[0].strip().splitlines():
        done = python("-m", *shlex.split(line), cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        said[line.split()[1]] = done.stdout + done.stderr
    assert "30 new trials" in said["run"]
    assert re.search(r"cents: 0\.\d+ of the unpruned", said["choose"])
    assert "nothing to do" in said["resume"]
    assert "longest" in said["ls"]


@pytest.mark.usefixtures("_registers")
def test_a_stored_study_loads_no_code(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when its database is resumed, nor from its text; with the file it goes on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISPCO_STORAGE", f"sqlite:///{tmp_path}/a.db")
    Path("first.py").write_text(FIRST)
    head = SMALL.partition("searches:")[0] + "plugins: [first.py]\nmethod: first-ones\n"
    Path("study.yaml").write_text(head + "searches: {random: {kind: random, trials: 2}}\n")
    assert cli("run", "study.yaml")[0] == 0
    METHODS._classes.pop("first-ones")
    module = sys.modules.pop(f"{plugin_files.PREFIX}first")
    code, _, err = cli("resume", "small")
    assert code == 2
    assert "--plugin first.py" in err
    assert f"{plugin_files.PREFIX}first" not in sys.modules
    code, _, err = cli("resume", "small", "--plugin", "first.py")
    assert code == 0, err
    assert "nothing to do" in err
    # A changed file is another method.
    Path("first.py").write_text(module.__plugin_text__.replace("-context", "+context"))
    code, _, err = cli("run", "study.yaml")
    assert code == 2
    assert "another version of its plug-in (method)" in err


@pytest.mark.usefixtures("_registers")
def test_a_changed_file_is_measured_anew(problem: Problem, tmp_path: Path) -> None:
    """It takes the place of the earlier one; the built-in methods have the identity that they had."""
    path = tmp_path / "first.py"
    path.write_text(FIRST)
    load_plugin(path)
    evaluator = Evaluator(problem)
    assert "code" not in evaluator.context("search", make_method("fastv"))
    before = evaluator.context("search", make_method("first-ones"))
    assert load_plugin(path) is load_plugin(path)
    path.write_text(FIRST.replace("-context", "+context"))
    load_plugin(path)
    after = evaluator.context("search", make_method("first-ones"))
    assert {key for key in after if after[key] != before[key]} == {"code"}


def test_code_that_is_no_file_of_a_plugin_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package's file, a class typed at a prompt, a function; nothing of what is part of this package."""
    monkeypatch.syspath_prepend(tmp_path)
    for text in ("base = 1\n", "base = 2\n"):
        (tmp_path / "installed_methods.py").write_text(f"class Mine:\n    {text}")
        sys.modules.pop("installed_methods", None)
        importlib.invalidate_caches()
        module = importlib.import_module("installed_methods")
        (digest,) = code_of(method=module.Mine()).values()
        assert digest == hashlib.sha256((tmp_path / "installed_methods.py").read_bytes()).hexdigest()[:16]
    sys.modules.pop("installed_methods")

    def typed(body: str) -> dict[str, str]:
        made: dict[str, Any] = {"__name__": "__main__"}
        exec(f"class Mine:\n    def score(self, x):\n        {body}\n    kind = 'a'", made)
        return code_of(method=made["Mine"]())

    assert typed("return x + 1") == typed("return x + 1") != typed("return x + 2")
    assert typed("return x in {'a', 'b'}") != typed("return x in {'a', 'c'}")
    assert code_of(method=make_method("fastv"), cost=len, part=functools.partial(make_method, "fastv")) == {}
    assert set(code_of(scorer=functools.partial(typed, "pass"))) == {"scorer"}


def test_bytecode_is_the_same_in_every_process() -> None:
    """Sets of texts are ordered otherwise in each; results would never be found again."""
    code = (
        "class Mine:\n    def score(self, x):\n        return x in {'a', 'b', 'c', 'd'}\n"
        "from vispco.plugin_files import code_of\nprint(code_of(method=Mine))"
    )
    command = [sys.executable, "-c", code]
    told = {
        subprocess.check_output(command, env={**os.environ, "PYTHONHASHSEED": seed}, text=True) for seed in ("1", "2")
    }
    assert len(told) == 1
    assert "method" in told.pop()


@pytest.mark.parametrize(
    ("part", "key", "said"),
    [
        ("rules", "evaluator", "evaluator of the rules"),
        ("rules", "task mosaic-vqa", "task mosaic-vqa of the rules"),
        ("plug-ins", "scorer of mosaic-vqa", "scorer of mosaic-vqa of the plug-ins"),
    ],
)
def test_trials_of_an_earlier_rule_are_not_continued(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str, key: str, said: str
) -> None:
    """Held-out results of the new rule would stand beside search results of the old one."""
    store, rules = Store(f"sqlite:///{tmp_path}/a.db"), measuring_rules(problem)
    earlier = {**rules, part: {**rules[part], key: "earlier"}}
    monkeypatch.setattr(unchanged, "measuring_rules", lambda _: earlier)
    Run(problem, store).run(["tpe"])
    monkeypatch.setattr(unchanged, "measuring_rules", lambda _: {**rules, part: {**rules[part], key: "now"}})
    with pytest.raises(ConfigError, match=f"other content under the same names: {said}"):
        Run(problem, store).run(["tpe"])
    monkeypatch.undo()


@pytest.mark.usefixtures("_registers")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = unknown\n", r"plug-in p\.py, line 2: NameError: name 'unknown'"),
        ("x = (\n", r"plug-in p\.py, line 1: SyntaxError"),
        (FIRST.replace("first-ones", "fastv"), r"plug-in p\.py, line \d+: ValueError: method name 'fastv' is taken by"),
        ("raise SystemError('\\n')", r"plug-in p\.py, line 1: SystemError"),
        (None, r"cannot read plug-in .*p\.py.*: No such file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "p.py").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_plugin(tmp_path / "p.py")
    if text is not None:  # and once mended it is loaded
        (tmp_path / "p.py").write_text(FIRST)
        load_plugin(tmp_path / "p.py")
        assert make_method("first-ones", {"by": 2.0}).name == "first-ones"


@pytest.mark.usefixtures("_registers")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder, text in (("a", FIRST), ("b", FIRST + "x = 1\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.py").write_text(text)
    load_plugin(tmp_path / "a/p.py")
    with pytest.raises(ConfigError, match=r"two plug-ins are called p\.py"):
        load_plugin(tmp_path / "b/p.py")


def test_the_option_may_follow_the_command() -> None:
    assert plugins_first(["run", "s.yaml", "--plugin", "a.py", "--fresh", "--plugin=b.py"]) == [
        *("--plugin", "a.py", "--plugin=b.py"),
        *("run", "s.yaml", "--fresh"),
    ]
    assert plugins_first(["--debug", "ls"]) == ["--debug", "ls"]
