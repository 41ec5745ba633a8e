"""Searches with a ratio predictor, and on budget by construction: resumed, on budget, snapped, read back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Told, fresh, outcome, stopped_after
from vispco.analysis.comparison import Comparison
from vispco.analysis.repriced import Repriced
from vispco.errors import ConfigError, ScheduleError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.run import Run
from vispco.exporting import export_schedule
from vispco.fronts import choose
from vispco.problem import Problem
from vispco.pruning.families import FAMILIES
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Step
from vispco.search.gradient.all_together import AllTogether
from vispco.search.gradient.between import widest
from vispco.search.gradient.constraints import ByLagrangian
from vispco.search.gradient.descent import Descent
from vispco.search.gradient.distillation import Calibration
from vispco.search.gradient.kkt import residuals
from vispco.search.gradient.lagrangian import LagrangianSearch
from vispco.search.gradient.options import GradientOptions
from vispco.search.gradient.predicted import PredictedPolicy, is_predicted, parse_policy, snapped_policy
from vispco.search.gradient.predictor import RatioPredictor, from_text, shifted_counts, to_text
from vispco.search.gradient.refine import nearest_of_each
from vispco.search.gradient.relaxed_cost import RelaxedCost
from vispco.search.gradient.search import not_held
from vispco.storage.store import Store

STUDY = """
experiment: learned
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 16, search: 8, held_out: 8}}
budgets: 3
batch_size: 8
searches:
"""
COST = "dual_steps: 2, primal_steps: 2, batch: 8, check: 8, between: 1"
STEPS = 4
HELD_BY = ("step", "multistep", "layerwise", "sigmoid")
LONGER = COST.replace("dual_steps: 2", "dual_steps: 6")
KINDS = [(kind, predictor) for kind in ("lagrangian", "on_budget") for predictor in ("static", "budget", "input")]


def made(problem: Problem, entries: str) -> Problem:
    return fresh(problem, STUDY + entries)


def steps_of(store: Store, study: str) -> dict[str, Any]:
    """All that is stored of a descent but what was spent: an interrupted run asks the unpruned model again."""
    found: dict[str, Any] = store.trajectory(study)
    for row in found.get("predictor", ()):
        row["state"] = json.loads(row["state"])
        assert row["state"].pop("spent") > 0
    return found


def outcomes(store: Store, study: str) -> list[Any]:
    """All that must be equal to the bit."""
    return [outcome(trial) for trial in store.trial_log(study).complete()]


def policies(study: Problem, store: Store) -> Any:
    """How the finished run reads its trials' schedules."""
    run = Run(study, store)
    assert run.run() == 0
    return run._policies["learned/input"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "predictor"), KINDS, ids=lambda value: value)
def test_interrupted_at_any_step_and_resumed(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, predictor: str
) -> None:
    study = made(problem, f"  one: {{kind: {kind}, predictor: {predictor}, family: multistep, {COST}}}\n")
    whole = Store(f"sqlite:///{tmp_path}/whole.db")
    Run(study, whole).run()
    monkeypatch.setattr("vispco.search.gradient.descent.SAVE_SECONDS", -1.0)
    step = Descent._step
    steps = (2, 2 * STEPS + 1) if predictor == "static" else range(STEPS) if kind == "lagrangian" else (1, STEPS - 1)
    for stop in steps:
        store, taken = Store(f"sqlite:///{tmp_path}/{stop}.db"), 0

        def stopped(self: Descent, at: int = stop) -> None:
            nonlocal taken
            if taken == at:
                raise KeyboardInterrupt
            step(self)
            taken += 1

        monkeypatch.setattr(Descent, "_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            Run(study, store).run()
        done = taken
        monkeypatch.setattr(Descent, "_step", step)
        Run(study, store).run()
        assert done == stop
        assert outcomes(store, "learned/one") == outcomes(whole, "learned/one")
        assert steps_of(store, "learned/one") == steps_of(whole, "learned/one")


def test_a_resumed_predictor_goes_on_where_it_was(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is taken twice: what the test above compares is no second training."""
    study = made(problem, f"  one: {{kind: lagrangian, predictor: budget, {COST}}}\n")
    store, step, taken = Store(f"sqlite:///{tmp_path}/a.db"), Descent._step, 0
    monkeypatch.setattr("vispco.search.gradient.descent.SAVE_SECONDS", -1.0)

    def counted(self: Descent) -> None:
        nonlocal taken
        if taken == 3:
            raise KeyboardInterrupt
        taken += 1
        step(self)

    monkeypatch.setattr(Descent, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        Run(study, store).run()
    more = 0

    def rest(self: Descent) -> None:
        nonlocal more
        more += 1
        step(self)

    monkeypatch.setattr(Descent, "_step", rest)
    Run(study, store).run()
    assert (taken, more) == (3, STEPS - 3)


@pytest.mark.parametrize("family", ["step", "multistep", "layerwise", "sigmoid"])
def test_by_construction_every_step_costs_its_budget(problem: Problem, tmp_path: Path, family: str) -> None:
    study = made(problem, f"  one: {{kind: on_budget, predictor: budget, family: {family}, {COST}}}\n")
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(study, store).run()
    steps = store.trajectory("learned/one")
    for number in range(3):
        violations = [step["violation"] for step in steps[f"budget-{number}"]]
        assert len(violations) == STEPS
        assert violations == pytest.approx([0.0] * STEPS, abs=1e-3), (family, number)
    for trial in store.trial_log("learned/one").complete():
        assert trial.values[1] <= trial.user_attrs["budget"] + 1e-9
        if not trial.user_attrs.get("interpolated"):
            assert trial.user_attrs["relaxed_flops_ratio"] == pytest.approx(trial.user_attrs["budget"], abs=1e-3)


@pytest.mark.parametrize(
    ("predictor", "family"), [("static", "step"), ("static", "multistep"), *(("budget", f) for f in HELD_BY)]
)
def test_every_budget_is_held_before_the_snap(problem: Problem, tmp_path: Path, predictor: str, family: str) -> None:
    study = made(problem, f"  one: {{kind: lagrangian, predictor: {predictor}, family: {family}, {COST}}}\n")
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(study, store).run()
    solved = [t for t in store.trial_log("learned/one").complete() if not t.user_attrs.get("interpolated")]
    assert len(solved) == 3
    for trial in solved:
        said = trial.user_attrs
        assert said["relaxed_flops_ratio"] == pytest.approx(said["budget"], abs=0.0051)
        assert trial.values[1] <= said["budget"] + 1e-9
        over = said["relaxed_flops_ratio"] / said["budget"] - 1
        assert said["feasibility"] == pytest.approx(max(0.0, over), abs=1e-9)
        assert 0 <= said["stationarity"] <= 1 + 1e-9
    assert not_held(solved) == ""


def test_kkt_residuals_vanish_at_a_solution(problem: Problem) -> None:
    """A loss that falls in proportion to the cost is stationary on its budget; one that rises with it is not."""
    family, cost = FAMILIES["layerwise"](8), RelaxedCost(Evaluator(problem))
    free = family.start().double()
    ratios = family.relaxed(free, 1.0).requires_grad_(True)
    price = cost(ratios)
    (slope,) = torch.autograd.grad(price, [ratios])
    budget = float(price.detach())
    found = residuals(family, cost, free, 1.0, (-3 * slope).tolist(), budget)
    assert found == pytest.approx({"stationarity": 0, "feasibility": 0, "complementarity": 0}, abs=1e-9)
    over = residuals(family, cost, free, 1.0, (-3 * slope).tolist(), budget / 1.1)
    # d loss = -3 d cost, and the violation is cost / budget - 1: the multiplier is 3 budget.
    assert over == pytest.approx(
        {"stationarity": 0, "feasibility": 0.1, "complementarity": 3 * budget / 1.1 * 0.1}, abs=1e-6
    )
    assert residuals(family, cost, free, 1.0, slope.tolist(), budget)["stationarity"] == pytest.approx(1)
    one_layer = [0.0] * 7 + [-1.0]
    assert 0.1 < residuals(family, cost, free, 1.0, one_layer, budget)["stationarity"] < 1


def test_budgets_that_are_not_held_are_reported() -> None:
    def trial(budget: float, relaxed: float) -> Any:
        return SimpleNamespace(user_attrs={"budget": budget, "relaxed_flops_ratio": relaxed})

    trials = [trial(0.5, 0.505), trial(0.4, 0.5), trial(0.3, 0.27), SimpleNamespace(user_attrs={"budget": 0.2})]
    assert not_held(trials) == "2 of 3 budgets not held within 2% before the snap: 0.300 (-10%), 0.400 (+25%)"
    assert not_held(trials[:1]) == ""
    held, missed = trial(0.5, 0.505), trial(0.5, 0.6)
    held.user_attrs["method"], missed.user_attrs["method"] = "fastv", "fitprune"
    assert not_held([held, missed]) == "1 of 2 budgets not held within 2% before the snap: 0.500 with fitprune (+20%)"


def test_groups_are_checked_together_as_each_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    table = {Step(layer, 0.5): 0.02 * layer + torch.rand(64, generator=rng).double() for layer in range(1, 8)}
    asked: list[int] = []

    def losses(schedules: Any, first: int, last: int) -> Any:
        asked.append(len(schedules) * (last - first))
        return torch.stack([table[one][8 * first : 8 * last] for one in schedules]), torch.ones(8 * (last - first))

    def weights(first: int, last: int) -> Any:
        return torch.ones(8 * (last - first))

    calibration: Any = SimpleNamespace(batches=list(range(8)), pruned_losses=losses, even_weights=weights)
    shapes = list(table)
    groups = [shapes[:3], shapes[1:5], [shapes[6]], [*shapes[4:], shapes[4]]]
    alone = [nearest_of_each(calibration, [group], 1, 8)[0] for group in groups]
    each, asked[:] = sum(asked), []
    assert nearest_of_each(calibration, groups, 1, 8) == alone
    assert sum(asked) < each  # schedules of several groups are asked for once
    assert {len(group) for group in alone} == {3, 4, 1}


def test_the_widest_gaps_are_tried_and_half_a_gap_counts_a_quarter() -> None:
    ends = [
        (budget, SimpleNamespace(values=(accuracy, budget)))
        for budget, accuracy in ((0.2, 0.2), (0.4, 0.8), (1.0, 0.9))
    ]
    found = widest(ends, 3)
    assert [middle for middle, *_ in found] == pytest.approx([0.3, 0.7, 0.25])
    assert [(above.values[1], below.values[1]) for _, above, below in found] == [(0.4, 0.2), (1.0, 0.4), (0.4, 0.2)]


def test_a_raced_search_is_resumed_as_it_was(problem: Problem, tmp_path: Path) -> None:
    race = "race: {first: 2, margin: 0.9, alpha: 0.9, reserve: 1}"
    study = made(problem, f"  one: {{kind: lagrangian, {COST}, {race}}}\n")
    whole = Store(f"sqlite:///{tmp_path}/whole.db")
    Run(study, whole).run()
    trials = whole.trial_log("learned/one").settled()
    assert sum(not t.user_attrs.get("interpolated", False) for t in trials) == 3
    store = Store(f"sqlite:///{tmp_path}/a.db")
    with stopped_after(2):
        Run(study, store).run()
    Run(study, store).run()
    assert outcomes(store, "learned/one") == outcomes(whole, "learned/one")
    assert [t.state for t in store.trial_log("learned/one").settled()] == [t.state for t in trials]
    assert Run(study, store).run() == 0


def with_budgets(study: Problem, budgets: int) -> Problem:
    return fresh(study, study.text.replace("budgets: 3", f"budgets: {budgets}"))


@pytest.fixture(scope="module")
def enough(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, Store]:
    """Six budgets, and what an undisturbed run ends in."""
    study = with_budgets(made(problem, f"  one: {{kind: lagrangian, {COST}, enough: 1}}\n"), 6)
    whole = Store(f"sqlite:///{tmp_path_factory.mktemp('enough')}/whole.db")
    Run(study, whole).run()
    return study, whole


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_what_is_good_enough_serves_larger_budgets(enough: tuple[Problem, Store], tmp_path: Path, stop: int) -> None:
    """Of six budgets the lower three are measured, whose best may lose everything here; also after a stop."""
    study, whole = enough
    trials = [t for t in whole.trial_log("learned/one").complete() if not t.user_attrs.get("interpolated")]
    measured, taken = trials[:3], trials[3:]
    assert [len({t.user_attrs["budget"] for t in some}) for some in (measured, taken)] == [3, 3]
    assert max(t.user_attrs["budget"] for t in measured) < min(t.user_attrs["budget"] for t in taken)
    best = choose(measured, 1.0)
    for trial in taken:
        said = trial.user_attrs
        assert (said["schedule"], said["taken_over"]) == (best.user_attrs["schedule"], best.number)
        assert said["charged_flops"] == said["spent_flops"] == said["propose_flops"] == 0
        assert said["relaxed_flops_ratio"] == pytest.approx(said["budget"], abs=0.0051)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    with stopped_after(stop):
        Run(study, store).run()
    Run(study, store).run()
    assert outcomes(store, "learned/one") == outcomes(whole, "learned/one")


def test_without_enough_every_budget_is_measured(problem: Problem, tmp_path: Path) -> None:
    study = with_budgets(made(problem, f"  one: {{kind: lagrangian, {COST}, enough: never}}\n"), 6)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(study, store).run()
    trials = [t for t in store.trial_log("learned/one").complete() if not t.user_attrs.get("interpolated")]
    assert [t.user_attrs["budget"] for t in trials] == sorted((t.user_attrs["budget"] for t in trials), reverse=True)
    assert all(t.user_attrs["charged_flops"] > 0 and "taken_over" not in t.user_attrs for t in trials)


@pytest.mark.parametrize("budgets", [1, 2, 3, 5, 12])
def test_budgets_are_measured_from_the_least_up(budgets: int) -> None:
    search: Any = SimpleNamespace(options=GradientOptions().settled(), context=None)
    falling = [1 - number / 20 for number in range(budgets)]
    groups = AllTogether(search).groups(falling)
    assert sorted(one for group in groups for one in group) == list(enumerate(falling))
    assert [len(group) for group in groups[1:-1]] == list(range(1, len(groups) - 1))
    least = [min(budget for _, budget in group) for group in groups]
    assert least == sorted(least)
    assert all(group == sorted(group) for group in groups)


def test_many_budgets_are_restored_together() -> None:
    """A network for 12 budgets, moved away: the least change brings all back, in a few steps."""
    family = FAMILIES["multistep"](8)
    budgets = torch.linspace(1, 0.2, 12, dtype=torch.float64)
    module, asked = RatioPredictor(family.start(), seed=0), 0

    def cost(ratios: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += 1
        return 0.1 + 0.9 * ratios.double().mean(dim=-1)

    options = GradientOptions().settled()
    held = ByLagrangian(12, options.penalty, options.penalty_cap, True)
    descent = Descent(None, cost, family, module, held, options, budgets, (0.2, 1.0), "x", 24, tolerance=0.01)
    descent._back_on_budget()
    rng = torch.Generator().manual_seed(0)
    for steps in (6, 12):
        with torch.no_grad():
            for weight in module.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=rng).double()
        descent.steps, asked = steps, 0
        assert max(abs(descent.realised()[n] - float(b)) for n, b in enumerate(budgets)) > 0.01
        descent._back_on_budget()
        assert asked < 20
        assert descent.realised() == pytest.approx(budgets.tolist(), abs=0.0051)


def test_an_entry_goes_on_with_the_defaults_that_it_began_with(problem: Problem, tmp_path: Path) -> None:
    """Without that, its new seeds would be another search under the same name."""
    cost = "dual_steps: 1, primal_steps: 1, batch: 8, check: 8"
    study = made(problem, f"  one: {{kind: lagrangian, {cost}, between: 0, seeds: [0]}}\n")
    store, told = Store(f"sqlite:///{tmp_path}/a.db"), Told()
    Run(study, store).run()
    facts = store.require_experiment("learned").facts
    assert facts["studies"]["learned/one@0"].pop("defaults") == 4
    store.save_facts("learned", facts)
    more = fresh(problem, study.text.replace("seeds: [0]", "seeds: [1]"))
    Run(more, store, told).run()
    begun = "predictor: static, learning_rate: 0.3, samples: 0, enough: never"
    assert f"learned/one@1: goes on with the defaults that it began with ({begun})" in told.said
    assert store.trajectory("learned/one@0").keys() - store.trajectory("learned/one@1").keys() == {"predictor"}
    assert store.require_experiment("learned").facts["studies"]["learned/one@1"]["defaults"] == 1


def test_a_short_training_for_many_budgets_ends_on_each(problem: Problem, tmp_path: Path) -> None:
    cost = "dual_steps: 4, primal_steps: 6, batch: 4, check: 8, between: 0"
    study = made(problem, f"  one: {{kind: lagrangian, predictor: budget, family: step, {cost}}}\n")
    twelve = with_budgets(study, 12)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(twelve, store).run()
    trials = store.trial_log("learned/one").complete()
    assert len(trials) == 12
    for trial in trials:
        assert trial.user_attrs["relaxed_flops_ratio"] == pytest.approx(trial.user_attrs["budget"], abs=0.0051)


@pytest.fixture(scope="module")
def conditioned(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, Store]:
    """A finished experiment with an input-conditioned search and a random one of equal compute."""
    entries = f"  input: {{kind: on_budget, predictor: input, family: multistep, learning_rate: 0.03, {LONGER}}}\n"
    study = made(problem, entries + "  random: {kind: random, compute: input, family: multistep}\n")
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('input')}/a.db")
    Run(study, store).run()
    return study, store


def test_policies_per_sample_hold_the_budget_on_average(conditioned: tuple[Problem, Store]) -> None:
    study, store = conditioned
    facts = store.require_experiment("learned").facts
    trials = store.trial_log("learned/input").complete()
    assert sorted(t.user_attrs["budget"] for t in trials) == pytest.approx(facts["budgets"])
    read = policies(study, store)
    evaluator, differ = Evaluator(study), False
    for trial in trials:
        text, budget = trial.user_attrs["schedule"], trial.user_attrs["budget"]
        assert is_predicted(text)
        policy = read(text)
        assert policy.text() == text
        cost = evaluator.flops_ratio(policy, "search", make_method("fastv"))
        assert cost == trial.values[1]
        # The next token would not fit: the snap is no looser than one token of one sample at every layer.
        assert budget - 0.03 <= cost <= budget + 1e-9
        counts = evaluator.counts(policy, "search", make_method("fastv"))[0]
        differ |= any(len(set(column)) > 1 for column in counts.T.tolist())
        with pytest.raises(ScheduleError, match="reads prompts"):
            policy.counts(np.array([16]), 8)
    assert differ, "every sample has the same schedule"
    held_out = [front["accuracy_held_out"] for front in Comparison(store, "learned").to_dict()["searches"][0]["front"]]
    assert None not in held_out


def test_policies_per_sample_have_no_other_price_but_cost_what_they_did(conditioned: tuple[Problem, Store]) -> None:
    _, store = conditioned
    plain, other = Comparison(store, "learned"), Repriced(store, "learned", "kv_bytes")
    one = next(search for search in plain.searches if search.entry == "input")
    assert other.unpriced == other.to_dict()["unpriced"] == {one.name: len(one.trials)}
    found = next(search for search in other.searches if search.entry == "input")
    assert (found.trials, found.total("charged_flops")) == ([], one.total("charged_flops"))


def test_a_policy_per_sample_is_not_exported(conditioned: tuple[Problem, Store]) -> None:
    _, store = conditioned
    comparison = Comparison(store, "learned")
    budget = max(comparison.budgets)
    assert export_schedule(comparison, budget)["search"] == "random"
    comparison.searches = [search for search in comparison.searches if search.entry == "input"]
    with pytest.raises(ConfigError, match="no schedule that a file can hold"):
        export_schedule(comparison, budget)


def test_a_policy_without_its_predictor(conditioned: tuple[Problem, Store], tmp_path: Path) -> None:
    study, store = conditioned
    text = store.trial_log("learned/input").complete()[0].user_attrs["schedule"]
    read = policies(study, store)
    with pytest.raises(ScheduleError, match="predictor of 'learned/other' is not in this database"):
        read(text.replace("learned/input", "learned/other"))
    for wrong in ("predicted(study='a'", "predicted(budget=0.5, shift=0.0)", "predicted(study=f(), budget=1, shift=0)"):
        with pytest.raises(ScheduleError, match="cannot read policy"):
            parse_policy(wrong, lambda study, budget: pytest.fail("was loaded"))


def test_untrained_predictors_start_everywhere_at_the_same_place() -> None:
    start, budgets = torch.tensor([0.3, -1.0]), torch.linspace(0, 1, 5).double()
    plain = RatioPredictor(start)
    assert torch.equal(plain(budgets), start.double().expand(5, 2))
    reading = RatioPredictor(start, reads=6)
    assert torch.equal(reading(budgets, torch.randn(3, 6)), start.double().expand(3, 5, 2))
    again = RatioPredictor(start, reads=6, seed=1)
    again.load_state_dict(from_text(to_text(reading.state_dict())))
    for name, value in reading.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_trained_predictor_tells_budgets_and_samples_apart() -> None:
    """It fits a target that depends on both, and cannot if it does not read the samples."""
    torch.manual_seed(0)
    budgets, features = torch.linspace(0, 1, 4).double(), torch.randn(8, 6)
    target = (budgets[None, :] * features.double()[:, :1])[..., None]

    def fit(reads: int) -> float:
        model = RatioPredictor(torch.zeros(1), reads=reads)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(300):
            loss = (model(budgets, features if reads else None) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert fit(6) < 0.01 < 0.1 < fit(0)


def test_shifts_keep_order_and_ends() -> None:
    ratios, visual = torch.tensor([[1.0, 0.7, 0.7, 0.2], [1.0, 0.9, 0.5, 0.0]]), np.array([20, 10])
    before = None
    for by in (-30.0, -1.0, 0.0, 1.0, 30.0):
        counts = shifted_counts(ratios, by, visual)
        assert (counts[:, 0] == visual).all()
        assert (np.diff(counts, axis=1) <= 0).all()
        assert before is None or (counts >= before).all()
        before = counts
    assert shifted_counts(ratios, 0.0, visual).tolist() == [[20, 14, 14, 4], [10, 9, 5, 0]]
    assert shifted_counts(ratios, 0.0, np.array([0, 0])).tolist() == [[0] * 4] * 2


def test_snapping_a_policy(problem: Problem) -> None:
    """As dear as fits, and cheapest where nothing does."""
    study = made(problem, "  grid: {kind: grid}\n")
    evaluator, method = Evaluator(study), make_method("fastv")
    policy = PredictedPolicy("learned/x", 0.5, lambda features: torch.rand(len(features), 8).sort(descending=True)[0])
    torch.manual_seed(0)
    fixed = torch.rand(8, 8).sort(dim=1, descending=True)[0]
    policy = PredictedPolicy("learned/x", 0.5, lambda features: fixed[: len(features)])
    costs = []
    for budget in (0.3, 0.5, 0.8, 1.0):
        snapped = snapped_policy(policy, evaluator, method, budget)
        costs.append(evaluator.flops_ratio(snapped, "search", method))
        assert costs[-1] <= budget
    assert costs == sorted(costs)
    assert costs[1] > 0.45
    least = evaluator.flops_ratio(snapped_policy(policy, evaluator, method, 0.0), "search", method)
    assert least <= costs[0]


def test_defaults_depend_on_the_predictor() -> None:
    one = GradientOptions().settled()
    assert (one.predictor, one.dual_steps, one.check, one.between) == ("budget", 4, 32, 2)
    assert (one.samples, one.enough) == (128, 0.005)
    assert GradientOptions().as_begun(3).settled() == one.model_copy(update={"rotate": False})
    everything = {"samples": 0, "enough": "never", "rotate": False}
    assert GradientOptions().as_begun(2).settled() == one.model_copy(update=everything)
    assert GradientOptions(enough=0.1).as_begun(2).enough == 0.1
    assert GradientOptions().as_begun(1).settled() == GradientOptions(predictor="static").settled()
    static = GradientOptions(predictor="static", check=0).settled()
    assert (static.dual_steps, static.check, static.between) == (3, 0, 6)
    assert GradientOptions(predictor="input", dual_steps=5).settled().dual_steps == 5
    assert LagrangianSearch.Options is GradientOptions
    assert set(FAMILIES) >= {"step", "multistep", "layerwise"}


def test_every_sample_is_for_every_budget_in_its_turn(problem: Problem, tmp_path: Path) -> None:
    """Twelve budgets and batches of 8 have a common divisor, which would tie each sample to three of them."""
    seen: dict[bool, dict[int, set[int]]] = {True: {}, False: {}}
    watched = Descent._watch

    def cheap(self: Calibration, number: int, ratios: torch.Tensor, temperature: float) -> Any:
        """What is learned does not matter here."""
        return 1 - ratios.double().mean(dim=1), torch.full((len(ratios),), 1 / len(ratios), dtype=torch.float64)

    for rotate, found in seen.items():
        cost = f"dual_steps: 8, primal_steps: 6, batch: 8, check: 0, between: 0, rotate: {str(rotate).lower()}"
        study = made(problem, f"  one: {{kind: lagrangian, family: step, {cost}}}\n")

        def watch(self: Descent, losses: Any, weights: Any, which: Any, found: dict[int, set[int]] = found) -> None:
            for place, budget in enumerate(which.tolist()):
                found.setdefault(place, set()).add(budget)
            watched(self, losses, weights, which)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Descent, "_watch", watch)
            patch.setattr(Calibration, "losses", cheap)
            Run(with_budgets(study, 12), Store(f"sqlite:///{tmp_path}/{rotate}.db")).run()
    assert {len(budgets) for budgets in seen[False].values()} == {3}
    assert min(len(budgets) for budgets in seen[True].values()) > 9
