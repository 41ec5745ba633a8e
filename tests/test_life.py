"""The life of an experiment: what may be added later, what is pointed out, what can be deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

from conftest import Cli, Told, fresh, stopped_after
from vispco.analysis.comparison import Comparison
from vispco.errors import ConfigError
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.search.gradient.search import GradientSearch
from vispco.search.sampling import RandomSearch
from vispco.storage.store import Store

HEAD = """
experiment: life
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 8, search: 8, held_out: 8}}
budgets: [0.6, 0.8]
batch_size: 8
searches:
"""
GRADIENTS = "dual_steps: 1, primal_steps: 1, batch: 8, check: 0, between: 0"


class Watched(Told):
    """Keeps the last progress of every part too."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, tuple[int, int | None]] = {}

    @contextmanager
    def track(self, title: str, result: Callable[[], str] | None = None) -> Iterator[Any]:
        def advance(done: int, total: int | None, note: str) -> None:
            self.last[title.split()[0]] = (done, total)

        yield advance


@pytest.fixture
def run(problem: Problem, tmp_path: Path) -> Callable[..., tuple[int, Watched, Store]]:
    """Run a study's text on one database; (trials added, what was told, store)."""
    store = Store(f"sqlite:///{tmp_path}/a.db")

    def go(text: str) -> tuple[int, Watched, Store]:
        told = Watched()
        return Run(fresh(problem, text), store, told).run(), told, store

    return go


def test_an_entry_goes_on_as_its_seed_0(run: Callable[..., tuple[int, Watched, Store]]) -> None:
    """With seeds added later, and with the list taken away again, whichever came first."""
    more = "  first: {kind: random, trials: 2, seeds: [0]}\n  second: {kind: random, trials: 3SEEDS}\n"
    assert run(HEAD + more.replace("SEEDS", ""))[0] == 5
    added, _, store = run(HEAD + more.replace("SEEDS", ", seeds: [0, 1]").replace(", seeds: [0]}", "}"))
    assert added == 3
    assert sorted(store.study_names("life")) == ["life/first@0", "life/second", "life/second@1"]
    assert {(s.entry, s.seed) for s in Comparison(store, "life").searches} == {
        *(("first", 0), ("second", 0), ("second", 1))
    }
    assert run(HEAD + more.replace("SEEDS", ""))[0] == 0


def test_one_more_budget_is_measured(run: Callable[..., tuple[int, Watched, Store]]) -> None:
    """What was there stays, and each budget has its own trajectory; a budget less is refused."""
    entries = "".join(
        f"  {name}: {{kind: lagrangian, predictor: {name}, {GRADIENTS}}}\n" for name in ("static", "budget")
    )
    _, _, store = run(HEAD + entries)
    before = {
        name: [(t.number, t.values, t.user_attrs) for t in store.trial_log(f"life/{name}").complete()]
        for name in ("static", "budget")
    }
    paths = store.trajectory("life/static")
    added, told, _ = run(HEAD.replace("0.8", "0.7, 0.8, 0.9") + entries)
    assert added == 4
    for name, earlier in before.items():
        trials = store.trial_log(f"life/{name}").complete()
        assert [(t.number, t.values, t.user_attrs) for t in trials][: len(earlier)] == earlier
        assert sorted(t.user_attrs["budget"] for t in trials) == [0.6, 0.7, 0.8, 0.9]
        assert all(t.values[1] <= t.user_attrs["budget"] + 1e-9 for t in trials)
        assert len({t.user_attrs["trajectory"] for t in trials}) == 4
        assert told.last[f"life/{name}"] == (4, 4)
    assert {key: store.trajectory("life/static")[key] for key in paths} == paths
    assert Comparison(store, "life").budgets == [0.6, 0.7, 0.8, 0.9]
    with pytest.raises(ConfigError, match="another 'budgets'"):
        run(HEAD + entries)


def test_a_budget_that_was_tried_between_others_is_solved_when_it_is_asked_for(
    run: Callable[..., tuple[int, Watched, Store]],
) -> None:
    """The middle of 0.6 and 0.8 had a schedule of their shapes, without a gradient step."""
    steps = GRADIENTS.replace("between: 0", "between: 1")
    entries = "".join(
        f"  {name}: {{kind: lagrangian, predictor: {name}, enough: never, {steps}}}\n" for name in ("static", "budget")
    )
    _, _, store = run(HEAD + entries)
    for name in ("static", "budget"):
        (between,) = (t for t in store.trial_log(f"life/{name}").complete() if "interpolated" in t.user_attrs)
        assert between.user_attrs["budget"] == 0.7
    assert run(HEAD.replace("0.8", "0.7, 0.8") + entries)[0] == 2
    for name in ("static", "budget"):
        solved = [t for t in store.trial_log(f"life/{name}").complete() if "interpolated" not in t.user_attrs]
        assert sorted(t.user_attrs["budget"] for t in solved) == [0.6, 0.7, 0.8]
        assert solved[-1].user_attrs["propose_flops"] > 0
    assert run(HEAD.replace("0.8", "0.7, 0.8") + entries)[0] == 0


CHECKED = "{kind: lagrangian, enough: never, dual_steps: 1, primal_steps: 2, batch: 8, check: 8, between: 0}"


def test_what_added_budgets_take_is_charged_also_after_a_kill(
    run: Callable[..., tuple[int, Watched, Store]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network for more budgets was kept before one of its trials landed: those of the network before paid nothing
    of it."""
    entries = f"  whole: {CHECKED}\n  killed: {CHECKED}\n"
    _, _, store = run(HEAD + entries)
    more = HEAD.replace("0.8", "0.7, 0.8, 0.9") + entries
    measure = GradientSearch.measure

    def stopping(self: GradientSearch, *given: Any) -> None:
        if self.context.log.name == "life/killed":
            raise KeyboardInterrupt
        measure(self, *given)

    monkeypatch.setattr(GradientSearch, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(more)
    monkeypatch.undo()
    assert run(more)[0] == 2
    added = {
        name: [t.user_attrs["propose_flops"] for t in store.trial_log(f"life/{name}").complete()][2:]
        for name in ("whole", "killed")
    }
    assert added["killed"] == added["whole"]
    assert added["whole"][0] > 0
    assert run(more)[0] == 0


def test_what_budgets_added_to_a_race_of_methods_take_is_charged(
    run: Callable[..., tuple[int, Watched, Store]],
) -> None:
    entry = f"  several: {{{CHECKED[1:-1]}, method: [fastv, fitprune]}}\n".replace(", enough: never", "")
    _, _, store = run(HEAD + entry)
    more = HEAD.replace("0.8", "0.7, 0.8") + entry
    log = store.trial_log("life/several")
    before = len(log.complete())
    with stopped_after(0):
        run(more)
    assert len(log.complete()) == before
    assert run(more)[0] == len(log.complete()) - before
    charged = [trial.user_attrs["propose_flops"] for trial in log.complete()]
    assert [flops > 0 for flops in charged] == [place in (0, before) for place in range(len(charged))]
    assert run(more)[0] == 0


def test_a_network_that_trials_need_is_not_trained_for_other_budgets(
    run: Callable[..., tuple[int, Watched, Store]],
) -> None:
    entry = f"  input: {{kind: lagrangian, predictor: input, {GRADIENTS}}}\n"
    run(HEAD + entry)
    with pytest.raises(ConfigError, match=r"trained for 2 budgets .* give the entry another name"):
        run(HEAD.replace("0.8", "0.7, 0.8") + entry)


def test_seeds_that_found_the_same_are_pointed_out(
    run: Callable[..., tuple[int, Watched, Store]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = HEAD + "  random: {kind: random, trials: 2, seeds: [0, 1, 2]}\n"
    _, told, _ = run(text)
    assert told.said == []
    monkeypatch.setattr(RandomSearch, "_sampler", lambda _, number: optuna.samplers.RandomSampler(seed=number))
    _, told, _ = run(text.replace("random:", "same:"))
    assert told.said == ["life/same: seeds 0, 1, 2 found the same 2 schedules, so they count for one"]


def test_calibration_is_asked_for_by_those_who_read_it() -> None:
    text = HEAD.replace("calibration: 8, ", "")
    validate(Problem.from_text(text + "  random: {kind: random, trials: 2}\n"))
    with pytest.raises(ConfigError, match=r"searches.x: kind 'vtw' reads split 'calibration'.*add calibration: N"):
        validate(Problem.from_text(text + "  x: {kind: vtw}\n"))
    with pytest.raises(ConfigError, match="gives no size for split 'held_out'"):
        Problem.from_text(text.replace(", held_out: 8", "") + "  random: {kind: random, trials: 2}\n")


@pytest.mark.slow
def test_deleting(cli: Cli, run: Callable[..., tuple[int, Watched, Store]]) -> None:
    text = HEAD + "  a: {kind: random, trials: 2, seeds: [0, 1]}\n  ab: {kind: random, trials: 2}\n"
    _, _, store = run(text)

    def rm(*words: str) -> tuple[int, str, str]:
        return cli("rm", *words, "--storage", store.url)

    code, _, err = rm("life/a")
    assert code == 2
    assert "4 trials in 2 studies; say --yes" in err
    assert len(store.study_names("life")) == 3
    assert rm("life/a@1", "--yes")[1] == "deleted life/a@1: 2 trials in 1 study\n"
    assert rm("life/a", "--yes")[0] == 0
    assert store.study_names("life") == ["life/ab"]
    assert [search.name for search in Comparison(store, "life").searches] == ["ab"]
    code, _, err = rm("life/abc", "--yes")
    assert code == 2
    assert "did you mean 'life/ab'?" in err
    assert run(text)[0] == 4  # deleted, not forbidden
    assert rm("life", "-y")[0] == 0
    assert store.experiment_names() == []
    assert store.study_names("life") == []
