"""Passwords shown and stored nowhere; a stranger's database runs no code."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import vispco
from conftest import VISPCO, python
from test_storage import make_evaluation
from vispco.cli import main as module
from vispco.errors import ConfigError, ModelError, ScheduleError, StorageError
from vispco.models.loading import DEMO, load_model
from vispco.problem import Problem
from vispco.pruning.schedules import parse_schedule
from vispco.storage.redaction import redact_text
from vispco.storage.store import Store, open_store, redact

SECRET = "s3cr:e/t@x"
DEAD_URL = "postgresql+psycopg://me:s3cretword@127.0.0.1:1/db"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        (f"at postgresql://me:{SECRET}@host/db, tried", "at postgresql://me:***@host/db, tried"),
        (
            "'postgresql://me:secret@host/db' and 'redis://u:secret@h'",
            "'postgresql://me:***@host/db' and 'redis://u:***@h'",
        ),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("host=h password=secret user=me", "host=h password=*** user=me"),
        ("host=h password = 'sec ret\\'secret' user=me", "host=h password = *** user=me"),
        ("{'host': 'h', 'password': 'secret'}", "{'host': 'h', 'password': ***}"),
        ("PGPASSWORD=secret vispco run", "PGPASSWORD=*** vispco run"),
        ("sslpassword=secret", "sslpassword=***"),
    ],
)
def test_passwords_are_taken_out(given: str, shown: str) -> None:
    assert redact_text(given) == shown
    assert redact_text(shown) == shown


@pytest.mark.parametrize(
    "harmless",
    [
        "postgresql+psycopg://me@host/db",
        "sqlite:///a.db",
        "password authentication failed for user 'me'",
        "see https://example.org/a:b and write to me@example.org",
        "multistep(layers=(2, 5), keeps=(0.5, 0.25))",
    ],
)
def test_other_text_stays(harmless: str) -> None:
    assert redact_text(harmless) == harmless


@pytest.mark.parametrize(
    "url",
    [
        DEAD_URL,
        "postgresql+psycopg://127.0.0.1:1/db?user=me&password=s3cretword",
        "postgresql+psycopg://me:s3cretword@127.0.0.1:notaport/db",
        "postgresql+nosuchdriver://me:s3cretword@h/db",
        "mysql://me:s3cretword@h/db",
        "postgresql+psycopg://me:s3cretword@127.0.0.1:1/db?sslmode=s3cretword-no",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    assert "s3cretword" not in redact(url).replace("sslmode=s3cretword-no", "")
    with pytest.raises(StorageError) as caught, open_store(url):
        pass
    assert "s3cretword" not in str(caught.value).replace("s3cretword-no", "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", [[], pytest.param(["--debug"], marks=pytest.mark.slow)])
@pytest.mark.parametrize("by_option", [True, False])
def test_the_command_line_shows_no_password(by_option: bool, flags: list[str]) -> None:
    named = ["--storage", DEAD_URL] if by_option else []
    done = python(*VISPCO, *flags, "ls", *named, env={**os.environ, "VISPCO_STORAGE": DEAD_URL})
    assert done.returncode == 2
    assert "cannot open database postgresql+psycopg://me:***@127.0.0.1:1/db" in done.stderr
    assert "s3cretword" not in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == bool(flags)


def test_unexpected_failures_show_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"{'x' * 480} lost {DEAD_URL}")

    monkeypatch.setattr(module, "app", broken)
    for debug in ("", "1"):
        monkeypatch.setenv("VISPCO_DEBUG", debug)
        with pytest.raises(SystemExit) as caught:
            module.main()
        assert caught.value.code == 1
    shown = capsys.readouterr().err
    assert "unexpected failure: RuntimeError" in shown
    assert "Traceback" in shown
    assert "s3cret" not in shown


def test_the_database_holds_no_password(pg_server: Any, pg_url: str) -> None:
    """Everything that a run stores, failures with the URL in their message included."""
    url = pg_url.replace("postgres:@", "postgres:s3cretword@")
    assert "s3cretword" in url
    store = Store(url)
    with store.lock("exp"):
        store.save_experiment("exp", spec_text="x", spec_hash="h", identity={}, provenance={})
        log = store.trial_log("exp/grid")
        error = RuntimeError(f"lost {url}")
        log.add_failure("s", parameters={}, distributions={}, error=error, attempt=1)
        store.put_evaluation(make_evaluation(), {"x": ["g"] * 3, "b": ["h"]})
        with store.reading() as connection:
            tables = connection.execute(text("select tablename from pg_tables where schemaname = 'public'")).scalars()
            dump = "".join(str(connection.execute(text(f'select * from "{name}"')).all()) for name in tables)
    assert "lost postgresql+psycopg://postgres:***@/" in dump
    assert "s3cretword" not in dump


# --- no code from data -----------------------------------------------------------------------------

FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "eval", "exec", "__import__", "compile",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "torch.load", "read_pickle", "os.system",
}  # fmt: skip


def called(tree: ast.AST) -> list[tuple[int, str, ast.AST]]:
    """Names of everything that is imported or called."""
    found: list[tuple[int, str, ast.AST]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.partition(".")[0], node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, (node.module or "").partition(".")[0], node))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [(node.lineno, name, node), (node.lineno, name.rpartition(".")[2] + "()", node)]
            found += [
                (node.lineno, f"{word.arg}={ast.unparse(word.value)}", node)
                for word in node.keywords
                if word.arg in ("allow_pickle", "trust_remote_code", "shell")
            ]
    return found


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    root = Path(vispco.__file__).parent
    wrong = []
    for file in [*root.rglob("*.py"), *(root.parent / "dashboards").rglob("*.py")]:
        for line, name, node in called(ast.parse(file.read_text(encoding="utf-8"))):
            weights_only = isinstance(node, ast.Call) and any(
                word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords
            )
            if name == "torch.load" and weights_only and file.name == "train.py":
                continue  # the training script's own checkpoint, by the reader that knows tensors only
            if name in ("exec", "compile") and file.relative_to(root.parent).as_posix() == "vispco/plugin_files.py":
                continue  # plug-ins: the user names the file on the command line or in a study file, never a database
            if name in FORBIDDEN or name in ("allow_pickle=True", "trust_remote_code=True", "shell=True"):
                wrong.append(f"{file}:{line}: {name}")
    assert wrong == []


def test_the_check_finds_what_it_looks_for() -> None:
    bad = "import pickle\nfrom dill import load\nx = torch.load(f)\nyaml.load(t)\neval(s)\nf(trust_remote_code=True)"
    names = {name for _, name, _ in called(ast.parse(bad))}
    assert {"pickle", "dill", "torch.load", "yaml.load", "eval", "trust_remote_code=True"} <= names


STRANGE_STUDIES = [
    "!!python/object/apply:os.system ['touch {file}']",
    "experiment: !!python/object/apply:os.system ['touch {file}']\nsearches: {{}}",
    """
experiment: x
tasks: [{{name: "open('{file}', 'w')", splits: {{calibration: 1, search: 1, held_out: 1}}}}]
searches: {{grid: {{kind: grid}}}}
""",
    """
experiment: x
tasks: [{{name: mosaic-vqa, splits: {{calibration: 1, search: 1, held_out: 1}}}}]
method: os.system
searches: {{grid: {{kind: grid}}}}
""",
]


@pytest.mark.parametrize("study", STRANGE_STUDIES)
def test_a_strangers_study_runs_no_code(study: str, tmp_path: Path) -> None:
    file = tmp_path / "touched"
    with pytest.raises(ConfigError):
        Problem.from_text(study.format(file=file))
    assert not file.exists()


@pytest.mark.parametrize(
    "schedule",
    [
        "__import__('os').system('touch {file}')",
        "step(layer=__import__('os').system('touch {file}'), keep=0.5)",
        "step(layer=(lambda: open('{file}', 'w'))(), keep=0.5)",
        "ratios(*[open('{file}', 'w')])",
        "step(**{{'layer': open('{file}', 'w')}})",
    ],
)
def test_a_strangers_schedule_runs_no_code(schedule: str, tmp_path: Path) -> None:
    file = tmp_path / "touched"
    with pytest.raises(ScheduleError):
        parse_schedule(schedule.format(file=file))
    assert not file.exists()


def test_a_strangers_model_runs_no_code(tmp_path: Path) -> None:
    """A folder with its own modelling code is refused without a question, even where somebody could answer."""
    folder, touched = tmp_path / "model", tmp_path / "touched"
    shutil.copytree(DEMO, folder)
    code = f"open({str(touched)!r}, 'w')\n"
    (folder / "modeling_strange.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "strange"
    config["auto_map"] = {
        "AutoConfig": "modeling_strange.Config",
        "AutoModelForImageTextToText": "modeling_strange.Model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot load model"):
        load_model(str(folder))
    assert not touched.exists()


@pytest.mark.slow
def test_a_strangers_database_is_reported_and_resumed_without_running_code(tmp_path: Path) -> None:
    """The old database with poison wherever text is stored."""
    touched = tmp_path / "touched"
    database = tmp_path / "old.db"
    shutil.copy(Path(__file__).parent / "data" / "version-1.db", database)
    poison = f"!!python/object/apply:os.system ['touch {touched}']"
    call = f"__import__('os').system('touch {touched}')"
    with sqlite3.connect(database) as connection:
        connection.execute("update vispco_experiment set spec_text = ?", (poison,))
        connection.execute("update vispco_evaluation set schedule = ?", (call,))
        connection.execute(
            "update trial_user_attributes set value_json = ? where key = 'schedule'", (json.dumps(call),)
        )
    for arguments in (["resume", "old"], ["compare", "old"], ["report", "old", "-o", str(tmp_path / "r.html")]):
        done = python(*VISPCO, *arguments, "--storage", f"sqlite:///{database}", cwd=tmp_path)
        assert done.returncode in (0, 2), done.stderr
        assert "unexpected failure" not in done.stderr
        if arguments[0] == "resume":
            assert done.returncode == 2
            assert "not valid YAML" in done.stderr
    assert not touched.exists()
