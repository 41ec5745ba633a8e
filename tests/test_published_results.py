"""The paper's tables as data, and a run beside them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli
from pages import blocks
from report_data import fill
from test_tasks import loaded
from vispco.analysis.comparison import Comparison
from vispco.analysis.published_results import PLAIN, TASKS, beside_published, published_results
from vispco.cli.output import page_width
from vispco.config import load_study
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.storage.store import Store

ROOT = Path(__file__).parent.parent
PAPER = sorted((ROOT / "studies/paper").glob("table-*.yaml"))
ENTRIES = {"grid": ("grid", None, 40, 0.0), "lagrangian": ("lagrangian", 1, 6, 0.05)}
SHARED = ("textvqa", "mmbench-en", "own")


def printed(table: int, **named: Any) -> dict[str, float]:
    """Quantity -> value of the rows with these values."""
    rows = [row for row in published_results() if row.table == table]
    return {row.quantity: row.value for row in rows if all(getattr(row, k) == v for k, v in named.items())}


def test_all_ten_tables_are_there() -> None:
    assert {row.table for row in published_results()} == set(range(1, 11))
    for model in ("Qwen2.5-VL-3B", "LLaVA-1.5-7B", "Gemma3-4B"):
        table = 8 if model.startswith("Qwen") else 9
        assert set(printed(table, model=model, budget=1.0)) == {*TASKS, "average"}
        budgets = {row.budget for row in published_results() if (row.table, row.model) == (table, model)}
        assert budgets == {n / 10 for n in range(1, 11)}


def test_numbers_one_can_look_up() -> None:
    assert printed(8, budget=1.0)["average"] == 78.1
    assert printed(8, budget=0.5, method="fastv", search="vispco")["average"] == 71.5
    assert printed(9, model="Gemma3-4B", budget=0.7, search="vispco")["chartqa"] == 58.9
    assert printed(2, search="random-160")["hours"] > printed(2, search="vispco")["hours"] == 1
    plain = [row for row in published_results() if (row.table, row.budget, row.search) == (8, 0.5, PLAIN)]
    assert {row.method for row in plain} == {"fastv", "sparsevlm", "fitprune"}
    assert all(row.deviation for row in plain)


def test_table_1_is_an_excerpt_of_table_8() -> None:
    def scores(table: int) -> dict[Any, Any]:
        return {
            (row.method, row.search, row.budget, row.quantity): (row.value, row.deviation)
            for row in published_results()
            if row.table == table
        }

    first, eighth = scores(1), scores(8)
    assert first.items() <= eighth.items()
    assert {budget for _, _, budget, _ in first} == {1.0, 0.9, 0.5, 0.1}


def test_averages_that_are_no_averages_are_named() -> None:
    """What the columns give differs from what is printed by more than rounding, in exactly the rows that say so."""
    keys = {
        (r.table, r.model, r.method, r.search, r.kernel, r.budget) for r in published_results() if r.table in (8, 9, 10)
    }
    said, found = set(), set()
    for key in keys:
        rows = [r for r in published_results() if (r.table, r.model, r.method, r.search, r.kernel, r.budget) == key]
        columns = {r.quantity: r for r in rows}
        mean = sum(columns[task].value for task in TASKS) / len(TASKS)
        if abs(columns["average"].value - mean) > 0.06:
            found.add(key)
        if "the mean of the eight columns is" in columns["average"].anomaly:
            said.add(key)
            assert f"{mean:.2f}" in columns["average"].anomaly
    assert found == said
    assert len({key[1:] for key in said}) == 13  # as docs/paper.md says


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/a.db"


def run_of(url: str, model: str = "Qwen/Qwen2.5-VL-3B-Instruct", tasks: Any = SHARED) -> Store:
    store = Store(url)
    fill(store, "made", entries=ENTRIES, tasks=tasks)
    stored = store.experiment("made")
    assert stored is not None
    store.save_experiment(
        "made",
        spec_text=stored.spec_text,
        spec_hash=stored.spec_hash,
        identity={**stored.identity, "model": {"name": model}},
        provenance=stored.provenance,
    )
    return store


def test_the_papers_model_stands_beside_its_own_tables(url: str) -> None:
    comparison = Comparison(run_of(url), "made")
    found = beside_published(comparison)
    assert (found["model"], found["same_model"], found["method"]) == ("Qwen2.5-VL-3B", True, "fastv")
    assert found["tasks"] == {"textvqa": "textvqa", "mmbench-en": "mmbench"}
    rows = {(row["budget"], row["task"]): row for row in found["rows"]}
    assert len(rows) == 9 * 3
    theirs = rows[0.5, "mmbench-en"]["published"]
    assert theirs["vispco"]["value"] == printed(8, budget=0.5, method="fastv", search="vispco")["mmbench"]
    assert theirs["vispco"]["kept"] == theirs["vispco"]["value"] / 79.8
    assert theirs[PLAIN]["deviation"] == 9.3
    for search in comparison.searches:
        for budget in (0.3, 0.5, 0.9):
            own = rows[budget, "textvqa"]["ours"][search.name]
            fitting = [t for t in comparison.front(search) if t.values[1] <= budget]
            assert (own is None) == (not fitting)
            if own:
                assert own["flops_ratio"] <= budget
                held = comparison.held_out(search, max(fitting, key=lambda t: t.values[0]))
                assert held is not None
                assert own["value"] == pytest.approx(100 * held.tasks["textvqa"]["accuracy"])


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("google/gemma-3-4b-it", "Gemma3-4B"),
        ("/models/llava-1.5-7b-hf", "LLaVA-1.5-7B"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL-3B"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", None),
        ("demo", None),
    ],
)
def test_models_are_matched_by_name(url: str, name: str, model: str | None) -> None:
    found = beside_published(Comparison(run_of(url, name), "made"))
    assert found["same_model"] == (model is not None)
    assert found["model"] == (model or "Qwen2.5-VL-3B")


def test_tables_for_a_terminal_json_and_csv(cli: Cli, url: str) -> None:
    run_of(url).engine.dispose()
    code, out, _ = cli("compare", "made", "--with-published", "--storage", url)
    assert code == 0
    assert "scores in per cent; Qwen2.5-VL-3B, fastv, single layer" in " ".join(out.split())
    assert "unpruned, the paper: a-okvqa 90.2" in out
    assert "over the paper's eight tasks there, over this experiment's here" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= page_width()
    line = next(line for line in out.splitlines() if line.startswith("0.50") and " average " in line)
    assert "71.5" in line
    assert "63.1±9.5" in line
    code, out, _ = cli("compare", "made", "--with-published", "--json", "--storage", url)
    assert code == 0
    assert json.loads(out)["rows"]
    code, out, _ = cli("compare", "made", "--with-published", "--csv", "--storage", url)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {row["source"] for row in rows} == {"published: vispco", f"published: {PLAIN}", "grid", "lagrangian"}
    (row,) = [r for r in rows if (r["source"], r["budget"], r["task"]) == ("published: vispco", "0.5", "average")]
    assert float(row["value"]) == 71.5


def test_another_model_is_compared_by_what_it_keeps(cli: Cli, url: str) -> None:
    run_of(url, "demo", ("own",)).engine.dispose()
    _, out, _ = cli("compare", "made", "--with-published", "--storage", url)
    text = " ".join(out.split())
    assert "per cent of the unpruned score that is kept" in text
    assert "The paper does not have this model; Qwen2.5-VL-3B is its main one." in text
    assert "No task is one of the paper's eight" in text
    assert "91.5" in next(line for line in out.splitlines() if line.startswith("0.50"))  # 71.5 of 78.1


def test_task_by_task(cli: Cli, url: str) -> None:
    comparison = Comparison(run_of(url), "made").to_dict()
    assert set(comparison["unpruned"]["tasks"]) == set(SHARED)
    code, out, _ = cli("compare", "made", "--per-task", "--storage", url)
    assert code == 0
    for task in SHARED:
        assert f"{task}: unpruned {comparison['unpruned']['tasks'][task]:.3f}" in out
    code, out, _ = cli("compare", "made", "--per-task", "--csv", "--storage", url)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == len(SHARED) * len(comparison["by_budget"]) * len(ENTRIES)
    for by in comparison["by_budget"]:
        for search, chosen in by["chosen"].items():
            own = [r for r in rows if (float(r["budget"]), r["search"]) == (by["budget"], search)]
            given = [float(r["accuracy_held_out"]) for r in own]
            assert given == [chosen["tasks"][r["task"]] for r in own]
            assert sum(given) / len(given) == pytest.approx(chosen["accuracy_held_out"])


def test_two_tables_at_a_time_are_refused(cli: Cli, url: str) -> None:
    run_of(url).engine.dispose()
    code, _, err = cli("compare", "made", "--per-task", "--with-published", "--storage", url)
    assert code == 2
    assert err.strip().splitlines() == [
        "vispco: --per-task and --with-published are tables of their own; ask for one at a time"
    ]


@pytest.fixture
def tiny(copies: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study of the paper on small data and a small model."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    def made(path: Path, *more: str) -> Problem:
        study, _ = load_study(path)
        assert {task.name.replace("mmbench-en", "mmbench") for task in study.tasks} <= set(TASKS)
        assert all(task.options["scorer"] == "vispco" for task in study.tasks)
        changes = ["model.device=cpu", "model.dtype=float32", "calibration=null", *more]
        for number, task in enumerate(study.tasks):
            size = {"mmbench-en": 4, "mme": 2, "textvqa": 2}.get(task.name, 1)
            splits = f"{{calibration: {size}, search: {size}, held_out: {size}}}"
            options = f"{{scorer: vispco, max_new_tokens: 2, path: {copies(task.name)}}}"
            changes += [f"tasks.{number}.splits={splits}", f"tasks.{number}.options={options}"]
        study, text = load_study(path, changes)
        model, processor = loaded("qwen2_5_vl" if "Qwen" in study.model.name else "llava")
        return Problem(study, text, model=model, processor=processor)

    return made


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_studies_of_the_paper_are_valid(path: Path, tiny: Any) -> None:
    validate(tiny(path))
    study, _ = load_study(path)
    assert study.budgets == [0.5] or len(study.budgets) == 8
    assert study.calibration is not None


@pytest.mark.slow
def test_a_study_of_the_paper_runs(tiny: Any, url: str) -> None:
    """Every kind of search of table 2, in small."""
    gradients = "dual_steps: 1, primal_steps: 1, batch: 2, check: 2, measure: 1, between: 0"
    searches = {
        "lagrangian": f"{{kind: lagrangian, {gradients}}}",
        "official": "{kind: vispco_official, preset: paper, epochs: 1}",
        "random-40": "{kind: random, trials: 3}",
        "random-80": "{kind: random, trials: 3}",
        "random-160": "{kind: random, trials: 3}",
    }
    changes = [f"searches.{name}={value}" for name, value in searches.items()]
    path = ROOT / "studies/paper/table-2.yaml"
    problem = tiny(path, "budgets=[0.9, 0.8]", "defaults=['fastv:k2-r50']", *changes)
    store = Store(url)
    assert Run(problem, store).run() > 0
    assert set(problem.study.searches) == {search.name for search in Comparison(store, "paper-table-2").searches}
    found = beside_published(Comparison(store, "paper-table-2"))
    assert (found["model"], found["same_model"]) == ("LLaVA-1.5-7B", True)
    assert set(found["tasks"].values()) == {"mmbench", "seed-bench", "textvqa"}


def test_the_pages_commands_are_right(cli: Cli, url: str, tiny: Any) -> None:
    """Studies are checked on small models; tables are printed for an experiment of the name."""
    page = (ROOT / "docs/paper.md").read_text()
    assert all(f"../studies/paper/{path.name}" in page for path in PAPER)
    (commands,) = blocks("docs/paper.md", "bash", "The paper's tables")
    fill(Store(url), "paper-table-8", entries=ENTRIES, tasks=SHARED)
    for line in commands.strip().splitlines():
        program, command, target, *words = line.split()
        assert program == "vispco"
        if command == "compare":
            code, out, err = cli(command, target, *words, "--storage", url)
            assert (code, err) == (0, "")
            assert "0.50" in out or "0.52" in out
        else:
            assert command in ("validate", "run")
            assert words[::2] == ["--set"] * (len(words) // 2)
            load_study(ROOT / target, words[1::2])
            validate(tiny(ROOT / target))
