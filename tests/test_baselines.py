"""Baselines: Optuna's samplers, greedy search, FitPrune's fit, VTW's rule, published defaults."""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vispco.dashboards.report import write_report

from conftest import Told, fresh, outcome, stopped_after
from vispco.analysis.comparison import Comparison
from vispco.analysis.indicators import hypervolume
from vispco.cli.listing import listing
from vispco.config import parse_study
from vispco.costs import prefill_flops, unpruned_flops
from vispco.errors import ConfigError, ScheduleError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.planning import plan
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.pruning.families import FAMILIES
from vispco.pruning.methods import make_method
from vispco.pruning.prune import prune
from vispco.pruning.published import PUBLISHED
from vispco.pruning.schedules import MultiStep, Ratios, Step, parse_schedule
from vispco.search.recipes.autoprune import Bits, counts_after, mutual_information
from vispco.search.recipes.calibration import observe
from vispco.search.recipes.dop import solve
from vispco.search.recipes.fitprune_fit import FitPruneFit, Walk, deleted, dispensable, ended, walk_flops
from vispco.search.recipes.gsearch import greedy
from vispco.search.recipes.published import PublishedSearch, published_for
from vispco.search.recipes.vtw import Withdrawals, divergence
from vispco.search.samplers import GPSearch, NSGA2Search, OptunaSearch, TPESearch, next_generation
from vispco.search.sampling import new_study
from vispco.storage.store import Store
from vispco.storage.trials import TrialLog

BASELINES = """
experiment: small
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 8, search: 8, held_out: 8}}
budgets: 3
batch_size: 8
searches:
  random: {kind: random, compute: 0.08}
  tpe: {kind: tpe, compute: random, family: multistep}
  nsga2: {kind: nsga2, compute: random, population: 3, batch: 2, family: multistep}
  gp: {kind: gp, compute: random, batch: 2}
  gsearch: {kind: gsearch, samples: 8, batch: 4, levels: 3}
  fit: {kind: fitprune_fit, method: fitprune, samples: 6}
  vtw: {kind: vtw, eta: [0.02, 0.5, 0.0], samples: 6}
  published: {kind: published, method: sparsevlm}
  before: {kind: published, method: divprune}
"""
ENTRIES = ("random", "tpe", "nsga2", "gp", "gsearch", "fit", "vtw", "published", "before")


@pytest.fixture(scope="module")
def finished(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The experiment, run through without disturbance."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('finished')}/a.db")
    Run(fresh(problem, BASELINES), store).run()
    return store


def complete(store: Store, entry: str) -> list[FrozenTrial]:
    return store.trial_log(f"small/{entry}").complete()


# --- all of them ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stopped_anywhere_they_end_like_an_undisturbed_run(
    problem: Problem, finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.randrange(10**6)
    rng, left = random.Random(seed), [0]

    def stopping(inner: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return inner(*arguments, **more)

        return wrapped

    monkeypatch.setattr(TrialLog, "add", stopping(TrialLog.add))
    save, saved = stopping(Store.save_steps), Counter[str]()

    def stopping_between_fits(store: Store, study: str, *arguments: Any) -> None:
        save(store, study, *arguments)
        saved[study] += 1
        if saved[study] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save_steps", stopping_between_fits)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    for _ in range(200):
        left[0] = rng.randrange(8, 60)
        try:
            Run(fresh(problem, BASELINES), store).run()
        except KeyboardInterrupt:
            continue
        break
    else:
        pytest.fail(f"never ended, seed {seed}")
    for entry in ENTRIES:
        mine, theirs = map(outcome, complete(store, entry)), map(outcome, complete(finished, entry))
        assert list(mine) == list(theirs), (seed, entry)
    assert saved["small/gsearch"] > 2
    assert saved["small/fit"] > 2
    left[0] = 0
    assert Run(fresh(problem, BASELINES), store).run() == 0


def price_on_calibration(made: Problem, schedules: Sequence[str]) -> int:
    """FLOPs of a plain pass over the calibration split, and of one with each schedule."""
    shape, method, flops = made.shape, made.default_method, 0
    for part in observe(made, 8, 0):
        flops += int(unpruned_flops(shape, part.n_visual, part.n_text).sum())
        for text in schedules:
            counts = parse_schedule(text).counts(part.n_visual, shape.layers)
            flops += int(prefill_flops(shape, counts, part.n_visual, part.n_text, method).sum())
    return flops


def test_what_is_charged(problem: Problem, finished: Store) -> None:
    made = fresh(problem, BASELINES)
    evaluator = Evaluator(made)
    dense = FAMILIES["step"](8).dense_grid()
    share = 0.08 * sum(evaluator.price(schedule, "search", make_method("fastv")) for schedule in dense)
    spent = finished.trial_log("small/random").charged_flops()
    for entry in ENTRIES:
        method = made.method(made.study.searches[entry])
        trials = complete(finished, entry)
        for trial in trials:
            price = evaluator.price(parse_schedule(trial.user_attrs["schedule"]), "search", method)
            assert trial.user_attrs["charged_flops"] == price + trial.user_attrs["propose_flops"]
        proposing = sum(trial.user_attrs["propose_flops"] for trial in trials)
        if entry in ("gsearch", "fit"):
            fits = finished.trajectory(f"small/{entry}")
            assert proposing == sum(row["flops"] for (row,) in fits.values()) > 0
            if entry == "gsearch":
                tried = [text for (row,) in fits.values() for text in row["losses"]]
                assert len(tried) == len(set(tried))
                assert proposing == price_on_calibration(made, tried)
        elif entry != "vtw":
            assert proposing == 0
        if entry in ("random", "tpe", "nsga2", "gp"):
            allowed = share if entry == "random" else spent
            used = sum(trial.user_attrs["charged_flops"] for trial in trials)
            dearest = max(trial.user_attrs["charged_flops"] for trial in trials)
            assert allowed - dearest < used <= allowed


def test_less_compute_gives_the_first_trials_of_more(problem: Problem, finished: Store) -> None:
    """At three levels, and one that is too low for any trial."""
    header = BASELINES.split("searches:")[0].replace("small", "levels") + "searches:\n"
    kinds = {"random": "", "tpe": "", "nsga2": "population: 3, ", "gp": "batch: 4, "}
    shares = (0.02, 0.04, 0.08)
    for kind, more in kinds.items():
        header += "".join(f"  {kind}-{share}: {{kind: {kind}, {more}compute: {share}}}\n" for share in shares)
    made = fresh(problem, header + "  little: {kind: tpe, compute: 1.0e-4}\n")
    told = Told()
    run = Run(made, finished, told)
    run.run()
    for kind in kinds:
        found = [finished.trial_log(f"levels/{kind}-{share}") for share in shares]
        drawn_at = [[outcome(trial) for trial in log.complete()] for log in found]
        assert 0 < len(drawn_at[0]) < len(drawn_at[1]) < len(drawn_at[2])
        for few, many in itertools.pairwise(drawn_at):
            assert few == many[: len(few)]
        for share, log in zip(shares, found, strict=True):
            assert log.charged_flops() <= share * run.allowances.grid_flops
    assert [text for text in told.said if "little" in text] == [
        "levels/little: not one schedule was measured: the first one alone exceeds the compute"
    ]
    assert "little" not in [search["name"] for search in Comparison(finished, "levels").to_dict()["searches"]]
    curves = "  curves: {kind: grid, family: exponential}\n  later: {kind: grid}\n"
    dense = FAMILIES["exponential"](8).dense_grid()
    price = sum(run.evaluator.price(schedule, "search", made.default_method) for schedule in dense)
    assert Run(fresh(problem, BASELINES + curves), finished).allowances.grid_flops == price != run.allowances.grid_flops


@pytest.mark.slow
def test_what_is_paid_may_be_limited(problem: Problem, tmp_path: Path) -> None:
    """Shares of what the whole grid costs together; a smaller one gives the first trials of a larger one."""
    header = BASELINES.split("searches:")[0].replace("small", "paid") + "searches:\n"
    kinds = {"random": "", "nsga2": "population: 3, batch: 3, "}
    shares = (0.05, 0.2)
    for kind, more in kinds.items():
        header += "".join(f"  {kind}-{share}: {{kind: {kind}, {more}spent: {share}}}\n" for share in shares)
    header += "  after: {kind: tpe, spent: nsga2-0.2, family: multistep}\n"
    for kind in kinds:
        drawn_at = []
        for share in shares:
            # Each in a database of its own: nothing is known before.
            made, store = fresh(problem, header), Store(f"sqlite:///{tmp_path}/{kind}{share}.db")
            run = Run(made, store)
            run.run([f"{kind}-{share}"])
            schedules, method = run.allowances.dense_grid
            limit = share * run.evaluator.shared_price(schedules, "search", method)
            log = store.trial_log(f"paid/{kind}-{share}")
            assert 0.5 * limit < log.spent_flops() <= limit
            assert log.spent_flops() < log.charged_flops()
            drawn_at.append([outcome(trial) for trial in log.complete()])
        few, many = drawn_at
        assert 0 < len(few) < len(many)
        assert few == many[: len(few)]
    Run(made, store).run(["after"])
    paid = store.trial_log("paid/nsga2-0.2").spent_flops()
    assert 0 < store.trial_log("paid/after").charged_flops() <= paid  # one by one nothing is shared


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random, trials: 9", "lagrangian"])
def test_what_was_known_before_takes_nothing_from_an_allowance(problem: Problem, tmp_path: Path, kind: str) -> None:
    text = BASELINES.split("searches:")[0] + f"searches:\n  before: {{kind: {kind}}}\n  mine: {{kind: {kind}}}\n"
    made = fresh(problem, text + "  then: {kind: tpe, spent: mine}\n")
    alone, known = Store(f"sqlite:///{tmp_path}/alone.db"), Store(f"sqlite:///{tmp_path}/known.db")
    for store, entries in ((alone, ["mine"]), (known, ["before", "mine"])):
        Run(made, store).run(entries)
    paid, less = (store.trial_log("small/mine").spent_flops() for store in (alone, known))
    (item,) = plan(made.study, ["then"])
    allowed = Run(made, alone).allowances.spent(item)
    assert less < paid
    assert allowed == Run(made, known).allowances.spent(item) == pytest.approx(paid, rel=0.02)


def test_studies_that_only_propose_are_not_announced(caplog: pytest.LogCaptureFixture) -> None:
    told = logging.getLogger("optuna")
    before, told.propagate = told.propagate, True
    level = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        new_study(optuna.samplers.RandomSampler())
        assert not caplog.messages
        optuna.create_study(study_name="their own")
        assert set(caplog.messages) == {"A new study created in memory with name: their own"}
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        told.propagate = before
        optuna.logging.set_verbosity(level)


def test_budgets_are_kept_and_used(problem: Problem, finished: Store) -> None:
    budgets = finished.require_experiment("small").facts["budgets"]
    for entry in ("gsearch", "fit"):
        trials = complete(finished, entry)
        assert [trial.user_attrs["budget"] for trial in trials] == sorted(budgets, reverse=True)
        for trial in trials:
            schedule = parse_schedule(trial.user_attrs["schedule"])
            assert isinstance(schedule, Ratios)
            assert set(trial.params) == set(FAMILIES["layerwise"](8).distributions())
            # Seven layers may each lack one token of 64 at most.
            assert trial.user_attrs["budget"] - 7 * 1.5 / 64 < trial.values[1] <= trial.user_attrs["budget"] + 1e-9


def test_they_can_be_compared_and_reported(finished: Store, tmp_path: Path) -> None:
    found = Comparison(finished, "small").to_dict()
    assert [search["name"] for search in found["searches"]] == list(ENTRIES)
    for search in found["searches"]:
        assert 0 <= search["budget_score"] <= 1
        assert search["charged_flops"] >= search["propose_flops"]
    write_report(finished, "small", tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size > 1_000_000
    listed = {row["search"]: row["about"] for row in listing("searches", None)}
    assert {"nsga2", "gp", "gsearch", "fitprune_fit", "vtw", "published"} <= listed.keys()
    assert all(listed.values())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: nsga2, trials: 5, population: 1}", r"searches.x.population = 1: .*greater than or equal to 2"),
        ("{kind: random, compute: 0}", "searches.x.compute = 0: name an entry, or give a share of the dense grid"),
        ("{kind: random, compute: -0.1}", r"searches.x.compute = -0.1: name"),
        ("{kind: tpe, compute: .inf}", r"searches.x.compute = inf: name"),
        ("{kind: tpe, compute: .nan}", r"searches.x.compute = nan: name"),
        ("{kind: gp, compute: true}", r"searches.x.compute = True: name"),
        ("{kind: gp, compute: [0.1]}", r"searches.x.compute = \[0.1\]: name"),
        ("{kind: gp, compute: 0.1, trials: 3}", r"give either trials: N or compute"),
        ("{kind: nsga2, compute: '0.1'}", r"searches.x.compute names no entry: '0.1'"),
        ("{kind: random, compute: 0.1, race: {}}", "a race needs trials: N"),
        ("{kind: nsga2}", "give either trials: N or compute: ENTRY"),
        ("{kind: nsga2, compute: 0.1, spent: 0.1}", "give either trials: N or compute: ENTRY"),
        ("{kind: tpe, spent: 0}", r"searches.x.spent = 0: name an entry, or give a share"),
        ("{kind: tpe, spent: lagrangean}", r"searches.x.spent names no entry: 'lagrangean'"),
        ("{kind: gp, trials: 5, batch: 0}", r"searches.x.batch = 0"),
        ("{kind: gp, trails: 5}", r"unknown key 'searches.x.trails' for kind 'gp'; did you mean 'trials'"),
        ("{kind: gsearch, levels: 1}", r"searches.x.levels = 1"),
        ("{kind: gsearch, family: step}", r"searches.x.family = 'step': .*'gsearch' belong to family 'layerwise'"),
        ("{kind: fitprune_fit, samples: 0}", r"searches.x.samples = 0"),
        (
            "{kind: fitprune_fit, method: fastv}",
            r"searches.x: kind 'fitprune_fit' .* not of 'fastv'; write method: fitprune",
        ),
        ("{kind: vtw, eta: []}", r"searches.x.eta = \[\]"),
        ("{kind: vtw, eta: [0.1, -1]}", r"searches.x.eta.1 = -1: .*greater than or equal to 0"),
        ("{kind: vtw, eta: [0.1, 0.1]}", r"searches.x.eta = \[0.1, 0.1\]: values repeat"),
        ("{kind: vtw, eta: small}", r"searches.x.eta.0 = 'small'"),
        ("{kind: published, names: ['fastv:k2-r5']}", r"no published configuration 'fastv:k2-r5'; did you mean"),
        ("{kind: published, method: random}", r"searches.x: no configuration is published for method 'random'"),
        ("{kind: published, names: ['fitprune:50']}", r"searches.x: 'fitprune:50' is published for method 'fitprune'"),
    ],
)
def test_wrong_entries_are_said_in_one_line(problem: Problem, entry: str, message: str) -> None:
    text = BASELINES.split("searches:")[0] + f"searches:\n  x: {entry}\n"
    with pytest.raises(ConfigError, match=message) as caught:
        validate(fresh(problem, text))
    assert "\n" not in str(caught.value)


def test_random_takes_the_papers_numbers_of_trials() -> None:
    text = BASELINES.split("searches:")[0] + "searches:\n"
    text += "".join(f"  random-{n}: {{kind: random, trials: {n}, seeds: [0, 1]}}\n" for n in (40, 80, 160))
    assert [planned.options.trials for planned in plan(parse_study(text))] == [40, 40, 80, 80, 160, 160]


# --- Optuna's samplers -------------------------------------------------------------------------------


IN_FLOPS = SimpleNamespace(further=[], on_edge=lambda schedule, *_: schedule)


def drawn(
    kind: type[OptunaSearch],
    trials: int,
    objective: Callable[[dict[str, Any]], tuple[float, float] | None],
    *,
    family: str = "multistep",
    layers: int = 8,
    seed: int = 0,
    **options: Any,
) -> list[FrozenTrial]:
    """Trials of a search on a made-up objective, None being a failure."""
    made, found = FAMILIES[family](layers), list[FrozenTrial]()
    context: Any = SimpleNamespace(
        family=made, method=None, methods=(), cost=IN_FLOPS, seed=seed, log=SimpleNamespace(settled=lambda: found)
    )
    search = kind(context, kind.Options(trials=trials, **options))
    while len(found) < trials:
        start = len(found)
        notes = search.notes(start)
        for number, parameters in enumerate(search.propose(start, search.together), start=start):
            values = objective(parameters)
            found.append(
                create_trial(
                    state=TrialState.FAIL if values is None else TrialState.COMPLETE,
                    values=values,
                    params=parameters,
                    distributions=made.distributions(),
                    user_attrs={"proposal": number, "schedule": made.schedule(parameters).text(), **notes},
                )
            )
    return found


def late_is_right(parameters: dict[str, Any]) -> tuple[float, float]:
    """Accuracy that asks for many tokens up to layer 4 and none behind it."""
    ratios = FAMILIES["multistep"](8).schedule(parameters).keep_ratio(8)
    return float(np.mean(ratios[:5])) - 0.3 * float(np.mean(ratios[5:])), float(np.mean(ratios))


def test_generations_are_those_that_optuna_counts() -> None:
    """Against a live study of Optuna's own sampler, with failures and batches."""
    rng = random.Random(0)
    for population, batch in ((2, 1), (4, 3), (5, 2)):
        study = optuna.create_study(
            directions=["maximize", "minimize"],
            sampler=optuna.samplers.NSGAIISampler(population_size=population, seed=0),
        )
        past: list[FrozenTrial] = []
        for _ in range(12):
            expected = next_generation(past, population)
            asked = []
            for _ in range(batch):
                asked.append(study.ask())
                asked[-1].suggest_float("x", 0, 1)
                stored = study.get_trials(deepcopy=False)[-1]
                assert stored.system_attrs["NSGAIISampler:generation"] == expected
            for trial in asked:
                failed = rng.random() < 0.2
                study.tell(trial, None if failed else [rng.random(), rng.random()], TrialState.FAIL if failed else None)
                done = study.get_trials(deepcopy=True)[trial.number]
                done.user_attrs["generation"] = expected
                past.append(done)
        assert next_generation(past, population) >= 3


def test_nsga2_evolves() -> None:
    """Children are mixed from the best of the generations before; nothing is proposed twice."""
    trials = drawn(NSGA2Search, 60, late_is_right, population=10)
    generation = [trial.user_attrs["generation"] for trial in trials]
    assert generation == [n // 10 for n in range(60)]
    inherited = []
    for number, trial in enumerate(trials):
        before = [t for t in trials if t.user_attrs["generation"] < generation[number]]
        known = {(name, t.params[name]) for t in before for name in t.params if name.startswith("share")}
        inherited.append(sum((name, value) in known for name, value in trial.params.items()) / 3)
    assert max(inherited[:10]) == 0
    assert np.mean(inherited[10:]) > 0.5
    assert len({trial.user_attrs["schedule"] for trial in trials}) == 60
    # The first generation is random search; the others do better than it would.
    first = np.mean([trial.values[0] - trial.values[1] for trial in trials[:10]])
    last = np.mean([trial.values[0] - trial.values[1] for trial in trials[-10:]])
    assert last > first + 0.1


def test_nsga2_mutates_and_mixes_independently() -> None:
    """Each proposal comes from a fresh sampler; what it mutates to must not follow from whether it mixes parents."""
    family, kept = FAMILIES["layerwise"](8), (0.3, 0.6)
    parents = [
        create_trial(
            values=[0.5, 0.5],
            params=dict.fromkeys(family.distributions(), value),
            distributions=family.distributions(),
            user_attrs={"proposal": number, "schedule": str(value), "generation": 0},
        )
        for number, value in enumerate(kept)
    ]
    values, mixed = [], []
    for seed in range(200):
        context: Any = SimpleNamespace(
            family=family,
            method=None,
            methods=(),
            cost=IN_FLOPS,
            seed=seed,
            log=SimpleNamespace(settled=lambda: parents),
        )
        (child,) = NSGA2Search(context, NSGA2Search.Options(trials=3, population=2)).propose(2, 1)
        mutated = [value for value in child.values() if value not in kept]
        values += mutated
        if len(mutated) == 1 and mutated[0] > 0.9:
            mixed.append({*kept} <= set(child.values()))
    assert len(mixed) > 4
    assert np.mean(mixed) > 0.5
    assert np.histogram(values, bins=5, range=(0, 1))[0].min() > len(values) / 10


@pytest.mark.parametrize(("kind", "trials"), [(NSGA2Search, 60), (GPSearch, 12)])
def test_samplers_beat_random_draws(kind: type[OptunaSearch], trials: int) -> None:
    def volume(found: Sequence[FrozenTrial]) -> float:
        return hypervolume([trial.values for trial in found], reference=(-0.5, 1.0))

    options, seeds = ({"population": 10} if kind is NSGA2Search else {}), range(1 if kind is GPSearch else 2)
    learned = np.mean([volume(drawn(kind, trials, late_is_right, seed=seed, **options)) for seed in seeds])
    blind = np.mean([volume(drawn(NSGA2Search, trials, late_is_right, seed=seed, population=99)) for seed in seeds])
    assert learned > blind + 0.05


def test_tpe_draws_near_what_was_best() -> None:
    def miss(parameters: dict[str, Any]) -> float:
        return float(abs(parameters["keep"] - 0.7) + 0.1 * abs(parameters["layer"] - 3))

    def objective(parameters: dict[str, Any]) -> tuple[float, float]:
        return 1 - miss(parameters), miss(parameters)

    runs = [[miss(t.params) for t in drawn(TPESearch, 40, objective, family="step", seed=seed)] for seed in range(2)]
    assert np.mean([run[-10:] for run in runs]) < np.mean([run[:10] for run in runs]) - 0.15


@pytest.mark.parametrize("kind", [TPESearch, NSGA2Search, GPSearch])
@pytest.mark.parametrize(("family", "layers"), [("layerwise", 4), ("exponential", 8), ("step", 2)])
def test_samplers_draw_from_every_space(kind: type[OptunaSearch], family: str, layers: int) -> None:
    """Also logarithmic, and of a single value; with failures; twice the same."""
    options = {"population": 3} if kind is NSGA2Search else {}

    def objective(parameters: dict[str, Any]) -> tuple[float, float] | None:
        ratios = FAMILIES[family](layers).schedule(parameters).keep_ratio(layers)
        return None if int(1e4 * np.mean(ratios)) % 3 == 0 else (ratios[1], float(np.mean(ratios)))

    found = [drawn(kind, 14, objective, family=family, layers=layers, **options) for _ in range(2)]
    assert [trial.params for trial in found[0]] == [trial.params for trial in found[1]]
    assert any(trial.state == TrialState.FAIL for trial in found[0])
    spaces = FAMILIES[family](layers).distributions()
    for trial in found[0]:
        for name, space in spaces.items():
            assert space._contains(space.to_internal_repr(trial.params[name]))


# --- greedy search -----------------------------------------------------------------------------------


def test_greedy_search_finds_the_fewest_tokens() -> None:
    """Each layer needs a known number of levels; each that is missing costs 1."""
    needs = [8, 7, 5, 5, 2, 0]

    def loss(kept: Sequence[int]) -> float:
        return float(sum(max(0, need - level) for need, level in zip(needs, kept, strict=True)))

    assert greedy(6, 8, 0.0, loss) == needs
    assert greedy(6, 8, 5.0, loss) == [8, 6, 5, 3, 1, 0]


# --- FitPrune's fit ----------------------------------------------------------------------------------


def rows(*values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_longest_run_of_the_smallest() -> None:
    values, among = rows([5, 1, 9, 2, 3]), torch.tensor([[True, True, False, True, True]])
    # In order 1, 2, 3, 5 of 11: without the first ones 10, 8, 5, 0 are left.
    for least, expected in (
        (11, ""),
        (10.5, ""),
        (10, "1"),
        (8, "13"),
        (7, "13"),
        (5, "134"),
        (0.1, "134"),
        (0, "0134"),
    ):
        found = dispensable(values, among, torch.tensor([float(least)]))
        assert "".join(str(i) for i, gone in enumerate(found[0].tolist()) if gone) == expected, least


def test_golden_counts_of_the_fit() -> None:
    """Two samples, the second without text behind its picture and with a column that is no visual token."""
    cross = rows([0.4, 0.3, 0.2, 0.1], [0, 0, 0, 0])
    own = rows([0.1, 0.2, 0.3, 0.4], [0.3, 0.1, 9.0, 0.2])
    visual = torch.tensor([[True] * 4, [True, True, False, True]])
    totals = rows([1.0, 0.0])[0], rows([1.0, 0.6])[0]

    def gone(alpha: float) -> list[list[int]]:
        found = deleted(cross, own, visual, *totals, alpha)
        return [[i for i, bad in enumerate(row) if bad] for row in found.tolist()]

    assert gone(0.0) == [[], []]
    # The text can do without 3 and 2, the visual tokens without 0 and 1: nothing is in both.
    assert gone(0.31) == [[], [1]]
    # 3, 2, 1 and 0, 1, 2.
    assert gone(0.61) == [[1, 2], [1, 3]]
    assert gone(1.0) == [[0, 1, 2, 3], [0, 1, 3]]
    # Totals are those of the unpruned model: what was lost in earlier layers counts.
    assert deleted(cross, own, visual, totals[0] * 2, totals[1] * 2, 0.5).sum() == 0


def test_a_walk_ends_where_the_rest_fits() -> None:
    kept, ratio = [1.0, 0.8, 0.5, 0.1], [1.0, 0.85, 0.7, 0.6]
    assert ended(kept, ratio, 1.0) == [1.0] * 4
    assert ended(kept, ratio, 0.9) == [1.0, 0.8, 0.8, 0.8]
    assert ended(kept, ratio, 0.7) == [1.0, 0.8, 0.5, 0.5]
    assert ended(kept, ratio, 0.6) == kept
    assert ended(kept, ratio, 0.59) is None


@pytest.fixture(scope="module")
def fitting(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> FitPruneFit:
    made, store = fresh(problem, BASELINES), Store(f"sqlite:///{tmp_path_factory.mktemp('fit')}/a.db")
    context: Any = SimpleNamespace(
        evaluator=Evaluator(made), method=make_method("fitprune"), family=FAMILIES["layerwise"](8), seed=0, store=store
    )
    return FitPruneFit(context, FitPruneFit.Options(samples=6))


def test_a_walk_costs_what_torch_counts(fitting: FitPruneFit) -> None:
    """One sample without padding, so that torch's counter sees what is charged."""
    problem = fitting.context.evaluator.problem
    (part,) = observe(problem, 1, 0)
    plain = fitting._walk(part, Walk(0.0, None))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        walk = fitting._walk(part, Walk(0.3, plain.totals))
    entering = walk.entering(part.n_visual)
    assert part.n_visual > entering[0, -1] > 0
    head = 2 * problem.shape.hidden * problem.model.config.text_config.vocab_size
    assert counter.get_total_flops() - head == walk_flops(problem.shape, entering, part.n_text)


def test_fits_delete_more_with_alpha(fitting: FitPruneFit) -> None:
    fits = {number: fitting.fit(number) for number in (1, 32, 64, 127)}
    for fit in fits.values():
        assert fit["kept"][0] == 1.0
        assert fit["kept"] == sorted(fit["kept"], reverse=True)
    assert [fit["kept"][-1] for fit in fits.values()] == sorted((f["kept"][-1] for f in fits.values()), reverse=True)
    assert fits[127]["kept"][-1] < 0.2 < 0.5 < fits[1]["kept"][-1]
    # Plain passes are paid by the first fit alone, and a walk costs less the more it deletes.
    problem = fitting.context.evaluator.problem
    plain = sum(int(unpruned_flops(problem.shape, p.n_visual, p.n_text).sum()) for p in observe(problem, 6, 0))
    assert fits[1]["flops"] > 2 * plain
    assert fits[32]["flops"] > fits[64]["flops"] > fits[127]["flops"]
    # The ratio at the last layer is that of the whole walk, as the evaluator would have it but for other samples.
    assert fits[64]["ratio"][0] == pytest.approx(1.0)


# --- VTW ---------------------------------------------------------------------------------------------


def test_vtw_takes_the_first_layer_that_is_near_enough() -> None:
    found = Withdrawals({1: 2.0, 2: 0.3, 3: 0.4, 4: 0.01}, {1: 10, 2: 20, 3: 30, 4: 40}, 50, 60)
    assert [found.first(eta) for eta in (2.0, 1.0, 0.35, 0.29, 0.01, 0.001)] == [1, 2, 2, 4, 4, None]
    assert found.tried(1.0) == {1, 2}
    assert found.tried(0.001) == {1, 2, 3, 4}


def test_divergence_is_in_the_official_order() -> None:
    withdrawn, plain = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(divergence(withdrawn, plain)) == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2))
    assert float(divergence(withdrawn + 3, plain - 1)) == pytest.approx(float(divergence(withdrawn, plain)))


def test_vtw_on_the_demo(problem: Problem, finished: Store) -> None:
    """Divergences are those of models pruned one by one; each layer is paid once, by the first eta that looks at it."""
    made = fresh(problem, BASELINES)
    alone = dict.fromkeys(range(1, 8), 0.0)
    price, plain_price = dict.fromkeys(alone, 0), 0
    for part in observe(made, 6, 0):
        inputs = made.adapter.with_features(part.batch.inputs, part.batch.features)
        with torch.inference_mode():
            plain = made.model(**inputs, use_cache=False).logits[:, -1]
            plain_price += int(unpruned_flops(made.shape, part.n_visual, part.n_text).sum())
            for layer in alone:
                with prune(made.model, method="fastv", schedule=Step(layer, 0.0)):
                    gone = made.model(**inputs, use_cache=False).logits[:, -1]
                alone[layer] += float(divergence(gone, plain).sum()) / 6
                counts = Step(layer, 0.0).counts(part.n_visual, 8)
                price[layer] += int(prefill_flops(made.shape, counts, part.n_visual, part.n_text).sum())
    trials = {trial.user_attrs["eta"]: trial for trial in complete(finished, "vtw")}
    assert list(trials) == [0.02, 0.5, 0.0]
    for eta, trial in trials.items():
        known = trial.user_attrs["divergences"]
        for layer, value in known.items():
            assert value == pytest.approx(alone[int(layer)], abs=1e-5)
        near = [layer for layer, value in alone.items() if value <= eta]
        expected = Step(near[0], 0.0) if near else Step(1, 1.0)
        assert trial.user_attrs["schedule"] == expected.text()
    chosen = parse_schedule(trials[0.02].user_attrs["schedule"]).layer  # type: ignore[attr-defined]
    assert 1 < chosen < 8
    assert trials[0.02].user_attrs["propose_flops"] == plain_price + sum(price[layer] for layer in range(1, chosen + 1))
    assert trials[0.5].user_attrs["propose_flops"] == 0
    assert trials[0.0].user_attrs["propose_flops"] == sum(price[layer] for layer in range(chosen + 1, 8))
    assert trials[0.0].values[1] == 1.0
    # All layers were looked at together, which share what is before them; the rule's price is that of each alone.
    paid = sum(trial.user_attrs["spent_flops"] for trial in trials.values())
    measured = sum(trial.user_attrs["charged_flops"] - trial.user_attrs["propose_flops"] for trial in trials.values())
    assert plain_price < paid < plain_price + sum(price.values()) + measured


# --- published defaults ------------------------------------------------------------------------------


def test_every_published_default_belongs_to_one_entry(finished: Store) -> None:
    methods = {(known.method, str(known.parameters)): known.make_method() for known in PUBLISHED.values()}
    named = [name for method in methods.values() for name in published_for(method)]
    assert sorted(named) == sorted(PUBLISHED)
    trials = complete(finished, "published")
    assert [trial.user_attrs["published"] for trial in trials] == [f"sparsevlm:{n}" for n in (192, 128, 96, 64)]
    for trial in trials:
        expected = PUBLISHED[trial.user_attrs["published"]].for_layers(8)
        assert trial.user_attrs["schedule"] == expected.text()
        again = FAMILIES["layerwise"](8).schedule(trial.params).keep_ratio(8)
        assert np.allclose(again, expected.keep_ratio(8), atol=1e-3)
    (before,) = complete(finished, "before")
    assert before.user_attrs["schedule"] == "step(layer=0, keep=0.098)"
    assert before.params == {}
    facts = finished.require_experiment("small").facts["studies"]
    assert [entry for entry in ENTRIES if facts[f"small/{entry}"]["deterministic"]] == ["published", "before"]


def test_configurations_that_do_not_fit_are_left_out() -> None:
    said: list[str] = []
    context: Any = SimpleNamespace(
        family=FAMILIES["layerwise"](3),
        method=make_method("fastv"),
        log=SimpleNamespace(settled=list),
        advance=lambda *told: None,
        say=said.append,
    )
    search = PublishedSearch(context, PublishedSearch.Options())
    measured: list[Any] = []
    search.measure = lambda proposals, tell: measured.extend(proposals)  # type: ignore[method-assign]
    search.run()
    assert [proposal.attributes["published"] for proposal in measured] == ["fastv:k2-r50", "fastv:k2-r75"]
    assert said == [
        "fastv:k3-r50 is left out: step(layer=3, keep=0.5) prunes at layer 3, but the model has layers 0 to 2"
    ]


# --- DOP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_knapsack_finds_what_trying_everything_finds(most: int) -> None:
    """Of every budget, the least sum of divergences among all schedules with at most so many steps."""
    rng, groups, layers = np.random.default_rng(most), 3, 5
    table = np.cumsum(rng.exponential(size=(groups + 1, layers)), axis=0)
    table[0] = 0
    table[:, 0] = 0
    costs = np.sort(rng.uniform(0.02, 0.2, size=(layers, groups + 1)), axis=1)[:, ::-1]
    found = solve(table.tolist(), costs.tolist(), most)
    everything = []
    for gone in itertools.combinations_with_replacement(range(groups + 1), layers - 1):
        path = (0, *gone)
        if sum(b > a for a, b in itertools.pairwise(path)) <= most:
            value = sum(table[b][n + 1] - table[a][n + 1] for n, (a, b) in enumerate(itertools.pairwise(path)))
            everything.append((sum(costs[layer][k] for layer, k in enumerate(path)), value, path))
    assert {path for *_, path in found} <= {path for *_, path in everything}
    for budget in np.linspace(min(costs.min(axis=1).sum(), 0.3), costs.max(axis=1).sum(), 12):
        best = min((value for cost, value, _ in everything if cost <= budget - 0.003), default=None)
        if best is not None:
            assert min(value for cost, value, _ in found if cost <= budget) <= best + 1e-12


def test_dop_measures_one_schedule_for_every_budget_and_is_resumed(problem: Problem, tmp_path: Path) -> None:
    text = BASELINES.split("searches:")[0] + "searches:\n"
    for family in ("step", "multistep", "layerwise"):
        text += f"  {family}: {{kind: dop, family: {family}, samples: 8, batch: 8, groups: 3, candidates: 2}}\n"
    made = fresh(problem, text)
    whole, store = Store(f"sqlite:///{tmp_path}/whole.db"), Store(f"sqlite:///{tmp_path}/a.db")
    Run(made, whole).run()
    budgets = whole.require_experiment("small").facts["budgets"]
    for family in ("step", "multistep", "layerwise"):
        trials = whole.trial_log(f"small/{family}").complete()
        assert [t.user_attrs["budget"] for t in trials] == sorted(budgets, reverse=True)
        assert all(t.values[1] <= t.user_attrs["budget"] + 1e-9 for t in trials)
        assert [t.user_attrs["propose_flops"] > 0 for t in trials] == [True, False, False]
        assert 0 < trials[0].user_attrs["spent_flops"] < trials[0].user_attrs["charged_flops"]  # the table is a tree
        assert set(trials[0].params) == set(FAMILIES[family](8).distributions())
    with stopped_after(4):
        Run(made, store).run()
    assert Run(made, store).run() == 5
    for family in ("step", "multistep", "layerwise"):
        pairs = zip(*(s.trial_log(f"small/{family}").complete() for s in (store, whole)), strict=True)
        for again, first in pairs:
            assert (again.values, again.params) == (first.values, first.params)
            assert again.user_attrs["charged_flops"] == first.user_attrs["charged_flops"]
    with pytest.raises(ConfigError, match=r"searches.x: kind 'dop' has no schedules of family 'sigmoid'"):
        text = BASELINES.split("searches:")[0] + "searches:\n  x: {kind: dop, family: sigmoid}\n"
        validate(fresh(problem, text))


@pytest.mark.parametrize("kind", ["gsearch, levels: 3, batch: 8", "dop, family: multistep, groups: 3, batch: 8"])
def test_budgets_that_are_added_pay_what_is_new(problem: Problem, tmp_path: Path, kind: str) -> None:
    store, charged = Store(f"sqlite:///{tmp_path}/a.db"), list[list[int]]()
    for budgets in ([0.5], [0.5, 0.8], [0.5, 0.8]):
        text = BASELINES.split("budgets:")[0] + f"budgets: {budgets}\n"
        text += f"batch_size: 8\nsearches:\n  x: {{kind: {kind}, samples: 8}}\n"
        Run(fresh(problem, text), store).run()
        charged.append([trial.user_attrs["propose_flops"] for trial in store.trial_log("small/x").complete()])
    (first,), (same, added), again = charged
    assert first == same
    assert again == [same, added]
    if kind.startswith("dop"):
        assert 0 < added < first  # the table is there
    else:
        steps = store.trajectory("small/x").values()
        assert first + added == sum(row["flops"] for rows in steps for row in rows)


# --- warm starts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["step", "multistep", "layerwise"])
def test_families_find_their_schedule_of_keep_ratios(family: str) -> None:
    made = FAMILIES[family](8)
    for schedule in (Step(2, 0.5), Step(7, 0.0), Ratios([1.0] * 8), MultiStep((1, 4), (0.5, 0.25))):
        own = made.from_ratios(schedule.keep_ratio(8))
        if family == "step" and isinstance(schedule, MultiStep):
            assert own is None
            continue
        assert own is not None
        assert own.keep_ratio(8) == schedule.keep_ratio(8)
        assert made.schedule(made.parameters(own)).keep_ratio(8) == pytest.approx(own.keep_ratio(8), abs=2e-4)
    assert made.like(Step(2, 0.5)) == made.from_ratios(Step(2, 0.5).keep_ratio(8))
    falling = [1 - layer / 8 for layer in range(8)]
    assert (made.from_ratios(falling) is None) == (family != "layerwise")


def test_a_schedule_of_the_familys_own_form_is_one_of_its_own() -> None:
    """Before the decoder, and as a curve's text, what papers publish was left out."""
    constant = FAMILIES["constant"](8)
    assert constant.like(PUBLISHED["divprune:0.098"].for_layers(8)) == Step(0, 0.098)
    assert constant.like(Step(2, 0.5)) is None
    for name in ("linear", "exponential", "sigmoid"):
        made = FAMILIES[name](8)
        own = made.schedule({key: value.low for key, value in made.distributions().items()})  # type: ignore[attr-defined]
        assert made.like(own) == own


def test_samplers_start_from_what_is_enqueued(problem: Problem, tmp_path: Path) -> None:
    text = BASELINES.split("searches:")[0] + "searches:\n"
    given = "enqueue: ['fastv:k2-r50', 'step(layer=3, keep=0.25)', 'fitprune:50']"
    text += f"  random: {{kind: random, trials: 4, {given}}}\n"
    text += f"  tpe: {{kind: tpe, trials: 5, batch: 3, {given}}}\n"
    text += "  cold: {kind: random, trials: 4}\n"
    text += "  published: {kind: random, trials: 14, family: multistep, enqueue: published}\n"
    made = fresh(problem, text)
    store, told = Store(f"sqlite:///{tmp_path}/a.db"), Told()
    Run(made, store, told).run()
    schedules = {
        name: [t.user_attrs["schedule"] for t in store.trial_log(f"small/{name}").complete()]
        for name in ("random", "tpe", "cold", "published")
    }
    for name in ("random", "tpe"):
        assert schedules[name][:2] == ["step(layer=2, keep=0.5)", "step(layer=3, keep=0.25)"]
        assert f"small/{name}: fitprune:50 is no schedule of family 'step' and is not enqueued" in told.said
    assert schedules["random"][2:] == schedules["cold"][2:]  # what comes after is drawn as ever
    assert {"multistep(layers=(2,), keeps=(0.5,))", "multistep(layers=(2, 4, 6), keeps=(0.5, 0.25, 0.125))"} <= {
        *schedules["published"]
    }
    wrong = text.replace("'fitprune:50'", "'fitprune:55'")
    with pytest.raises(ScheduleError, match="no published configuration 'fitprune:55'"):
        Run(fresh(problem, wrong), store).run(fresh=True)


# --- AutoPrune ----------------------------------------------------------------------------------------


def test_autoprune_counts_are_those_of_the_official_code() -> None:
    """Golden values of its function for 32 layers, 160 tokens behind layer 0 and a target of 64."""
    steep = [124, 123, 122, 121, 120, 118, 116, 113, 109, 104, 98, 91, 83, 74, 65, 56, 47, 38, 31, 24, 19, 15]
    steep += [11, 9, 7, 5, 4, 3, 2, 2, 2]
    assert counts_after(0.3, 160, 64, 32, clusters=True) == steep
    flat = counts_after(0.1, 160, 64, 32, clusters=True)
    assert (flat[0], flat[-1]) == (100, 21)
    for target in (10.0, 30.5, 60.0):
        behind = counts_after(0.3, 64, target, 8)
        assert behind == sorted(behind, reverse=True)
        assert 8 * target - 8 < 64 + sum(behind) <= 8 * target


def test_mutual_information_in_bits() -> None:
    """Two words that look at two tokens: at one each, 1 bit; both at both, none; heads add up."""
    each = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    both = torch.full((2, 2), 0.5)
    found = mutual_information(
        torch.stack([torch.stack([each, each]), torch.stack([each, both]), 0 * each.repeat(2, 1, 1)])
    )
    assert found.tolist() == pytest.approx([2.0, 1.0, 0.0], abs=1e-4)
    half = mutual_information(0.5 * each[None, None])  # half of the attention on text: not divided by its sum
    assert half.item() == pytest.approx(0.5 * np.log2(0.25 / (0.5 * 0.25)), abs=1e-4)


def test_autoprune_gives_every_sample_its_own_curve(problem: Problem, tmp_path: Path) -> None:
    text = BASELINES[: BASELINES.index("  random:")] + "  autoprune: {kind: autoprune, gamma: 0.05}\n"
    study, store = fresh(problem, text), Store(f"sqlite:///{tmp_path}/a.db")
    run = Run(study, store)
    run.run()
    trials = complete(store, "autoprune")
    assert len(trials) == 3
    first, *rest = trials
    assert first.user_attrs["propose_flops"] > 0
    assert [trial.user_attrs["propose_flops"] for trial in rest] == [0, 0]
    part = run.evaluator.prepared("search")[0]
    prompt = part.batches[0].prompt(study.adapter)
    for trial in trials:
        assert trial.values[1] <= trial.user_attrs["budget"]
        assert trial.values[1] == pytest.approx(trial.user_attrs["budget"], abs=0.03)
        policy = run._policies["small/autoprune"](trial.user_attrs["schedule"])
        assert policy.text() == trial.user_attrs["schedule"]
        counts = policy.counts(part.n_visual[part.batches[0].rows], study.shape.layers, prompt)
        assert len(np.unique(counts, axis=0)) > 1
        with pytest.raises(ScheduleError, match="reads prompts"):
            policy.counts(part.n_visual, study.shape.layers)
    found = Comparison(store, "small").to_dict()["searches"][0]
    assert found["budget_score"] is not None
    assert Run(study, store).run() == 0
    assert len(complete(store, "autoprune")) == 3


def test_autoprune_reads_what_the_model_attends_to(problem: Problem) -> None:
    """Bits by the model's own eager attention at layer 1, of a sample alone, without padding."""
    evaluator = Evaluator(fresh(problem, BASELINES))
    bits, part = Bits(evaluator), evaluator.prepared("search")[0]
    batch = part.batches[0]
    model, adapter = problem.model, problem.adapter
    inputs = adapter.with_features(batch.inputs, batch.features)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        attention = model(**inputs, output_attentions=True).attentions[1].detach()
    finally:
        model.set_attn_implementation(before)
    visual = adapter.visual_mask(batch.inputs["input_ids"], None)
    last = visual.shape[1] - 1 - visual.flip(1).int().argmax(dim=1)
    for row, key in enumerate(batch.keys):
        text = [n for n in range(int(last[row]) + 1, visual.shape[1]) if batch.inputs["attention_mask"][row, n]]
        rows = attention[row : row + 1, :, text][..., visual[row]]
        assert bits.of(key) == pytest.approx(float(mutual_information(rows)), rel=1e-3, abs=1e-5)
