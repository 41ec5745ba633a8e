"""Studies whose budgets are in another cost than FLOPs, and limits on others: searched, stored, compared, chosen."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vispco
from conftest import Cli, python
from pages import blocks
from vispco.analysis.attainment import attainment_bands
from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import Question, decide
from vispco.analysis.indicators import additive_epsilon, igd_plus
from vispco.analysis.pricing import Pricing
from vispco.cli import choosing
from vispco.config import parse_study
from vispco.costs import make_cost
from vispco.costs.bounds import parse_bound
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.estimate import estimate
from vispco.experiment.progress import Silent
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.fronts import choose
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Step
from vispco.search.gradient.relaxed_cost import RelaxedShare
from vispco.search.grid import grid_points
from vispco.search.study_cost import StudyCost
from vispco.storage.store import Store
from vispco.testing.costs import planted_profile

KV = 0.5
HELD = "the model was timed with attention eager instead of sdpa"

STUDY = """
experiment: timed
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 16, search: 12, held_out: 12}}
cost: prefill_ms
profile: PROFILE
budgets: [0.55, 0.7, 32 ms]
limits: {kv_bytes: 0.5}
batch_size: 8
searches:
  grid: {kind: grid}
  tpe: {kind: tpe, trials: 14, batch: 2}
  lagrangian: {kind: lagrangian, dual_steps: 2, primal_steps: 2, batch: 8, check: 8, measure: 2}
"""


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The study after its run: (store, problem)."""
    folder = tmp_path_factory.mktemp("timed")
    text = STUDY.replace("PROFILE", str(folder / "profile.json"))
    shape = Problem.from_text(STUDY).shape
    planted = planted_profile(shape, (), "demo").model_copy(update={"attention": "eager"})
    (folder / "profile.json").write_text(planted.to_json())
    problem = Problem.from_text(text)
    store = Store(f"sqlite:///{folder}/a.db")
    Run(problem, store).run()
    yield store, problem
    store.engine.dispose()


def run_of(timed: Any) -> Run:
    store, problem = timed
    return Run(problem, store)


def test_trials_are_in_the_cost_and_its_unit(timed: Any) -> None:
    """Values are milliseconds, named so; what is read for a search is the share that budgets are in."""
    cost = run_of(timed).cost
    log = timed[0].trial_log("timed/tpe")
    assert log.study.metric_names == ["accuracy", "prefill_ms"]
    for stored, read in zip(log.study.trials, log.complete(), strict=True):
        schedule = stored.user_attrs["schedule"]
        assert stored.values[1] == pytest.approx(read.values[1] * cost.whole(), rel=1e-12)
        assert read.values[1] == pytest.approx(stored.user_attrs["cost_ratio"], rel=1e-12), schedule
        assert 0 < stored.user_attrs["flops_ratio"] <= 1.1
        assert stored.user_attrs["kv_bytes"] > 0


def test_searches_end_on_edges_within_their_budgets_and_limits(timed: Any) -> None:
    """Of the planted staircase: one token more, at the layer that prunes, costs more or breaks a bound."""
    run = run_of(timed)
    method, family = run.problem.default_method, run.problem.family()
    kept = int(run.evaluator.prepared("search")[0].n_visual[0])
    for entry in ("grid", "tpe", "lagrangian"):
        for trial in timed[0].trial_log(f"timed/{entry}").complete():
            schedule = family.schedule(trial.params)
            assert schedule.text() == trial.user_attrs["schedule"]
            here = run.cost.ratio(schedule, method)
            assert here == pytest.approx(trial.values[1], rel=1e-9)
            if "budget" in trial.user_attrs:
                assert here <= trial.user_attrs["budget"] + 1e-9
                assert trial.user_attrs["limit_excess"] <= 1e-9
            more = trial.params["keep"] + 1.01 / kept
            if more < 1 and entry != "lagrangian":
                above = family.schedule({**trial.params, "keep": more})
                assert run.cost.ratio(above, method) > here or not run.cost.within_limits(above, method)


def test_no_choice_exceeds_a_limit(timed: Any) -> None:
    """By the prices that ``choose`` has, which know nothing of the search; the sampler did try schedules that do."""
    comparison = Comparison(timed[0], "timed")
    pricing, bound = Pricing(comparison), parse_bound("kv_bytes", KV)
    over = 0
    for search in comparison.searches:
        for trial in search.trials:
            price = pricing.of("kv_bytes", search, trial)
            assert price is not None
            assert price.absolute == pytest.approx(price_noted(timed, search.study, trial.number), rel=1e-12)
            allowed = bound.allows(price.absolute, price.share)
            assert (trial.user_attrs["limit_excess"] <= 1e-9) == allowed
            over += not allowed
        for trial in [*comparison.front(search), *(t for t in comparison.chosen(search) if t is not None)]:
            price = pricing.of("kv_bytes", search, trial)
            assert price is not None
            assert bound.allows(price.absolute, price.share)
    assert over > 0


def price_noted(timed: Any, study: str, number: int) -> float:
    return float(timed[0].trial_log(study).complete()[number].user_attrs["kv_bytes"])


def test_constraints_are_optunas(timed: Any) -> None:
    trials = timed[0].trial_log("timed/tpe").study.trials
    assert trials
    for trial in trials:
        assert trial.system_attrs["constraints"] == [trial.user_attrs["limit_excess"]]


def test_a_grid_leaves_out_what_a_limit_forbids(timed: Any) -> None:
    run = run_of(timed)
    method, family = run.problem.default_method, run.problem.family()
    points = grid_points(family, method, run.cost)
    assert 0 < len(points) < len(list(family.dense_grid()))
    assert {one.text() for one in points} == timed[0].trial_log("timed/grid").schedules()
    assert all(run.cost.within_limits(one, method) for one in points)


def test_shares_of_the_dense_grid_are_of_what_the_grid_measures(timed: Any) -> None:
    """Also those at which an anytime curve is measured, and what a plan says."""
    run, comparison = run_of(timed), Comparison(timed[0], "timed")
    schedules, _ = run.allowances.dense_grid
    assert {one.text() for one in schedules} == timed[0].trial_log("timed/grid").schedules()
    assert run.allowances.grid_flops == comparison.grid_flops()
    (planned,) = (row for row in estimate(run.problem, run.evaluator) if row["study"] == "timed/grid")
    assert planned["trials"] == len(schedules)
    assert planned["pflops"] * 1e15 == pytest.approx(run.allowances.grid_flops, rel=1e-12)


def test_budgets_in_ms_and_as_shares_are_one_bound(timed: Any) -> None:
    run, comparison = run_of(timed), Comparison(timed[0], "timed")
    whole = run.cost.whole()
    assert comparison.budgets == pytest.approx(sorted([0.55, 0.7, 32 / whole]))
    for search in comparison.searches:
        for budget, trial in zip(comparison.budgets, comparison.chosen(search), strict=True):
            if trial is not None:
                assert trial.values is not None
                assert trial.values[1] * whole <= budget * whole + 1e-6
                assert trial is choose(search.trials, budget)


def test_what_is_reported_names_the_cost_and_its_unit(timed: Any, cli: Cli, tmp_path: Path) -> None:
    store, _ = timed
    where = ("--storage", store.url)
    found = json.loads(cli("compare", "timed", *where, "--json")[1])
    assert (found["cost"], found["cost_unit"], found["limits"]) == ("prefill_ms", "ms", {"kv_bytes": KV})
    for search in found["searches"]:
        assert all(0 < point["cost_ratio"] <= 1.2 for point in search["front"])
    assert all(row["cost_ratio"] > 0 for row in found["defaults"])
    shown = cli("compare", "timed", *where)[1]
    assert "a share of prefill_ms of 36.15 ms" in shown
    assert "32 ms" in shown
    assert "within limits: kv_bytes 0.5" in shown
    assert all(row["cost"] == "prefill_ms" for row in json.loads(cli("status", "timed", *where, "--json")[1]))
    exported = json.loads(cli("export", "timed", "--budget", "0.9", *where)[1])
    assert exported["cost"]["name"] == "prefill_ms"
    assert exported["cost"]["unit"] == "ms"
    assert exported["cost"]["value"] == pytest.approx(exported["cost"]["ratio"] * found["unpruned"]["cost"])
    assert exported["flops_ratio"] != exported["cost"]["ratio"]
    code, out, err = cli("report", "timed", *where, "--max-drop", "90", "-o", tmp_path / "r.html")
    assert code == 0, err
    page = (tmp_path / "r.html").read_text()
    lead = page[page.index('id="decision"') :][:400]
    assert "within 90 points" in lead
    assert " ms</strong> per prompt instead of 36.15 ms" in lead
    assert "--max-drop 90 -o schedule.json" in page
    assert "prefill_ms, % of unpruned (36.15 ms)" in page
    assert ">prefill_ms, of unpruned</a></th>" in page
    assert "prefill_ms %{x" in page
    assert "compute %{x" not in page
    code, out, _ = cli("choose", "timed", *where, "--max-drop", "90")
    assert "prefill_ms:" in out
    assert " ms per prompt instead of 36.15 ms" in " ".join(out.split("\n", 3)[:3])
    assert "busy" not in out


def test_a_batch_and_a_busy_machine_are_named(timed: Any, cli: Cli, tmp_path: Path) -> None:
    """Time and peak memory are those of a batch, a cache that of one prompt."""
    store, problem = timed
    planted = planted_profile(problem.shape, (), "demo")
    curve = planted.at(1).layers["full"]
    noisy = {"full": curve.model_copy(update={"spread": [0.3 * ms for ms in curve.ms]})}
    times = planted.at(1).model_copy(update={"layers": noisy})
    (tmp_path / "p.json").write_text(planted.model_copy(update={"batches": {4: times}}).to_json())
    where = ("--storage", store.url, "--max-drop", "90", "--batch", "4", "--profile", tmp_path / "p.json")
    for cost, per in [
        ("prefill_ms", "batch of 4 prompts"),
        ("peak_bytes", "batch of 4 prompts"),
        ("kv_bytes", "prompt"),
    ]:
        out = " ".join(cli("choose", "timed", *where, "--cost", cost)[1].split())
        assert f" per {per} instead of " in out
        assert ("repetitions differ by 30 %" in out) == (cost == "prefill_ms")
    assert make_cost("flops").per(4) == "per prompt"
    code, _, err = cli("report", "timed", "--storage", store.url, "--max-drop", "-1", "-o", tmp_path / "r.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "max_drop is -1" in err


def test_choose_prices_as_the_search_did(timed: Any) -> None:
    comparison = Comparison(timed[0], "timed")
    found = decide(comparison, Question(30.0, comparison.cost))
    chosen = found["chosen"]
    search = next(s for s in comparison.searches if s.name == chosen["search"])
    trial = next(t for t in search.trials if t.number == chosen["trial"])
    assert trial.values is not None
    assert chosen["cost_ratio"] == trial.values[1]
    assert chosen["flops_ratio"] == trial.user_attrs["flops_ratio"]
    assert found["unpruned"]["cost"] == pytest.approx(run_of(timed).cost.whole())


def test_the_experiments_own_limits_hold_for_every_decision(timed: Any, cli: Cli, tmp_path: Path) -> None:
    """The unpruned model breaks this study's limit, so that it is no answer either."""
    comparison = Comparison(timed[0], "timed")
    over = [t for s in comparison.searches for t in s.trials if t.user_attrs["limit_excess"] > 1e-9]
    for drop in range(0, 100, 5):
        try:
            found = decide(comparison, Question(float(drop), comparison.cost))
        except ConfigError as error:
            assert f"and the limits (kv_bytes {KV:g})" in str(error)  # noqa: PT017
            continue
        assert found["chosen"]["search"] is not None
        assert found["chosen"]["schedule"] not in {t.user_attrs["schedule"] for t in over}
        assert found["limits"][0]["share"] <= KV + 1e-9
        assert found["times_of"] == f"times are of demo in float32 on none; {HELD}"
    assert over
    code, _, err = cli("report", "timed", "--storage", timed[0].url, "--max-drop", "0", "-o", tmp_path / "r.html")
    assert code == 0, err
    lead = (tmp_path / "r.html").read_text().partition('id="decision"')[2][:200]
    assert "No decision: <bdi>no measured schedule" in lead


def test_a_search_with_nothing_within_the_limits_has_no_distance_to_the_grid(timed: Any) -> None:
    """moocore ends the process where it is asked for the distance of no points."""
    comparison = Comparison(timed[0], "timed")

    def over(trial: Any) -> Any:
        return replace(trial, user_attrs={**trial.user_attrs, "limit_excess": 1.0})

    searches = [
        replace(s, trials=[over(trial) for trial in s.trials]) if s.name == "tpe" else s for s in comparison.searches
    ]
    comparison._choose(searches, comparison.budgets)
    found = {row["name"]: row for row in comparison.to_dict()["searches"]}
    assert found["tpe"]["igd_plus"] is found["tpe"]["epsilon"] is None
    assert found["lagrangian"]["igd_plus"] is not None
    assert {row["entry"] for row in attainment_bands(comparison)} == {"grid", "lagrangian"}
    for indicator in (igd_plus, additive_epsilon):
        with pytest.raises(ValueError, match="one point or more"):
            indicator([], reference_set=[(0.5, 0.5)])


def test_a_measured_decision_is_priced_as_before(timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the user gave: the stored profile, given again, would have shares of each prompt."""
    asked: list[Pricing] = []

    def decide(comparison: Comparison, question: Question, priced: Pricing) -> dict[str, Any]:
        asked.append(priced)
        return {"chosen": {"accuracy_held_out": None, "search": "tpe", "trial": 0}}

    monkeypatch.setattr(choosing, "decide", decide)
    monkeypatch.setattr("vispco.confirming.confirm", lambda *_: None)
    comparison = Comparison(timed[0], "timed")
    choosing.decided(comparison, Question(1.0, "prefill_ms"), Pricing(comparison), measure=True)
    assert [priced.given for priced in asked] == [None, None]


def test_an_objective_of_ones_own_is_in_flops(timed: Any) -> None:
    with pytest.raises(ConfigError, match="asks for another cost or for limits"):
        vispco.objective(timed[1])


def test_an_amount_of_flops_is_no_share_where_prompts_differ(timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of each prompt's share is not the share of the mean; a budget in GFLOPs would not be held."""
    text = timed[1].text.partition("cost:")[0] + "budgets: [100 MFLOPs]\nsearches: {grid: {kind: grid}}\n"
    cost = StudyCost(Evaluator(Problem.from_text(text)))
    (share,) = cost.budgets(0.1)
    assert share == pytest.approx(1e8 / cost.whole())
    monkeypatch.setattr(StudyCost, "ratio", lambda *_: 0.9)
    with pytest.raises(ConfigError, match="the prompts differ in length, and budgets in FLOPs bound the mean of each"):
        cost.budgets(0.1)


def test_times_are_of_a_method_as_it_was_measured() -> None:
    planted = planted_profile()
    timings = planted.at(1)
    methods = {**timings.methods, "sparsevlm": timings.methods["fastv"]}
    made = planted.model_copy(update={"batches": {1: timings.model_copy(update={"methods": methods})}})
    assert made.scoring(1, make_method("sparsevlm")) == made.method(1, "sparsevlm")
    with pytest.raises(ConfigError, match="by its default parameters only"):
        made.scoring(1, make_method("sparsevlm", {"release": "1.5"}))


class Said(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_profile_of_a_model_that_is_held_otherwise_is_told(timed: Any, cli: Cli, tmp_path: Path) -> None:
    """By choose and compare, in a line; of another model type it is refused."""
    store, problem = timed
    planted = planted_profile(problem.shape, (), "demo").model_copy(update={"attention": "kernel"})
    (tmp_path / "p.json").write_text(planted.to_json())
    where = ("timed", "--storage", store.url, "--cost", "prefill_ms", "--profile", tmp_path / "p.json")
    line = "the model was timed with attention kernel instead of sdpa"
    for verb in (("choose", *where, "--max-drop", "90"), ("compare", *where)):
        code, out, err = cli(*verb)
        assert (code, line in " ".join(out.split())) == (0, True), err
    held = {"model_type": "llava", "quantization": "", "adapter": "LORA r=8"}
    (tmp_path / "p.json").write_text(planted.model_copy(update={"attention": "sdpa", "held": held}).to_json())
    assert "with adapter LORA r=8 instead of none" in " ".join(cli("choose", *where, "--max-drop", "90")[1].split())
    (tmp_path / "p.json").write_text(planted.model_copy(update={"held": {"model_type": "qwen2_vl"}}).to_json())
    code, _, err = cli("choose", *where, "--max-drop", "90")
    assert (code, err.count("\n")) == (2, 1)
    assert "(model_type qwen2_vl), and 'demo' has model_type llava" in err


def test_a_finished_study_has_nothing_to_do_and_takes_no_other_profile(
    timed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, problem = timed
    ran = store.require_experiment("timed").provenance
    monkeypatch.setattr("vispco.experiment.run.provenance", lambda _: {"versions": {"torch": "of another machine"}})
    assert Run(problem, store).run() == 0
    assert store.require_experiment("timed").provenance == ran
    said = Said()
    assert Run(Problem.from_text(problem.text.replace("profile: /", "profile: /nowhere/")), store, said).run() == 0
    file = f"/nowhere{problem.study.profile}"
    used = f"timed: there is no file {file!r}; the profile stored with the experiment is used"
    assert said.lines == [used, f"timed: {HELD}"]
    other = planted_profile(problem.shape, (), "demo").model_dump(mode="json")
    other["batches"]["1"]["rest"]["ms"] = [0.1, 0.6]
    (tmp_path / "other.json").write_text(json.dumps(other))
    changed = problem.text.replace(f"profile: {problem.study.profile}", f"profile: {tmp_path / 'other.json'}")
    with pytest.raises(ConfigError, match="times of hardware profile"):
        Run(Problem.from_text(changed), store).run()
    with pytest.raises(ConfigError, match="another 'limits'"):
        Run(Problem.from_text(problem.text.replace("limits: {kv_bytes: 0.5}\n", "")), store).run()


WRONG = {
    "unknown cost": ("cost: prefill_ms", "cost: prefil_ms", "unknown cost 'prefil_ms'; did you mean 'prefill_ms'"),
    "a rate": ("cost: prefill_ms", "cost: tokens_per_second", "tokens_per_second is a rate"),
    "no profile": ("profile: PROFILE\n", "", "needs profile: FILE; measure it: vispco profile demo --batch 1"),
    "no such profile": ("profile: PROFILE", "profile: none.json", "cannot read profile 'none.json'"),
    "unknown limit": ("kv_bytes: 0.5", "kv_byte: 0.6", "unknown cost 'kv_byte'; did you mean 'kv_bytes'"),
    "limit on the cost": ("kv_bytes: 0.5", "prefill_ms: 0.6", "the study's budgets bound this cost already"),
    "unit of another cost": ("32 ms", "32 GiB", "'32 GiB' is no bound on prefill_ms"),
    "unknown task": ("kv_bytes: 0.5", "tasks: {mosaic: {max_drop: 1}}", "no task 'mosaic' in this study"),
    "search without other costs": ("kind: tpe, trials: 14, batch: 2", "kind: dop", "kind 'dop' knows FLOPs only"),
    "race with limits": (
        "kind: tpe, trials: 14, batch: 2",
        "kind: random, trials: 14, race: {}",
        "race: cannot tell whether a schedule keeps the study's limits",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_said_before_the_model_is_loaded(timed: Any, name: str) -> None:
    before, after, message = WRONG[name]
    text = STUDY.replace(before, after).replace("PROFILE", timed[1].study.profile)
    with pytest.raises(ConfigError, match=message):
        validate(Problem.from_text(text))


OUT_OF_REACH = {
    "budget": ("0.55", "0.3", r"budget 0.3 lies outside \[0.4268, 1\]: the cheapest schedule takes 15.43 ms"),
    "budget in ms": ("32 ms", "40 ms", "budget 40 ms lies outside .* lower it"),
    "limit": ("kv_bytes: 0.5", "kv_bytes: 0.1", "limits.kv_bytes = 0.1 is out of reach: the cheapest schedule"),
    "method without times": ("batch_size: 8", "batch_size: 8\nmethod: random", "has no times of method 'random'"),
    "batch without times": ("cost: prefill_ms", "cost: {name: prefill_ms, batch: 4}", "has batch 1, not 4"),
}


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_validate_says_what_is_out_of_reach(timed: Any, cli: Cli, tmp_path: Path, name: str) -> None:
    before, after, message = OUT_OF_REACH[name]
    study = tmp_path / "s.yaml"
    text = STUDY.replace(before, after).replace("PROFILE", timed[1].study.profile)
    study.write_text(text.split("  lagrangian:")[0])
    code, _, err = cli("validate", study)
    assert code == 2
    assert re.search(message, err), err
    assert err.count("\n") == 1


# --- parts -------------------------------------------------------------------------------------------


def test_studies_without_a_cost_are_what_they_were() -> None:
    """Hash and identity from before the keys were known; a cost that is spelled out as the default changes nothing."""
    old = (
        "experiment: e\ntasks: [{name: mosaic-vqa, splits: {search: 4}}]\nsearches: {g: {kind: grid}}\n"
        "budgets: [1, 0.5, '0.25']\n"
    )
    for text in (old, f"{old}cost: flops\n", f"{old}limits: {{}}\n"):
        study = parse_study(text)
        assert study.spec_hash() == "7bf88c1df1f49a48"
        assert set(study.identity()) == {"model", "tasks", "calibration", "budgets", "method", "family"}
        assert study.identity()["budgets"] == [1.0, 0.5, 0.25]


def test_relaxed_cost_is_the_discrete_one_at_whole_counts(timed: Any) -> None:
    """But for scoring and hooks, which are a constant there; and it is differentiable."""
    run = run_of(timed)
    cost, family, method = run.cost, run.problem.family(), run.problem.default_method
    visual = int(run.evaluator.prepared("search")[0].n_visual[0])
    for model, scale in ((cost.model, cost.whole()), (make_cost("kv_bytes"), 1.0)):
        added = cost.added_by_pruning(model, family, method)
        relaxed = RelaxedShare(cost, model, scale, added)
        for kept in (0, 5, visual // 2, visual - 1):
            schedule = Step(3, kept / visual)
            rows = cost._distinct(schedule, None, "search")
            free = torch.tensor(schedule.keep_ratio(family.layers), dtype=torch.float64, requires_grad=True)
            found = relaxed(free)
            plain = cost._mean(model, rows, None)[0]
            assert float(found.detach()) == pytest.approx((plain + added) / scale, rel=1e-9)
            (slope,) = torch.autograd.grad(found, [free])
            assert bool((slope >= 0).all())


def test_gradient_searches_have_a_multiplier_for_each_limit(timed: Any) -> None:
    for rows in (paths := timed[0].trajectory("timed/lagrangian")).values():
        for row in rows:
            if "limits" in row:
                assert [set(one) for one in row["limits"]] == [{"multiplier", "penalty"}]
    assert any("limits" in row for rows in paths.values() for row in rows)


def test_a_task_limit_is_kept_by_every_choice(timed: Any) -> None:
    """Everything is measured already, so the second study costs nothing."""
    store, problem = timed
    known = Comparison(store, "timed")
    whole = known.reference("unpruned", "search")
    assert whole is not None
    lost = sorted(whole.accuracy - t.values[0] for t in known.searches[0].trials if t.values)
    drop = round(100 * lost[len(lost) // 3], 4) + 0.01
    limited = problem.text.replace("experiment: timed", "experiment: strict").split("  tpe:")[0]
    limited = limited.replace("kv_bytes: 0.5", f"kv_bytes: 0.5, tasks: {{mosaic-vqa: {{max_drop: {drop}}}}}")
    Run(Problem.from_text(limited), store).run()
    comparison = Comparison(store, "strict")
    unpruned = comparison.reference("unpruned", "search")
    assert unpruned is not None
    (grid,) = comparison.searches
    for trial in grid.trials:
        assert trial.values is not None
        assert (trial.user_attrs["limit_excess"] <= 1e-9) == (unpruned.accuracy - trial.values[0] <= drop / 100)
    assert {trial.user_attrs["limit_excess"] > 0 for trial in grid.trials} == {False, True}
    assert all(trial.user_attrs["limit_excess"] <= 1e-9 for trial in comparison.front(grid))


def test_the_page_shows_a_study_that_is_valid(timed: Any, cli: Cli, tmp_path: Path) -> None:
    (block,) = blocks("docs/choose.md", "yaml")
    profile = planted_profile(timed[1].shape, (), "demo")
    batch = profile.model_copy(update={"batches": {16: profile.batches[1]}})
    (tmp_path / "profile.json").write_text(batch.to_json())
    small = block.replace("profile.json  ", f"{tmp_path}/profile.json  ", 1)
    small = small.replace("calibration: 256, search: 512, held_out: 512", "calibration: 8, search: 8, held_out: 8")
    (tmp_path / "study.yaml").write_text(small)
    code, out, err = cli("validate", tmp_path / "study.yaml")
    assert code == 0, err
    assert "prefill_ms, 36.15 ms unpruned at batch 16" in out


def test_without_a_gpu_make_gpu_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    script = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    done = python(script)
    assert (done.returncode, done.stdout) == (0, "no GPU here: nothing was run\n")
