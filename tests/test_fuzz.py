"""Mutated studies, schedules, rows, command lines and databases: success or one line that says why not, and soon.

The short form runs with the other tests; ``make fuzz`` tries 6,000 inputs.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from fuzzing import (
    SCALARS,
    Choices,
    Mutate,
    alike,
    as_yaml,
    call,
    mutate_bytes,
    mutate_database,
    mutate_text,
    mutate_tree,
    problem_of,
    write,
)
from vispco.models import loading

pytestmark = pytest.mark.slow

OWN = """
experiment: mine
model: demo
tasks:
  - {name: vqa-json, splits: {calibration: 2, search: 2, held_out: 2}, options: {path: rows.jsonl, max_new_tokens: 1}}
calibration: {name: vqa-json, samples: 2, options: {path: rows.jsonl}}
method: {name: fastv, parameters: {}}
budgets: [0.6, 0.9]
searches:
  random: {kind: random, trials: 2, seeds: [0, 1]}
  tpe: {kind: tpe, compute: random}
"""
MOSAIC = """
experiment: small
purpose: what is mutated
model: {name: demo, device: cpu, dtype: auto, attention: sdpa}
tasks:
  - name: mosaic-vqa
    splits: {calibration: 4, search: 4, held_out: 4}
family: step
budgets: 2
defaults: ["fastv:k2-r50"]
anytime: [0.1, 1]
batch_size: 4
memory_mib: 64
searches:
  random: {kind: random, trials: 2, race: {margin: 0.1}}
  lagrangian: {kind: lagrangian, dual_steps: 1, primal_steps: 1, batch: 2, check: 2, measure: 1}
  tpe: {kind: tpe, trials: 2, batch: 2, seeds: [0, 1], method: {name: random, parameters: {seed: 1}}}
"""
SCHEDULES = [
    *("step(layer=2, keep=0.5)", "multistep(layers=(2, 5), keeps=(0.5, 0.25))", "ratios(1, 1, 1, 0.5, 0.5, 0.5, 0, 0)"),
    *("linear(start=1, width=3, keep=0.2)", "exponential(start=1, rate=0.5, keep=0.1)", "fastv:k2-r50", "vtw:16"),
]
EXPORT = {"format": "vispco-schedule", "version": 2, "method": "random", "method_parameters": {"seed": 1}}


def rows() -> list[dict[str, Any]]:
    plain = {"question": "what color is it ?", "answer": "red"}
    return [
        {"image": "photos/0.png", **plain},
        {"image": "photos/1.png", **plain, "options": ["red", "blue"]},
        {"image": ["photos/0.png", "photos/1.png"], "question": "same ?", "answers": ["yes", "yes"], "id": "7"},
        {"image": "photos/2.png", **plain, "A": "red", "B": "blue", "answer": "B", "category": "c", "hint": "h"},
        {
            "image": "photos/1.png",
            "conversations": [{"from": "human", "value": "<image> ?"}, {"from": "gpt", "value": "a"}],
        },
        {"image": "photos/2.png", **plain, "answer": 3.0},
    ]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of valid things: studies, rows, pictures, an export, and a database with a finished experiment."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "photos").mkdir()
    for number in range(3):
        Image.effect_noise((40 + number, 30), 60).convert("RGB").save(folder / f"photos/{number}.png")
    write(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows()))
    write(folder / "mine.yaml", OWN)
    write(folder / "study.yaml", MOSAIC)
    write(folder / "best.json", json.dumps({**EXPORT, "schedule": SCHEDULES[0]}))
    code, _, err = call(["run", f"{folder}/study.yaml", "--storage", f"sqlite:///{folder}/a.db"])
    assert code == 0, err
    return folder


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """No network, and the demo is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        plain, loaded = loading.load_model, {}

        def load_once(name: str = "demo", **kwargs: Any) -> Any:
            key = repr((name, kwargs))
            if key not in loaded:
                if name != "demo":
                    return plain(name, **kwargs)
                loaded[key] = plain(name, **kwargs)
            return loaded[key]

        patch.setattr(loading, "load_model", load_once)
        yield


# --- what is mutated, and the command that reads it: (arguments, what was done) -----------------------


def study(choose: Choices, here: Path) -> tuple[list[str], str]:
    name = choose.of(["mine.yaml", "study.yaml"])
    text = (here / name).read_text()
    if choose.often(3):
        for _ in range(choose.number(1, 3)):
            text = mutate_text(choose, text)
    else:
        tree = yaml.safe_load(text)
        for _ in range(choose.number(1, 3)):
            mutate_tree(choose, tree)
        text = as_yaml(tree)
    write(here / name, text)
    more = ["--set", f"{choose.of(['budgets', 'model.name', 'tasks.0.splits', 'searches.tpe'])}={choose.of(SCALARS)}"]
    command = choose.of([["validate", name]] * 4 + [["eval", name, "--schedule", SCHEDULES[0]]])
    return [*command, *(more if choose.often(6) else [])], text


def schedule(choose: Choices, here: Path) -> tuple[list[str], str]:
    text = choose.of(SCHEDULES)
    if choose.often():
        for _ in range(choose.number(1, 3)):
            text = mutate_text(choose, text)
        given = text
    else:
        tree = {**copy.deepcopy(EXPORT), "schedule": text}
        for _ in range(choose.number(1, 2)):
            mutate_tree(choose, tree)
        text = json.dumps(tree)
        write(here / "best.json", mutate_text(choose, text) if choose.often(4) else text)
        given = "best.json"
    more = choose.of([[], [], ["--method", str(choose.of(["random", "dart", "visionzip", "", "\0", "x"]))]])
    return ["eval", "study.yaml", "--split", "search", f"--schedule={given}", *more], text


def data(choose: Choices, here: Path) -> tuple[list[str], str]:
    kind = choose.of(["jsonl", "json", "csv", "tsv"])
    table: list[Any] = rows()
    if choose.often(5):
        file = here / choose.of(["photos/0.png", "photos/1.png"])
        write(file, mutate_bytes(choose, file.read_bytes()))
    for _ in range(choose.number(0, 2)):
        mutate_tree(choose, table)
    if kind in ("csv", "tsv"):
        columns = ["image", "question", "answer", "A", "B"]
        cells = [[str(row.get(name, "")) if isinstance(row, dict) else "" for name in columns] for row in table]
        text = "\n".join(("," if kind == "csv" else "\t").join(line) for line in [columns, *cells])
    elif kind == "json":
        text = json.dumps(table)
    else:
        text = "".join(json.dumps(row) + "\n" for row in table)
    if choose.often():
        text = mutate_text(choose, text)
    write(here / f"rows.{kind}", text)
    options = [f"path=rows.{kind}", f"max_new_tokens={choose.of([1, 1, 1, 2])}"]
    names = [
        "columns.image",
        "columns.question",
        "image_root",
        "scorer",
        "limit",
        "seed",
        "split",
        "config",
        "answer_by",
    ]
    names += [
        "min_pixels",
        "max_pixels",
        "pre_prompt",
        "post_prompt",
        "field",
        "streaming",
        "revision",
        "max_new_tokens",
    ]
    if choose.often(3):
        options.append(f"{choose.of(names)}={choose.of([*SCALARS, 'exact', 'vqa', 'choice', 'anls', 'likelihood'])}")
    given = [part for option in options for part in ("--option", option)]
    return ["eval", "--model", "demo", "--task", "vqa-json", *given, "--json"], text


COMMANDS = {
    "run": ["--search", "--set", "--fresh"],
    "resume": ["--search"],
    "ls": ["--json", "--csv"],
    "status": ["--workers", "--json", "--csv"],
    "choose": ["--max-drop", "--cost", "--limit", "--max-task-drop", "--sure", "--profile", "--batch", "--json"],
    "plan": ["--set", "--json", "--csv"],
    "compare": [
        "--cost",
        "--against",
        "--score",
        "--anytime",
        "--per-task",
        "--with-published",
        "--violations",
        "--per-target",
        "--profile",
        "--json",
        "--csv",
    ],
    "layers": ["--what", "--json", "--csv"],
    "report": ["-o", "--tokens"],
    "plot": ["-o", "--what", "--split", "--search", "--width"],
    "eval": ["--schedule", "--method", "--split", "--set", "--model", "--task", "--option", "--samples", "--limit"],
    "export": ["--budget", "-o", "--max-drop", "--limit", "--cost", "--target"],
    "tokens": ["--schedule", "-o", "--sample", "--image", "--question", "--method", "--set"],
    "copy": ["--experiment", "--json"],
    "import": ["--into", "--from", "--as", "--accuracy", "--cost", "--json"],
    "validate": ["--set"],
    "doctor": ["--json", "--csv"],
}
FLAGS = (
    *("--fresh", "--workers", "--anytime", "--per-task", "--with-published", "--violations", "--per-target"),
    *("--json", "--csv"),
)
WORDS = [
    *(
        "small",
        "small/tpe",
        "small/tpe@0",
        "mine",
        "study.yaml",
        "mine.yaml",
        "a.db",
        "sqlite:///a.db",
        "sqlite:///b.db",
    ),
    *("kv_bytes", "flops", "prefill_ms", "kv_bytes=0.5", "prefill_ms=9ms", "random=2", "0.95", "100", "-1"),
    *("tpe", "random", "grid", "0.6", "1", "0", "2", "experiments", "models", "tasks", "methods", "schedules", "front"),
    *("demo", "mosaic-vqa", "vqa-json", "path=rows.jsonl", "budgets=3", "search", "held_out", "cost", "trajectory"),
    *(
        "out.html",
        "out.pdf",
        "out.png",
        "none/out.html",
        "photos",
        "postgresql://none.invalid/x",
        "mysql://a",
        *SCHEDULES,
    ),
]


def command(choose: Choices, here: Path) -> tuple[list[str], str]:
    def word() -> str:
        return str(choose.of(SCALARS)) if choose.often(3) else str(choose.of(WORDS))

    name = choose.of(sorted(COMMANDS))
    given = [name] if not choose.often(30) else [word()]
    usual = {
        "run": "study.yaml",
        "validate": "study.yaml",
        "eval": "study.yaml",
        "tokens": "study.yaml",
        "ls": "models",
        "plan": "study.yaml",
    }
    for _ in range(choose.of([0, 1, 1, 1, 1, 2])):
        given.append(word() if choose.often(3) else usual.get(name, "small"))
    for _ in range(choose.number(0, 3)):
        option = choose.of(COMMANDS[name])
        given += [option] if option in FLAGS else [option, word()]
    if name not in ("validate", "eval", "tokens", "copy", "plan"):
        given += ["--storage", word() if choose.often(8) else "sqlite:///a.db"]
    return given, ""


READERS: list[list[str]] = [
    *(
        ["status"],
        ["status", "small"],
        ["ls"],
        ["compare", "small"],
        ["compare", "small", "--json"],
        ["layers", "small"],
    ),
    *(["compare", "small", "--against", "random"], ["compare", "small", "--anytime"], ["compare", "small", "--csv"]),
    *(["report", "small", "-o", "r.html"], ["plot", "small", "-o", "p.svg"], ["export", "small", "--budget", "0.9"]),
    *(["choose", "small"], ["choose", "small", "--json", "--limit", "kv_bytes=0.9"], ["ls", "experiments"]),
    *(["compare", "small", "--cost", "kv_bytes"], ["export", "small", "--max-drop", "5"], ["status", "--json"]),
    *(["plot", "small", "-o", "p.svg", "--what", "trajectory"], ["compare", "small", "--per-task"], ["doctor"]),
    *(["import", "small/tpe@0", "--into", "small", "--as", "again"], ["resume", "small"], ["run", "study.yaml"]),
]


def database(choose: Choices, here: Path) -> tuple[list[str], str]:
    if choose.often(10):
        file = here / "a.db"
        write(file, mutate_bytes(choose, file.read_bytes()))
        done = "bytes"
    else:
        done = "; ".join(mutate_database(choose, here / "a.db") for _ in range(choose.number(1, 2)))
    if choose.often(15):
        return ["copy", "sqlite:///a.db", "sqlite:///b.db"], done
    return [*choose.of(READERS), "--storage", "sqlite:///a.db"], done


KINDS: dict[str, Mutate] = {
    "study": study,
    "schedule": schedule,
    "data": data,
    "command": command,
    "database": database,
}


@pytest.mark.parametrize("kind", KINDS)
def test_success_or_one_line(
    kind: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    here, failures, tried = tmp_path / "here", {}, 0
    count = -(-request.config.getoption("--inputs") // len(KINDS))
    monkeypatch.setenv("VISPCO_STORAGE", "sqlite:///a.db")

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=request.config.getoption("--hypothesis-seed") is None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attempt(data: Any) -> None:
        nonlocal tried
        fresh(good, here)
        os.chdir(here)
        arguments, done = KINDS[kind](Choices(data), here)
        tried += 1
        problem = problem_of(arguments)
        if problem is not None and alike(problem) not in failures:
            failures[alike(problem)] = f"{shown(arguments)} [{done[:600]!r}]: {problem}"

    try:
        attempt()
    finally:
        os.chdir(good)
    print(f"{kind}: {tried} inputs, {len(failures)} kinds of failure")
    assert not failures, "\n\n".join(failures.values())
    assert tried >= count * 9 // 10


def fresh(good: Path, here: Path) -> None:
    """The good things again, and a pipe that nobody writes to."""
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(good, here)
    os.mkfifo(here / "pipe.png")


def shown(arguments: Sequence[str]) -> str:
    return " ".join(repr(part)[:120] for part in arguments)
