"""One search among several pruning methods: the method is a parameter like the others, and everything names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from vispco.dashboards import figures
from vispco.dashboards.report import gradient_paths

from conftest import fresh, stopped_after
from vispco.analysis.comparison import Comparison
from vispco.analysis.layers import layer_record
from vispco.analysis.violations import violations
from vispco.cli.comparison import with_method
from vispco.config import parse_study
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.exporting import export_schedule
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import parse_schedule
from vispco.search.gradient import method_race
from vispco.search.gradient.method_race import promising
from vispco.storage.store import Store

SEVERAL = """
experiment: several
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 8, search: 8, held_out: 8}}
budgets: 2
batch_size: 8
searches:
  random: {kind: random, trials: 6, method: [fastv, divprune, {name: random, parameters: {seed: 3}}]}
  tpe: {kind: tpe, spent: 0.05, batch: 3, method: [fastv, stride], enqueue: ["fastv:k2-r50"]}
  nsga2: {kind: nsga2, trials: 6, population: 2, method: [fastv, divprune]}
  learned:
    {kind: lagrangian, dual_steps: 2, primal_steps: 1, batch: 4, measure: 2, method: [fastv, fitprune, pyramiddrop]}
  one: {kind: grid, race: {first: 4}}
"""
ENTRIES = ["random", "tpe", "nsga2", "learned"]
KEYS = {"random": 3, "tpe": 2, "nsga2": 2}


@pytest.fixture(scope="module")
def finished(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('several')}/a.db")
    Run(fresh(problem, SEVERAL), store).run(ENTRIES)
    return store


def test_the_method_is_a_parameter(problem: Problem, finished: Store) -> None:
    for entry, methods in KEYS.items():
        trials = finished.trial_log(f"several/{entry}").complete()
        for trial in trials:
            assert trial.params["method"] == trial.user_attrs["method"]
            assert len(trial.distributions["method"].choices) == methods
        assert len({trial.params["method"] for trial in trials}) > 1
    first = finished.trial_log("several/tpe").complete()[0]
    assert (first.params["method"], first.user_attrs["schedule"]) == ("fastv", "step(layer=2, keep=0.5)")


def test_each_is_measured_with_its_own_method_on_both_splits(problem: Problem, finished: Store) -> None:
    evaluator, comparison = Evaluator(fresh(problem, SEVERAL)), Comparison(finished, "several")
    made = {name: make_method(name) for name in ("fastv", "divprune", "stride", "fitprune", "pyramiddrop")}
    made[make_method("random", {"seed": 3}).key()] = make_method("random", {"seed": 3})
    for search in comparison.searches:
        for trial in comparison.shown(search):
            method = made[search.of_trial(trial).method_key]
            schedule = parse_schedule(trial.user_attrs["schedule"])
            (found,) = evaluator.evaluate([schedule], "search", method)
            (held,) = evaluator.evaluate([schedule], "held_out", method)
            assert list(trial.values) == [found.accuracy, found.flops_ratio]
            confirmed = comparison.held_out(search, trial)
            assert confirmed is not None
            assert (confirmed.id, confirmed.method) == (held.id, method.name)


def test_fronts_choices_and_exports_name_the_method(finished: Store) -> None:
    comparison = Comparison(finished, "several")
    found = json.loads(json.dumps(comparison.to_dict()))
    for search in found["searches"]:
        assert search["budget_score"] is not None
        (entry,) = (one for one in comparison.searches if one.name == search["name"])
        assert {point["method"] for point in search["front"]} <= {choice.method for choice in entry.methods.values()}
    exported = export_schedule(comparison, comparison.budgets[-1])
    search = next(one for one in comparison.searches if one.name == exported["search"])
    trial = next(one for one in search.trials if one.number == exported["trial"])
    assert exported["method"] == trial.user_attrs["method"].split(":")[0]
    chosen = found["by_budget"][-1]["chosen"]["nsga2"]
    assert with_method(chosen) == f"{chosen['schedule']} {chosen['method']}"


def test_the_learned_search_measures_the_nearest_methods_within_every_budget(finished: Store) -> None:
    comparison = Comparison(finished, "several")
    trials = finished.trial_log("several/learned").complete()
    budgets = [trial.user_attrs["budget"] for trial in trials]
    assert sorted(set(budgets)) == pytest.approx(comparison.budgets)
    for budget in set(budgets):
        own = [trial for trial in trials if trial.user_attrs["budget"] == budget]
        names = [f"{trial.user_attrs['method']} {trial.user_attrs['schedule']}" for trial in own]
        assert all(sorted(names) == sorted(trial.user_attrs["candidates"]) for trial in own)
        assert len({trial.user_attrs["method"] for trial in own}) == len(own) <= 2
        assert all(trial.values[1] <= budget + 1e-9 for trial in own)
    assert [trial.user_attrs["propose_flops"] > 0 for trial in trials] == [True] + [False] * (len(trials) - 1)


def test_gradients_are_told_method_by_method(finished: Store) -> None:
    """Methods are no seeds: each has its own descent for a budget."""
    comparison = Comparison(finished, "several")
    told = violations(comparison)["entries"]
    names = {f"learned with {trial.user_attrs['method']}" for trial in finished.trial_log("several/learned").complete()}
    assert {entry["entry"] for entry in told} == names
    assert sum(entry["pairs"] for entry in told) == len(finished.trial_log("several/learned").complete())
    gradient = layer_record(comparison)["gradient"]
    assert {entry["entry"] for entry in gradient} == names
    assert all(row["seeds"] == 1 for entry in gradient for row in entry["rows"])
    path = gradient_paths(comparison)["learned"]
    lines = [
        line.name for line in figures.trajectory("learned", path["steps"], path["budgets"]).data if line.showlegend
    ]
    assert len(set(lines)) == len(lines) == len(path["steps"])


def test_stopped_it_goes_on_and_finished_it_says_so(problem: Problem, finished: Store, tmp_path: Path) -> None:
    assert Run(fresh(problem, SEVERAL), finished).run(ENTRIES) == 0
    store = Store(f"sqlite:///{tmp_path}/b.db")
    run = Run(fresh(problem, SEVERAL), store)
    run.run(["nsga2"])
    before = finished.trial_log("several/nsga2").complete()
    again = store.trial_log("several/nsga2").complete()
    assert [(t.params, t.values) for t in again] == [(t.params, t.values) for t in before]


def test_a_stopped_learned_search_compares_its_methods_as_an_undisturbed_one(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SEVERAL.replace("measure: 2", "measure: 1")
    compared: list[dict[str, list[list[float]]]] = []

    def promising_methods(losses: Any) -> list[str]:
        compared.append({key: [one.tolist() for one in values] for key, (values, _) in losses.items()})
        return promising(losses)

    monkeypatch.setattr(method_race, "promising", promising_methods)
    stores = [Store(f"sqlite:///{tmp_path}/{name}.db") for name in ("whole", "stopped")]
    Run(fresh(problem, text), stores[0]).run(["learned"])
    with stopped_after(1):
        Run(fresh(problem, text), stores[1]).run(["learned"])
    Run(fresh(problem, text), stores[1]).run(["learned"])
    assert len(compared) == 3
    assert compared[0] == compared[1] == compared[2]
    whole, again = (store.trial_log("several/learned").complete() for store in stores)
    assert [(t.params, t.user_attrs["method"], t.values) for t in again] == [
        (t.params, t.user_attrs["method"], t.values) for t in whole
    ]


def test_methods_that_are_clearly_further_from_the_teacher_stop() -> None:
    weights = torch.ones(8, dtype=torch.float64)
    near = torch.linspace(0.1, 0.2, 8, dtype=torch.float64)
    noisy = near + torch.tensor([0.3, -0.3] * 4, dtype=torch.float64)
    losses = {"near": ([near, near], weights), "far": ([near + 0.1, near + 0.1], weights)}
    assert promising({**losses, "noisy": ([near + 0.1, noisy], weights)}) == ["near", "noisy"]
    assert promising({**losses, "once": ([near + 0.1, near - 0.01], weights)}) == ["near", "once"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: grid, method: [fastv, stride]}", "searches.x: kind 'grid' searches with one method"),
        ("{kind: random, trials: 3, race: {}, method: [fastv, stride]}", "a race is between schedules of one method"),
        ("{kind: lagrangian, predictor: static, method: [fastv, stride]}", "predictor: budget alone"),
        ("{kind: lagrangian, method: [fastv, stride]}", "method 'stride' is not differentiable"),
        ("{kind: tpe, trials: 3, method: [fastv, fastv]}", "method 'fastv' is listed twice"),
        ("{kind: tpe, trials: 3, method: [fastv, fastw]}", "unknown method 'fastw'; did you mean 'fastv'"),
        ("{kind: tpe, trials: 3, method: []}", "searches.x.method"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(problem: Problem, entry: str, message: str) -> None:
    text = SEVERAL.split("searches:")[0] + f"searches:\n  x: {entry}\n"
    with pytest.raises(ConfigError) as error:
        validate(fresh(problem, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_of_one_is_one_and_the_experiment_has_one() -> None:
    one, plain = (SEVERAL.replace("method: [fastv, stride]", f"method: {text}") for text in ("[stride]", "stride"))
    assert parse_study(one).searches["tpe"] == parse_study(plain).searches["tpe"]
    with pytest.raises(ConfigError, match="the experiment has one method"):
        parse_study("method: [fastv, stride]\n" + SEVERAL)
