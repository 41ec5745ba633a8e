"""Studies that minimise several costs: proposed, stored, resumed, compared and shown in all their objectives."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from vispco.dashboards.objectives import by_axes
from vispco.dashboards.optuna.view import DashboardView
from vispco.dashboards.report import write_report

from conftest import SMALL, Cli, stopped_after
from pages import blocks
from test_life import Told
from vispco.analysis.comparison import Comparison
from vispco.analysis.indicators import hypervolume
from vispco.analysis.pricing import Pricing
from vispco.analysis.repriced import Repriced
from vispco.config import parse_study
from vispco.costs import Profile
from vispco.errors import ConfigError
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.fronts import front, front_of_all, trials_to_confirm
from vispco.problem import Problem
from vispco.search.samplers import TPESearch
from vispco.search.sampling import new_study
from vispco.storage.importing import import_trials
from vispco.storage.store import Store
from vispco.testing.costs import planted_profile

pytestmark = pytest.mark.slow

Values = Sequence[float]

HEAD = """
experiment: several
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 8, search: 12, held_out: 8}}
cost: [prefill_ms, kv_bytes]
profile: PROFILE
budgets: [0.6, 0.8]
batch_size: 8
searches:
"""
ENTRIES = """
  grid: {kind: grid}
  tpe: {kind: tpe, trials: 14, batch: 2, family: multistep}
  learned: {kind: lagrangian, dual_steps: 1, primal_steps: 1, batch: 8, check: 0, between: 0}
"""


def dominates(one: Values, other: Values) -> bool:
    """In (accuracy, cost, cost, ...)."""
    least = [(-a, -b) if n == 0 else (a, b) for n, (a, b) in enumerate(zip(one, other, strict=True))]
    return all(a <= b for a, b in least) and any(a < b for a, b in least)


def undominated(points: Sequence[Values]) -> set[tuple[float, ...]]:
    """By comparing each with each."""
    return {tuple(one) for one in points if not any(dominates(other, one) for other in points)}


# --- planted problems -------------------------------------------------------------------------------


def planted(rows: Sequence[Values], **attributes: Any) -> list[FrozenTrial]:
    trials = [create_trial(values=list(row), user_attrs={"schedule": f"s{n}"}) for n, row in enumerate(rows)]
    for number, trial in enumerate(trials):
        trial.number = number
        trial.user_attrs.update(attributes)
    return trials


def test_a_front_in_three_objectives_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = (rng.integers(0, 6, (60, 3)) / 5).tolist()  # a coarse raster has ties and equal points
        trials = planted(rows)
        found = [tuple(trial.values) for trial in front_of_all(trials)]
        assert set(found) == undominated(rows)
        assert len(found) == len(set(found))
        assert {tuple(t.values[:2]) for t in front(trials)} == undominated([row[:2] for row in rows])
    trials = planted([[0.9, 0.5, 0.9], [0.8, 0.5, 0.1], [0.9, 0.5, 0.9], [0.95, 0.2, 0.05]])
    trials[3].user_attrs["limit_excess"] = 0.1
    assert [trial.number for trial in front_of_all(trials)] == [0, 1]
    assert {trial.number for trial in trials_to_confirm(trials, [0.5])} == {0, 1}


def test_hypervolume_by_hand() -> None:
    """Two boxes up to (0, 1, 1), 0.5 x 0.5 x 0.5 and 0.2 x 0.9 x 0.8, whose common part is 0.2 x 0.5 x 0.5."""
    points = [[0.5, 0.5, 0.5], [0.2, 0.1, 0.2]]
    assert hypervolume(points, reference=(0.0, 1.0, 1.0)) == pytest.approx(0.125 + 0.144 - 0.05, rel=1e-12)
    inside = [*points, [0.1, 0.9, 0.9], [0.6, 1.1, 0.2]]  # dominated; beyond the reference
    assert hypervolume(inside, reference=(0.0, 1.0, 1.0)) == pytest.approx(0.219, rel=1e-12)
    assert hypervolume([], reference=(0.0, 1.0, 1.0)) == 0.0


def test_a_sampler_finds_what_only_the_third_objective_asks_for() -> None:
    """Accuracy and the first cost do not depend on ``x``; the second cost is least at x = 0.9."""
    space = {"keep": FloatDistribution(0, 1), "x": FloatDistribution(0, 1)}

    def proposed(costs: int) -> float:
        history: list[FrozenTrial] = []
        for number in range(40):
            sampler = TPESearch.sampler(None, number)  # type: ignore[arg-type]
            study = new_study(sampler, history, costs)
            drawn = dict(study.ask(space).params)
            values = [drawn["keep"], drawn["keep"] ** 2, abs(drawn["x"] - 0.9)][: 1 + costs]
            history.append(create_trial(values=values, params=drawn, distributions=space))
        return float(np.mean([abs(trial.params["x"] - 0.9) for trial in history[20:]]))

    assert proposed(2) < 0.6 * proposed(1)


# --- end to end ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("profile") / "profile.json"
    made: Profile = planted_profile(Problem.from_text(SMALL).shape, (), "demo")
    file.write_text(made.to_json())
    return file


@pytest.fixture(scope="module")
def several(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The study after its run: (store, problem, what was said)."""
    problem = Problem.from_text((HEAD + ENTRIES).replace("PROFILE", str(profile)))
    store, told = Store(f"sqlite:///{tmp_path_factory.mktemp('several')}/a.db"), Told()
    Run(problem, store, told).run()
    yield store, problem, told
    store.engine.dispose()


def test_a_trial_that_lacks_a_value_is_not_taken_for_a_measured_one(several: Any, tmp_path: Path) -> None:
    """Its cost in milliseconds would otherwise stand among shares."""
    copy = tmp_path / "copy.db"
    with sqlite3.connect(several[0].engine.url.database) as whole, sqlite3.connect(copy) as connection:
        whole.backup(connection)
        (trial,) = connection.execute("SELECT min(trial_id) FROM trial_values WHERE objective = 2").fetchone()
        connection.execute("DELETE FROM trial_values WHERE objective = 2 AND trial_id = ?", (trial,))
    before, after = (Comparison(Store(f"sqlite:///{at}"), "several") for at in (several[0].engine.url.database, copy))
    lost = [len(old.trials) - len(new.trials) for old, new in zip(before.searches, after.searches, strict=True)]
    assert sum(lost) == 1
    assert all(len(trial.values) == 3 for search in after.searches for trial in search.trials)


def test_optuna_sees_three_objectives(several: Any) -> None:
    """Names, directions, values in their units, and Optuna's own best trials are the front."""
    comparison = Comparison(several[0], "several")
    pricing = Pricing(comparison)
    for search in comparison.searches:
        study = optuna.load_study(study_name=search.study, storage=several[0].optuna)
        assert study.metric_names == ["accuracy", "prefill_ms", "kv_bytes"]
        assert study.directions == [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * 2]
        for stored, read in zip(study.trials, search.trials, strict=True):
            assert read.values is not None
            assert stored.values[0] == read.values[0]
            for place, cost in ((1, "prefill_ms"), (2, "kv_bytes")):
                price = pricing.of(cost, search, read)
                assert price is not None
                assert stored.values[place] == pytest.approx(price.absolute, rel=1e-9)
                assert read.values[place] == pytest.approx(stored.values[place] / pricing.unpruned(cost), rel=1e-9)
        best = {tuple(trial.values) for trial in study.best_trials}
        assert best == {tuple(study.trials[trial.number].values) for trial in comparison.front_of_all(search)}


def test_the_fronts_are_those_of_brute_force(several: Any) -> None:
    comparison = Comparison(several[0], "several")
    for search in comparison.searches:
        rows = [trial.values for trial in search.trials if trial.values is not None]
        found = comparison.front_of_all(search)
        assert {trial.values for trial in found} == undominated(rows)
        assert {trial.values[:2] for trial in comparison.front(search) if trial.values} == undominated(
            [row[:2] for row in rows]
        )
        assert all(comparison.held_out(search, trial) is not None for trial in found)


def test_no_proposal_was_moved_to_more_of_another_cost(several: Any) -> None:
    """Tokens up to the edge of a time step are free in milliseconds, not in the cache."""
    run = Run(several[1], several[0])
    method, family = run.problem.default_method, run.problem.family()
    alone = Problem.from_text(several[1].text.replace("[prefill_ms, kv_bytes]", "prefill_ms"))
    edges = Run(alone, several[0]).cost
    moved = 0
    for schedule in itertools.islice(family.dense_grid(), 0, None, 5):
        rows = run.cost._distinct(schedule, method, "search")
        kept = run.cost._further(rows, method)["kv_bytes"]
        for cost, limit in ((run.cost, kept), (edges, np.inf)):
            placed = cost.on_edge(schedule, family, method)
            found = run.cost._further(run.cost._distinct(placed, method, "search"), method)["kv_bytes"]
            assert found <= limit
            moved += cost is edges and found > kept
    assert moved > 0


def test_the_learned_search_says_what_it_optimises(several: Any) -> None:
    (said,) = [one for one in several[2].said if "not minimised" in one]
    assert said == (
        "several/learned: kind 'lagrangian' maximises accuracy within budgets of prefill_ms; kv_bytes of its schedules "
        "is stored and not minimised (limits: bounds it)"
    )


def test_what_is_compared_keeps_its_keys_and_has_more(several: Any, cli: Cli) -> None:
    store = several[0]
    found = json.loads(cli("compare", "several", "--storage", store.url, "--json")[1])
    assert [(one["name"], one["unit"]) for one in found["objectives"]] == [
        ("accuracy", None),
        ("prefill_ms", "ms"),
        ("kv_bytes", "bytes"),
    ]
    blind = found["reference_point"]["accuracy"]
    volumes = {}
    for search in found["searches"]:
        told = search["objectives"]
        points = [[p["accuracy"], p["costs"]["prefill_ms"], p["costs"]["kv_bytes"]] for p in told["front"]]
        volumes[search["name"]] = hypervolume(points, reference=(blind, 1.0, 1.0))
        assert told["hypervolume"] == pytest.approx(volumes[search["name"]])
        assert told["hypervolume_ratio_to_grid"] == pytest.approx(volumes[search["name"]] / volumes["grid"])
        pairs = [[p["accuracy"], p["cost_ratio"]] for p in search["front"]]
        assert search["hypervolume"] == pytest.approx(hypervolume(pairs, reference=(blind, 1.0)))
        assert {p["trial"] for p in told["front"]} <= set(range(search["trials"]))
    code, out, _ = cli("compare", "several", "--storage", store.url)
    assert code == 0
    assert "objectives: accuracy, prefill_ms (36.15 ms unpruned), kv_bytes (" in out
    assert re.search(r"all 3 objectives.*on the front.*\btpe\b", out, re.DOTALL)
    rows = cli("compare", "several", "--storage", store.url, "--csv")[1].splitlines()
    assert "all_objectives_hypervolume" in rows[0]
    one = Repriced(store, "several", "kv_bytes").to_dict()
    assert "objectives" not in one
    assert found.keys() - {"objectives"} <= one.keys()


def test_the_report_shows_all_objectives(several: Any, tmp_path: Path) -> None:
    """One figure for all together and one for each pair, each with the numbers of the comparison."""
    store = several[0]
    told = Comparison(store, "several").to_dict()
    shown = by_axes(told)
    assert list(shown) == [
        "all, in parallel",
        "accuracy against prefill_ms",
        "accuracy against kv_bytes",
        "kv_bytes against prefill_ms",
    ]
    runs = {search["name"]: search["objectives"]["front"] for search in told["searches"]}
    for trace in shown["kv_bytes against prefill_ms"].data:
        front = runs[trace.name]
        assert list(trace.x) == pytest.approx([100 * p["costs"]["prefill_ms"] for p in front], abs=1e-3)
        assert list(trace.y) == pytest.approx([100 * p["costs"]["kv_bytes"] for p in front], abs=1e-3)
    points = [point for front in runs.values() for point in front]
    least = min(point["costs"]["kv_bytes"] for point in points)
    most = max(point["costs"]["kv_bytes"] for point in points)
    for trace in shown["all, in parallel"].data:
        assert trace.type == "scatter"  # no trace that compiles code, which the page forbids
        lines = [trace.y[n : n + 3] for n in range(0, len(trace.y), 4)]
        for line, point in zip(lines, runs[trace.name], strict=True):
            assert line[2] == pytest.approx((most - point["costs"]["kv_bytes"]) / (most - least), abs=1e-3)
    write_report(store, "several", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert len(page) < 5 * 2**20
    assert re.search(r'<option value="objectives-3">kv_bytes against prefill_ms</option>', page)
    assert "The fronts in all objectives" in page
    for number in range(4):
        assert f'id="figure-objectives-{number}"' in page


def test_the_dashboard_shows_the_three_objectives_and_the_fronts_of_two(several: Any) -> None:
    view = DashboardView(several[0], pause=0)
    by_name = {study.study_name: study for study in view.get_all_studies()}
    assert len(by_name["several/tpe"].directions) == 3
    made = by_name["several: comparison"]
    trials = view.get_all_trials(made._study_id)
    assert trials
    assert all(len(trial.values) == len(made.directions) == 2 for trial in trials)
    assert by_name["several/tpe"].system_attrs["study:metric_names"] == ["accuracy", "prefill_ms", "kv_bytes"]


def test_a_resumed_search_proposes_what_an_undisturbed_one_does(several: Any, profile: Path, tmp_path: Path) -> None:
    """From the database alone, after Ctrl-C at the 5th of 14 trials."""
    text = (HEAD + ENTRIES.splitlines()[2] + "\n").replace("PROFILE", str(profile))
    store = Store(f"sqlite:///{tmp_path}/a.db")
    with stopped_after(5):
        Run(Problem.from_text(text), store).run()
    again = Problem.from_text(store.require_experiment("several").spec_text)
    assert Run(again, store).run() == 9
    found, expected = (one.trial_log("several/tpe").study.trials for one in (store, several[0]))
    assert [(t.values, t.user_attrs["schedule"]) for t in found] == [
        (t.values, t.user_attrs["schedule"]) for t in expected
    ]
    assert Run(again, store).run() == 0
    store.engine.dispose()


def test_flops_may_be_the_first_of_several(tmp_path: Path) -> None:
    """Without a profile; budgets are then shares of FLOPs, and the second value is flops_ratio as ever."""
    text = HEAD.replace("[prefill_ms, kv_bytes]", "[flops, kv_bytes, total_flops]").replace("profile: PROFILE\n", "")
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(Problem.from_text(text + "  random: {kind: random, trials: 6}\n"), store).run()
    comparison = Comparison(store, "several")
    study = store.trial_log("several/random").study
    assert study.metric_names == ["accuracy", "flops_ratio", "kv_bytes", "total_flops"]
    (search,) = comparison.searches
    for stored, read in zip(study.trials, search.trials, strict=True):
        price = Pricing(comparison).of("total_flops", search, read)
        assert price is not None
        assert stored.values[3] == pytest.approx(price.absolute, rel=1e-9)
        assert read.values is not None
        assert stored.values[1] == read.values[1] <= 1.1
    told = comparison.to_dict()
    assert "cost" not in told
    assert [one["unpruned"] for one in told["objectives"]][1] == 1.0
    other = optuna.create_study(study_name="theirs", storage=store.optuna, directions=["maximize", "minimize"])
    other.add_trial(create_trial(values=[0.5, 0.5]))
    with pytest.raises(
        ConfigError, match=r"costs or limits other than FLOPs \(kv_bytes, total_flops\), and an imported study"
    ):
        import_trials(store, "theirs", "several")
    store.engine.dispose()


WRONG = {
    "none": ("cost: [prefill_ms, kv_bytes]", "cost: []", "name one cost or more"),
    "twice": ("kv_bytes]", "prefill_ms]", "a cost is listed twice: prefill_ms, prefill_ms"),
    "unknown": ("kv_bytes]", "kv_byte]", "unknown cost 'kv_byte'; did you mean 'kv_bytes'"),
    "a rate": ("kv_bytes]", "tokens_per_second]", "tokens_per_second is a rate"),
    "no profile": ("profile: PROFILE\n", "", "needs profile: FILE"),
    "halving": (
        "kind: grid",
        "kind: halving, trials: 16",
        "'halving' knows one cost, and the study minimises prefill_",
    ),
    "a race": ("kind: grid", "kind: grid, race: {}", "race: stops schedules by accuracy and prefill_ms, and the study"),
    "rules": ("kind: grid", "kind: vtw", "kind 'vtw' knows FLOPs only"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_one_line(profile: Path, name: str) -> None:
    before, after, message = WRONG[name]
    text = (HEAD + ENTRIES).replace(before, after).replace("PROFILE", str(profile))
    with pytest.raises(ConfigError, match=message) as refused:
        validate(Problem.from_text(text))
    assert "\n" not in str(refused.value)


def test_ways_to_write_it_are_one_study() -> None:
    forms = (
        "[prefill_ms, kv_bytes]",
        "{name: [prefill_ms, kv_bytes]}",
        "{name: prefill_ms, also: [kv_bytes], batch: 1}",
    )
    studies = [parse_study((HEAD + ENTRIES).replace("[prefill_ms, kv_bytes]", form)) for form in forms]
    assert len({study.spec_hash() for study in studies}) == 1
    assert studies[0].cost.also == ["kv_bytes"]
    alone = [parse_study((HEAD + ENTRIES).replace("[prefill_ms, kv_bytes]", f)) for f in ("prefill_ms", "[prefill_ms]")]
    assert len({study.spec_hash() for study in alone}) == 1
    assert "also" not in alone[0].identity()["cost"]


def test_the_study_of_the_page_is_valid(profile: Path) -> None:
    whole = yaml.safe_load(blocks("docs/studies.md", "yaml", "Every key")[0])
    (block,) = blocks("docs/studies.md", "yaml", "Several costs")
    shown = {**whole, **yaml.safe_load(block), "profile": str(profile), "anytime": False}
    problem = Problem.from_text(yaml.safe_dump(shown))
    validate(problem)
    assert problem.study.cost.also == ["kv_bytes"]
    (form,) = re.findall(r"# or (\{.*\})", block)
    assert parse_study(yaml.safe_dump({**shown, "cost": yaml.safe_load(form)})).cost.batch == 16
