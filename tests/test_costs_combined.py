"""Costs and limits together with several methods, successive halving and a searched resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import Question, decide
from vispco.analysis.pricing import Pricing
from vispco.costs import Profile, Setting, make_cost
from vispco.costs.profile import Curve, Scoring
from vispco.errors import ConfigError
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import parse_schedule, resolution_of
from vispco.search.recipes.halving import best
from vispco.storage.store import Store
from vispco.testing.costs import planted_profile

pytestmark = pytest.mark.slow

STUDY = """
experiment: combined
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 8, search: 12, held_out: 12}}
cost: prefill_ms
profile: PROFILE
budgets: [0.75, 0.9]
limits: {kv_bytes: 0.7}
batch_size: 8
searches:
  tpe: {kind: tpe, trials: 8, batch: 2, method: [fastv, divprune]}
  learned:
    {kind: lagrangian, dual_steps: 2, primal_steps: 1, batch: 4, measure: 2, method: [fastv, fitprune]}
"""
HALVED = STUDY.split("searches:")[0].replace("calibration: 8, search: 12, held_out: 12", "search: 140, held_out: 4")
HALVED += "searches: {halving: {kind: halving, trials: 8, batch: 8}}\n"
SMALLER = """
experiment: smaller
model: demo-qwen
tasks:
  - {name: mosaic-vqa, splits: {search: 12, held_out: 4}}
cost: prefill_ms
profile: PROFILE
budgets: [0.9]
limits: {total_flops: 0.8}
resolution: [1.0, 0.5]
batch_size: 8
searches:
  random: {kind: random, trials: 8}
"""


def with_methods(profile: Profile, **start: float) -> Profile:
    """With times of methods whose pruning takes so long, once."""
    times = profile.batches[1]
    scoring = {name: Scoring(boundary=Curve(tokens=[1, 200], ms=[0.1, 0.3]), start=ms) for name, ms in start.items()}
    return profile.model_copy(update={"batches": {1: times.model_copy(update={"methods": scoring})}})


def finished(text: str, folder: Path, **methods: float) -> tuple[Store, Problem]:
    shape, model = Problem.from_text(text).shape, text.split("model: ")[1].split("\n")[0]
    (folder / "p.json").write_text(with_methods(planted_profile(shape, (), model), **methods).to_json())
    problem = Problem.from_text(text.replace("PROFILE", str(folder / "p.json")))
    store = Store(f"sqlite:///{folder}/a.db")
    Run(problem, store).run()
    return store, problem


@pytest.fixture(scope="module")
def combined(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return finished(STUDY, tmp_path_factory.mktemp("combined"), fastv=0.2, divprune=3.0, fitprune=0.7)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return finished(HALVED, tmp_path_factory.mktemp("halved"), fastv=0.2)


def priced(run: Run, cost: str, schedule: str, method: str) -> tuple[float, float]:
    """(absolute, share of the unpruned model's mean), from every sample's own counts."""
    parsed, problem = parse_schedule(schedule), run.problem
    home = run.evaluator.at(resolution_of(parsed))
    setting = Setting.of(problem.adapter, profile=problem.profile)
    counts = home.counts(parsed, "search", make_method(method))[0]
    part, whole = home.prepared("search")[0], run.evaluator.prepared("search")[0]
    value = make_cost(cost).of(setting.with_method(make_method(method)), counts, part.n_visual, part.n_text).mean()
    return float(value), float(value / make_cost(cost).unpruned(setting, whole.n_visual, whole.n_text).mean())


@pytest.mark.parametrize("entry", ["tpe", "halving", "learned"])
def test_every_trial_has_the_cost_of_its_own_method(combined: Any, halved: Any, entry: str) -> None:
    store, problem = halved if entry == "halving" else combined
    run, log = Run(problem, store), store.trial_log(f"combined/{entry}")
    methods = set()
    for trial in log.trials():
        method = trial.user_attrs.get("method", "fastv")
        methods.add(method)
        absolute, share = priced(run, "prefill_ms", trial.user_attrs["schedule"], method)
        assert trial.user_attrs["cost_ratio"] == pytest.approx(share, rel=1e-9)
        assert run.cost.whole() * share == pytest.approx(absolute, rel=1e-9)
        kv = priced(run, "kv_bytes", trial.user_attrs["schedule"], method)
        assert trial.user_attrs["kv_bytes"] == pytest.approx(kv[0])
        assert (trial.user_attrs["limit_excess"] <= 1e-9) == (kv[1] <= 0.7 + 1e-9)
        if "budget" in trial.user_attrs:
            assert share <= trial.user_attrs["budget"] + 1e-9
            assert trial.user_attrs["limit_excess"] <= 1e-9
    assert len(methods) == (1 if entry == "halving" else 2)


def test_halving_stops_what_exceeds_a_limit_first(halved: Any) -> None:
    trials = halved[0].trial_log("combined/halving").trials()
    complete = [t.user_attrs["limit_excess"] for t in trials if t.state == TrialState.COMPLETE]
    stopped = [t.user_attrs["limit_excess"] for t in trials if t.state == TrialState.PRUNED]
    assert complete
    assert stopped
    assert max(complete) <= 1e-9 or all(excess > 1e-9 for excess in stopped)


def test_beyond_a_limit_nothing_is_better_than_what_is_within() -> None:
    accuracy, cost = np.array([0.9, 0.1, 0.5, 0.99]), np.array([np.inf, 0.9, 0.5, np.inf])
    assert set(best(accuracy, cost, 2).tolist()) == {1, 2}
    assert len(best(accuracy, cost, 3)) == 3
    assert best(np.array([0.3]), np.array([np.inf]), 1).tolist() == [0]


def test_a_choice_names_the_method_that_it_was_priced_with(combined: Any) -> None:
    comparison = Comparison(combined[0], "combined")
    run, pricing = Run(combined[1], combined[0]), Pricing(comparison)
    chosen = decide(comparison, Question(60.0, "prefill_ms"), pricing)["chosen"]
    method = chosen["method"] if isinstance(chosen["method"], str) else chosen["method"]["name"]
    assert chosen["cost_ratio"] == pytest.approx(priced(run, "prefill_ms", chosen["schedule"], method)[1], rel=1e-9)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return finished(SMALLER, tmp_path_factory.mktemp("smaller"), fastv=0.2)


def test_smaller_pictures_cost_what_they_take_and_shares_are_of_whole_ones(smaller: Any) -> None:
    run = Run(smaller[1], smaller[0])
    trials = smaller[0].trial_log("smaller/random").complete()
    assert {resolution_of(parse_schedule(trial.user_attrs["schedule"])) for trial in trials} == {None, 0.5}
    pricing = Pricing(Comparison(smaller[0], "smaller"))
    search = pricing.comparison.searches[0]
    for trial in trials:
        share = priced(run, "prefill_ms", trial.user_attrs["schedule"], "fastv")[1]
        assert trial.values[1] == pytest.approx(share, rel=1e-9)
        by_prices = pricing.of("total_flops", search, search.trials[trial.number])
        assert by_prices is not None
        assert trial.user_attrs["total_flops"] == pytest.approx(by_prices.absolute, rel=1e-9)
        assert (trial.user_attrs["limit_excess"] <= 1e-9) == (by_prices.share <= 0.8 + 1e-9)


WRONG = [
    ("method: [fastv, divprune]", "method: [fastv, stride]", "has no times of method 'stride'"),
    ("limits: {kv_bytes: 0.7}", "limits: {tasks: {mosaic-vqa: {max_drop: 5}}}", "before it knows what each task loses"),
]


@pytest.mark.parametrize(("before", "after", "message"), WRONG)
def test_what_cannot_be_known_is_refused(combined: Any, before: str, after: str, message: str) -> None:
    text = combined[1].text + HALVED.split("searches: {")[1].replace("halving: {", "  halving: {").replace("}}", "}")
    text = text.replace(before, after)
    with pytest.raises(ConfigError, match=message):
        validate(Problem.from_text(text))
