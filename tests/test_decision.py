"""The decision: against brute force on the demo's grid; its test's error rate; what cannot be confirmed; export."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vispco.dashboards.decision import decision_html
from vispco.dashboards.page import render
from vispco.dashboards.report import report_record

import vispco
from conftest import SMALL
from report_data import fill
from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import Question, decide, nothing_cheaper
from vispco.analysis.noninferiority import noninferiority
from vispco.analysis.pricing import Pricing
from vispco.analysis.repriced import Repriced
from vispco.confirming import confirm
from vispco.costs import COSTS, kv_cache_bytes, make_cost, prefill_flops, unpruned_flops
from vispco.costs.bounds import Bound, parse_bound, parse_limit
from vispco.costs.described import described
from vispco.costs.profile import Profile
from vispco.errors import ConfigError
from vispco.experiment.run import Run
from vispco.exporting import Recommendation, export_decision, export_schedule
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.published import PUBLISHED
from vispco.pruning.schedule_file import read_schedule_file
from vispco.pruning.schedules import Counts, parse_schedule
from vispco.storage.store import Store
from vispco.testing.costs import planted_profile

GRID = SMALL.split("  lagrangian")[0].replace("small", "gridded").replace("batch_size: 8", "batch_size: 16")


@pytest.fixture(scope="module")
def gridded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Comparison, Run]]:
    """The demo's complete grid on a dozen samples of each split."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('grid')}/a.db")
    run = Run(Problem.from_text(GRID), store)
    run.run()
    yield Comparison(store, "gridded"), run
    store.engine.dispose()


@pytest.fixture(scope="module")
def profile() -> Profile:
    return planted_profile(described("demo").shape, (), "demo")


def test_agrees_with_brute_force(gridded: tuple[Comparison, Run], profile: Profile) -> None:
    """A hundred random questions, answered from every sample's own counts, with formulas written out here."""
    comparison, run = gridded
    pricing = Pricing(comparison, profile)
    parts = run.evaluator.prepared("search")
    shape, fastv = run.problem.shape, make_method("fastv")
    staircase, times = profile.batches[1].layers["full"], profile.batches[1]

    def milliseconds(counts: Counts, visual: Counts, text: Counts) -> np.ndarray[Any, Any]:
        found = []
        for row, v, t in zip(counts.tolist(), visual.tolist(), text.tolist(), strict=True):
            at = lambda curve, n: float(np.interp(n, curve.tokens, curve.ms))  # noqa: E731
            total = at(times.tower, v) + at(times.rest, v + t) + sum(at(staircase, n + t) for n in row)
            drops = [(a, b) for a, b in zip([v, *row], row, strict=False) if b < a]
            total += sum(at(times.methods["fastv"].boundary, a + t) for a, b in drops if b)
            found.append(total + (0.2 + 0.01 * len(row) if drops else 0.0))
        return np.array(found)

    def costs(counts: list[Counts]) -> dict[str, tuple[float, float]]:
        absolute: dict[str, list[float]] = {"flops": [], "kv_bytes": [], "prefill_ms": []}
        share: dict[str, list[float]] = {name: [] for name in absolute}
        for part, given in zip(parts, counts, strict=True):
            v, t = part.n_visual, part.n_text
            plain = np.repeat(v[:, None], shape.layers, axis=1)
            values = {
                "flops": (prefill_flops(shape, given, v, t, fastv), unpruned_flops(shape, v, t)),
                "kv_bytes": (kv_cache_bytes(shape, given, t, 4), kv_cache_bytes(shape, plain, t, 4)),
                "prefill_ms": (milliseconds(given, v, t), milliseconds(plain, v, t)),
            }
            for name, (mine, whole) in values.items():
                absolute[name].append(float(np.mean(mine)))
                # Of FLOPs the mean of each prompt's share, of other costs the ratio of the means.
                share[name].append(float(np.mean(mine / whole) if name == "flops" else np.mean(mine) / np.mean(whole)))
        return {name: (float(np.mean(absolute[name])), float(np.mean(share[name]))) for name in absolute}

    unpruned = comparison.reference("unpruned", "search")
    assert unpruned is not None
    plain = costs([np.repeat(part.n_visual[:, None], shape.layers, axis=1) for part in parts])
    rows: list[tuple[str | None, float, dict[str, tuple[float, float]]]] = [(None, unpruned.accuracy, plain)]
    for trial in comparison.searches[0].trials:
        text = trial.user_attrs["schedule"]
        assert trial.values is not None
        rows.append((text, trial.values[0], costs(run.evaluator.counts(parse_schedule(text), "search", fastv))))
    assert len(rows) > 100

    rng, answered, pruned = random.Random(5), 0, 0
    for _ in range(100):
        cost = rng.choice(["flops", "kv_bytes", "prefill_ms"])
        drop = rng.choice([0.0, 1.0, 5.0, 10.0, 20.0, 50.0])
        limits = []
        for name in rng.sample(["flops", "kv_bytes", "prefill_ms"], rng.randrange(3)):
            relative = rng.random() < 0.5
            limits.append(Bound(name, rng.uniform(0.3, 1.05) * (1.0 if relative else plain[name][0]), relative))
        fitting = [
            (found[cost][1], -accuracy, number, text)
            for number, (text, accuracy, found) in enumerate(rows)
            if accuracy >= unpruned.accuracy - drop / 100 - 1e-9
            and all((found[b.cost][1] if b.relative else found[b.cost][0]) <= b.value * (1 + 1e-12) for b in limits)
        ]
        asked = Question(drop, cost, tuple(limits))
        if not fitting:
            with pytest.raises(ConfigError, match="no measured schedule"):
                decide(comparison, asked, pricing)
            continue
        chosen = decide(comparison, asked, pricing)["chosen"]
        answered += 1
        pruned += chosen["search"] is not None
        # Equal counts on these samples cost the same to the last digits only.
        assert chosen["cost_ratio"] == pytest.approx(min(fitting)[0], rel=1e-12)
        best = min(row for row in fitting if row[0] <= min(fitting)[0] * (1 + 1e-12))
        assert chosen["accuracy"] == max(-row[1] for row in fitting if row[0] <= best[0] * (1 + 1e-12))
        assert chosen["schedule"] in {row[3] for row in fitting}
    assert answered > 50
    assert pruned > 30


def test_a_choice_is_never_dominated(gridded: tuple[Comparison, Run]) -> None:
    comparison, _ = gridded
    pricing = Pricing(comparison)
    for drop in (0.0, 5.0, 20.0, 40.0):
        for cost in ("flops", "kv_bytes", "total_flops", "peak_bytes"):
            chosen = decide(comparison, Question(drop, cost), pricing)["chosen"]
            for search in comparison.searches:
                for trial in search.trials:
                    price = pricing.of(cost, search, trial)
                    assert price is not None
                    assert trial.values is not None
                    no_worse = trial.values[0] >= chosen["accuracy"] and price.share <= chosen["cost_ratio"]
                    better = trial.values[0] > chosen["accuracy"] or price.share < chosen["cost_ratio"]
                    assert not (no_worse and better)


def test_stored_lengths_give_the_measured_costs(gridded: tuple[Comparison, Run]) -> None:
    """flops_ratio and kv_bytes of every trial come out as they were measured."""
    comparison, _ = gridded
    pricing, search = Pricing(comparison), comparison.searches[0]
    measured = comparison.store.get_evaluations(str(t.user_attrs["evaluation"]) for t in search.trials)
    for trial in search.trials[::7]:
        evaluation = measured[str(trial.user_attrs["evaluation"])]
        kv_bytes = pricing.of("kv_bytes", search, trial)
        assert kv_bytes is not None
        assert kv_bytes.absolute == pytest.approx(evaluation.kv_bytes, rel=1e-12)
        setting, prompts = pricing.setting.with_method(make_method("fastv")), pricing.prompts("search")
        counts = parse_schedule(evaluation.schedule).counts(prompts.visual, setting.shape.layers)
        assert make_cost("flops").mean(setting, counts, prompts)[1] == pytest.approx(trial.values[1])  # type: ignore[index]
    assert pricing.exact
    assert pricing.setting.vision_flops > 0


def test_old_databases_have_every_cost(tmp_path: Path, profile: Profile) -> None:
    """By prompts of average length, which follow from stored FLOPs; what was measured comes out within a percent."""
    (tmp_path / "old.db").write_bytes((Path(__file__).parent / "data" / "version-1.db").read_bytes())
    store = Store(f"sqlite:///{tmp_path}/old.db", create=False)
    comparison = Comparison(store, "old")
    pricing = Pricing(comparison, profile)
    assert not pricing.exact
    for search in comparison.searches:
        measured = store.get_evaluations(str(t.user_attrs["evaluation"]) for t in search.trials)
        for trial in search.trials:
            for cost in COSTS:
                assert pricing.of(cost, search, trial) is not None
            kv_bytes = pricing.of("kv_bytes", search, trial)
            assert kv_bytes is not None
            known = measured[str(trial.user_attrs["evaluation"])]
            assert kv_bytes.absolute == pytest.approx(known.kv_bytes, rel=0.01)
    found = decide(comparison, Question(10.0, "prefill_ms", (parse_bound("kv_bytes", 0.9),)), pricing)
    assert found["exact_lengths"] is False
    assert found["chosen"]["schedule"]
    store.engine.dispose()


# --- the test ------------------------------------------------------------------------------------


def paired(rng: np.random.Generator, samples: int, lost: float, won: float) -> tuple[dict[str, Any], dict[str, Any]]:
    draw = rng.random(samples)
    unpruned = (rng.random(samples) < 0.7).astype(float)
    mine = np.where(draw < lost, 0.0, np.where(draw > 1 - won, 1.0, unpruned))
    plain = np.where(draw < lost, 1.0, np.where(draw > 1 - won, 0.0, unpruned))
    return {"t": mine}, {"t": plain}


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.0), (0.05, 0.03), (0.15, 0.13)])
def test_a_loss_of_the_margin_is_confirmed_as_seldom_as_it_says(lost: float, won: float) -> None:
    rng, sure, wrong, repeats = np.random.default_rng(3), 0.95, 0, 1500
    groups = {"t": [str(n) for n in range(400)]}
    for _ in range(repeats):
        found = noninferiority(*paired(rng, 400, lost, won), groups, lost - won, sure)
        assert found is not None
        wrong += found.confirmed
    assert wrong / repeats <= 1 - sure + 3 * np.sqrt(0.05 * 0.95 / repeats)


def test_the_needed_samples_have_the_power_they_promise() -> None:
    rng = np.random.default_rng(4)
    plans, confirmed, repeats = [], 0, 600
    lost, won, margin = 0.05, 0.045, 0.02
    first, second = paired(rng, 200_000, lost, won)
    exact = noninferiority(first, second, {"t": [str(n) for n in range(200_000)]}, margin, 0.95)
    assert exact is not None
    apart = first["t"] - second["t"]
    needed = ((1.6449 + 0.8416) * apart.std() / (margin + apart.mean())) ** 2
    for _ in range(repeats):
        groups = {"t": [str(n) for n in range(round(needed))]}
        found = noninferiority(*paired(rng, round(needed), lost, won), groups, margin, 0.95)
        assert found is not None
        confirmed += found.confirmed
        plans.append(found.needed)
    assert 0.74 < confirmed / repeats < 0.86
    assert exact.needed == pytest.approx(needed, rel=0.02)


def test_no_difference_in_few_samples_is_no_certainty() -> None:
    same = {"t": np.ones(12)}
    found = noninferiority(same, same, {"t": [str(n) for n in range(12)]}, 0.01, 0.95)
    assert found is not None
    assert not found.confirmed
    assert found.needed is not None
    assert found.needed > 150
    many = {"t": np.ones(2000)}
    sure = noninferiority(many, many, {"t": [str(n) for n in range(2000)]}, 0.01, 0.95)
    assert sure is not None
    assert sure.confirmed
    assert noninferiority(same, same, {"t": ["a"] * 12}, 0.01, 0.95) is None


def test_groups_count_not_samples() -> None:
    """Ten questions about each of 40 pictures, answered alike: as uncertain as 40 questions."""
    rng = np.random.default_rng(1)
    first, second = paired(rng, 40, 0.1, 0.1)
    groups = {"t": [str(n) for n in range(40)]}
    alone = noninferiority(first, second, groups, 0.02, 0.95)
    often = noninferiority(
        {"t": np.repeat(first["t"], 10)},
        {"t": np.repeat(second["t"], 10)},
        {"t": [str(n // 10) for n in range(400)]},
        0.02,
        0.95,
    )
    assert alone is not None
    assert often is not None
    assert often.low == pytest.approx(alone.low)
    assert often.needed == pytest.approx(10 * alone.needed, rel=0.01) if alone.needed else often.needed is None


# --- tasks, what is not measured, export ------------------------------------------------------------


@pytest.fixture
def two_tasks(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/two.db")
    fill(store, "two", tasks=("colours", "shapes"))
    yield store
    store.engine.dispose()


def test_every_task_is_tested_by_itself(two_tasks: Store) -> None:
    comparison = Comparison(two_tasks, "two")
    found = decide(comparison, Question(60.0, sure=0.9))
    assert found["chosen"]["search"] is not None
    assert found["tasks"] == {}
    # The made trials' search evaluations are not stored, so that nothing is known of single tasks there.
    alone = decide(comparison, Question(60.0, tasks={"*": 60.0}))
    assert alone["chosen"]["search"] is None
    assert alone["confirmed"] is True
    with pytest.raises(ConfigError, match="no task 'shape' in this experiment; did you mean 'shapes'"):
        decide(comparison, Question(5.0, tasks={"shape": 2.0}))


def test_absolute_flops_are_the_mean_of_what_was_measured(gridded: tuple[Comparison, Run]) -> None:
    """A mean of ratios times a mean is another number where prompts differ in length."""
    comparison, _ = gridded
    pricing, (search, *_) = Pricing(comparison), comparison.searches
    for trial in search.trials[::9]:
        price = pricing.of("flops", search, trial)
        measured = comparison.store.get_evaluation(trial.user_attrs["evaluation"])
        assert price is not None
        assert measured is not None
        samples = sum(len(scores) for scores in measured.scores.values())
        assert price.absolute == pytest.approx(measured.flops / samples, rel=1e-12)
        assert price.share == measured.flops_ratio
    unpruned = comparison.reference("unpruned", "search")
    assert unpruned is not None
    assert pricing.unpruned("flops") == pytest.approx(unpruned.flops / samples, rel=1e-12)


def test_a_schedule_has_one_share_as_a_trial_and_as_a_default(gridded: tuple[Comparison, Run]) -> None:
    comparison, _ = gridded
    under = Repriced(comparison.store, comparison.experiment, "kv_bytes")
    published, schedule = "fastv:k2-r50", PUBLISHED["fastv:k2-r50"].for_layers(8).text()
    same = [t for s in under.searches for t in s.trials if t.user_attrs["schedule"] == schedule]
    assert under.default_share(published) == pytest.approx(same[0].cost, rel=1e-12)


def test_what_is_confirmed_is_measured_with_the_experiments_own_model(
    gridded: tuple[Comparison, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model by the same name with other weights says nothing about the one that was searched."""
    comparison, run = gridded
    (search, *_), problem = comparison.searches, run.problem
    model = copy.deepcopy(problem.model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    other = Problem(problem.study, problem.text, model=model, processor=problem.processor)
    monkeypatch.setattr(Problem, "from_text", lambda *_, **__: other)
    with pytest.raises(ConfigError, match="other content under the same names: weights of the model"):
        confirm(comparison, search.name, search.trials[-1].number)


def test_the_unpruned_model_is_no_measured_schedule(gridded: tuple[Comparison, Run]) -> None:
    comparison, _ = gridded
    schedules = {trial.user_attrs["schedule"] for search in comparison.searches for trial in search.trials}
    assert decide(comparison, Question(100.0))["candidates"] == len(schedules)


def test_what_a_task_may_lose_limits_the_choice(gridded: tuple[Comparison, Run]) -> None:
    comparison, _ = gridded
    free = decide(comparison, Question(40.0))
    held = decide(comparison, Question(40.0, tasks={"mosaic-vqa": 5.0}))
    assert held["chosen"]["accuracy"] >= held["unpruned"]["accuracy"] - 0.05 - 1e-9
    assert held["chosen"]["cost_ratio"] > free["chosen"]["cost_ratio"]
    assert set(held["tasks"]) == {"mosaic-vqa"}


def test_what_is_not_measured_held_out_is_said_and_measured_on_request(
    gridded: tuple[Comparison, Run], cli: Callable[..., tuple[int, str, str]]
) -> None:
    """Under another cost the choice need not be on the front, which alone was confirmed."""
    comparison, _ = gridded
    url = comparison.store.url
    trial = next(t for t in comparison.searches[0].trials if comparison.held_out(comparison.searches[0], t) is None)
    question = None
    for drop in np.arange(0.0, 60.0, 2.0):
        for cost in ("kv_bytes", "peak_bytes"):
            found = decide(comparison, Question(float(drop), cost))
            if found["confirmed"] is None:
                question = (float(drop), cost)
    confirm(comparison, comparison.searches[0].name, trial.number)
    fresh = Comparison(comparison.store, "gridded")
    assert fresh.held_out(fresh.searches[0], trial) is not None
    if question is not None:
        asked = ("choose", "gridded", "--storage", url, "--max-drop", question[0], "--cost", question[1])
        assert "--measure does it" in cli(*asked)[1]
        code, out, _ = cli(*asked, "--measure", "--json")
        assert code == 0
        assert json.loads(out)["confirmed"] is not None


def test_command_and_python_and_export(
    gridded: tuple[Comparison, Run], cli: Callable[..., tuple[int, str, str]], tmp_path: Path, profile: Profile
) -> None:
    url = gridded[0].store.url
    file = tmp_path / "profile.json"
    file.write_text(profile.to_json())
    asked = ("--storage", url, "--max-drop", "30", "--cost", "prefill_ms", "--limit", "kv_bytes=0.9", "--profile", file)
    code, out, err = cli("choose", "gridded", *asked, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    python = vispco.choose("gridded", 30, cost="prefill_ms", limits={"kv_bytes": 0.9}, profile=file, storage=url)
    assert python == found
    code, text, _ = cli("choose", "gridded", *asked)
    assert text.startswith(found["chosen"]["schedule"])
    assert "confirmed" in text
    code, _, err = cli("export", "gridded", *asked, "-o", tmp_path / "best.json")
    assert (code, err) == (0, "")
    written = read_schedule_file(tmp_path / "best.json")
    assert written.facts["schedule"] == found["chosen"]["schedule"]
    assert written.facts["decision"]["max_drop"] == 30
    assert cli("choose", "gridded", "--storage", url, "--cost", "prefill_ms")[2].count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "kv_bytes"], "is not cost=bound"),
        (["--limit", "kv_byte=0.5"], "did you mean 'kv_bytes'"),
        (["--limit", "kv_bytes=0.5ms"], "is no bound on kv_bytes"),
        (["--limit", "flops=-1"], "is no bound on flops"),
        (["--limit", "flops=0.01"], "no measured schedule of 'gridded' is within 1 point and the limits (flops 0.01)"),
        (["--cost", "tokens_per_second"], "is a rate"),
        (["--max-drop", "-1"], "from 0 to 100"),
        (["--max-drop", "nan"], "from 0 to 100"),
        (["--sure", "1"], "below 1"),
        (["--max-task-drop", "x=y"], "is no number of points"),
        (["--max-task-drop", "x=1"], "no task 'x'"),
        (["--profile", "nowhere.json"], "cannot read profile"),
    ],
)
def test_questions_that_cannot_be_asked(
    gridded: tuple[Comparison, Run], cli: Callable[..., tuple[int, str, str]], options: list[str], message: str
) -> None:
    code, out, err = cli("choose", "gridded", "--storage", gridded[0].store.url, *options)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("vispco: ")
    assert err.count("\n") == 1


def test_export_wants_one_of_budget_and_drop(
    gridded: tuple[Comparison, Run], cli: Callable[..., tuple[int, str, str]]
) -> None:
    url = gridded[0].store.url
    assert "one of --budget" in cli("export", "gridded", "--storage", url)[2]
    both = cli("export", "gridded", "--storage", url, "--budget", "0.5", "--max-drop", "1")
    assert "one of --budget" in both[2]
    for options in (["--cost", "flops"], ["--batch", "4"], ["--answer-tokens", "9"], ["--sure", "0.95"]):
        code, _, err = cli("export", "gridded", "--storage", url, "--budget", "0.5", *options)
        assert (code, f"{options[0]} belongs to --max-drop" in err) == (2, True), err
    code, _, err = cli("export", "gridded", "--storage", url, "--max-drop", "90", "--target", "vllm")
    assert (code, "--target vllm belongs to --budget; leave out --max-drop" in err) == (2, True), err


def test_one_sample_more_is_not_worth_half_the_compute(gridded: tuple[Comparison, Run]) -> None:
    """Within a budget the cheapest schedule is recommended that is within one standard error of the most accurate."""
    comparison, _ = gridded
    points = Recommendation(comparison)
    for budget in np.linspace(0.4, 1.0, 13):
        found = points.within(float(budget))
        fitting = [pair for pair in points.pairs if pair[0].values[1] <= budget + 1e-9]  # type: ignore[index]
        if not fitting:
            assert found is None
            continue
        assert found is not None
        best = max(pair[0].values[0] for pair in fitting)  # type: ignore[index]
        accuracy, cost = found[0].values  # type: ignore[misc]
        assert best - accuracy <= 0.3
        dominating = [p for p in fitting if p[0].values[0] >= accuracy and p[0].values[1] < cost]  # type: ignore[index]
        assert not dominating
        assert export_schedule(comparison, float(budget))["trial"] == found[0].number


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    """A schedule that reads the prompt may be cheaper, and no file can hold it."""
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    fill(store, entries={"tpe": ("tpe", 1, 12, 0.5)})
    comparison = Comparison(store, "made")
    (search,) = comparison.searches
    found = decide(comparison, Question(100.0))
    assert found["chosen"]["search"] == "tpe"
    for trial in search.trials:
        trial.user_attrs["schedule"] = "read from the prompt"
    found = decide(comparison, Question(100.0))
    assert found["chosen"]["search"] is None
    assert nothing_cheaper(found).endswith(
        f"the unpruned model, not counting {len(search.trials)} that no file can hold"
    )
    with pytest.raises(ConfigError, match="that no file can hold; allow a larger --max-drop"):
        export_decision(comparison, found)


def test_bounds_as_people_write_them() -> None:
    assert parse_bound("prefill_ms", "0.12 s") == Bound("prefill_ms", 120.0, False)
    assert parse_bound("kv_bytes", "1.5GiB") == Bound("kv_bytes", 1.5 * 2**30, False)
    assert parse_bound("flops", 0.5) == Bound("flops", 0.5, True)
    assert parse_limit("flops=3.5 TFLOPs") == Bound("flops", 3.5e12, False)
    rate = parse_bound("tokens_per_second", 1.2)
    assert rate.allows(10, 1.3)
    assert not rate.allows(10, 1.1)
    assert replace(rate, relative=False).allows(10, 0)


def test_the_report_begins_with_the_decision(gridded: tuple[Comparison, Run]) -> None:
    record = report_record(gridded[0])
    page, chosen = render(record), record["decision"]["chosen"]
    assert record["decision"] == decide(gridded[0], Question(1.0))
    if chosen["search"] is None:
        assert "no measured schedule within 1 point costs less than the unpruned model" in page
    else:
        assert page.index('id="decision"') < page.index('class="answer"')
        assert record["prices"][0]["cost"] == "flops"
        assert {row["cost"] for row in record["prices"]} == {"flops", "total_flops", "kv_bytes", "peak_bytes"}
        assert record["prices"][0]["share"] == pytest.approx(chosen["cost_ratio"])
    told = decide(gridded[0], Question(40.0))
    text = decision_html(told)
    assert told["chosen"]["schedule"] in text
    assert "within 40 points" in text
    assert text.count('class="kept"') == len(told["chosen"]["keep_ratio"])
    assert (">Confirmed<" in text) == (told["confirmed"] is True)
    assert decision_html(None) == ""


def test_a_studys_profile_is_stored_with_the_experiment(tmp_path: Path, profile: Profile) -> None:
    """Choosing in milliseconds then needs no file; a profile of another model stops the run before it measures."""
    file, text = (
        tmp_path / "profile.json",
        GRID.replace("gridded", "timed").replace("{kind: grid}", "{kind: tpe, trials: 2}"),
    )
    store = Store(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(ConfigError, match="cannot read profile"):
        Run(Problem.from_text(f"{text}profile: {file}\n"), store).run()
    file.write_text(planted_profile().to_json())
    with pytest.raises(ConfigError, match="with 6 decoder layers, and 'demo' has 8"):
        Run(Problem.from_text(f"{text}profile: {file}\n"), store).run()
    file.write_text(profile.to_json())
    Run(Problem.from_text(f"{text}profile: {file}\n"), store).run()
    file.unlink()
    found = decide(Comparison(store, "timed"), Question(100.0, "prefill_ms"))
    assert found["chosen"]["cost_ratio"] <= 1
    Run(Problem.from_text(f"{text}profile: {file}\n"), store).run()
    assert Comparison(store, "timed").facts["profile"]["model"] == "demo"
    store.engine.dispose()
