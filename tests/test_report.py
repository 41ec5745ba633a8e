"""The report's parts without a browser: the answer, what is exported, names as text, what the page holds."""

from __future__ import annotations

import html
import itertools
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vispco.dashboards import figures, tables
from vispco.dashboards.glossary import term
from vispco.dashboards.overlay import overlay
from vispco.dashboards.page import render
from vispco.dashboards.report import report_record, write_report
from vispco.dashboards.text import in_figure, in_html, script_json
from vispco.dashboards.words import answer_html

from conftest import SMALL, Cli
from pages import blocks
from report_data import BUDGETS, HOSTILE, RIGHT_TO_LEFT, fill
from vispco.analysis.comparison import Comparison
from vispco.analysis.headline import answer
from vispco.analysis.layers import layer_record
from vispco.analysis.published_results import beside_published
from vispco.errors import ConfigError
from vispco.exporting import export_schedule, export_steps
from vispco.fronts import choose
from vispco.storage.store import Store

SEEDS = {"grid": ("grid", None, 30, 0.0), "lagrangian": ("lagrangian", 10, 5, 0.1), "tpe": ("tpe", 3, 8, 0.0)}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('report')}/a.db")
    fill(store)
    return Comparison(store, "made")


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('report')}/b.db")
    fill(store, entries=SEEDS, tasks=["colours", "shapes"])
    return Comparison(store, "made")


def approx_percent(shares: Iterable[float]) -> Any:
    return pytest.approx([100 * share for share in shares], abs=1e-3)


def block(page: str, name: str) -> Any:
    (text,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(text)


# --- the answer ----------------------------------------------------------------------------------


def test_the_answer_of_single_runs_is_what_compare_says(comparison: Comparison) -> None:
    found, told = answer(comparison), comparison.to_dict()
    assert found["budget"] == 0.52
    row = next(row for row in told["by_budget"] if row["budget"] == 0.52)
    for entry in found["entries"]:
        chosen = row["chosen"][entry["entry"]]
        search = next(search for search in told["searches"] if search["name"] == entry["entry"])
        point = next(point for point in search["front"] if point["trial"] == chosen["trial"])
        assert entry["accuracy_held_out"] == chosen["accuracy_held_out"]
        assert entry["accuracy_ci"] == point["accuracy_ci"]
        assert entry["flops_ratio"] == chosen["flops_ratio"]
        assert entry["kept"] == pytest.approx(chosen["accuracy_held_out"] / told["unpruned"]["accuracy_held_out"])
        assert entry["charged_share"] == search["cost_ratio_to_grid"]
        gap = row["difference_to_grid"].get(entry["entry"])
        assert entry["difference"] == (gap["mean"] if gap else None)
        assert entry["difference_ci"] == (gap["ci"] if gap else None)


def test_scores_that_are_no_accuracies_are_not_called_right_answers(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    fill(store)
    comparison = Comparison(store, "made")
    told = answer_html(answer(comparison))
    assert "on the held-out split" in told
    assert "questions right" not in told
    assert "before the first token that differs" not in told
    comparison.stored.identity["score"] = "agreement"
    page = render(report_record(comparison))
    assert "before the first token that differs. It does not say whether answers are right" in page
    assert "held-out agreement" in page
    with pytest.raises(ConfigError, match="'made' measured score: agreement"):
        beside_published(comparison)


def test_a_default_is_compared_within_its_own_compute(comparison: Comparison) -> None:
    (default,) = answer(comparison)["defaults"]
    (told,) = comparison.to_dict()["defaults"]
    assert (default["accuracy_held_out"], default["accuracy_ci"]) == (told["accuracy_held_out"], told["accuracy_ci"])
    for row in default["entries"]:
        search = next(search for search in comparison.searches if search.name == row["entry"])
        trial = choose(search.trials, default["flops_ratio"])
        assert trial is not None
        held_out = comparison.held_out(search, trial)
        assert held_out is not None
        assert row["accuracy_held_out"] == held_out.accuracy
        assert row["difference"] == pytest.approx(held_out.accuracy - default["accuracy_held_out"])
        assert row["difference_ci"][0] <= row["difference"] <= row["difference_ci"][1]


def test_what_has_not_run_yet_misses_no_budget(seeded: Comparison) -> None:
    """While a run goes on, all its studies exist."""
    comparison = Comparison(seeded.store, "made")
    waiting = [replace(s, trials=[]) if s.entry == "tpe" or s.seed == 1 else s for s in comparison.searches]
    comparison._choose(waiting, comparison.budgets)
    record = layer_record(comparison)
    assert {entry["entry"]: entry["seeds"] for entry in record["learned"]} == {"grid": 1, "lagrangian": 9}
    assert not any("tpe" in sentence for sentence in record["summary"])


def test_why_a_choice_is_not_beside_a_default_is_said(seeded: Comparison) -> None:
    found = answer(seeded)
    (default,) = found["defaults"]
    assert set(default["nothing"].values()) == {0}
    beside = {**default, "entries": []}
    for nothing, told in ((10, "has nothing that is as cheap"), (1, "1 of 10 runs of"), (0, "is not measured")):
        text = answer_html({**found, "defaults": [{**beside, "nothing": {found["headline"]: nothing}}]})
        assert told in text
    text = answer_html({**found, "defaults": [{**beside, "flops_ratio": None}]})
    assert "Its compute is not known, so no choice is set beside it." in text


def test_the_answer_over_seeds_is_their_mean(seeded: Comparison) -> None:
    found, told = answer(seeded), seeded.to_dict()
    row = next(row for row in told["by_budget"] if row["budget"] == found["budget"])
    for entry in found["entries"]:
        names = [name for name in row["chosen"] if name.partition("@")[0] == entry["entry"]]
        assert entry["runs"] == len(names)
        accuracies = [row["chosen"][name]["accuracy_held_out"] for name in names]
        assert entry["accuracy_held_out"] == pytest.approx(np.mean(accuracies))
        assert entry["accuracy_ci"][0] <= entry["accuracy_held_out"] <= entry["accuracy_ci"][1]
        assert entry["covers"] == ("seeds and samples" if entry["entry"] == "lagrangian" else "samples")
    assert found["headline"] == "lagrangian"
    text = answer_html(found)
    assert "Mean over 10 seeds" in text
    assert f"{100 * found['entries'][1]['accuracy_held_out']:.1f} %" in text


def test_an_answer_without_grid_or_default_says_so() -> None:
    row = {
        **dict.fromkeys(("accuracy_ci", "kept", "difference", "difference_ci", "charged_share"), None),
        "entry": "tpe",
        "runs": 1,
        "schedules": ["step(layer=2, keep=0.5)"],
        "flops_ratio": 0.6,
        "missed": 1,
        "accuracy_held_out": 0.5,
        "deterministic": False,
        "covers": "samples",
    }
    found = {"budget": 0.5, "unpruned": None, "grid": None, "entries": [row], "defaults": [], "headline": "tpe"}
    text = answer_html({**found, "seeds_needed": 10})
    assert "No complete grid was run" in text
    assert "No published default was measured" in text
    assert "nothing within that budget" in text
    assert "No search has a schedule" in answer_html({**found, "headline": None, "entries": []})


# --- export --------------------------------------------------------------------------------------


def test_the_slider_exports_what_the_command_exports(seeded: Comparison) -> None:
    steps = export_steps(seeded)
    assert [row["flops_ratio"] for row in steps] == sorted({row["flops_ratio"] for row in steps})
    between = [(a["flops_ratio"] + b["flops_ratio"]) / 2 for a, b in itertools.pairwise(steps)]
    for budget in [*(row["flops_ratio"] for row in steps), *between, *BUDGETS, 1.0]:
        row = [row for row in steps if row["flops_ratio"] <= budget + 1e-9][-1]
        exported = export_schedule(seeded, budget)
        assert [row[key] for key in ("search", "trial", "schedule")] == [
            exported[key] for key in ("search", "trial", "schedule")
        ]
    with pytest.raises(ConfigError, match="no schedule"):
        export_schedule(seeded, steps[0]["flops_ratio"] - 1e-6)


def test_the_front_answers_every_budget(seeded: Comparison) -> None:
    """The page chooses from fronts; the choice for each of the experiment's budgets is that of ``by_budget``."""
    told = seeded.to_dict()
    for row in told["by_budget"]:
        for search in told["searches"]:
            fitting = [point for point in search["front"] if point["flops_ratio"] <= row["budget"] + 1e-9]
            point = fitting[-1] if fitting else search["front"][0]
            assert point["trial"] == row["chosen"][search["name"]]["trial"]


# --- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [HOSTILE, RIGHT_TO_LEFT, "\x00\x1b[31m\ud800", "%{x}", "a" * 5000, ""])
def test_names_are_text(name: str) -> None:
    for text in (in_html(name), in_figure(name)):
        assert not re.search(r"<(?!/?bdi>)", text)
        text.encode("utf-8")
        assert not re.search("[\x00-\x08\u202a-\u202e]", text)
    assert "%{" not in in_figure(name)
    assert len(html.unescape(in_figure(name))) <= 62
    written = script_json({"name": name})
    assert json.loads(written) == {"name": name}
    assert not re.search("[<>&\u2028\u2029]", written)


def test_plain_names_stay_as_they_are() -> None:
    assert in_figure("step(layer=2, keep=0.5)") == "step(layer=2, keep=0.5)"
    assert html.unescape(in_figure("50 % <b> \u00e9 \U0001f600")) == "50 % <b> \u00e9 \U0001f600"


# --- figures and page ----------------------------------------------------------------------------


def test_the_overlay_shows_every_trial(comparison: Comparison) -> None:
    told, points = comparison.to_dict(), comparison.points()
    on_search = overlay(told, points, split="search")
    dominated = [trace for trace in on_search.data if trace.legendgroup == "dominated"]
    fronts = {trace.name: trace for trace in on_search.data if trace.name in ("grid", "lagrangian", "tpe")}
    assert sum(len(t.x) for t in dominated) == sum(not point["on_front"] for point in points)
    for search in told["searches"]:
        assert list(fronts[search["name"]].y) == approx_percent(point["accuracy"] for point in search["front"])
    assert all(trace.visible is True for trace in dominated)
    held_out = overlay(told, points)
    for search in told["searches"]:
        (front,) = (trace for trace in held_out.data if trace.name == search["name"])
        assert list(front.y) == approx_percent(point["accuracy_held_out"] for point in search["front"])
        (band,) = (t for t in held_out.data if t.fill == "toself" and t.legendgroup == search["name"])
        bounds = {bound for point in search["front"] for bound in point["accuracy_ci"]}
        assert sorted(set(band.y)) == approx_percent(sorted(bounds))
        assert band.opacity == 0
    assert all(t.visible == "legendonly" for t in held_out.data if t.legendgroup == "dominated")
    assert [t.name for t in held_out.data].count("published: fastv:k2-r50") == 1


def test_paths_are_drawn_whole(comparison: Comparison) -> None:
    record = report_record(comparison)
    path = record["paths"]["lagrangian"]
    figure = figures.trajectory("lagrangian", path["steps"], path["budgets"])
    assert len(figure.data) == 3 * len(BUDGETS)
    assert [t.name for t in figure.data[::3]] == ["budget 80.0 %", "budget 52.0 %", "budget 30.0 %"]
    for trace, quantity in zip(figure.data[:3], ("violation", "multiplier", "penalty"), strict=True):
        scale = 100 if quantity == "violation" else 1  # shares of the budget are in percent
        stored = [scale * row[quantity] for row in path["steps"]["budget-0"]]
        assert list(trace.y) == pytest.approx(stored, rel=1e-3)


def test_the_page_holds_the_numbers_and_nothing_foreign(seeded: Comparison) -> None:
    page = render(report_record(seeded))
    assert block(page, "comparison") == json.loads(json.dumps(seeded.to_dict()))
    places = re.findall(r'data-figure="([^"]+)"', page)
    chosen = re.findall(r'<option value="([^"]+)"', page)
    assert set(places) | set(chosen) == set(re.findall(r'id="figure-([^"]+)"', page))
    assert len(places) == len(set(places))
    assert {"overlay-0", "task-0", "map-0", "path-0", "costs", "choices", "anytime", "seeds-1"} <= {*places, *chosen}
    body = page.split("<body>")[1].split("<script")[0]
    assert set(re.findall(r"(?:src|href)=.(\w+):?", body)) <= {"data"}
    assert "<script src" not in page
    assert "<link" not in page
    assert len(page) < 5_000_000


def test_at_most_four_searches_are_drawn_at_first(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    gains = {"grid": -0.2, "a": 0.0, "b": 0.1, "c": 0.2, "d": 0.05, "e": 0.15}
    kinds = {name: ("grid", None, 12, gain) if name == "grid" else ("tpe", 1, 6, gain) for name, gain in gains.items()}
    fill(store, entries=kinds)
    told = Comparison(store, "made").to_dict()
    means = {search["name"]: search["budget_score"] for search in told["searches"]}
    best = sorted(means.keys() - {"grid"}, key=lambda name: -means[name])[:3]
    assert set(figures.drawn_first(told)) == {"grid", *best}
    for figure in (overlay(told, ()), figures.choices(told), figures.costs(told)):
        hidden = {trace.legendgroup for trace in figure.data if trace.visible == "legendonly"}
        assert hidden - {"dominated"} == set(gains) - {"grid", *best}
        assert {trace.name for trace in figure.data if trace.showlegend is not False} >= set(gains)
    page = render(report_record(Comparison(store, "made")))
    assert "4 of 6 searches are drawn" in page


def test_a_missed_budget_is_hollow_and_says_so(comparison: Comparison) -> None:
    told = json.loads(json.dumps(comparison.to_dict()))
    chosen = next(row for row in told["by_budget"] if row["budget"] == 0.3)["chosen"]["tpe"]
    chosen.update(missed=True, trial=None, accuracy_held_out=told["no_image"]["accuracy"])
    (line,) = (t for t in figures.choices(told).data if t.legendgroup == "tpe" and "markers" in t.mode)
    assert dict(zip(line.x, line.marker.symbol, strict=True)) == {80.0: "circle", 52.0: "circle", 30.0: "circle-open"}
    assert "missed: no image" in line.text[list(line.x).index(30.0)]
    assert tables.by_budget(told).count("missed: no image") == 1


def test_budgets_with_one_choice_share_a_row(comparison: Comparison) -> None:
    told = json.loads(json.dumps(comparison.to_dict()))
    rows = {row["budget"]: row for row in told["by_budget"]}
    before = tables.by_budget(told).count("<tr>")
    for key in ("chosen", "difference_to_grid"):
        rows[0.52][key]["tpe"] = rows[0.3][key]["tpe"]
    shown = tables.by_budget(told)
    assert shown.count("<tr>") == before - 1
    assert "30.0 % to 52.0 %" in shown


def test_several_experiments_share_a_page(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    for name in ("one", "two"):
        fill(store, name, entries={"grid": ("grid", None, 8, 0.0), "tpe": ("tpe", 1, 4, 0.1)})
    write_report(store, ["one", "two", "one"], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    known = {"experiments": [Comparison(store, name).to_dict() for name in ("one", "two")]}
    assert block(page, "comparison") == json.loads(json.dumps(known))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {"e0-overlay", "e1-overlay", "e0-budget", "e1-budget"} <= set(ids)
    assert [fact["command"][1] for fact in block(page, "facts")] == ["one", "two"]
    lines = figures.together(known["experiments"]).data
    assert [line.name.partition(" ")[0] for line in lines] == ["one", "two"]
    assert figures.together(known["experiments"]).layout.xaxis.title.text == "compute, % of unpruned"
    other = {**known["experiments"][1], "cost": "prefill_ms"}
    figure = figures.together([known["experiments"][0], other])
    assert [line.name.rpartition(", ")[2] for line in figure.data] == ["compute)", "prefill_ms)"]
    assert figure.layout.xaxis.title.text == "cost, % of unpruned"
    with pytest.raises(ConfigError, match="--tokens 2 is for one experiment"):
        write_report(store, ["one", "two"], tmp_path / "r.html", tokens=2)


def test_every_term_is_in_the_glossary(seeded: Comparison) -> None:
    page = render(report_record(seeded))
    terms = set(re.findall(r'class="term" href="#([^"]+)" title="[^"]{20,}"', page))
    assert len(terms) > 15
    assert terms <= set(re.findall(r'<div id="(term-[^"]+)"><dt>', page))
    with pytest.raises(KeyError):
        term("budgett")


@pytest.mark.parametrize("fold", [HOSTILE.replace("/", ""), RIGHT_TO_LEFT.replace("/", ""), "n" * 200])
def test_hostile_names_stay_in_their_place(tmp_path: Path, fold: str) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill(store, fold, tasks=[HOSTILE, RIGHT_TO_LEFT], note=HOSTILE, entries={"tpe": ("tpe", 1, 4, 0.0)})
    write_report(store, fold, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    body = page.split("<body>")[1]
    assert page.count("<script>") == 1
    assert "<img" not in body.split("<script>")[0]
    assert "window.broken=1</script>" not in page
    assert block(page, "comparison")["experiment"] == fold


def test_the_page_tells_how_to_reproduce_it(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a b.db")
    fill(store, "-two words", entries={"tpe": ("tpe", 1, 4, 0.0)})
    page = render(report_record(Comparison(store, "-two words")))
    storage = f"--storage 'sqlite:///{tmp_path}/a b.db'"
    assert block(page, "facts")[0]["command"] == ["vispco export", "-- '-two words'", f"{storage} "]
    assert html.escape(f"vispco compare --json {storage} -- '-two words'") in page
    assert "--max-drop" not in page.split("Reproduce</h4>")[1].split("</pre>")[0]
    page = render(report_record(Comparison(store, "-two words"), 3.0, tokens=2))
    assert html.escape(f"vispco report -o report.html --max-drop 3 --tokens 2 {storage}") in page
    for text in ("0123abcd", "Searches and seeds", "study.yaml"):
        assert text in page


def test_what_the_document_shows_is_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command and all Python about the report and the figures, on a made experiment of the demo model."""
    shown = blocks("docs/reading.md", "bash", "The report") + blocks("docs/reading.md", "bash", "Figures for a paper")
    commands = "".join(shown).splitlines()
    (code,) = blocks("docs/reading.md", "python", "The report")
    store = Store(f"sqlite:///{tmp_path}/vispco.db")
    fill(store, "quickstart", study=SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISPCO_STORAGE", raising=False)
    assert len(commands) == 6
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "vispco"
        if arguments[0] == "plot":
            pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        assert cli(*arguments)[0] == 0, command
        assert Path(arguments[3]).stat().st_size > 1000
        if "--tokens" in arguments:
            page = Path("report.html").read_text(encoding="utf-8")
            assert page.count('<img alt="patches that survive" src="data:image/png;base64,') == 4
            assert "--storage" not in page.split("<body>")[1].split("<script>")[0]  # it is the default
            exec(compile(code, "docs/reading.md", "exec"), {})
            assert "'grid'" in capsys.readouterr().out
