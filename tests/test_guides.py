"""The guides do what they say: five minutes, budget, GPU, concepts, whether it pays, notebook, references, site."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import vispco
from conftest import Cli, python
from pages import DOCS, ROOT, blocks, sections
from report_data import fill
from vispco.cli.main import app
from vispco.config import load_study, parse_study
from vispco.costs.described import described
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.storage.store import Store

RUN = ("bash", "python", "yaml", "json", "toml")  # languages of blocks that a test must run


def test_every_block_of_the_docs_is_run_by_a_test() -> None:
    """Somewhere in the tests there is ``blocks(PAGE, LANGUAGE[, SECTION])``, or they are listed here."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    tests = "".join(path.read_text() for path in files)
    others = "".join(path.read_text() for path in files if path != Path(__file__))
    called = r'blocks\(\s*"(?:docs/)?([\w.-]+)", "(\w+)"(?:, "([^"]+)")?\)'
    known = {(page, language, section or None) for page, language, section in re.findall(called, tests)}
    each = r'blocks\(\s*"(?:docs/)?([\w.-]+)", language(?:, "([^"]+)")?\) for language in \(([^)]*)\)'
    for page, section, languages in re.findall(each, tests):
        known |= {(page, language, section or None) for language in re.findall(r'"(\w+)"', languages)}
    otherwise = {("extending.md", "toml")}
    known |= {(page, language, None) for page, language in otherwise}
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for section, text in sections(str(page.relative_to(ROOT))).items():
            for language in set(re.findall(r"^```(\w+)", text, flags=re.MULTILINE)) - {"text"}:
                assert language in RUN, f"{page.name}: {language}"
                run = {(page.name, language, None), (page.name, language, section)} & known
                assert run, f"no test runs the {language} blocks of {page.name}, {section!r}"
    assert all(page in others for page, _ in otherwise)


# --- five minutes ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_five_minutes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """In the folder of a new user, with fewer samples."""
    (study, own), (commands, look), (code,) = (
        blocks("docs/start.md", language) for language in ("yaml", "bash", "python")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISPCO_STORAGE", raising=False)
    small = study.replace("calibration: 64, search: 128, held_out: 128", "calibration: 32, search: 16, held_out: 16")
    assert small != study
    (tmp_path / "study.yaml").write_text(small)
    for line in commands.strip().splitlines():
        code_, out, err = cli(*shlex.split(line)[1:])
        assert code_ == 0, (line, err)
        if "validate" in line:
            assert re.search(r"^floor +0\.\d+", out, flags=re.MULTILINE)
    assert "<html" in (tmp_path / "report.html").read_text()[:2000]
    exec(compile(code, "docs/start.md", "exec"), {})
    question, counts = capsys.readouterr().out.strip().splitlines()
    assert "?" in question
    entered = [int(count) for count in re.findall(r"\d+", counts)]
    assert len(entered) == 8
    assert entered[0] == 64 > entered[-1]
    (tmp_path / "shop").mkdir()
    Image.new("RGB", (60, 60), "red").save(tmp_path / "shop/01.png")
    row = {"image": "01.png", "question": "what color is the shape ?", "answer": "red"}
    (tmp_path / "shop/questions.jsonl").write_text(json.dumps(row) + "\n")
    assert cli(*shlex.split(look)[1:])[0] == 0
    logged = json.loads((tmp_path / "answers.jsonl").read_text())
    assert logged["prompt"] == row["question"]
    assert logged["answer"]
    changed = parse_study(f"experiment: own\n{own}budgets: 2\nsearches: {{tpe: {{kind: tpe, trials: 2}}}}\n")
    assert (changed.model.name, changed.tasks[0].name) == ("./my-model", "vqa-json")


@pytest.mark.slow
def test_choosing_a_budget(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISPCO_STORAGE", f"sqlite:///{tmp_path}/a.db")
    (tmp_path / "studies").mkdir()
    quickstart = (ROOT / "studies/quickstart.yaml").read_text()
    (tmp_path / "studies/quickstart.yaml").write_text(quickstart.replace("held_out: 512", "held_out: 8"))
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill(store, "quickstart", tasks=("read", "count"))
    lengths = {split: [[64, 10, 1.0]] for split in ("search", "held_out")}
    facts = store.require_experiment("quickstart").facts
    store.save_facts("quickstart", {**facts, "costs": {**described("demo").to_dict(), "prompts": lengths}})
    printed_all = ""
    for line in "".join(blocks("docs/choose.md", "bash")).strip().splitlines():
        made = line.replace("--max-drop 3", "--max-drop 40")  # the trials are made up
        code, out, err = cli(*shlex.split(made)[1:])
        assert code == 0, (line, err)
        if "--per-task" in line:
            assert "read: unpruned" in out
        printed_all += out
    assert "kv_bytes" in printed_all
    assert "accuracy" in printed_all


def test_the_page_about_gpus(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (block,), (commands,), (code,) = (
        blocks("docs/machines.md", language, "One GPU") for language in ("yaml", "bash", "python")
    )
    text = (ROOT / "studies/quickstart.yaml").read_text().replace("model: demo\n", block)
    study = parse_study(text)
    assert (study.model.device, study.batch_size, study.memory_mib) == ("cuda", 16, 8192)
    doctor, run = commands.strip().splitlines()
    assert cli(*doctor.split()[1:])[0] == 0
    program, command, file, *words = run.split()
    assert (program, command, words[::2]) == ("vispco", "run", ["--set", "--set"])
    study, _ = load_study(ROOT / file, words[1::2])
    assert (study.model.device, study.batch_size) == ("cuda", 16)
    monkeypatch.chdir(ROOT)
    capsys.readouterr()
    exec(compile(code, "docs/machines.md", "exec"), {})
    assert 0.3 < float(capsys.readouterr().out) < 0.9


# --- figures and figures of speech -------------------------------------------------------------------------


def test_the_figures_of_the_concepts_are_what_the_script_draws(tmp_path: Path) -> None:
    made = import_module("make_concepts")
    page = (DOCS / "concepts.md").read_text()
    assert set(re.findall(r"\(concepts/(\w+)\.svg\)", page)) == set(made.FIGURES)
    for name, draw in made.FIGURES.items():
        made.matplotlib_figures.save(draw, tmp_path / f"{name}.svg")
        drawn, kept = coordinates(tmp_path / f"{name}.svg"), coordinates(DOCS / f"concepts/{name}.svg")
        assert len(kept) > 1000
        assert drawn == pytest.approx(kept, abs=0.01), "run python docs/make_concepts.py"
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", page)
    assert len(pictures) == page.count("\n## "), "one figure each"


def coordinates(picture: Path) -> list[float]:
    """Of all paths of an SVG file."""
    paths = re.findall(r' d="([^"]*)"', picture.read_text())
    return [float(number) for path in paths for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", path)]


def test_what_the_pays_page_says_is_what_was_measured() -> None:
    told, page = json.loads((DOCS / "pays.json").read_text()), sections("docs/findings.md")["Does it pay?"]
    made = import_module("make_pays")
    assert made.search_table(told) in page
    assert made.default_table(told) in page
    (case,) = [case for case in told["cases"] if (case["model"], case["family"]) == ("demo", "multistep")]
    rows = {row["entry"]: row for row in case["entries"]}
    defaults = {row["default"]: row for row in told["defaults"]}
    said = " ".join(page.split())

    def ahead(name: str) -> tuple[str, str]:
        return f"{rows[name]['learned_ahead']:.1f}", "({:.1f} to {:.1f})".format(*rows[name]["learned_ahead_interval"])

    for name, unit in (("grid", " points"), ("tpe", " points"), ("random", ""), ("warm", "")):
        value, interval = ahead(name)
        assert f"{value}{unit} {interval}" in said
    learned = rows["learned"]
    assert (
        f"it costs {learned['charged']:.3f} of the grid; as run, with sharing on both sides, {learned['spent']:.3f}"
        in said
    )
    low, high = rows["dop"]["learned_ahead_interval"]
    assert f"{-rows['dop']['learned_ahead']:.1f} points below it ({-low:.1f} below to {high:.1f} above)" in said
    times = rows["dop"]["charged"] / rows["learned"]["charged"]
    assert f"charged {rows['dop']['charged']:.3f} of the grid, {times:.1f} times as much" in said
    assert case["held"]["held"] == case["held"]["pairs"] == 120
    assert case["held"]["over"] <= 0
    assert rows["halving"]["seeds"] == 6
    grids = case["best_known"]["grids"]
    assert f"{case['best_known']['trials']:,} trials" in said
    assert f"charged {grids:.0f} dense grids" in said
    assert f"{rows['learned']['regret']:.1f} points below it for a {grids / rows['learned']['charged']:.0f}th" in said
    for name in ("fastv:k2-r75", "fitprune:80"):
        row = defaults[name]
        assert "{:.1f} ({:.1f} to {:.1f})".format(row["points"], *row["interval"]) in said.replace(" points (", " (")
    for name in ("fastv:k2-r50", "fitprune:60"):
        wrong = defaults.pop(name)
        assert "{:.1f} points ({:.1f} to {:.1f}) below".format(wrong["points"], *wrong["interval"]) in said
    small = [row["interval"] for row in told["defaults"] if row["flops_ratio"] < 0.5]
    assert (sum(low > 0 for low, _ in small), sum(high < 0 for _, high in small), len(small)) == (3, 0, 5)
    as_well = {name: row for name, row in defaults.items() if row["flops_ratio"] > 0.5}
    assert set(as_well) == {"fastv:k3-r50", "fitprune:40", "fitprune:50", "pyramiddrop:8-16-24", "vtw:16"}
    for row in as_well.values():
        low, high = row["interval"]
        assert abs(row["points"]) < 2
        assert low < 0 < high


def test_what_the_page_says_of_smaller_pictures_is_what_was_measured() -> None:
    told, page = json.loads((DOCS / "resolution.json").read_text()), (DOCS / "findings.md").read_text()
    assert import_module("make_resolution").table(told) in page
    said = " ".join(page.split())
    for model, words in (("demo-qwen", "smaller pictures alone"), ("smol", "smaller pictures")):
        rows = {row["entry"]: row for row in told[model]["entries"]}
        points, low, high = (-100 * x for x in (rows["size"]["difference"], *reversed(rows["size"]["difference_ci"])))
        assert f"{points:.1f} points of `budget_score` above {words} ({low:.1f} to {high:.1f})" in said
    assert rows["both"]["accuracy"] == rows["pruning"]["accuracy"]
    pairs = zip(rows["pruning"]["accuracy"][0], rows["size"]["accuracy"][0], strict=True)
    assert all(pruned > small for pruned, small in pairs)


# --- references --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "name"), [("commands.md", "make_commands"), ("api.md", "make_api")])
def test_references_are_up_to_date(page: str, name: str) -> None:
    assert (DOCS / page).read_text() == import_module(name).page(), f"run python docs/{name}.py"


def test_references_are_complete() -> None:
    commands, python = (DOCS / "commands.md").read_text(), (DOCS / "api.md").read_text()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"## `vispco {name}`" in commands
        section = commands.split(f"## `vispco {name}`\n")[1].split("\n## ")[0]
        for option in command.params:
            if option.opts != ["--help"]:
                assert all(opt in section for opt in option.opts), option.opts
    for name in vispco.__all__:
        assert f"### `vispco.{name}`" in python


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Its cells give the texts that are stored with them, times apart."""
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "quickstart.ipynb", 4)
    stored = [printed(cell) for cell in notebook.cells]
    assert sum(bool(text) for text in stored) >= 5
    client.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    assert [printed(cell) for cell in notebook.cells] == stored


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.get("outputs", []) if output.get("name") == "stdout")


# --- the site ----------------------------------------------------------------------------------------------


class Sources(HTMLParser):
    """What a page loads, and where it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe") and given.get("src"):
            self.loads.append(str(given["src"]))
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loads.append(str(given["href"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    settings = (ROOT / "zensical.toml").read_text()
    (tmp_path / "zensical.toml").write_text(settings)
    shutil.copytree(DOCS, tmp_path / "docs")
    environment = {**os.environ, "PYTHONPATH": str(DOCS)}
    done = python("-m", "zensical", "build", "--strict", "--clean", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    pages = {path.name for path in DOCS.glob("*.md")}
    in_nav = set(re.findall(r'"([\w-]+\.md)"', settings))
    assert in_nav == pages
    for page in pages:
        html = tmp_path / "build/site" / page.replace(".md", ".html")
        parser = Sources()
        parser.feed(html.read_text())
        for source in parser.loads:
            assert not source.startswith(("http:", "https:", "//")), f"{page} loads {source}"
            assert (html.parent / source.split("?")[0]).exists(), f"{page}: {source}"
        for link in parser.links:
            target = link.split("#")[0]
            if target and not target.startswith(("http:", "https:", "mailto:")):
                assert (html.parent / target).exists(), f"{page} links to {link}"


def test_make_docs_is_that_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "PYTHONPATH=docs $(BIN)/zensical build --strict --clean" in makefile


def test_the_demo_study_of_the_start_page_is_valid() -> None:
    study, _ = blocks("docs/start.md", "yaml")
    validate(Problem(parse_study(study), study))
