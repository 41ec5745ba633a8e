"""Entries over their seeds: verdicts, scores within budget, attainment and anytime curves, from a made database."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from vispco.dashboards import figures
from vispco.dashboards import tables as report_tables

from conftest import SMALL, Cli, fresh
from report_data import made_evaluation, study_facts
from vispco.analysis.anytime import anytime
from vispco.analysis.attainment import attainment_bands, attainment_surface
from vispco.analysis.bootstrap import holm, mean_scores
from vispco.analysis.comparison import Comparison
from vispco.analysis.headline import answer
from vispco.analysis.regret import best_known
from vispco.analysis.seeds import against, entries
from vispco.analysis.two_level import estimate, resample
from vispco.analysis.violations import compare_violations, violations
from vispco.cli.over_seeds import print_anytime
from vispco.config import CHECKPOINTS, parse_study
from vispco.errors import ConfigError, StorageError
from vispco.evaluation.records import Evaluation
from vispco.experiment.run import Run
from vispco.fronts import choices_at, choose, fits
from vispco.problem import Problem
from vispco.pruning.families import StepFamily
from vispco.pruning.schedules import AtResolution, Step
from vispco.storage.optuna_sql.bulk import append
from vispco.storage.reading import study_ids
from vispco.storage.store import Store

SPLITS = ("search", "held_out")
SAMPLES = 120
GROUPS = {"x": [f"g{i // 2}" for i in range(SAMPLES)]}
BUDGETS = [0.3, 0.5, 0.8]
FLOPS = 1000
# Entry -> kind, seeds (None: deterministic), trials, gain in accuracy over the grid, least flops_ratio.
ENTRIES: dict[str, tuple[str, int | None, int, float, float]] = {
    "grid": ("grid", None, 8, 0.0, 0.2),
    "good": ("tpe", 10, 4, 0.15, 0.25),
    "same": ("random", 10, 4, 0.0, 0.25),
    "few": ("tpe", 3, 4, 0.15, 0.25),
    "dear": ("lagrangian", 10, 4, 0.0, 0.6),
    "bisection": ("bisection", None, 3, -0.2, 0.25),
}
EASY = np.random.default_rng(0).random(SAMPLES)


def made(rng: np.random.Generator, name: str, split: str, accuracy: float, ratio: float, keep: float) -> Evaluation:
    """Right where a sample is easy enough, with some noise."""
    scores = (EASY + 0.2 * rng.normal(size=SAMPLES) < accuracy).astype(float)
    return made_evaluation(name, split, {"x": scores}, ratio, Step(layer=2, keep=keep), 4, FLOPS)


def fill_entries(store: Store, experiment: str = "exp", entries: Any = None, **facts: Any) -> None:
    """An experiment of made searches; every trial is measured on both splits."""
    entries, rng = entries or ENTRIES, np.random.default_rng(1)
    store.save_experiment(
        experiment,
        spec_text=f"experiment: {experiment}",
        spec_hash="h",
        identity={"model": {"name": "demo"}},
        provenance={"versions": {}, "python": "3", "platform": "p"},
    )
    studies, number, measured = {}, 0, []
    for split in SPLITS:
        for key, accuracy in (("unpruned", 0.9), ("no_image", 0.2)):
            reference = made(rng, f"{experiment}-{key}-{split}", split, accuracy, 1.0, 1.0)
            store.put_evaluation(reference, GROUPS)
            store.link(experiment, "reference", key, reference)
    for entry, (kind, seeds, trials, gain, least) in entries.items():
        for seed in range(seeds or 1):
            name = f"{experiment}/{entry}" + (f"@{seed}" if seeds else "")
            points = trials if kind == "grid" else None
            studies[name] = study_facts(entry, kind, seed, points, deterministic=seeds is None)
            log, rows, moved = store.trial_log(name), [], 0.03 * rng.normal() if seeds else 0.0
            for ratio in rng.permutation(np.linspace(least, 0.9, trials)).tolist():
                keep, number = round(0.01 + 1e-4 * number, 6), number + 1
                accuracy = 0.3 + 0.5 * ratio + gain + moved
                both = [made(rng, f"{experiment}-{number}-{s}", s, accuracy, ratio, keep) for s in SPLITS]
                measured += both
                propose = 100 if kind == "lagrangian" else 0
                rows.append(
                    create_trial(
                        values=[both[0].accuracy, ratio],
                        user_attrs={
                            "schedule": both[0].schedule,
                            "keep_ratio": list(both[0].keep_ratio),
                            "evaluation": both[0].id,
                            "charged_flops": FLOPS + propose,
                            "spent_flops": FLOPS + propose,
                            "propose_flops": propose,
                        },
                    )
                )
            with store.engine.begin() as connection:
                append(connection, study_ids(connection, experiment)[log.name], rows)
    store.put_evaluations(measured, GROUPS)
    held_out = [evaluation for evaluation in measured if evaluation.split == "held_out"]
    store.link_all(experiment, "schedule", [(f"fastv|{e.schedule}", e) for e in held_out])
    facts = {"accounting": "exact", "floor": 0.1, "budgets": BUDGETS, "studies": studies, **facts}
    store.save_facts(experiment, facts)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = f"sqlite:///{tmp_path_factory.mktemp('entries')}/a.db"
    store = Store(found)
    fill_entries(store, anytime={"shares": [0.1, 0.3, 2.0], "grid_flops": 8 * FLOPS})
    store.engine.dispose()
    return found


@pytest.fixture(scope="module")
def comparison(url: str) -> Comparison:
    return Comparison(Store(url), "exp")


@pytest.fixture(scope="module")
def table(comparison: Comparison) -> dict[str, Any]:
    return against(comparison, "grid")


def row(table: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in table["entries"] if found["entry"] == name)


def slow_scores(store: Store, experiment: str, study: str) -> dict[str, Any]:
    """Per-sample scores of a study, mean over budgets, from Optuna's trials; a missed budget counts as no picture."""
    links, trials = store.linked(experiment, "schedule"), store.trial_log(study).complete()
    blind = store.get_evaluation(store.linked(experiment, "reference")["no_image", "held_out"])
    found = []
    for budget in BUDGETS:
        fitting = [trial for trial in trials if fits(trial, budget)]
        if not fitting:
            found.append(blind)
        else:
            trial = min(fitting, key=lambda t: (-t.values[0], t.values[1], t.number))
            found.append(store.get_evaluation(links[f"fastv|{trial.user_attrs['schedule']}", "held_out"]))
    return mean_scores([evaluation.scores for evaluation in found if evaluation is not None])


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["budget_score", "score_within_budget"])
def test_every_number_of_the_table_equals_its_slow_twin(comparison: Comparison, score: str) -> None:
    table, store = against(comparison, "grid", score), comparison.store
    runs: dict[str, list[Any]] = {}
    for name, (_, seeds, *_) in ENTRIES.items():
        studies = [f"exp/{name}@{seed}" for seed in range(seeds)] if seeds else [f"exp/{name}"]
        runs[name] = [slow_scores(store, "exp", s) for s in studies]
        logs = [store.trial_log(s).complete() for s in studies]
        found = row(table, name)
        assert found["seeds"] == list(range(seeds or 1))
        assert found["trials"] == len(logs[0])
        charged = np.mean([sum(t.user_attrs["charged_flops"] for t in log) for log in logs])
        assert found["charged_flops"] == pytest.approx(charged)
        assert found["charged_share"] == pytest.approx(charged / (8 * FLOPS))
        assert found["propose_share"] == pytest.approx(400 / 8000 if name == "dear" else 0)
        missed = [sum(not any(fits(t, b) for t in log) for b in BUDGETS) for log in logs]
        assert found["budgets_missed"] == np.mean(missed) == (2 if name == "dear" else 0)
        assert found[score] == pytest.approx(np.mean([made["x"].mean() for made in runs[name]]))
    drawn = resample(runs, GROUPS, fixed=["grid", "bisection"])
    p_values = {}
    for name in ENTRIES:
        if name == "grid":
            continue
        slow, found = estimate(drawn[name], drawn["grid"]), row(table, name)
        assert found["difference"] == pytest.approx(slow.value)
        assert found["difference_ci"] == pytest.approx(slow.interval)
        assert found["covers"] == slow.covers
        if name != "few":
            assert found["p_value"] == slow.p_value
            p_values[name] = slow.p_value or 1.0
    assert [row(table, name)["p_holm"] for name in p_values] == pytest.approx(holm(list(p_values.values())))
    assert table["comparisons"] == 4


def test_verdicts(comparison: Comparison, table: dict[str, Any]) -> None:
    told = {found["entry"]: found["verdict"] for found in table["entries"]}
    assert told == {
        "grid": "reference",
        "good": "better",
        "same": "not shown to differ",
        "few": "too few seeds: 3 of 10",
        "dear": "worse",  # accurate, but nothing fits two of the budgets
        "bisection": "worse",
    }
    few = row(table, "few")
    assert few["difference_ci"][0] > 0  # as clear as that of "good", and yet no verdict
    assert (few["p_value"], few["p_holm"], few["covers"]) == (None, None, "samples")
    assert row(table, "good")["covers"] == "seeds and samples"
    assert row(table, "bisection")["covers"] == "samples"
    assert against(comparison, "grid", "score_within_budget")["entries"] == table["entries"]  # the old name
    other = against(comparison, "few")
    assert [found["entry"] for found in other["entries"]] == ["few", "grid", "good", "same", "dear", "bisection"]
    assert {f["verdict"] for f in other["entries"]} == {"reference", "too few seeds: 3 of 10"}
    assert other["comparisons"] == 0
    assert row(against(comparison, "good"), "same")["verdict"] == "worse"


def test_nine_seeds_are_too_few_and_a_run_that_is_not_measured_says_nothing(cli: Cli, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    store = Store(url)
    fill_entries(store, entries={**{k: ENTRIES[k] for k in ("grid", "same")}, "nine": ("tpe", 9, 4, 0.3, 0.25)})
    table = against(Comparison(store, "exp"), "grid")
    assert row(table, "nine")["verdict"] == "too few seeds: 9 of 10"
    assert row(table, "nine")["covers"] == "seeds and samples"
    assert table["comparisons"] == 1
    late = made(np.random.default_rng(5), "late", "search", 1.0, 0.2, 0.7)
    store.trial_log("exp/same@4").add(
        late, parameters={"layer": 2, "keep": 0.7}, distributions=StepFamily(4).distributions(), seconds=0.1
    )
    late_table = against(Comparison(store, "exp"), "grid")
    found = row(late_table, "same")
    assert found["verdict"] == "not measured"
    assert (found["budget_score"], found["difference"], found["p_holm"]) == (None, None, None)
    assert found["charged_share"] == pytest.approx(4.1 / 8)
    assert row(late_table, "nine") == row(table, "nine")
    assert {f["verdict"] for f in against(Comparison(store, "exp"), "same")["entries"]} == {"reference", "not measured"}
    with pytest.raises(ConfigError, match="no entry 'samee' with trials to compare with; did you mean 'same'"):
        against(Comparison(store, "exp"), "samee")
    with pytest.raises(ConfigError, match="unknown score 'budget'"):
        against(Comparison(store, "exp"), "grid", "budget")
    fill_entries(store, "two", {"grid": ENTRIES["grid"]})
    both = json.loads(cli("compare", "exp", "two", "--against", "grid", "--json", "--storage", url)[1])
    assert [part["experiment"] for part in both["experiments"]] == ["exp", "two"]


def test_a_seed_counts_once(tmp_path: Path) -> None:
    """A study that ran before seeds: was written runs with seed 0, and so does the study called @0."""
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill_entries(store, entries={"grid": ENTRIES["grid"], "tpe": ("tpe", 10, 4, 0.1, 0.25)})
    facts = store.require_experiment("exp").facts
    before = {"exp/grid": facts["studies"]["exp/grid"], "exp/tpe@9": {**facts["studies"]["exp/tpe@9"], "seed": 0}}
    store.save_facts("exp", {**facts, "studies": {**before, **facts["studies"]}})
    assert len(entries(Comparison(store, "exp"))["tpe"].runs) == 10
    store.save_facts("exp", {**facts, "studies": {**facts["studies"], "exp/tpe@9": before["exp/tpe@9"]}})
    found = entries(Comparison(store, "exp"))["tpe"]
    assert [run.seed for run in found.runs] == list(range(9))
    assert not found.enough


def test_a_missed_budget_counts_as_no_picture(comparison: Comparison) -> None:
    found = comparison.to_dict()
    no_image = found["no_image"]["accuracy"]
    for search in found["searches"]:
        chosen = [(by["budget"], by["chosen"][search["name"]]) for by in found["by_budget"]]
        missed = [c for _, c in chosen if c["missed"]]
        assert len(missed) == search["budgets_missed"] == (2 if search["name"].startswith("dear") else 0)
        assert all((c["trial"], c["accuracy_held_out"]) == (None, no_image) for c in missed)
        assert all(c["flops_ratio"] <= b for b, c in chosen if not c["missed"])
        assert search["budget_score"] == pytest.approx(np.mean([c["accuracy_held_out"] for _, c in chosen]))
        low, high = search["budget_score_ci"]
        assert low < search["budget_score"] < high
        assert search["score_within_budget"] == search["budget_score"]
        assert search["score_within_budget_ci"] == search["budget_score_ci"]


# --- the command ---------------------------------------------------------------------------------


def test_tables_fit_a_terminal(cli: Cli, url: str, table: dict[str, Any]) -> None:
    code, out, _ = cli("compare", "exp", "--against", "grid", "--storage", url)
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines()), out
    good = row(table, "good")
    (line,) = [line for line in out.splitlines() if line.startswith("good") and "better" in line]
    assert line.split()[:4] == ["good", "10", f"{good['budget_score']:.3f}", f"{100 * good['difference']:+.1f}"]
    assert "too few seeds: 3 of 10" in out
    assert "s: over samples only" in out
    assert "each counts as the model without the picture" in out
    code, out, _ = cli("compare", "exp", "--anytime", "--storage", url)
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines()), out
    code, out, _ = cli("compare", "exp", "--storage", url)
    head = next(line for line in out.splitlines() if line.startswith("search "))
    dear = next(line for line in out.splitlines() if line.startswith("dear "))
    assert dear[: head.index("missed") + len("missed")].split()[-1] == "2"


def test_json_and_csv_say_the_same(cli: Cli, url: str, table: dict[str, Any]) -> None:
    code, out, _ = cli("compare", "exp", "--against", "grid", "--json", "--storage", url)
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(table)))
    code, out, _ = cli("compare", "exp", "--against", "grid", "--csv", "--storage", url)
    rows = list(csv.DictReader(out.splitlines()))
    assert [r["entry"] for r in rows] == [f["entry"] for f in table["entries"]]
    for got, found in zip(rows, table["entries"], strict=True):
        assert got["verdict"] == found["verdict"]
        assert float(got["budget_score"]) == found["budget_score"]
        low = got["difference_low"]
        assert (float(low) if low else None) == (found["difference_ci"] or [None])[0]
    code, out, _ = cli("compare", "exp", "--anytime", "--csv", "--storage", url)
    rows = list(csv.DictReader(out.splitlines()))
    assert [r["share"] for r in rows if r["entry"] == "good"][:3] == ["0.1", "0.3", "2.0"]
    code, out, _ = cli("compare", "exp", "--anytime", "--json", "--storage", url)
    assert json.loads(out)["shares"] == [0.1, 0.3, 2.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "gird"], "no entry 'gird' with trials to compare with; did you mean 'grid'"),
        (["--against", "grid", "--score", "accuracy"], "unknown score 'accuracy'"),
        (["--score", "budget_score"], "name an entry: --against grid"),
        (["--against", "grid", "--anytime"], "ask for one at a time"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, url: str, words: list[str], message: str) -> None:
    code, out, err = cli("compare", "exp", *words, "--storage", url)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_report_says_what_may_be_said(cli: Cli, url: str, tmp_path: Path) -> None:
    code, _, _ = cli("report", "exp", "-o", tmp_path / "r.html", "--storage", url)
    assert code == 0
    page = (tmp_path / "r.html").read_text().split("<body>")[1]
    for text in ("Searches compared", "not shown to differ", "too few seeds: 3 of 10", "samples only"):
        assert text in page
    assert page.count("Fronts over seeds") == 2
    assert "Had a search been stopped early" in page


# --- attainment ----------------------------------------------------------------------------------

FRONTS = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6), min_size=1, max_size=6
)


@given(fronts=FRONTS, percent=st.sampled_from([0.0, 25.0, 50.0, 75.0, 100.0]))
def test_attainment_counts_fronts(fronts: list[list[tuple[int, int]]], percent: float) -> None:
    """A goal lies within the surface if so many fronts have a point at least as good."""
    corners = attainment_surface(fronts, percent=percent)
    needed = max(1, int(np.ceil(len(fronts) * percent / 100)))
    for accuracy in range(8):
        for ratio in range(-1, 8):
            reached = sum(any(a >= accuracy and r <= ratio for a, r in front) for front in fronts)
            assert any(a >= accuracy and r <= ratio for a, r in corners) == (reached >= needed)
    assert (np.diff(corners, axis=0) > 0).all()


def test_attainment_refuses_nothing_at_all() -> None:
    for fronts in ([], [[]], [[(0.5, 0.5)], []]):
        with pytest.raises(ValueError, match="one front or more"):
            attainment_surface(fronts, percent=50)
    points = np.array([[0.5, 0.5]])
    points.setflags(write=False)
    assert attainment_surface([points], percent=25).tolist() == [[0.5, 0.5]]


def test_bands_are_those_of_the_fronts(comparison: Comparison) -> None:
    bands = {(band["entry"], band["split"]): band for band in attainment_bands(comparison)}
    assert set(bands) == {(name, split) for name in ENTRIES for split in ("search", "held_out")}
    searches = [s for s in comparison.to_dict()["searches"] if s["name"].startswith("good@")]
    for split, key in (("search", "accuracy"), ("held_out", "accuracy_held_out")):
        fronts = [[(point[key], point["flops_ratio"]) for point in search["front"]] for search in searches]
        band = bands["good", split]
        assert band["runs"] == 10
        for percent, corners in band["surfaces"].items():
            assert corners == attainment_surface(fronts, percent=float(percent)).tolist()
    figure = figures.attainment(list(bands.values()), "held_out")
    assert sum(trace.fill == "toself" for trace in figure.data) == 4  # one band for each entry with seeds
    assert sum(trace.fill != "toself" for trace in figure.data) == len(ENTRIES)


# --- anytime -------------------------------------------------------------------------------------


class Trial:
    """A finished trial; Optuna lets a PRUNED one have values too."""

    def __init__(self, number: int, values: tuple[float, float] | None, charged: int, pruned: bool) -> None:
        self.number, self.values = number, values
        self.state = TrialState.PRUNED if pruned or values is None else TrialState.COMPLETE
        self.user_attrs = {"charged_flops": charged}


POINTS = st.tuples(st.integers(0, 4), st.integers(0, 4))
TRIALS = st.lists(st.tuples(st.one_of(st.none(), POINTS), st.integers(1, 5), st.booleans()), max_size=12)


@given(given_=TRIALS, limits=st.lists(st.integers(0, 40), max_size=4))
def test_choices_are_those_of_the_trials_paid_by_then(given_: list[Any], limits: list[int]) -> None:
    trials = [Trial(number, *row) for number, row in enumerate(given_)]
    found = choices_at(trials[::-1], [1, 3], sorted(limits))
    assert len(found) == len(limits)
    for limit, row in zip(sorted(limits), found, strict=True):
        paid = np.cumsum([charged for _, charged, _ in given_])
        complete = [(t, total) for t, total in zip(trials, paid, strict=True) if t.state == TrialState.COMPLETE]
        known = [t for t, total in complete if total <= limit]
        for budget, choice in zip([1, 3], row, strict=True):
            slow = choose(known, budget)
            assert choice is slow


def test_curves_equal_their_slow_twin(comparison: Comparison) -> None:
    found, store = anytime(comparison), comparison.store
    assert (found["grid_flops"], found["shares"]) == (8 * FLOPS, [0.1, 0.3, 2.0])
    no_image = {key: store.get_evaluation(i) for key, i in store.linked("exp", "reference").items()}
    blind = {split: no_image["no_image", split] for split in ("search", "held_out")}
    links = store.linked("exp", "schedule")
    for entry in found["entries"]:
        name = entry["entry"]
        if name == "grid":
            assert (entry["checkpoints"], entry["search_curve"]) == ([], [])
            continue
        logs = [t for s, t in _logs(store, name)]
        for point in entry["checkpoints"]:
            scores = []
            for trials in logs:
                paid = np.cumsum([t.user_attrs["charged_flops"] for t in trials])
                known = [t for t, total in zip(trials, paid, strict=True) if total <= point["share"] * 8 * FLOPS]
                for budget in BUDGETS:
                    best = choose(known, budget)
                    if best is None:
                        measured = blind["held_out"]
                    else:
                        measured = store.get_evaluation(links[f"fastv|{best.user_attrs['schedule']}", "held_out"])
                    assert measured is not None
                    scores.append(measured.accuracy)
            assert point["score"] == pytest.approx(np.mean(scores))
            assert point["score_ci"][0] < point["score"] < point["score_ci"][1]
            assert point["covers"] == ("seeds and samples" if len(logs) == 10 else "samples")
        first, last = entry["checkpoints"][0], entry["checkpoints"][-1]
        assert blind["held_out"] is not None
        assert first["score"] == pytest.approx(blind["held_out"].accuracy)  # a trial costs 0.125 of the grid
        assert (first["budgets_missed"], first["runs_ended"]) == (3, 0)
        assert last["score"] == entry["end"]["score"]
        assert last["runs_ended"] == len(logs)
        assert entry["end"]["score"] == pytest.approx(row(against(comparison, "grid"), name)["score_within_budget"])
        curve = entry["search_curve"]
        assert curve[0]["share"] == pytest.approx(0.1375 if name == "dear" else 0.125)
        assert [point["share"] for point in curve] == sorted(point["share"] for point in curve)
        assert all(after["score"] > before["score"] for before, after in pairwise(curve))
        chosen = [choose(trials, budget) for trials in logs for budget in BUDGETS]
        assert blind["search"] is not None
        within = [t.values[0] if t is not None else blind["search"].accuracy for t in chosen]
        assert curve[-1]["score"] == pytest.approx(np.mean(within))
    figure = figures.anytime(found, figures.color_of(list(ENTRIES)))
    assert len(figure.data) == 2 * len(ENTRIES)


def _logs(store: Store, name: str) -> list[tuple[str, Any]]:
    studies = [s for s in store.study_names("exp") if s.partition("/")[2].partition("@")[0] == name]
    return [(study, store.trial_log(study).complete()) for study in studies]


def test_a_curve_needs_a_scale_and_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill_entries(store, "none", entries={"tpe": ("tpe", 2, 3, 0.0, 0.25)})
    with pytest.raises(StorageError, match=r"no complete grid.*anytime: true"):
        anytime(Comparison(store, "none"))
    fill_entries(store, "exp", entries={"grid": ENTRIES["grid"], "tpe": ("tpe", 2, 3, 0.0, 0.25)})
    found = anytime(Comparison(store, "exp"))
    tpe = found["entries"][1]
    assert tpe["checkpoints"] == []
    assert tpe["end"]["score"] is not None
    assert tpe["search_curve"]
    print_anytime(found)
    out = capsys.readouterr().out
    assert "so optimistic" in out
    assert all(len(line) <= 80 for line in out.splitlines()), out


# --- a real run ----------------------------------------------------------------------------------

RUN = SMALL.split("searches:")[0].replace("search: 12, held_out: 12", "search: 6, held_out: 4") + (
    "searches:\n  grid: {kind: grid}\n  random: {kind: random, trials: 7, seeds: [3]}\n"
    "  raced: {kind: random, trials: 6, race: {first: 2}}\n"
)


@pytest.mark.slow
def test_a_run_measures_what_was_chosen_at_checkpoints(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    plain = Problem.from_text(RUN)
    Run(plain, store).run()
    before = store.linked("small", "schedule")
    assert "anytime" not in store.require_experiment("small").facts
    curves = Problem.from_text(f"{RUN}anytime: [0.05, 0.02]\n", "with checkpoints")
    assert curves.study.spec_hash() == plain.study.spec_hash()
    assert Run(curves, store).run() == 0
    after = store.linked("small", "schedule")
    facts = store.require_experiment("small").facts
    assert facts["anytime"]["shares"] == [0.02, 0.05]
    comparison = Comparison(store, "small")
    grid = comparison.grid()
    assert grid is not None
    assert grid.deterministic
    assert facts["anytime"]["grid_flops"] == grid.total("charged_flops") == comparison.grid_flops()
    wanted = set()
    for name in ("random@3", "raced"):
        trials = store.trial_log(f"small/{name}").trials(TrialState.COMPLETE, TrialState.PRUNED)
        for row in choices_at(trials, facts["budgets"], [s * facts["anytime"]["grid_flops"] for s in (0.02, 0.05)]):
            wanted |= {(f"fastv|{t.user_attrs['schedule']}", "held_out") for t in row if t is not None}
    assert wanted - before.keys()
    assert after.keys() == before.keys() | wanted
    found = {entry["entry"]: entry for entry in anytime(comparison)["entries"]}
    for name in ("random", "raced"):
        assert [point["score"] is not None for point in found[name]["checkpoints"]] == [True, True]


def test_checkpoints_of_a_study() -> None:
    assert parse_study(SMALL).checkpoints == []
    assert parse_study(f"{SMALL}anytime: true\n").checkpoints == CHECKPOINTS == sorted(CHECKPOINTS)
    assert parse_study(f"{SMALL}anytime: [0.5, 0.1, 0.5]\n").checkpoints == [0.1, 0.5]
    for wrong in ("[]", "[0]", "[-0.1]", "many"):
        with pytest.raises(ConfigError, match="anytime"):
            parse_study(f"{SMALL}anytime: {wrong}\n")


# --- violations ----------------------------------------------------------------------------------


def test_the_violation_table_has_every_seed_and_budget(cli: Cli, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill_entries(store, entries={"grid": ENTRIES["grid"]})
    assert violations(Comparison(store, "exp"))["entries"] == []
    with pytest.raises(StorageError, match=r"no gradient search that says how it held its budgets"):
        compare_violations(store, ["exp"])
    facts = store.require_experiment("exp").facts
    for seed in (0, 1):
        facts["studies"][f"exp/learned@{seed}"] = {
            **facts["studies"]["exp/grid"],
            "entry": "learned",
            "seed": seed,
            "kind": "lagrangian",
            "deterministic": False,
        }
        for budget in BUDGETS:
            off = 0.5 if seed and budget == BUDGETS[0] else 0.01
            said = {"budget": budget, "relaxed_flops_ratio": budget * (1 + off), "stationarity": 0.2 + 0.2 * seed}
            store.trial_log(f"exp/learned@{seed}").add(
                made(np.random.default_rng(seed), f"{seed}{budget}", "search", 0.5, budget - 0.01, 0.5),
                parameters={"layer": 2, "keep": 0.5},
                distributions=StepFamily(4).distributions(),
                seconds=0.1,
                attributes={**said, "feasibility": off},
            )
    store.save_facts("exp", facts)
    found = violations(Comparison(store, "exp"))
    (entry,) = found["entries"]
    assert (entry["entry"], entry["seeds"]) == ("learned", [0, 1])
    assert (entry["pairs"], entry["held"]) == (2 * len(BUDGETS), 2 * len(BUDGETS) - 1)
    assert entry["farthest"] == pytest.approx(0.5)
    assert entry["over"] == pytest.approx(-0.01)
    first = entry["budgets"][0]
    page = report_tables.violations(found)
    assert "of their budgets before the snap" in page
    assert "+1.0 to +50.0 %" in page
    assert first["relaxed"] == pytest.approx([0.01, 0.5])
    assert (first["stationarity"], first["complementarity"]) == (pytest.approx(0.3), None)
    url = f"sqlite:///{tmp_path}/a.db"
    code, out, _ = cli("compare", "exp", "--violations", "--storage", url)
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines()), out
    assert f"{len(BUDGETS)} of" not in out
    assert f"{2 * len(BUDGETS) - 1} of {2 * len(BUDGETS)} within 2 %" in out
    assert "none above its budget" in out
    code, out, _ = cli("compare", "exp", "--violations", "--csv", "--storage", url)
    assert len(out.splitlines()) == 1 + 2 * len(BUDGETS)


# --- regret --------------------------------------------------------------------------------------


def test_regret_is_told_against_everything_that_was_found(cli: Cli, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill_entries(store, entries={name: ENTRIES[name] for name in ("grid", "same", "dear")})
    alone = best_known(Comparison(store, "exp"))
    fill_entries(store, "more", {"good": ("nsga2", 10, 4, 0.6, 0.25)})
    comparison = Comparison(store, "exp")
    best = best_known(comparison)
    assert (alone.experiments, best.experiments) == (["exp"], ["exp", "more"])
    assert best.trials > alone.trials
    pool = [
        (t, name, study)
        for name in ("exp", "more")
        for study in store.study_names(name)
        for t in store.trial_log(study).complete()
    ]
    for budget, delivered in zip(BUDGETS, best.delivered, strict=True):
        trial, name, _ = min(
            (one for one in pool if one[0].values[1] <= budget), key=lambda one: (-one[0].values[0], one[0].values[1])
        )
        key = (f"fastv|{trial.user_attrs['schedule']}", "held_out")
        measured = store.get_evaluation(store.linked(name, "schedule")[key])
        assert measured is not None
        assert delivered.accuracy == measured.accuracy
    table = against(comparison, "best-known")
    score = np.mean([evaluation.accuracy for evaluation in best.delivered])
    assert table["best_known"]["budget_score"] == pytest.approx(score)
    for found in table["entries"]:
        assert found["regret"] == pytest.approx(score - found["budget_score"]) == -found["difference"]
        assert found["entry"] in ("grid", "same", "dear")
    assert row(table, "same")["verdict"] == "worse"
    assert against(comparison, "grid")["best_known"] is None
    code, out, _ = cli("compare", "exp", "--against", "best-known", "--storage", f"sqlite:///{tmp_path}/a.db")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines()), out
    assert f"best known: {score:.3f}, of {best.trials} trials" in out
    stored = store.require_experiment("more")
    content = [{"content": {"model": {"weights": weights}}} for weights in ("1", "2")]
    saved = {"spec_text": "", "spec_hash": "", "provenance": {}}
    for other in ({"score": "agreement"}, {"cost": "prefill_ms"}, {"limits": {"kv_bytes": 0.5}}, content[1]):
        store.save_experiment("more", **saved, identity={**stored.identity, **other})
        mine = store.require_experiment("exp").identity
        store.save_experiment("exp", **saved, identity={**mine, **content[0]})
        assert best_known(Comparison(store, "exp")).experiments == ["exp"]
    store.save_experiment("more", **saved, identity=stored.identity)
    assert best_known(Comparison(store, "exp")).experiments == ["exp", "more"]
    store.save_facts("more", {**stored.facts, "budgets": [0.123]})
    assert best_known(Comparison(store, "exp")).experiments == ["exp"]


def test_best_known_leaves_out_pictures_that_no_entry_searches(cli: Cli, tmp_path: Path) -> None:
    """Another experiment's smaller pictures are cheaper than anything that this one can have."""
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill_entries(store, entries={name: ENTRIES[name] for name in ("grid", "dear")})
    fill_entries(store, "pictures", {"good": ("nsga2", None, 4, 0.1, 0.25)})
    rng, links = np.random.default_rng(2), {}
    for split in SPLITS:
        found = made(rng, f"small-{split}", split, 0.95, 0.21, 0.5)
        links[split] = replace(found, schedule=AtResolution(Step(2, 0.5), 0.5).text())
    store.put_evaluations(list(links.values()), GROUPS)
    store.trial_log("pictures/good").add(links["search"], parameters={}, distributions={}, seconds=0.1)
    store.link("pictures", "schedule", f"fastv|{links['held_out'].schedule}", links["held_out"])
    best = best_known(Comparison(store, "exp"))
    assert best.experiments == ["exp", "pictures"]
    assert (best.left_out, links["held_out"].schedule in best.schedules) == (1, False)
    code, out, _ = cli("compare", "exp", "--against", "best-known", "--storage", f"sqlite:///{tmp_path}/a.db")
    assert code == 0
    assert "not counting 1 trial at resolutions" in out
    assert all(len(line) <= 80 for line in out.splitlines()), out
    theirs = best_known(Comparison(store, "pictures"))
    assert links["held_out"].schedule in theirs.schedules
    facts = store.require_experiment("exp").facts
    facts["studies"]["exp/grid"]["settings"] = {"resolution": [1.0, 0.5]}
    store.save_facts("exp", facts)
    best = best_known(Comparison(store, "exp"))
    assert (best.left_out, links["held_out"].schedule in best.schedules) == (0, True)


def test_a_seed_that_found_nothing_misses_every_budget(cli: Cli, tmp_path: Path) -> None:
    """One that was not run, or was interrupted, is left out, and said to be."""
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill_entries(store, entries={name: ENTRIES[name] for name in ("grid", "few")})
    found = row(against(Comparison(store, "exp"), "grid"), "few")
    assert (found["seeds"], found["found_nothing"]) == ([0, 1, 2], 0)
    stored = store.require_experiment("exp").facts
    for seed, more in ((3, {"found_nothing": True}), (4, {}), (5, {})):
        stored["studies"][f"exp/few@{seed}"] = {**stored["studies"]["exp/few@0"], "seed": seed, **more}
        if seed != 5:  # which nobody has started
            store.trial_log(f"exp/few@{seed}")
    stored["anytime"] = {"shares": [0.3], "grid_flops": 8 * FLOPS}
    store.save_facts("exp", stored)
    comparison = Comparison(store, "exp")
    blind = comparison.reference("no_image", "held_out")
    assert blind is not None
    table = against(comparison, "grid")
    now = row(table, "few")
    assert (now["seeds"], now["found_nothing"], table["not_run"]) == ([0, 1, 2, 3], 1, ["few@4", "few@5"])
    assert now["budget_score"] == pytest.approx((3 * found["budget_score"] + blind.accuracy) / 4)
    assert now["budgets_missed"] == pytest.approx((3 * found["budgets_missed"] + len(BUDGETS)) / 4)
    assert now["charged_flops"] == pytest.approx(3 * found["charged_flops"] / 4)
    curve = next(one for one in anytime(comparison)["entries"] if one["entry"] == "few")
    assert curve["runs"] == 4
    assert curve["end"]["score"] == pytest.approx(now["budget_score"])
    assert curve["search_curve"][-1]["score"] < 0.9
    (told,) = (one for one in answer(comparison)["entries"] if one["entry"] == "few")
    assert (told["runs"], told["missed"]) == (4, 1)
    code, out, _ = cli("compare", "exp", "--against", "grid", "--storage", f"sqlite:///{tmp_path}/a.db")
    assert code == 0
    assert "few: 1 of 4 seeds ended without a schedule" in out
    assert "few@4" in out
    record = comparison.to_dict()
    runs = {one["name"]: one for one in record["searches"] if one["name"].startswith("few")}
    assert sorted(runs) == ["few@0", "few@1", "few@2", "few@3"]
    assert runs["few@3"]["budget_score"] == pytest.approx(blind.accuracy)
    assert (runs["few@3"]["trials"], runs["few@3"]["budgets_missed"]) == (0, len(BUDGETS))
    assert all(one["chosen"]["few@3"]["missed"] for one in record["by_budget"])
    for command in (("compare", "exp"), ("compare", "exp", "--csv"), ("report", "exp", "-o", str(tmp_path / "a.html"))):
        assert cli(*command, "--storage", f"sqlite:///{tmp_path}/a.db")[0] == 0, command
    assert all(len(line) <= 80 for line in out.splitlines()), out


def test_a_search_that_cannot_pay_for_a_schedule_says_that_it_found_nothing(problem: Problem, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    searches = "searches:\n  grid: {kind: grid}\n  none: {kind: random, compute: 0.0001}\n"
    made = fresh(problem, SMALL.partition("searches:")[0] + searches)
    for _ in range(2):
        Run(made, store).run(["none"])
        (search,) = (one for one in Comparison(store, "small").searches if one.entry == "none")
        assert search.found_nothing
    assert "found_nothing" not in store.require_experiment("small").facts["studies"]["small/grid"]
    store.engine.dispose()
