"""Layer-wise analysis: hand-made records with known answers, and a database written by hand, through to the page."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vispco.dashboards import heatmaps

from conftest import Cli
from report_data import made_evaluation, study_facts
from vispco.analysis.comparison import Comparison
from vispco.analysis.layer_words import ranges, summary
from vispco.analysis.layers import Choice, drops, halfway, layer_record, learned_row, worth
from vispco.analysis.sensitivity import _one_step, sensitivity_table
from vispco.evaluation.records import Evaluation
from vispco.pruning.families import StepFamily
from vispco.pruning.schedules import Schedule, Step, parse_schedule
from vispco.storage.store import Store

L = 8


def steps(layer: int, keep: float, layers: int = L) -> Choice:
    return Choice((1.0,) * layer + (keep,) * (layers - layer), 0.5, 0.7, Step(layer, keep).text())


def entry(chosen: dict[float, list[Choice]], name: str = "grid", over: tuple[float, ...] = ()) -> dict[str, Any]:
    rows = [learned_row(budget, found, over=int(budget in over)) for budget, found in chosen.items()]
    return {"entry": name, "seeds": max(1, *(len(found) for found in chosen.values())), "rows": rows}


def told(*entries: dict[str, Any], sensitivity: Any = (), gradient: Any = ()) -> list[str]:
    return summary({"learned": entries, "sensitivity": [*sensitivity], "gradient": [*gradient]})


# --- what was learned --------------------------------------------------------------------------------


RATIOS = st.lists(st.floats(0, 1), min_size=1, max_size=40).map(lambda values: sorted(values, reverse=True))


@given(RATIOS)
def test_halfway_is_where_half_of_the_dropping_is_done(ratios: list[float]) -> None:
    layer = halfway(ratios)
    if layer is None:
        assert ratios[-1] > 1 - 1e-8
        assert drops(ratios) == 0
        return
    gone = 1 - ratios[-1]
    assert 1 - ratios[layer] >= gone / 2 - 1e-8
    assert layer == 0 or 1 - ratios[layer - 1] < gone / 2
    assert 1 <= drops(ratios) <= len(ratios)


def test_halfway_of_a_step_is_its_layer() -> None:
    for layer in range(L):
        for keep in (0.0, 0.3, 0.99):
            ratios = steps(layer, keep).keep_ratio
            assert (halfway(ratios), drops(ratios)) == (layer, 1)


def test_rows_are_means_over_seeds() -> None:
    row = learned_row(0.5, [steps(2, 0.2), steps(4, 0.4), steps(2, 0.3)], over=2)
    assert row["keep_ratio"] == pytest.approx([1, 1, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3])
    assert row["low"] == [1, 1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    assert row["high"] == [1, 1, 1, 1, 0.4, 0.4, 0.4, 0.4]
    assert row["layer"] == {"median": 2, "low": 2, "high": 4}
    assert row["keep"] == pytest.approx({"mean": 0.3, "low": 0.2, "high": 0.4})
    assert (row["seeds"], row["over"], row["accuracy_held_out"], row["steps"]) == (3, 2, pytest.approx(0.7), 1)
    half = learned_row(0.5, [steps(2, 0.2), Choice((1.0,) * L, 1.0)])
    assert half["layer"] == {"median": 2, "low": 2, "high": 2}
    assert half["accuracy_held_out"] is None
    assert learned_row(0.5, [])["keep_ratio"] is None


PLACES = st.lists(st.one_of(st.none(), st.integers(0, 120)), max_size=25)


@given(PLACES, st.integers(1, 6))
def test_ranges_leave_out_nothing(layers: list[int | None], most: int) -> None:
    pairs = [(i / 100, layer) for i, layer in enumerate(layers)]
    found = ranges(pairs, most)
    assert len(found) <= most
    assert [budget for part in found for budget in part.budgets] == [budget for budget, _ in pairs]
    by_budget = dict(pairs)
    for part in found:
        here = [by_budget[budget] for budget in part.budgets]
        assert part.layers == tuple(sorted({layer for layer in here if layer is not None}))
        assert part.nothing == (None in here)
    runs = 1 + sum(a != b for a, b in itertools.pairwise(layers)) if layers else 0
    if runs <= most:
        assert len(found) == runs


def test_neighbours_are_joined_where_layers_are_nearest() -> None:
    pairs = list(enumerate([1, 9, 8, 9, 3, 20]))
    assert [(part.budgets, part.layers) for part in ranges(pairs, 4)] == [
        ((0,), (1,)),
        ((1, 2, 3), (8, 9)),
        ((4,), (3,)),
        ((5,), (20,)),
    ]
    # What prunes nothing is joined last of all.
    assert [part.nothing for part in ranges(list(enumerate([1, 30, 60, None])), 3)] == [False, False, True]


def test_the_story_of_a_step_search() -> None:
    chosen = {0.3: [steps(2, 0.05)], 0.38: [steps(2, 0.2)], 0.45: [steps(3, 0.1)], 0.6: [steps(4, 0.1)]}
    chosen |= {0.7: [steps(4, 0.3)], 0.9: [Choice((1.0,) * L, 1.0)]}
    assert told(entry(chosen)) == [
        "grid: up to a budget of 38 % it prunes at layer 2 and keeps 5 to 20 % of the tokens; at a budget of 45 % it "
        "prunes at layer 3 and keeps 10 % of the tokens; from 60 to 70 % it prunes at layer 4 and keeps 10 to 30 % "
        "of the tokens; at a budget of 90 % it prunes nothing."
    ]


def test_the_story_of_several_seeds() -> None:
    chosen = {0.4: [steps(2, 0.2), steps(2, 0.4)], 0.6: [steps(3, 0.2), steps(5, 0.2)]}
    assert told(entry(chosen, "random", over=(0.4,))) == [
        "random (2 seeds): at a budget of 40 % it prunes at layer 2 and keeps 30 % of the tokens; at a budget of 60 % "
        "it prunes at layer 3 and keeps 20 % of the tokens. The larger the budget, the later it prunes. Its seeds "
        "agree on the layer at 1 of 2 budgets and differ by up to 2. 1 of its 2 seeds misses a budget of 40 %."
    ]
    same = {0.4: [steps(5, 0.2)] * 3, 0.6: [steps(2, 0.2)] * 3}
    (story,) = told(entry(same))
    assert "the earlier it prunes. Its seeds agree on the layer at all 2 budgets." in story


def test_the_story_of_a_gradual_family() -> None:
    falling = Choice((1.0, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.004), 0.5)
    assert told(entry({0.5: [falling]}, "layerwise")) == [
        "layerwise: at a budget of 50 % half of what it drops is gone by layer 3, and 0.4 % of the tokens stay at the "
        "end."
    ]


def test_degenerate_stories() -> None:
    nothing = ["Nothing is complete yet: no search has a schedule for any budget."]
    assert told() == told(entry({0.5: [], 0.7: []})) == nothing
    assert told(entry({0.3: [], 0.5: [steps(1, 0.0)]}, over=(0.3,))) == [
        "grid: at a budget of 50 % it prunes at layer 1 and keeps 0 % of the tokens. It has nothing that fits a budget "
        "of 30 %."
    ]
    assert told(entry({0.3: []}, over=(0.3,))) == ["grid has nothing that fits a budget of 30 %."]
    many = {b: [] for b in (0.1, 0.2, 0.3, 0.4)}
    assert told(entry(many, over=tuple(many))) == ["grid has nothing that fits 4 budgets, 10 to 40 %."]
    equal = {budget: [steps(3, 0.5)] for budget in (0.5, 0.7, 0.9)}
    assert told(entry(equal)) == [
        "grid: at all 3 budgets, 50 to 90 %, it prunes at layer 3 and keeps 50 % of the tokens."
    ]
    deep = {i / 1000: [steps(100 + i, 0.5, 160)] for i in range(12)}
    (story,) = told(entry(deep))
    assert len(re.findall(r"budget of|from \d", story)) == 4
    assert "layers 100 to 10" in story
    assert "0.9" in story or "0.8" in story  # budgets that whole percents would not tell apart
    assert "keep" in story


# --- sensitivity -------------------------------------------------------------------------------------


def cells(lost: dict[int, float], keeps: tuple[float, ...] = (0.1, 0.3, 0.5)) -> dict[tuple[int, float], Any]:
    return {(k, r): (0.8 - lost[k] * (1 - r), 1 - (L - k) / L * (1 - r)) for k in lost for r in keeps}


def test_sensitivity_is_accuracy_lost_over_compute_saved() -> None:
    lost = {1: 0.35, 4: 0.1, 6: 0.0}
    table = sensitivity_table("fastv", 0.8, cells(lost))
    assert table is not None
    assert (table["layers"], table["keeps"], table["reference_keep"]) == ([1, 4, 6], [0.1, 0.3, 0.5], 0.3)
    assert table["per_compute"] == pytest.approx([0.35 / (7 / 8), 0.1 / (4 / 8), 0])
    assert table["lost"][0] == pytest.approx([0.315, 0.245, 0.175])
    assert table["saved"][2] == pytest.approx([0.225, 0.175, 0.125])
    assert told(sensitivity=[table]) == [
        "On the search split one step of fastv that keeps 30 % of the tokens at layer 1 costs 24 points of accuracy "
        "and saves 61 % of the compute; at layer 6 it costs at most 1 point. Per unit of compute saved, layer 1 costs "
        "fastv most (40 points) and layer 6 least (0)."
    ]
    table["lost_ci"] = [[0.2, 0.28], [0.0, 0.1], [-0.01, 0.01]]
    table["per_compute_ci"] = [[0.3, 0.5], [0.1, 0.3], [-0.1, 0.1]]
    (story,) = told(sensitivity=[table])
    assert "costs 24 points of accuracy (20 to 28) and saves" in story
    assert "most (40 points, 30 to 50) and layer 6 least (0, -10 to 10)." in story
    table["per_compute_ci"][0][0] = 0.1
    (story,) = told(sensitivity=[table])
    assert "cost fastv from 0 to 40 points; no layer is shown to cost more than another." in story
    table["per_compute_ci"] = [[0.3, 0.5], [0.1, 0.25], [-0.4, 0.46]]
    (story,) = told(sensitivity=[table])
    assert "layer 1 costs fastv more (40 points, 30 to 50) than layer 4 (20, 10 to 25)." in story


def test_sensitivity_compares_layers_on_what_all_of_them_have() -> None:
    holes = cells({1: 0.35, 4: 0.1, 6: 0.0})
    whole = sensitivity_table("fastv", 0.8, cells({1: 0.35, 4: 0.1, 6: 0.0}, (0.3, 0.5)))
    del holes[6, 0.1]
    holes[1, 0.77] = (0.0, 0.9)  # a random draw
    found = sensitivity_table("fastv", 0.8, holes)
    assert found is not None
    assert whole is not None
    assert found["keeps"] == [0.1, 0.3, 0.5]
    assert found["lost"][2][0] is None
    assert found["per_compute"] == whole["per_compute"]
    del holes[4, 0.3], holes[1, 0.5]
    rest = sensitivity_table("fastv", 0.8, holes)
    assert rest is not None
    assert rest["per_compute"] == [None] * 3
    assert len(told(sensitivity=[rest])[0].split(". ")) == 1


def test_degenerate_sensitivity() -> None:
    assert sensitivity_table("fastv", 0.8, {}) is None
    assert sensitivity_table("fastv", 0.8, {(1, 0.1): (0.5, 0.5), (2, 0.2): (0.5, 0.5)}) is None
    equal = sensitivity_table("fastv", 0.8, cells({1: 0.7, 2: 0.6}))
    assert told(sensitivity=[equal]) == [
        "On the search split one step of fastv that keeps 30 % of the tokens at layer 1 costs 49 points of accuracy "
        "and saves 61 % of the compute; at layer 2 it costs 42 points of accuracy. Per unit of compute saved, all "
        "layers cost fastv the same, 80 points."
    ]
    harmless = sensitivity_table("fastv", 0.8, cells({1: 0.0, 2: -0.1, 3: 0.01}))
    assert told(sensitivity=[harmless])[0].startswith(
        "On the search split one step of fastv that keeps 30 % of the tokens costs at most 1 point of accuracy at "
        "every layer from 1 to 3."
    )
    gain = sensitivity_table("fastv", 0.8, cells({1: -0.2, 2: 0.2}))
    assert gain is not None
    gain["lost_ci"] = [[-0.2, 0.02], None]
    assert "at layer 1 gains 14 points of accuracy (-2 to 20) and saves" in told(sensitivity=[gain])[0]
    # A step that saves nothing, for scoring costs more than the tokens, is no part of the comparison.
    dear = {**cells({1: 0.7, 2: 0.6}), (1, 0.9): (0.8, 1.001), (2, 0.9): (0.8, 1.0)}
    table = sensitivity_table("fastv", 0.8, dear)
    assert table is not None
    assert equal is not None
    assert table["per_compute"] == pytest.approx(equal["per_compute"])


# --- gradient ----------------------------------------------------------------------------------------


def test_worth_is_minus_the_slope_of_the_last_steps() -> None:
    slopes = [[9.0, 9.0], [5.0, 5.0], [0.0, -2.0], [0.0, -4.0]]
    assert worth([{"slope": slope} for slope in slopes], 2) == [0.0, 3.0]
    assert worth([{"slope": [1.0]}], 2) is None
    for odd in ("x", None, [1.0, "y"], [True, 1.0], [float("nan"), 1.0], {}):
        assert worth([{"slope": odd}, {}], 2) is None
    assert worth([], 2) is None


def test_the_story_of_gradients() -> None:
    def at(best: int, value: float = 2.0) -> list[float]:
        return [value if layer == best else 0.0 for layer in range(130)]

    rows = [{"budget": budget, "worth": at(layer)} for budget, layer in ((0.7, 110), (0.5, 110), (0.3, 2))]
    assert told(gradient=[{"entry": "lagrangian", "rows": rows}]) == [
        "By the gradient of lagrangian, more tokens are worth most at layer 2 at a budget of 30 %; at layer 110 from "
        "50 % on."
    ]
    none = [{"budget": 0.3, "worth": at(2, -1.0)}]
    assert told(gradient=[{"entry": "a", "rows": none}])[0].endswith("are worth nothing at any layer.")


# --- figures -----------------------------------------------------------------------------------------


def test_maps_show_what_the_record_says() -> None:
    found = entry({0.4: [steps(2, 0.2), steps(3, 0.4)], 0.6: [], 0.8: [steps(5, 0.5)]}, "<b>")
    figure = heatmaps.learned(found)
    (heat,) = figure.data
    kept = np.array([found["rows"][0]["keep_ratio"], found["rows"][2]["keep_ratio"]])
    assert np.allclose(heat.z, 100 * kept)
    assert list(figure.layout.yaxis.ticktext) == ["40.0", "80.0"]
    assert "keeps 60 % (20 % to 100 % over 2 seeds)" in heat.text[0][2]
    assert "step(layer=2, keep=0.2)<br>step(layer=3, keep=0.4)" in heat.text[0][2]
    assert "<b>" not in figure.to_json()
    table = sensitivity_table("fastv", 0.8, {**cells({1: 0.35, 4: 0.1}), (6, 0.1): (0.8, 0.7)})
    assert table is not None
    (heat,) = heatmaps.sensitivity(table).data
    assert heat.z[1][0] == pytest.approx(24.5)
    assert heat.z[1][2] is None
    assert "loses 24.5 points, saves 61% of the compute" in heat.text[1][0]
    rows = [{"budget": 0.3, "worth": [0.0, -2.0, 4.0], "low": [0, -3, 3], "high": [1, 0, 5]}]
    (heat,) = heatmaps.gradient({"entry": "a", "rows": rows}).data
    assert np.allclose(heat.z, [[0, -0.5, 1]])
    deep = heatmaps.learned(entry({b / 100: [steps(7, 0.5, 126)] for b in range(60)}))
    assert 126 / deep.layout.xaxis.dtick <= 25
    assert len(deep.layout.yaxis.tickvals) <= 24
    assert heatmaps.learned(entry({0.4: []})).data[0].z == ()


# --- a database --------------------------------------------------------------------------------------

SAMPLES = 40
GROUPS = {"x": [str(i // 2) for i in range(SAMPLES)]}


def wrong(layer: int, keep: float) -> int:
    """Samples that go wrong: two for each tenth dropped at layer 1, one at layer 2, none later."""
    return round(10 * (1 - keep)) * {1: 2, 2: 1, 3: 0}[layer]


def measured(schedule: Schedule, split: str, errors: int) -> Evaluation:
    scores = np.array([0.0] * errors + [1.0] * (SAMPLES - errors))
    cost = sum(schedule.keep_ratio(4)) / 4
    return made_evaluation(f"{schedule.text()}/{split}", split, {"x": scores}, cost, schedule, 4, flops=100)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('layers')}/a.db"
    write_experiment(url, "exp")
    return url


def write_experiment(url: str, experiment: str) -> None:
    """A grid of layers 1 to 3, and a gradient search with two seeds whose steps have slopes at one budget of two."""
    store = Store(url)
    store.save_experiment(
        experiment,
        spec_text="x",
        spec_hash="h",
        identity={"model": {"name": "m"}},
        provenance={"versions": {}, "python": "3", "platform": "p"},
    )
    names = {"grid": ("grid", 0), "lagrangian@0": ("lagrangian", 0), "lagrangian@1": ("lagrangian", 1)}
    studies = {
        f"{experiment}/{name}": study_facts(kind, kind, seed, points=12 if kind == "grid" else None)
        for name, (kind, seed) in names.items()
    }
    facts = {"accounting": "exact", "floor": 0.2, "budgets": [0.2, 0.5, 0.8], "studies": studies, "layers": 4}
    store.save_facts(experiment, facts)
    for split in ("search", "held_out"):
        for key, schedule, errors in (("unpruned", Step(0, 1.0), 0), ("no_image", Step(0, 0.0), 30)):
            reference = measured(schedule, split, errors)
            store.put_evaluation(reference, GROUPS)
            store.link(experiment, "reference", key, reference)

    def add(study: str, layer: int, keep: float, **attributes: Any) -> None:
        schedule = Step(layer, keep)
        for split in ("search", "held_out"):
            evaluation = measured(schedule, split, wrong(layer, keep))
            store.put_evaluation(evaluation, GROUPS)
            if split == "held_out":
                store.link(experiment, "schedule", f"fastv|{schedule.text()}", evaluation)
            else:
                distributions = StepFamily(4).distributions()
                parameters = {"layer": layer, "keep": keep}
                store.trial_log(f"{experiment}/{study}").add(
                    evaluation, parameters=parameters, distributions=distributions, seconds=0.0, attributes=attributes
                )

    for layer in (1, 2, 3):
        for keep in (0.0, 0.3, 0.6, 0.9):
            add("grid", layer, keep)
    for seed in (0, 1):
        study = f"lagrangian@{seed}"
        for number, (layer, keep, budget) in enumerate([(3, 0.0, 0.8), (2, 0.0, 0.5)]):
            add(study, layer, keep, budget=budget, trajectory=f"budget-{number}")
            slope = {"slope": [0.0, -1.0 - seed, -0.5, 0.0]} if number == 0 else {}
            row = {"loss": 1.0, "violation": 0.0, "multiplier": 0.0, "penalty": 1.0, "free": [0.0], **slope}
            store.save_steps(f"{experiment}/{study}", f"budget-{number}", [row, row])
    store.engine.dispose()


def test_record_of_a_database(url: str) -> None:
    record = layer_record(Comparison(Store(url), "exp"))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["layers"] == 4
    grid, lagrangian = record["learned"]
    assert [row["over"] for row in grid["rows"]] == [1, 0, 0]  # the cheapest costs 1/4
    assert grid["rows"][1]["schedules"] == ["step(layer=2, keep=0.0)"]
    assert lagrangian["seeds"] == 2
    assert [row["seeds"] for row in lagrangian["rows"]] == [0, 2, 2]
    (table,) = record["sensitivity"]
    # Of the four keep ratios 0.9 saves least; all save something at every layer.
    dropped = 1 + 0.7 + 0.4 + 0.1
    lost = [sum(wrong(layer, keep) for keep in (0.0, 0.3, 0.6, 0.9)) / SAMPLES for layer in (1, 2, 3)]
    saved = [dropped * (4 - layer) / 4 for layer in (1, 2, 3)]
    assert table["per_compute"] == pytest.approx([a / b for a, b in zip(lost, saved, strict=True)])
    low, high = table["lost_ci"][0]
    assert low < wrong(1, 0.3) / SAMPLES < high
    assert table["lost_ci"][2] == [0.0, 0.0]
    assert table["per_compute_ci"][2] == [0.0, 0.0]
    (gradient,) = record["gradient"]
    assert gradient == {
        "entry": "lagrangian",
        "rows": [
            {
                "budget": 0.8,
                "seeds": 2,
                "worth": [0.0, 1.5, 0.5, 0.0],
                "low": [0.0, 1.0, 0.5, 0.0],
                "high": [0.0, 2.0, 0.5, 0.0],
            }
        ],
    }
    assert record["summary"][-1] == (
        "By the gradient of lagrangian, more tokens are worth most at layer 1 at a budget of 80 %."
    )
    assert parse_schedule(lagrangian["rows"][2]["schedules"][0]) == Step(3, 0.0)


def test_interval_is_that_of_the_paired_difference(url: str) -> None:
    """Against theory: errors come in pairs of samples of one group; standard error of a mean over 20 groups."""
    (table,) = layer_record(Comparison(Store(url), "exp"))["sensitivity"]
    share = wrong(1, 0.3) / SAMPLES
    error = np.sqrt(share * (1 - share) / (SAMPLES / 2))
    low, high = table["lost_ci"][0]
    assert low == pytest.approx(share - 1.96 * error, abs=0.03)
    assert high == pytest.approx(share + 1.96 * error, abs=0.03)


def test_command_prints_text_json_and_csv(cli: Cli, url: str) -> None:
    storage = ("--storage", url)
    code, out, err = cli("layers", "exp", *storage)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "##--" in out
    assert " ".join(out.split()).count("lagrangian (2 seeds): at a budget of 50 % it prunes at layer 2") == 1
    record = json.loads(cli("layers", "exp", "--json", *storage)[1])
    assert record == layer_record(Comparison(Store(url), "exp"))
    for what, count in (("learned", 4 * 4), ("sensitivity", 12), ("gradient", 4)):
        text = cli("layers", "exp", "--csv", "--what", what, *storage)[1]
        rows = list(csv.DictReader(io.StringIO(text)))
        assert len(rows) == count
        if what == "learned":
            assert [float(row["keep_ratio"]) for row in rows[:4]] == record["learned"][0]["rows"][1]["keep_ratio"]
        if what == "sensitivity":
            assert float(rows[1]["lost"]) == wrong(1, 0.3) / SAMPLES
    code, _, err = cli("layers", "exp", "--csv", "--what", "learnt", *storage)
    assert (code, err.strip()) == (2, "vispco: unknown --what 'learnt'; did you mean 'learned'?")
    assert cli("layers", "none", *storage)[0] == 2


def test_a_decision_in_flops_needs_no_model(cli: Cli, url: str) -> None:
    """The planted experiment's model does not exist."""
    code, out, err = cli("choose", "exp", "--max-drop", "50", "--json", "--storage", url)
    assert (code, err) == (0, "")
    assert (json.loads(out)["cost"], json.loads(out)["batch"]) == ("flops", 1)


def test_page_has_the_section(cli: Cli, url: str, tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    assert cli("report", "exp", "-o", output, "--storage", url)[0] == 0
    page = output.read_text()
    assert "What each layer is worth" in page
    for sentence in layer_record(Comparison(Store(url), "exp"))["summary"]:
        assert sentence in page
    for number in range(4):  # two entries, one method, one gradient
        assert f'id="layers-{number}"' in page
    assert 'id="layers-4"' not in page


def test_an_experiment_that_only_began(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/b.db")
    store.save_experiment("new", spec_text="x", spec_hash="h", identity={}, provenance={})
    store.save_facts("new", {"accounting": "exact", "floor": 0.1, "budgets": [0.5], "studies": {}})
    record = layer_record(Comparison(store, "new"))
    assert record["learned"] == record["sensitivity"] == record["gradient"] == []
    assert record["summary"] == ["Nothing is complete yet: no search has a schedule for any budget."]
    assert heatmaps.all_maps(record) == []


def test_only_steps_on_whole_pictures_tell_what_a_layer_costs() -> None:
    texts = ("step(layer=2, keep=0.5)", "step(layer=2, keep=0.5, resolution=0.5)", "step(layer=2, keep=1)", "step(")
    assert [_one_step(text) for text in texts] == [(2, 0.5), None, None, None]
