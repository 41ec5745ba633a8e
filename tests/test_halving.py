"""Successive halving: who goes on, what it costs, and that only what saw all samples counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from conftest import fresh
from vispco.analysis.comparison import Comparison
from vispco.errors import ConfigError
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.pruning.schedules import parse_schedule
from vispco.search.racing import Order
from vispco.search.recipes.halving import Halving, best, rungs_of
from vispco.storage.store import Store

HALVING = """
experiment: halving
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 8, search: 300, held_out: 8}}
budgets: 2
searches:
  tpe: {kind: halving, trials: 12, batch: 8}
  nsga2: {kind: halving, spent: 0.08, batch: 4, sampler: nsga2, population: 4, eta: 4, seeds: [5]}
"""


@pytest.fixture(scope="module")
def finished(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('halving')}/a.db")
    Run(fresh(problem, HALVING), store).run()
    return store


def test_fronts_go_first_and_spread_out() -> None:
    accuracy = np.array([0.9, 0.5, 0.89, 0.1, 0.8, 0.7])
    cost = np.array([0.9, 0.2, 0.95, 0.1, 0.8, 0.9])
    # 0, 1, 3 and 4 are on the first front, and 4 lies close to 0; of the others 2 is better than 5, which 0 and 4 beat.
    assert best(accuracy, cost, 3).tolist() == [0, 3, 1]
    assert best(accuracy, cost, 4).tolist() == [0, 3, 1, 4]
    assert set(best(accuracy, cost, 5).tolist()) > {0, 1, 3, 4}
    assert best(accuracy[:0], cost[:0], 2).tolist() == []
    assert best(accuracy[:1], cost[:1], 2).tolist() == [0]


def test_samples_grow_by_eta() -> None:
    assert rungs_of(512, 64, 2) == [128, 256, 512]
    assert rungs_of(2048, 64, 4) == [128, 512, 2048]
    assert rungs_of(100, 64, 2) == [100]
    assert rungs_of(512, 200, 2) == [256, 512]


def test_a_schedule_that_failed_takes_nobodys_place() -> None:
    order = Order(np.zeros(4, int), np.arange(4), np.full(4, 0.25), np.arange(4))
    race = Halving([0.1, 0.2, 0.3, 0.4], order, [2, 4], [2])
    scores = np.array([[0.0, 0.0], [np.nan, np.nan], [1.0, 1.0], [0.0, 0.0]])
    race.look(scores)
    assert race.stopped_at.tolist() == [0, 0, 0, 2]
    assert not race.unwitnessed.any()


def test_half_goes_on_and_the_sampler_is_told_of_the_rest(problem: Problem, finished: Store) -> None:
    log = finished.trial_log("halving/tpe")
    trials = sorted(log.trials(), key=lambda trial: trial.user_attrs["proposal"])
    assert [trial.user_attrs["proposal"] for trial in trials] == list(range(12))
    for bracket in (trials[:8], trials[8:]):
        seen = [trial.user_attrs.get("samples", 300) for trial in bracket]
        assert sorted(seen) == [128] * (len(bracket) // 2) + [256] * (len(bracket) // 4) + [300] * (len(bracket) // 4)
    assert {trial.state for trial in trials if "samples" in trial.user_attrs} == {TrialState.PRUNED}
    comparison = Comparison(finished, "halving")
    search = next(one for one in comparison.searches if one.name == "tpe")
    assert len(search.trials) == 3
    assert {trial.number for trial in comparison.front(search)} <= {t.number for t in log.complete()}
    assert comparison.to_dict()["searches"][0]["budget_score"] is not None


def test_what_it_costs_is_known_and_limited(problem: Problem, finished: Store) -> None:
    run = Run(fresh(problem, HALVING), finished)
    schedules, method = run.allowances.dense_grid
    log = finished.trial_log("halving/nsga2@5")
    limit = 0.08 * run.evaluator.shared_price(schedules, "search", method)
    assert 0.2 * limit < log.spent_flops() <= limit
    trials = sorted(log.trials(), key=lambda trial: trial.user_attrs["proposal"])
    assert len(trials) % 4 == 0
    assert {trial.user_attrs["generation"] for trial in trials} == set(range(len(trials) // 4))
    bracket = trials[:4]
    again = [parse_schedule(trial.user_attrs["schedule"]) for trial in bracket]
    until = [trial.user_attrs.get("samples", 0) for trial in bracket]
    spent = sum(trial.user_attrs["spent_flops"] for trial in bracket)
    assert run.evaluator.shared_price(again, "search", method, until) == spent
    for schedule, trial in zip(again, bracket, strict=True):
        parts = run.evaluator.prices(schedule, [128, 300], "search", method)
        assert sum(parts) == run.evaluator.price(schedule, "search", method)
        assert trial.user_attrs["charged_flops"] == sum(parts[:1] if trial.user_attrs.get("samples") else parts)


@pytest.mark.slow
def test_finished_it_says_so_and_another_run_proposes_the_same(
    problem: Problem, finished: Store, tmp_path: Path
) -> None:
    assert Run(fresh(problem, HALVING), finished).run() == 0
    text = HALVING.replace("trials: 12", "trials: 8")
    store = Store(f"sqlite:///{tmp_path}/b.db")
    Run(fresh(problem, text), store).run(["tpe"])
    first = [(t.params, t.user_attrs.get("samples")) for t in finished.trial_log("halving/tpe").trials()[:8]]
    assert [(t.params, t.user_attrs.get("samples")) for t in store.trial_log("halving/tpe").trials()] == first


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: halving, trials: 8, eta: 1}", "searches.x.eta = 1"),
        ("{kind: halving, trials: 8, batch: 1}", "searches.x.batch = 1"),
        ("{kind: halving, trials: 8, sampler: cma}", "searches.x.sampler = 'cma'"),
        ("{kind: halving, trials: 8, method: [fastv, stride]}", "kind 'halving' searches with one method"),
        ("{kind: halving}", "give either trials: N or compute"),
    ],
)
def test_refused(problem: Problem, entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(fresh(problem, HALVING.split("searches:")[0] + f"searches:\n  x: {entry}\n"))
    assert message in str(error.value)
