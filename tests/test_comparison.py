"""The comparison object against slow twins that read trials through Optuna."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from test_copying import GROUPS, fill, measured, stopped
from vispco.analysis.bootstrap import difference, group_bootstrap, interval, mean_scores
from vispco.analysis.comparison import Comparison
from vispco.fronts import choose
from vispco.pruning.families import StepFamily
from vispco.storage.optuna_sql.bulk import append
from vispco.storage.reading import study_ids
from vispco.storage.store import Store


@pytest.fixture
def store(store: Store) -> Store:
    fill(store, "exp", points=6)
    return store


def test_every_number_equals_its_slow_twin(store: Store) -> None:
    comparison = Comparison(store, "exp")
    found = comparison.to_dict()
    links = store.linked("exp", "schedule")
    for row in found["searches"]:
        trials = store.trial_log(row["study"]).complete()
        attributes = [trial.user_attrs for trial in trials]
        for name in ("charged_flops", "spent_flops", "propose_flops"):
            pruned = store.trial_log(row["study"]).trials(TrialState.PRUNED)
            paid = [*attributes, *(trial.user_attrs for trial in pruned)]
            expected = sum(a[name] for a in paid) if all(name in a for a in paid) else None
            assert row[name] == expected
        assert row["trials"] == len(trials) == 6
        assert row["evaluations"] == len({a["evaluation"] for a in attributes})
        best = {tuple(trial.values): trial for trial in reversed(trials)}
        nondominated = {v for v in best if not any(w != v and w[0] >= v[0] and w[1] <= v[1] for w in best)}
        assert {(point["accuracy"], point["flops_ratio"]) for point in row["front"]} == nondominated
        for point in row["front"]:
            trial = trials[point["trial"]]
            assert (point["schedule"], point["keep_ratio"]) == (
                trial.user_attrs["schedule"],
                trial.user_attrs["keep_ratio"],
            )
            assert point["budget"] == trial.user_attrs.get("budget")
            held_out = store.get_evaluation(links[f"fastv|{point['schedule']}", "held_out"])
            assert held_out is not None
            assert point["accuracy_held_out"] == held_out.accuracy
            np.testing.assert_allclose(point["accuracy_ci"], interval(group_bootstrap(held_out.scores, GROUPS)))
        chosen = [choose(trials, budget) for budget in comparison.budgets]
        assert [by["chosen"][row["name"]]["trial"] for by in found["by_budget"]] == [t.number for t in chosen if t]
        delivered = [store.get_evaluation(links[f"fastv|{t.user_attrs['schedule']}", "held_out"]) for t in chosen if t]
        scores = [evaluation.scores for evaluation in delivered if evaluation is not None]
        assert row["budget_score"] == np.mean([e.accuracy for e in delivered if e is not None])
        np.testing.assert_allclose(
            row["budget_score_ci"], interval(group_bootstrap(mean_scores(scores), GROUPS)), atol=1e-12
        )
    grid, tpe = (
        [
            store.get_evaluation(links[f"fastv|{by['chosen'][name]['schedule']}", "held_out"])
            for by in found["by_budget"]
        ]
        for name in ("grid", "tpe@3")
    )
    for by, ours, theirs in zip(found["by_budget"], tpe, grid, strict=True):
        assert ours is not None
        assert theirs is not None
        gap = by["difference_to_grid"]["tpe@3"]
        assert gap["mean"] == ours.accuracy - theirs.accuracy
        slow = group_bootstrap(difference(ours.scores, theirs.scores), GROUPS)
        np.testing.assert_allclose(gap["ci"], interval(slow), atol=1e-12)


def test_only_complete_trials_are_on_a_front_or_chosen(store: Store) -> None:
    """PRUNED, FAIL and RUNNING trials that look better than all others, and COMPLETE ones that are not finite."""
    before = Comparison(store, "exp").to_dict()
    study = store.trial_log("exp/grid").study
    early = stopped(measured("stopped", "search", 1.0, 0.05))
    for state in (TrialState.FAIL, TrialState.RUNNING):
        study.add_trial(create_trial(state=state, user_attrs={"schedule": "step(layer=1, keep=0.0)"}))
    store.trial_log("exp/grid").add(
        early,
        parameters={"layer": 1, "keep": 0.0},
        distributions=StepFamily(4).distributions(),
        seconds=2.0,
    )
    with_values = create_trial(state=TrialState.PRUNED, values=[1.0, 0.01], user_attrs={"charged_flops": 5})
    with_values.user_attrs.update(spent_flops=3, propose_flops=0)
    infinite = create_trial(values=[float("inf"), 0.01], user_attrs={"schedule": "x", "charged_flops": 1})
    with store.engine.begin() as connection:
        append(connection, study_ids(connection, "exp")["exp/grid"], [with_values, infinite])
    after = Comparison(store, "exp").to_dict()
    grid, was = after["searches"][0], before["searches"][0]
    paid = {"charged_flops": early.flops + 5, "spent_flops": early.flops + 3}
    for name, more in paid.items():
        assert grid[name] == was[name] + more
    assert grid["wall_seconds"] > was["wall_seconds"] + 1.9
    naive = was["charged_flops"] + early.full_flops + 5
    assert grid["cost_ratio_to_grid"] == grid["charged_flops"] / naive < was["cost_ratio_to_grid"]
    same = set(grid) - {*paid, "wall_seconds", "cost_ratio_to_grid"}
    assert {key: grid[key] for key in same} == {key: was[key] for key in same}
    assert [row["chosen"] for row in after["by_budget"]] == [row["chosen"] for row in before["by_budget"]]


def test_only_what_is_shown_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill(store, "exp", points=6)
    read: list[str] = []
    real = store.get_evaluations
    monkeypatch.setattr(store, "get_evaluations", lambda ids: read.extend(ids) or real(ids))
    comparison = Comparison(store, "exp")
    found = comparison.to_dict()
    shown = {p["trial"] for s in found["searches"] for p in s["front"]}
    shown |= {c["trial"] for by in found["by_budget"] for c in by["chosen"].values()}
    assert sorted(set(read)) == sorted(
        [
            *(f"h{number}" for number in shown),
            *(f"{k}-{s}" for k in ("unpruned", "no_image") for s in ("search", "held_out")),
        ]
    )
    assert len(shown) < 6
    other = next(t for t in comparison.searches[0].trials if t.number not in shown)
    held_out = comparison.held_out(comparison.searches[0], other)
    assert held_out is not None
    assert held_out.id == f"h{other.number}"
