"""Searches on the demo model: every grid point once, equal compute, budgets kept, the same after a stop."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from conftest import SMALL, Told, fresh, outcome, stopped_after
from vispco.analysis.comparison import Comparison
from vispco.config import parse_study
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.units import Unit, UnitResult, UnitRunner
from vispco.experiment.planning import plan
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.pruning.families import FAMILIES, StepFamily
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Step, parse_schedule
from vispco.search.base import Proposal
from vispco.search.gradient.lagrangian import LagrangianSearch
from vispco.search.gradient.options import GradientOptions
from vispco.search.gradient.ranking import Ranking
from vispco.search.sampling import RandomSearch
from vispco.storage.store import Store
from vispco.storage.trials import TrialLog


@pytest.fixture(scope="module")
def finished(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """The small experiment, run through without disturbance."""
    path = tmp_path_factory.mktemp("finished") / "a.db"
    store = Store(f"sqlite:///{path}")
    Run(fresh(problem, SMALL), store).run()
    return store, path


def complete(store: Store, study: str) -> list[Any]:
    return store.trial_log(study).complete()


def test_dense_grid_is_every_point_once(finished: tuple[Store, Path]) -> None:
    schedules = [t.user_attrs["schedule"] for t in complete(finished[0], "small/grid")]
    expected = {f"step(layer={k}, keep={r / 20!r})" for k in range(1, 8) for r in range(20)} | {
        "step(layer=1, keep=1.0)"
    }
    assert len(schedules) == len(set(schedules)) == 141
    assert set(schedules) == expected


def test_lagrangian_keeps_every_budget(finished: tuple[Store, Path]) -> None:
    store, _ = finished
    facts = store.require_experiment("small").facts
    trials = complete(store, "small/lagrangian")
    asked = facts["budgets"]
    solved = [t for t in trials if not t.user_attrs.get("interpolated")]
    assert sorted({t.user_attrs["budget"] for t in solved}) == pytest.approx(asked)
    known = list(asked)
    extra = [t.user_attrs["budget"] for t in trials if t.user_attrs.get("interpolated")]
    assert len(extra) == len(set(extra)) == 2
    for budget in extra:
        assert any(budget == pytest.approx((a + b) / 2) for a, b in itertools.pairwise(sorted(known)))
        known.append(budget)
    for trial in trials:
        attributes = trial.user_attrs
        assert trial.values[1] <= attributes["budget"] + 1e-9
        assert attributes["violation"] == pytest.approx(trial.values[1] / attributes["budget"] - 1)
        assert {"multiplier", "penalty", "schedule", "keep_ratio", "evaluation", "spent_flops"} <= attributes.keys()
        assert attributes["charged_flops"] > attributes["propose_flops"] >= 0
        # Nothing is left on the table: one more token at that layer would not fit.
        if trial.params["keep"] < 1:
            spare = attributes["budget"] - trial.values[1]
            assert spare <= 1.5 / 64
    steps = store.trajectory("small/lagrangian")
    assert sorted(steps) == ["budget-0", "budget-1", "budget-2", "predictor"]
    assert all(len(rows) == 4 for key, rows in steps.items() if key != "predictor")
    assert {"loss", "violation", "multiplier", "penalty"} <= steps["budget-0"][0].keys()


def test_random_gets_the_compute_of_lagrangian(finished: tuple[Store, Path]) -> None:
    store, _ = finished
    allowed = store.trial_log("small/lagrangian").charged_flops()
    trials = complete(store, "small/random")
    used = sum(t.user_attrs["charged_flops"] for t in trials)
    assert used <= allowed
    assert used + max(t.user_attrs["charged_flops"] for t in trials) > 0.9 * allowed
    assert len(complete(store, "small/tpe")) == 13


def test_random_draws_are_optunas_distributions(finished: tuple[Store, Path]) -> None:
    spaces = StepFamily(8).distributions()
    for study in ("small/random", "small/tpe", "small/grid", "small/lagrangian"):
        for trial in complete(finished[0], study):
            assert trial.distributions == spaces
            assert 1 <= trial.params["layer"] <= 7


def test_a_finished_experiment_says_so(problem: Problem, finished: tuple[Store, Path]) -> None:
    assert Run(fresh(problem, SMALL), finished[0]).run() == 0


def test_extending_and_changing(problem: Problem, finished: tuple[Store, Path], tmp_path: Path) -> None:
    finished[0].engine.dispose()
    shutil.copy(finished[1], tmp_path / "b.db")
    store = Store(f"sqlite:///{tmp_path}/b.db")

    def run(text: str) -> int:
        return Run(fresh(problem, text), store).run()

    more = SMALL.replace("trials: 13", "trials: 15") + "  again: {kind: random, trials: 2, seeds: [4, 5]}\n"
    assert run(more) == 2 + 4
    assert store.study_names("small")[-2:] == ["small/again@4", "small/again@5"]
    with pytest.raises(ConfigError, match=r"another 'tasks'.*--fresh"):
        run(SMALL.replace("search: 12", "search: 13"))
    with pytest.raises(ConfigError, match=r"entry 'tpe'.*other settings.*rename"):
        run(SMALL.replace("batch: 2", "batch: 3"))
    stored = store.require_experiment("small")
    for key, value in (("score", "agreement"), ("resolution", [1, 0.5])):  # what the file said, and no longer says
        store.save_experiment(
            "small", spec_text=more, spec_hash="", identity={**stored.identity, key: value}, provenance={}
        )
        with pytest.raises(ConfigError, match=f"another '{key}'"):
            run(more)


def test_an_entry_that_was_dropped_comes_back_unchanged(problem: Problem, tmp_path: Path) -> None:
    """Its trials are still there, though the stored study no longer names it."""
    store = Store(f"sqlite:///{tmp_path}/a.db")
    head = SMALL.partition("searches:")[0] + "searches:\n"
    kept, dropped = "  kept: {kind: random, trials: 1}\n", "  dropped: {kind: random, trials: 2}\n"

    def run(text: str) -> int:
        return Run(fresh(problem, text), store).run()

    assert run(head + kept + dropped) == 3
    assert run(head + kept) == 0
    for change in ("method: random", "family: multistep"):
        with pytest.raises(ConfigError, match=r"entry 'dropped'.*other settings"):
            run(head + kept + dropped.replace("}", f", {change}}}"))
    assert run(head + kept + dropped) == 0


def test_a_study_without_a_text_resumes(problem: Problem, tmp_path: Path) -> None:
    """What is stored is the same study, for vispco resume and for the next run."""
    store = Store(f"sqlite:///{tmp_path}/a.db")
    study = parse_study(SMALL.partition("  lagrangian:")[0].replace("{kind: grid}", "{kind: random, trials: 2}"))
    for added in (2, 0):
        own = Problem(study, model=problem.model, processor=problem.processor)
        assert Run(own, store).run() == added
    assert parse_study(store.require_experiment("small").spec_text) == study
    with pytest.raises(ConfigError, match=r"entry 'grid'.*other settings"):
        text = SMALL.replace("{kind: grid}", "{kind: random, trials: 2, method: random}")
        Run(fresh(problem, text), store).run()


@pytest.mark.slow
def test_half_a_grid_is_no_reference(problem: Problem, tmp_path: Path) -> None:
    text = SMALL.split("  lagrangian")[0] + "  tpe: {kind: tpe, trials: 3}\n"
    store = Store(f"sqlite:///{tmp_path}/a.db")
    run = Run(fresh(problem, text), store)
    with stopped_after(5):
        run.run()
    assert run.run(["tpe"]) == 3
    found = Comparison(store, "small").to_dict()
    assert [(s["name"], s["trials"]) for s in found["searches"]] == [("grid", 5), ("tpe", 3)]
    assert all(s["hypervolume_ratio_to_grid"] is s["cost_ratio_to_grid"] is None for s in found["searches"])
    run.run()
    found = Comparison(store, "small").to_dict()
    assert found["searches"][0]["cost_ratio_to_grid"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("lucky", [pytest.param(3, marks=pytest.mark.slow), None])
def test_a_poisoned_schedule_is_tried_three_times_and_reported(
    problem: Problem, finished: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lucky: int | None
) -> None:
    """It succeeds at attempt ``lucky``, or never. All other trials are those of an undisturbed run."""
    text = SMALL.replace("trials: 13", "trials: 13, seeds: [0]")
    poison, tries, run = "step(layer=3, keep=0.25)", [0], UnitRunner.run
    tpe = [t.user_attrs["schedule"] for t in complete(finished[0], "small/tpe")]

    def fail(self: UnitRunner, unit: Unit) -> UnitResult:
        result = run(self, unit)
        for number, name in enumerate(unit.names):
            if name in (poison, tpe[4]) and unit.split == "search":
                tries[0] += unit.batch == 0 and name == poison
                if lucky is None or tries[0] < lucky or name == tpe[4]:
                    result.scores[number] = np.nan
                    result = replace(result, errors={**result.errors, number: "the device caught fire"})
        return result

    monkeypatch.setattr(UnitRunner, "run", fail)
    told = Told()
    store = Store(f"sqlite:///{tmp_path}/a.db")
    made = fresh(problem, text)
    Run(made, store, told).run(["tpe"])  # before the grid, whose measurements it would find in the cache
    Run(made, store, told).run(["grid"])
    log = store.trial_log("small/grid")
    failed = log.trials(optuna.trial.TrialState.FAIL)
    assert [t.user_attrs["schedule"] for t in failed] == [poison] * (2 if lucky else 3)
    assert [t.user_attrs["attempts"] for t in failed] == [1, 2, 3][: len(failed)]
    assert {t.user_attrs["error"] for t in failed} == {"the device caught fire"}
    mine = {t.user_attrs["schedule"]: t.values for t in log.complete()}
    theirs = {t.user_attrs["schedule"]: t.values for t in complete(finished[0], "small/grid")}
    assert mine == {s: v for s, v in theirs.items() if lucky or s != poison}
    assert any("left out: the device caught fire" in line and poison in line for line in told.said) == (lucky is None)
    # The sampler goes on behind the proposal that failed; what came before it is untouched.
    sampled = store.trial_log("small/tpe@0")
    assert len(sampled.settled()) == 13
    assert len(sampled.complete()) == 12
    before = [t.values for t in sampled.complete()[:4]]
    assert before == [t.values for t in complete(finished[0], "small/tpe")[:4]]
    # Finished is finished, also with failures.
    assert Run(made, store, told).run(["grid", "tpe"]) == 0


@pytest.mark.parametrize(("trials", "stopped"), [(3, False), (3, True), (1, False), (1, True)])
def test_what_it_took_to_propose_a_failure_is_charged_to_the_next_that_lands(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: int, stopped: bool
) -> None:
    """Else a search whose first schedule runs out of memory would have been trained for nothing: also where another
    process goes on, which proposes the same again, and where nothing lands after it."""
    text = SMALL.partition("searches:")[0] + f"searches:\n  random: {{kind: random, trials: {trials}}}\n"
    made = fresh(problem, text)
    proposed, poison, run = RandomSearch.measure, list[str](), UnitRunner.run

    def dear(self: Any, proposals: Sequence[Proposal], *rest: Any, **more: Any) -> Any:
        if not poison:
            poison.append(proposals[0].schedule.text())
        if proposals[0].schedule.text() in poison:
            proposals = [replace(proposals[0], propose_flops=1000, propose_spent=300, seconds=5.0), *proposals[1:]]
        return proposed(self, proposals, *rest, **more)

    def fail(self: UnitRunner, unit: Unit) -> UnitResult:
        result = run(self, unit)
        for number, name in enumerate(unit.names):
            if name in poison and unit.split == "search":
                result.scores[number] = np.nan
                result = replace(result, errors={**result.errors, number: "no memory"})
        return result

    monkeypatch.setattr(RandomSearch, "measure", dear)
    monkeypatch.setattr(UnitRunner, "run", fail)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    if stopped:
        add, failed = TrialLog.add_failure, 0

        def stop(self: TrialLog, *given: Any, **more: Any) -> None:
            nonlocal failed
            failed += 1
            if failed == 2:
                raise KeyboardInterrupt
            add(self, *given, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrialLog, "add_failure", stop)
            if trials > 1:  # before another lands, which bears it
                patch.setattr(TrialLog, "add", stop)
            with pytest.raises(KeyboardInterrupt):
                Run(made, store).run()
    Run(made, store).run()
    landed, log = complete(store, "small/random"), store.trial_log("small/random")
    assert poison[0] not in {trial.user_attrs["schedule"] for trial in landed}
    assert len(landed) == trials - 1
    assert sum(trial.user_attrs["propose_flops"] for trial in landed) == (1000 if landed else 0)
    (search,) = Comparison(store, "small").searches
    measured = sum(trial.user_attrs["charged_flops"] - trial.user_attrs["propose_flops"] for trial in landed)
    assert log.charged_flops() == search.total("charged_flops") == measured + 1000
    assert log.spent_flops() == search.total("spent_flops")
    assert search.total("propose_flops") == 1000
    store.engine.dispose()


RACED = """
experiment: raced
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 4, search: 150, held_out: 12}}
budgets: 3
searches:
  random: {kind: random, trials: 24, race: {margin: 0.2, reserve: 1}}
"""


@pytest.mark.slow
def test_a_race_stops_schedules_that_do_not_matter(problem: Problem, tmp_path: Path) -> None:
    """Stopped ones are PRUNED trials with their sample count and on no front; the others have their full values.

    Killed in mid-race, or with the answers known from another entry, it ends the same.
    """
    plain = RACED.replace(", race: {margin: 0.2, reserve: 1}", "")

    def run(text: str, store: Store) -> Run:
        return Run(fresh(problem, text), store)

    full, raced = Store(f"sqlite:///{tmp_path}/full.db"), Store(f"sqlite:///{tmp_path}/raced.db")
    run(plain, full).run()
    assert run(RACED, raced).run() >= 1
    log = raced.trial_log("raced/random")
    stopped = log.trials(optuna.trial.TrialState.PRUNED)
    values = {t.user_attrs["proposal"]: t.values for t in complete(full, "raced/random")}
    assert len(stopped) >= 5
    assert len(log.settled()) == 24
    for trial in log.complete():
        assert trial.values == values[trial.user_attrs["proposal"]]
    for trial in stopped:
        assert trial.values is None
        assert trial.user_attrs["samples"] == 128
        assert trial.user_attrs["flops_ratio"] == values[trial.user_attrs["proposal"]][1]
        assert 0 < trial.user_attrs["charged_flops"] < trial.user_attrs["full_flops"]
    assert log.charged_flops() < full.trial_log("raced/random").charged_flops()
    assert all(trial.duration.total_seconds() > 0 for trial in log.settled())
    found = Comparison(raced, "raced").to_dict()["searches"][0]
    assert found["trials"] == len(log.complete())
    assert not {point["schedule"] for point in found["front"]} & {t.user_attrs["schedule"] for t in stopped}
    # Nothing left to do, and nothing raced again.
    assert run(RACED, raced).run() == 0

    def outcomes(store: Store) -> list[Any]:
        return [(trial.state, *outcome(trial)) for trial in store.trial_log("raced/random").settled()]

    # Stopped after some units, and again while trials are being stored.
    broken = Store(f"sqlite:///{tmp_path}/broken.db")
    first = run(RACED, broken)
    measure, units = first.evaluator.runner.run, [0]

    def stop(unit: Unit) -> UnitResult:
        units[0] += unit.split == "search"
        if units[0] > 3:
            raise KeyboardInterrupt
        return measure(unit)

    first.evaluator.runner.run = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = run(RACED, broken)
    with stopped_after(7):
        second.run()
    assert len(broken.trial_log("raced/random").settled()) == 7
    run(RACED, broken).run()
    assert outcomes(broken) == outcomes(raced)

    # Everything measured before, by an entry that does not race: the same decisions, no compute.
    warm = Store(f"sqlite:///{tmp_path}/warm.db")
    text = plain.replace("random: {kind", "before: {kind") + RACED.split("searches:\n")[1]
    run(text, warm).run()
    assert outcomes(warm) == outcomes(raced)
    assert sum(t.user_attrs["spent_flops"] for t in warm.trial_log("raced/random").settled()) == 0


@pytest.mark.slow
def test_what_is_drawn_twice_is_paid_once(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [{"layer": 1, "keep": 0.5}, {"layer": 3, "keep": 0.25}]
    monkeypatch.setattr(RandomSearch, "propose", lambda self, start, count: [drawn[i % 2] for i in range(count)])
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(fresh(problem, RACED), store).run()
    trials = store.trial_log("raced/random").settled()
    assert len(trials) == 24
    spent = [trial.user_attrs["spent_flops"] for trial in trials]
    assert all(flops > 0 for flops in spent[:2])
    assert not any(spent[2:])
    assert [t.user_attrs["charged_flops"] for t in trials] == [t.user_attrs["charged_flops"] for t in trials[:2]] * 12


def test_a_race_that_has_begun_takes_no_more_trials(problem: Problem, tmp_path: Path) -> None:
    text = """
experiment: more
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 8, search: 8, held_out: 8}}
budgets: 2
batch_size: 8
searches:
  raced: {kind: random, trials: 3, race: {first: 4}}
  halving: {kind: halving, trials: 2, batch: 2, first: 4}
"""
    store = Store(f"sqlite:///{tmp_path}/a.db")

    def run(changed: str) -> int:
        return Run(
            Problem(parse_study(changed), changed, model=problem.model, processor=problem.processor), store
        ).run()

    assert run(text) == 5
    with pytest.raises(ConfigError, match=r"entry 'raced' .* began with trials: 3; .* name a new entry"):
        run(text.replace("trials: 3", "trials: 4"))
    assert run(text.replace("trials: 2", "trials: 3")) == 1  # after a whole bracket
    with pytest.raises(ConfigError, match=r"entry 'halving' .* began with trials: 3"):
        run(text.replace("trials: 2", "trials: 4"))
    assert run(text.replace("trials: 2", "trials: 3")) == 0


def test_what_cannot_be_raced_is_said(problem: Problem, tmp_path: Path) -> None:
    text = RACED.replace("trials: 24", "compute: other") + "  other: {kind: grid}\n"
    with pytest.raises(ConfigError, match=r"searches.random.*a race needs trials: N"):
        plan(parse_study(text))
    with pytest.raises(ConfigError, match=r"searches.random.race.margn.*margin|unknown key"):
        plan(parse_study(RACED.replace("margin", "margn")))
    with pytest.raises(ConfigError, match="race"):
        plan(parse_study(RACED.replace("kind: random", "kind: tpe")))


def test_plan_orders_entries_and_refuses_circles() -> None:
    text = SMALL.replace("trials: 13", "compute: random")
    assert [p.entry for p in plan(parse_study(text))] == ["grid", "lagrangian", "random", "tpe"]
    backwards = SMALL.replace("random: {kind: random, compute: lagrangian}", "random: {kind: random, compute: tpe}")
    assert [p.entry for p in plan(parse_study(backwards))] == ["grid", "lagrangian", "tpe", "random"]
    with pytest.raises(ConfigError, match="circle: random -> tpe -> random"):
        plan(parse_study(backwards.replace("trials: 13", "compute: random")))
    with pytest.raises(ConfigError, match="names no entry: 'gird'; did you mean 'grid'"):
        plan(parse_study(SMALL.replace("compute: lagrangian", "compute: gird")))


@pytest.mark.slow
def test_tpe_after_a_resume_in_mid_batch(problem: Problem, tmp_path: Path) -> None:
    """Stopped after any number of trials, TPE proposes what it would have proposed undisturbed."""
    text = SMALL.split("searches:")[0] + "searches:\n  tpe: {kind: tpe, trials: 14, batch: 4}\n"

    def run(url: str, trials: int) -> list[Any]:
        study = text.replace("trials: 14", f"trials: {trials}")
        store = Store(url)
        Run(fresh(problem, study), store).run()
        return [t.params for t in complete(store, "small/tpe")]

    whole = run(f"sqlite:///{tmp_path}/whole.db", 14)
    for stop in (3, 9, 11):
        run(f"sqlite:///{tmp_path}/parts.db", stop)
    assert run(f"sqlite:///{tmp_path}/parts.db", 14) == whole


def slowly(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


SHAPES = """
experiment: shapes
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 16, search: 12, held_out: 12}}
method: METHOD
budgets: 3
batch_size: 8
defaults: ["fastv:k2-r50", "fitprune:60", "sparsevlm:64"]
searches:
"""


@pytest.mark.parametrize("method", [slowly("fastv"), "fitprune", slowly("sparsevlm")])
def test_every_family_can_be_learned_and_sampled(problem: Problem, tmp_path: Path, method: str) -> None:
    """Budgets hold and trials lie inside their family's bounds, whatever the method."""
    text, families = SHAPES.replace("METHOD", method), ["multistep", "linear"]
    if method == "fastv":
        families = [name for name in FAMILIES if not FAMILIES[name].before_decoder]
    for family in families:
        options = f"dual_steps: 2, primal_steps: 1, batch: 8, check: 8, between: 2, climb: {2 * (method == 'fastv')}"
        text += f"  learned-{family}: {{kind: lagrangian, family: {family}, {options}}}\n"
        text += f"  tpe-{family}: {{kind: tpe, family: {family}, trials: 3}}\n"
    made = fresh(problem, text)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(made, store).run()
    assert Run(made, store).run() == 0
    for family in families:
        trials = complete(store, f"shapes/learned-{family}")
        assert len({t.user_attrs["budget"] for t in trials}) == 3 + 2
        cheapest = Evaluator(made).flops_ratio(FAMILIES[family](8).cheapest(), "search", make_method(method))
        for trial in trials:
            assert trial.values[1] <= max(trial.user_attrs["budget"], cheapest) + 1e-9, (family, trial.user_attrs)
            assert set(trial.params) == set(FAMILIES[family](8).distributions())
            assert parse_schedule(trial.user_attrs["schedule"]).text() == trial.user_attrs["schedule"]
        assert len(complete(store, f"shapes/tpe-{family}")) == 3
    comparison = Comparison(store, "shapes")
    defaults = comparison.to_dict()["defaults"]
    assert [default["name"] for default in defaults] == ["fastv:k2-r50", "fitprune:60", "sparsevlm:64"]
    for search in comparison.searches:
        volume, interval = comparison.held_out_hypervolume(search)
        assert volume is not None
        assert interval is not None
        assert 0 <= interval[0] <= interval[1] <= 1
        assert interval[0] - 0.05 <= volume <= interval[1] + 0.05


@pytest.mark.parametrize(("climb", "found"), [(0, 4), (1, 12), (8, 19)])
def test_a_climb_crosses_worse_layers(monkeypatch: pytest.MonkeyPatch, climb: int, found: int) -> None:
    """Layer 19 of 26 is best, layer 4 better than its neighbours; layers in threes are alike."""
    search, asked = object.__new__(LagrangianSearch), list[int]()
    cost = SimpleNamespace(fits=lambda budget, _: lambda schedule: schedule.keep <= budget + 1e-9)
    evaluator = SimpleNamespace(problem=SimpleNamespace(calibration_tasks=["one"]))
    context = SimpleNamespace(family=StepFamily(26), method=None, methods=(), cost=cost, evaluator=evaluator)
    options = GradientOptions(climb=climb).settled()
    vars(search).update(context=context, options=options, _calibration=object())
    search.ranking = Ranking(search)
    monkeypatch.setattr(LagrangianSearch, "done", lambda _: {})

    def distance(schedule: Any) -> float:
        asked.append(schedule.layer)
        return abs(19 - schedule.layer) + 1.5 * ((schedule.layer - 4) % 3 != 0)

    monkeypatch.setattr(
        "vispco.search.gradient.ranking.nearest_of_each",
        lambda _, groups, first, most: [sorted(shapes, key=distance) for shapes in groups],
    )
    (ranked,) = search.ranking.nearest_each([(0.5, Step(4, 0.5))])
    assert ranked[0] == Step(found, 0.5)
    assert len(asked) <= 3 + 9 * climb
    monkeypatch.setattr(
        LagrangianSearch, "done", lambda _: {0.8: [SimpleNamespace(user_attrs={"schedule": "step(layer=19, keep=1)"})]}
    )
    assert search.ranking.nearest_each([(0.5, Step(4, 0.5))])[0][0] == Step(found if not climb else 19, 0.5)
    monkeypatch.setattr(LagrangianSearch, "done", lambda _: {})
    both = search.ranking.nearest_each([(0.8, Step(19, 0.8)), (0.5, Step(4, 0.5))])
    assert both[1][0] == Step(found if not climb else 19, 0.5)  # what was just found for the budget above


def test_a_family_without_a_grid_says_so() -> None:
    text = SHAPES.replace("METHOD", "fastv") + "  dense: {kind: grid, family: layerwise}\n"
    with pytest.raises(ConfigError, match=r"searches.dense: family 'layerwise' has too many parameters for a grid"):
        validate(Problem(parse_study(text), text))
