"""What limits and costs mean in the search, in ``choose`` and for other prices: the same, whatever the prompts are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vispco
from conftest import Cli, Told
from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import Question, decide
from vispco.analysis.pricing import Pricing
from vispco.analysis.repriced import Repriced
from vispco.costs import COSTS, Profile, Setting, kv_cache_bytes, make_cost
from vispco.costs.bounds import parse_bound
from vispco.costs.total_flops import TotalFlops
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.pruning.schedules import Step
from vispco.search.gradient.relaxed_cost import relaxed_limits
from vispco.search.study_cost import StudyCost
from vispco.storage.store import Store
from vispco.testing.costs import planted_profile

UNEVEN = """
experiment: uneven
model: demo
tasks:
  - {name: mosaic-vqa, splits: {search: 12, held_out: 4}}
  - {name: vqa-json, splits: {search: 4, held_out: 4}, options: {path: ROWS}}
cost: kv_bytes
budgets: [0.8]
limits: {flops: 0.7, total_flops: 0.75}
batch_size: 8
searches:
  random: {kind: random, trials: 16}
"""
ANSWERS = """
experiment: answers
model: demo
tasks:
  - {name: mosaic-vqa, splits: {search: 12, held_out: 4}}
cost: {name: flops, batch: 8, answer_tokens: 64}
profile: PROFILE
budgets: [0.8]
limits: {latency_ms: LIMIT ms, tasks: {mosaic-vqa: {max_drop: 60}}}
batch_size: 8
searches:
  random: {kind: random, trials: 16}
"""


def uneven_study(folder: Path) -> str:
    """Questions of the second task are ten times as long, some of them."""
    rows = []
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 0, 99)).save(folder / f"{number}.png")
        question = "What is on this picture? " * (2 + 3 * (number % 3))
        rows.append({"image": f"{number}.png", "question": question, "answer": "red"})
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return UNEVEN.replace("ROWS", str(folder / "rows.jsonl"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Problem]]:
    folder = tmp_path_factory.mktemp("uneven")
    problem = Problem.from_text(uneven_study(folder))
    store = Store(f"sqlite:///{folder}/a.db")
    Run(problem, store).run()
    yield store, problem
    store.engine.dispose()


def faster(profile: Profile, share: float = 0.5) -> Profile:
    """The same machine with all times multiplied."""

    def scaled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: scaled(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [scaled(one, key) for one in value]
        return value if key == "tokens" or not isinstance(value, float) else value * share

    data = profile.model_dump(mode="json")
    return Profile.model_validate({**data, "batches": scaled(data["batches"])})


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Problem, Profile]]:
    """Batches of 8 take three times as long; about half of the schedules keep the limit."""
    folder = tmp_path_factory.mktemp("answers")
    planted = planted_profile(Problem.from_text(ANSWERS.replace("LIMIT", "1")).shape, (), "demo")
    profile = planted.model_copy(update={"batches": {1: planted.at(1), 8: faster(planted, 3.0).at(1)}})
    (folder / "p.json").write_text(profile.to_json())
    text = ANSWERS.replace("PROFILE", str(folder / "p.json")).replace("LIMIT", "LIMIT_MS")
    problem = Problem.from_text(text.replace("LIMIT_MS", "1"))
    cost = StudyCost(Evaluator(problem))
    latency = make_cost("latency_ms")
    method = problem.default_method
    middle = cost._mean(latency, cost._distinct(Step(3, 0.4), method, "search"), method)[0]
    problem = Problem.from_text(
        text.replace("LIMIT_MS", f"{middle:.3f}"), model=problem.model, processor=problem.processor
    )
    store = Store(f"sqlite:///{folder}/a.db")
    Run(problem, store).run()
    yield store, problem, profile
    store.engine.dispose()


# --- shares ------------------------------------------------------------------------------------------


def test_a_limit_in_shares_is_what_choose_takes_it_for(uneven: tuple[Store, Problem]) -> None:
    """Of FLOPs a mean of shares, of other costs a share of means, where prompts are of very different lengths."""
    comparison = Comparison(uneven[0], "uneven")
    pricing, (search,) = Pricing(comparison), comparison.searches
    bounds = [parse_bound(name, given) for name, given in comparison.facts["limits"].items()]
    within = []
    for trial in search.trials:
        prices = [pricing.of(bound.cost, search, trial) for bound in bounds]
        assert all(price is not None for price in prices)
        excess = max(bound.excess(price.absolute, price.share) for bound, price in zip(bounds, prices, strict=True))  # type: ignore[union-attr]
        assert trial.user_attrs["limit_excess"] == pytest.approx(excess, abs=1e-9)
        allowed = [bound.allows(price.absolute, price.share) for bound, price in zip(bounds, prices, strict=True)]  # type: ignore[union-attr]
        assert (trial.user_attrs["limit_excess"] <= 1e-9) == all(allowed)
        within.append(all(allowed))
    assert 0 < sum(within) < len(within)
    cost = StudyCost(Evaluator(uneven[1]))
    method = uneven[1].default_method
    each = cost._mean(make_cost("total_flops"), cost._distinct(Step(2, 0.3), method, "search"), method)
    assert abs(each[0] / cost.whole_of(make_cost("total_flops")) - each[1]) > 0.001  # so that it matters


def test_multipliers_are_of_the_same_limits(uneven: tuple[Store, Problem]) -> None:
    cost, problem = StudyCost(Evaluator(uneven[1])), uneven[1]
    family, method, schedule = problem.family(), problem.default_method, Step(3, 0.25)
    rows = cost._distinct(schedule, None, "search")
    ratios = torch.tensor(schedule.keep_ratio(family.layers), dtype=torch.float64)
    for bound, relaxed in zip(cost.bounds, relaxed_limits(cost, family, method), strict=True):
        model, each = make_cost(bound.cost), bound.cost == "flops"
        added = cost.added_by_pruning(model, family, method, each=each)
        plain = cost._mean(model, rows, None)[each]
        share = (plain + added) / (1.0 if each else cost.whole_of(model))
        assert float(relaxed(ratios)) == pytest.approx(share / bound.value, rel=1e-9)


def test_floor_says_the_share_that_the_limit_bounds(uneven: tuple[Store, Problem]) -> None:
    problem = Problem.from_text(
        uneven[1].text.replace("total_flops: 0.75", "total_flops: 0.01"),
        model=uneven[1].model,
        processor=uneven[1].processor,
    )
    cost, family, method = StudyCost(Evaluator(problem)), problem.family(), problem.default_method
    model, rows = make_cost("total_flops"), cost._distinct(family.cheapest(), method, "search")
    share = cost._mean(model, rows, method)[0] / cost.whole_of(model)
    with pytest.raises(ConfigError, match=f"has {share:.4f}; loosen the limit"):
        cost.floor(family, method)


def test_tasks_count_the_same_whatever_their_size(uneven: tuple[Store, Problem], cli: Cli) -> None:
    store, problem = uneven
    comparison, evaluator = Comparison(store, "uneven"), Evaluator(problem)
    unpruned = comparison.reference("unpruned", "search")
    assert unpruned is not None
    flops, held = [], []
    for part in evaluator.prepared("search"):
        visual = np.repeat(part.n_visual[:, None], problem.shape.layers, axis=1)
        setting = Setting.of(problem.adapter)
        flops.append(make_cost("flops").of(setting, visual, part.n_visual, part.n_text).mean())
        held.append(kv_cache_bytes(problem.shape, visual, part.n_text, setting.bytes_per_value).mean())
    found = json.loads(cli("compare", "uneven", "--storage", store.url, "--json")[1])["unpruned"]
    assert found["flops"] == pytest.approx(np.mean(flops), rel=1e-12)
    assert found["flops"] == pytest.approx(Pricing(comparison).unpruned("flops"), rel=1e-12)
    assert unpruned.kv_bytes == pytest.approx(np.mean(held), rel=1e-12)
    samples = sum(len(scores) for scores in unpruned.scores.values())
    assert abs(unpruned.flops / samples / found["flops"] - 1) > 0.01  # so that it matters


def test_what_an_earlier_version_judged_or_counted_otherwise_is_said(uneven: tuple[Store, Problem]) -> None:
    """Old trials keep their verdicts, and are not mixed with shares of another whole."""
    store, problem = uneven
    facts = store.require_experiment("uneven").facts
    told = Told()
    Run(problem, store, told).run()
    assert not [line for line in told.said if "earlier version" in line]
    store.save_facts("uneven", {key: value for key, value in facts.items() if key != "limit_rules"})
    Run(problem, store, told).run()
    assert [line for line in told.said if "judged by what an earlier version took limits to be" in line]
    assert store.require_experiment("uneven").facts == facts
    terms = facts["cost_terms"]
    doubled = {**terms, "unpruned": {split: 2 * whole for split, whole in terms["unpruned"].items()}}
    store.save_facts("uneven", {**facts, "cost_terms": doubled})
    with pytest.raises(ConfigError, match="as the unpruned model's kv_bytes, and this version counts"):
        Run(problem, store).run()
    store.save_facts("uneven", facts)


def test_a_cost_of_ones_own_that_reads_the_tower_has_it_in_the_study(
    uneven: tuple[Store, Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(TotalFlops):
        name = "own_flops"

    monkeypatch.setitem(COSTS._classes, "own_flops", Own)
    problem = Problem.from_text(
        uneven[1].text.replace("cost: kv_bytes", "cost: own_flops"),
        model=uneven[1].model,
        processor=uneven[1].processor,
    )
    cost = StudyCost(Evaluator(problem))
    assert cost.setting.vision_flops > 0
    pricing = Pricing(Comparison(uneven[0], "uneven"))
    assert cost.whole() == pytest.approx(pricing.unpruned("own_flops"), rel=1e-12)
    assert cost.whole() == pytest.approx(pricing.unpruned("total_flops"), rel=1e-12)


def test_trials_without_a_schedule_are_priced_by_their_own_ratios(uneven: tuple[Store, Problem]) -> None:
    """Policies that read the prompt may have one text and different counts."""
    pricing = Pricing(comparison := Comparison(uneven[0], "uneven"))
    (search,), layers = comparison.searches, uneven[1].shape.layers
    prices = [pricing._computed("kv_bytes", search, [kept] * layers, "own", "search") for kept in (0.25, 0.5)]
    assert prices[0] is not None
    assert prices[1] is not None
    assert prices[0].absolute < prices[1].absolute


# --- other terms -------------------------------------------------------------------------------------


def test_a_study_in_flops_has_its_batch_and_answers(answers: tuple[Store, Problem, Profile]) -> None:
    comparison = Comparison(answers[0], "answers")
    pricing = Pricing(comparison)
    assert (pricing.batch, pricing.answer_tokens, pricing.own) == (8, 64, True)
    found = decide(comparison, Question(100.0))
    (trial,) = [t for t in answers[0].trial_log("answers/random").complete() if t.number == found["chosen"]["trial"]]
    assert found["limits"][0]["absolute"] == pytest.approx(trial.user_attrs["latency_ms"], rel=1e-9)
    for nothing in ({"batch": 0}, {"answer_tokens": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(nothing))} is 0; it is a number of 1 or more"):
            vispco.choose("answers", 50, cost="latency_ms", storage=answers[0].url, **nothing)  # type: ignore[arg-type]


def over_the_limit(comparison: Comparison) -> set[int]:
    return {t.number for t in comparison.searches[0].trials if t.user_attrs["limit_excess"] > 1e-9}


def candidates(comparison: Comparison, question: Question, pricing: Pricing | None = None) -> int:
    """How many schedules are within what is asked."""
    found: int = decide(comparison, question, pricing)["candidates"]
    return found


def test_limits_in_time_are_judged_by_the_prices_that_are_asked_for(answers: tuple[Store, Problem, Profile]) -> None:
    """On a machine of twice the speed all keep the limit; a loosened one is honoured, and so is a task's."""
    store, _, profile = answers
    comparison = Comparison(store, "answers")
    trials = comparison.searches[0].trials
    texts = {t.user_attrs["schedule"] for t in trials}
    assert 0 < len(over_the_limit(comparison)) < len(trials)
    question = Question(100.0)
    few = candidates(comparison, question)
    assert few < len(texts)
    quick = Pricing(comparison, faster(profile))
    whole = comparison.reference("unpruned", "search")
    assert whole is not None
    assert candidates(comparison, Question(100.0, tasks={"*": 100.0}), quick) == len(texts)
    longer = Question(100.0, limits=(parse_bound("latency_ms", "9 s"),), tasks={"*": 100.0})
    assert candidates(comparison, longer) == len(texts)
    lost = [t for t in trials if whole.accuracy - t.accuracy > 0.6 + 1e-9]
    assert candidates(comparison, replace(longer, tasks={})) == len(texts - {t.user_attrs["schedule"] for t in lost})

    redrawn = Repriced(store, "answers", "flops", faster(profile))
    assert over_the_limit(redrawn) == {t.number for t in lost}
    assert over_the_limit(Repriced(store, "answers", "flops")) == over_the_limit(comparison)
    slow = Repriced(store, "answers", "flops", faster(profile, 4.0))
    assert over_the_limit(slow) == {t.number for t in trials}


def test_bytes_are_as_wide_as_on_the_profiles_machine(answers: tuple[Store, Problem, Profile], tmp_path: Path) -> None:
    store, problem, profile = answers
    half = profile.model_copy(update={"dtype": "bfloat16"})
    comparison = Comparison(store, "answers")
    (search,) = comparison.searches
    for cost in ("kv_bytes", "peak_bytes"):
        for trial in search.trials[:4]:
            wide, narrow = (Pricing(comparison, one).of(cost, search, trial) for one in (profile, half))
            assert wide is not None
            assert narrow is not None
            assert (narrow.absolute, narrow.share) == pytest.approx((wide.absolute / 2, wide.share), rel=1e-12)
    (tmp_path / "half.json").write_text(half.to_json())
    text = problem.text.replace(str(problem.study.profile), str(tmp_path / "half.json"))
    studies = [problem, Problem.from_text(text, model=problem.model, processor=problem.processor)]
    whole, halved = (StudyCost(Evaluator(one)).whole_of(make_cost("kv_bytes")) for one in studies)
    assert halved == whole / 2


def test_redrawn_experiments_share_a_reference_point(
    answers: tuple[Store, Problem, Profile], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest = iter([0.3, 0.1])
    monkeypatch.setattr(Comparison, "reference_point", lambda _: (next(lowest), 1.0))
    where = ("--storage", answers[0].url, "--cost", "kv_bytes", "--json")
    found = json.loads(cli("compare", "answers", "answers", *where)[1])
    assert found["reference_point"] == {"accuracy": 0.1, "flops_ratio": 1.0}
    first, second = (one["searches"][0]["hypervolume"] for one in found["experiments"])
    assert first == second
