"""What the documents show is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image

from conftest import SMALL, Cli, python
from pages import ROOT, blocks, sections
from report_data import fill
from test_entries import fill_entries
from test_layers import write_experiment
from vispco.analysis.seeds import SEEDS_NEEDED
from vispco.analysis.two_level import FEWEST_RUNS, RESAMPLES
from vispco.cli.main import app
from vispco.config import CHECKPOINTS, SearchConfig, Study, load_study, parse_study
from vispco.costs import COSTS
from vispco.experiment.validation import validate
from vispco.models.base import ModelAdapter
from vispco.models.families import ADAPTERS
from vispco.problem import Problem
from vispco.pruning.families import FAMILIES
from vispco.pruning.methods import METHODS
from vispco.pruning.schedules import parse_schedule
from vispco.search import SEARCHES
from vispco.search.racing import RacingOptions
from vispco.storage.store import Store
from vispco.tasks.base import ALIASES, TASKS, register_builtin
from vispco.tasks.benchmark import Options
from vispco.tasks.llava_instruct import LlavaInstructOptions
from vispco.tasks.vqa_json import SCORERS, VQAJson


def test_readmes_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = blocks("README.md", "python")
    small = code.replace(
        'from_yaml("studies/quickstart.yaml")', 'from_yaml("studies/quickstart.yaml", ["tasks.0.splits.search=8"])'
    )
    assert small != code
    exec(compile(small, "README.md", "exec"), {})
    question, accuracy = capsys.readouterr().out.strip().splitlines()
    assert "?" in question
    assert 0 <= float(accuracy) <= 1


def test_readme_and_pages_name_what_there_is() -> None:
    readme = (ROOT / "README.md").read_text()
    register_builtin()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, page.name
    page = (ROOT / "docs/methods.md").read_text()
    for name in [*METHODS, *FAMILIES]:
        assert f"| `{name}` |" in page, name
    assert f"which of {len(METHODS)} methods" in readme
    for page, names in (("docs/studies.md", SEARCHES), ("docs/own.md", TASKS)):
        for name in names:
            assert f"`{name}`" in (ROOT / page).read_text(), name


def test_support_table_is_what_the_adapters_say() -> None:
    made = import_module("make_support")
    table = made.table()
    assert made.page() == (ROOT / "docs/support.md").read_text(), "run python docs/make_support.py"
    named = [line.split(" | ")[0][2:] for line in table.splitlines()[2:]]
    assert [name for name in named if "," not in name] == list(METHODS)


PAGES = ["README.md", "docs/quickstart.ipynb", "vispco/official/README.md"]


@pytest.mark.parametrize("page", [*PAGES, *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    for linked in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / linked).exists(), linked


def test_methods_page_runs_and_its_schedules_can_be_read() -> None:
    (code,) = blocks("docs/methods.md", "python")
    exec(compile(code, "docs/methods.md", "exec"), {})
    rows = re.findall(r"^\| `\w+` \| `(\w+\(.*?\))` \|", (ROOT / "docs/methods.md").read_text(), flags=re.MULTILINE)
    assert len(rows) == len(FAMILIES)
    for text in rows:
        assert parse_schedule(text.replace(", ...", "")).text()


def test_the_guide_names_what_an_adapter_must_say() -> None:
    page = (ROOT / "docs/extending.md").read_text()
    for name in ModelAdapter.__abstractmethods__:
        assert f"| `{name}` |" in page
    for kind in (METHODS, ADAPTERS, FAMILIES, SEARCHES, TASKS, COSTS, SCORERS):
        assert kind.group in page


def test_results_page_has_its_tables() -> None:
    """The tables are written by docs/make_tables.py; here only that none is empty and all that was run is there."""
    page = (ROOT / "docs/findings.md").read_text()
    tables = dict(re.findall(r"<!-- (?!end)(\w+) -->\n(.*?)<!-- end -->", page, flags=re.DOTALL))
    assert set(tables) == {"methods", "defaults", "families", "resolution"}
    study, _ = load_study(ROOT / "studies/demo/methods.yaml")
    for name in study.searches:
        assert f"| `{name}` |" in tables["methods"]
    study, _ = load_study(ROOT / "studies/demo/families.yaml")
    for name in study.searches:
        assert f"| `{name}`" in tables["families"]


def test_the_testbeds_tables_are_those_of_its_kept_results() -> None:
    made = import_module("make_testbed")
    page = (ROOT / "docs/findings.md").read_text()
    tables = made.tables(json.loads((ROOT / "docs/testbed.json").read_text()))
    assert set(tables) == set(re.findall(r"<!-- (testbed-\w+) -->", page))
    for name, table in tables.items():
        assert f"<!-- {name} -->\n{table}\n<!-- end -->" in page, name


def test_study_document_shows_a_valid_study() -> None:
    text = blocks("docs/studies.md", "yaml", "Every key")[0]
    problem = Problem(parse_study(text), text)
    validate(problem)
    shown = set(re.findall(r"^(\w+):", text, flags=re.MULTILINE))
    assert shown == set(Study.model_fields)
    several = {**yaml.safe_load(text), **yaml.safe_load(blocks("docs/studies.md", "yaml", "Several methods")[0])}
    validate(Problem.from_text(yaml.safe_dump(several)))
    page = (ROOT / "docs/studies.md").read_text()
    for name in SEARCHES:
        assert f"`{name}`" in page
        for option in SEARCHES[name].Options.model_fields:
            assert f"`{option}" in page, (name, option)
    assert "seeds" in SearchConfig.model_fields


def test_the_races_of_the_documents_are_valid() -> None:
    (entries,) = blocks("docs/studies.md", "yaml", "Racing")
    text = blocks("docs/studies.md", "yaml", "Every key")[0]
    raced = text.split("searches:")[0] + entries
    validate(Problem(parse_study(raced), raced))
    page = sections("docs/studies.md")["Racing"]
    for name, field in RacingOptions.model_fields.items():
        row = re.findall(rf"^\| `{name}` \| (.*) \|$", page, flags=re.MULTILINE)
        assert len(row) == 1, name
        assert f"({field.default})" in row[0], name


def test_the_page_names_baselines_and_shows_valid_entries() -> None:
    (entries,) = blocks("docs/studies.md", "yaml", "Searches")
    text = blocks("docs/studies.md", "yaml", "Every key")[0]
    shown = text.split("searches:")[0] + entries
    validate(Problem(parse_study(shown), shown))
    page = sections("docs/studies.md")["Searches"]
    learned = {"grid", "lagrangian", "on_budget", "vispco_official"}
    assert set(re.findall(r"^- \*\*`(\w+)`\*\*", page, flags=re.MULTILINE)) == set(SEARCHES) - learned


@pytest.mark.parametrize("file", sorted((ROOT / "studies").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_study_is_valid(file: Path) -> None:
    study, text = load_study(file)
    validate(Problem(study, text))
    assert study.purpose


def by_command(cli: Cli, line: str, more: Sequence[str] = ()) -> str:
    """What one line of a document prints, in this process."""
    name, *words = shlex.split(line)
    code, out, err = cli(*words, *more)
    assert (name, code) == ("vispco", 0), (line, err)
    return out


def test_commands_of_the_database_section_run(
    cli: Cli, tmp_path: Path, pg_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_copying import fill
    from test_importing import foreign, told

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISPCO_STORAGE", raising=False)
    fill(Store("sqlite:///vispco.db"), "my-study")
    told(foreign(Store("sqlite:///theirs.db")), 0.5, 0.5)
    (text,) = blocks("docs/studies.md", "bash", "One database")
    lines = text.strip().replace("postgresql+psycopg://me@host/team", pg_url).splitlines()
    assert "theirs" in "".join(by_command(cli, line) for line in lines)
    assert Store(pg_url).experiment_names() == ["my-study"]


def test_what_the_page_shows_of_comparing_runs(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISPCO_STORAGE", raising=False)
    few = {"grid": ("grid", None, 4, 0.0, 0.2), "tpe": ("tpe", 10, 2, 0.2, 0.25)}
    fill_entries(Store("sqlite:///vispco.db"), "my-study", few)
    (commands,) = blocks("docs/reading.md", "bash", "Compare searches")
    (code,) = blocks("docs/reading.md", "python", "Had it been stopped earlier?")
    for line in commands.strip().splitlines():
        by_command(cli, line)
    shown: dict[str, object] = {}
    exec(compile(code, "docs/reading.md", "exec"), shown)
    assert capsys.readouterr().out.splitlines()[-1].startswith("tpe 0.")
    assert shown["median"]
    page = (ROOT / "docs/reading.md").read_text()
    assert (SEEDS_NEEDED, FEWEST_RUNS) == (10, 5)
    for text in ("ten seeds or more", "fewer than five seeds", f"{RESAMPLES:,} resamples"):
        assert text in page
    assert f"from {CHECKPOINTS[0]:g} to {CHECKPOINTS[-1]:g}" in page


def test_the_section_about_calibration_shows_a_block_that_works(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file and a folder where the page says they are."""
    (block,) = blocks("docs/studies.md", "yaml", "Data for gradients")
    (tmp_path / "study.yaml").write_text(SMALL + block)
    options = parse_study(SMALL + block).calibration
    assert options is not None
    folder = tmp_path / options.options["images"]
    folder.mkdir(parents=True)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A thing."}]
    rows = [{"id": str(i), "image": f"{i}.jpg", "conversations": turns} for i in range(130)]
    for row in rows:
        Image.new("RGB", (8, 8)).save(folder / row["image"])
    (tmp_path / options.options["file"]).write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    assert "128 samples, for gradients only" in by_command(cli, "vispco validate study.yaml")
    page = sections("docs/studies.md")["Data for gradients"]
    for name in LlavaInstructOptions.model_fields:
        assert re.search(rf"^\| .*`{name}`.* \|", page, flags=re.MULTILINE), name


def test_the_section_about_layers_runs(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISPCO_STORAGE", raising=False)
    write_experiment("sqlite:///vispco.db", "quickstart")
    (commands,) = blocks("docs/reading.md", "bash", "Layer by layer")
    out = "".join(by_command(cli, line) for line in commands.strip().splitlines())
    assert "prunes at layer" in out
    assert "method,layer,keep" in out
    (code,) = blocks("docs/reading.md", "python", "Layer by layer")
    exec(compile(code, "docs/reading.md", "exec"), {})
    assert "grid [1.0" in capsys.readouterr().out
    quoted = (ROOT / "docs/reading.md").read_text().split("<!-- layers -->")[1].split("<!-- end -->")[0]
    assert "> grid:" in quoted
    assert "> On the search split one step of fastv" in quoted


@pytest.mark.slow
def test_commands_about_machines_run(tmp_path: Path) -> None:
    """In the short form; what needs more than one machine is no bash block."""
    pytest.importorskip("ray")
    small = "experiment: quickstart\n" + SMALL.split("\n", 2)[2]
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/quickstart.yaml").write_text(small)
    programs = {"vispco": "vispco", "torchrun": "torch.distributed.run"}
    lines = [line for block in blocks("docs/machines.md", "bash", "Several workers") for line in block.splitlines()]
    assert [line.split()[0] for line in lines] == ["vispco", "vispco", "torchrun"]
    for line in lines:
        program, *words = line.split()
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "VISPCO_STORAGE": f"sqlite:///{tmp_path}/{program}.db"}
        done = python("-m", programs[program], *words, cwd=tmp_path, env=settings)
        assert done.returncode == 0, (line, done.stderr)
        if "run" in words:
            assert re.search(r"quickstart: \d+ new trials", done.stderr), line


@pytest.mark.slow
def test_commands_about_the_dashboard_serve(tmp_path: Path) -> None:
    """On free ports, whichever the page names; what the page says of files and names is there."""
    fill(Store(f"sqlite:///{tmp_path}/vispco.db"), "quickstart")
    (lines,) = blocks("docs/reading.md", "bash", "In optuna-dashboard")
    page = sections("docs/reading.md")["In optuna-dashboard"]
    for line in lines.strip().splitlines():
        program, *words = line.split()
        assert program == "vispco"
        with subprocess.Popen(
            [sys.executable, "-m", "vispco", *words, "--port", "0"],
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if key != "VISPCO_STORAGE"},
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                assert server.stderr is not None
                told = server.stderr.readline()
                (address,) = re.findall(r"http://127\.0\.0\.1:\d+/", told)
                listed = json.load(urllib.request.urlopen(f"{address}api/studies"))["study_summaries"]
                details = [json.load(urllib.request.urlopen(f"{address}api/studies/{s['study_id']}")) for s in listed]
            finally:
                server.terminate()
    assert listed[-1]["study_name"] == "quickstart: comparison"
    for detail in details:
        assert detail["objective_names"] == ["accuracy", "flops_ratio"]
        assert detail["directions"] == ["maximize", "minimize"]
        assert detail["trials"]
    assert "`<experiment>: comparison`" in page
    assert detail["artifacts"]
    assert all(f"`{artifact['filename']}`" in page for artifact in detail["artifacts"])


def first_cells(page: str) -> set[str]:
    """What is set as code in the first cells of a page's tables."""
    rows = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(.*?)`", row)}


@pytest.mark.slow
def test_your_own_pictures_go_through_the_quickstart(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's rows, twenty of them; the quickstart with the page's block in place of its own; its commands."""
    (rows,), (block,), (commands, alone) = (
        blocks("docs/own.md", language, "Your data") for language in ("json", "yaml", "bash")
    )
    (tmp_path / "shop/photos").mkdir(parents=True)
    shown = [json.loads(line) for line in rows.splitlines()]
    written = [{**shown[i % len(shown)], "image": f"photos/{i + 1:02}.png"} for i in range(20)]
    assert [row["image"] for row in shown] == [row["image"] for row in written[: len(shown)]]
    for i, row in enumerate(written):
        Image.new("RGB", (90 + i, 60), (12 * i, 80, 200)).save(tmp_path / "shop" / row["image"])
    mosaics = Problem.from_text(SMALL.replace("search: 12", "search: 17")).tasks[0].samples("search")
    for row, known in zip(written[len(shown) :], mosaics, strict=True):  # what the demo can answer
        row.update(question=known.question, answer=known.answers[0])
        for other in ("answers", "options"):
            row.pop(other, None)
        known.images[0].save(tmp_path / "shop" / row["image"])
    (tmp_path / "shop/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    quickstart = (ROOT / "studies/quickstart.yaml").read_text()
    named = quickstart.replace("experiment: quickstart", "experiment: shop")
    text = re.sub(r"tasks:\n( .*\n)+", block, named)
    assert text.replace(block, "") == re.sub(r"tasks:\n( .*\n)+", "", named) != text
    (tmp_path / "study.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISPCO_STORAGE", raising=False)
    lagrangian = "{kind: lagrangian, dual_steps: 1, primal_steps: 1, batch: 4, check: 4, measure: 1, between: 0}"
    fewer = ("budgets=2", f"searches.lagrangian={lagrangian}", "searches.tpe={kind: tpe, trials: 2}")
    fewer += ("searches.random={kind: random, trials: 2}", "tasks.0.options.max_new_tokens=1")
    for line in (commands + alone).strip().splitlines():
        smaller = [f"--set={item}" for item in fewer] if "study.yaml" in line else []
        out = by_command(cli, line, smaller)
        if line.startswith("vispco run"):
            assert all(name in out for name in ("grid", "lagrangian", "random", "tpe"))
    assert re.search("^data +shop/questions.jsonl$", out, flags=re.MULTILINE)
    (score,) = re.findall(r"^mean score +([\d.]+)", out, flags=re.MULTILINE)
    assert float(score) >= 0.5
    assert json.loads((tmp_path / "best.json").read_text())["flops_ratio"] <= 0.8


def test_the_section_about_your_data_names_all_options_columns_and_scorers() -> None:
    page = sections("docs/own.md")["Your data"]
    names = first_cells(page)
    assert names >= {*Options.model_fields, *SCORERS, *VQAJson.columns, *VQAJson.optional, *VQAJson.pictures}
    for known in (VQAJson.columns, VQAJson.optional, VQAJson.pictures):
        for name, others in known.items():
            (row,) = re.findall(rf"^\| `{name}` \| (.*?) \|", page, flags=re.MULTILINE)
            assert set(re.findall(r"`(\w+)`", row)) == {*others} - {name}
    assert VQAJson.max_new_tokens == 16


def test_the_section_about_evaluating_names_the_options_and_runs(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = sections("docs/paper.md")["One model on one benchmark"]
    named = {name for name in first_cells(page) if name.startswith("--")}
    command = typer.main.get_command(app).commands["eval"]  # type: ignore[attr-defined]
    options = {option.opts[0] for option in command.params if option.opts[0].startswith("--")}
    assert named == options - {"--split", "--set", "--help"}
    examples, demo = blocks("docs/paper.md", "bash", "One model on one benchmark")
    for line in examples.strip().splitlines():
        words = shlex.split(line)
        assert {word for word in words if word.startswith("--")} <= named
        task = words[words.index("--task") + 1]
        assert ALIASES.get(task, task) in TASKS
    monkeypatch.chdir(tmp_path)
    out = by_command(cli, demo)
    for said in ("accuracy", "mean score", "scorer", "first_prompt", "decoding", "model_hash", "versions"):
        assert re.search(rf"^{said} ", out, flags=re.MULTILINE), said
    assert not list(tmp_path.iterdir())
