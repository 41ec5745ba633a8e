"""vispco import: foreign studies beside our own, with null where they do not say."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

import vispco
from conftest import SMALL, Told, fresh
from test_copying import fill
from vispco.analysis.comparison import Comparison
from vispco.errors import ConfigError, LockedError, StorageError
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.run import Run
from vispco.exporting import export_schedule
from vispco.problem import Problem
from vispco.pruning.schedules import parse_schedule
from vispco.storage.importing import import_trials
from vispco.storage.store import Store

SPACE = {"x": optuna.distributions.FloatDistribution(0, 10)}


@pytest.fixture
def store(store: Store) -> Store:
    fill(store, "exp")
    return store


def foreign(store: Store, name: str = "their study", directions: tuple[str, ...] = ("maximize", "minimize")) -> Any:
    return optuna.create_study(study_name=name, storage=store.optuna, directions=list(directions))


def told(study: optuna.Study, *values: float, state: TrialState = TrialState.COMPLETE, **attributes: Any) -> None:
    found = list(values) if state == TrialState.COMPLETE else None
    study.add_trial(
        create_trial(state=state, values=found, params={"x": 1.5}, distributions=SPACE, user_attrs=attributes)
    )


def test_a_study_that_says_nothing_is_compared(store: Store) -> None:
    study = foreign(store)
    told(study, 0.35, 0.15)
    told(study, 0.2, 0.9)
    told(study, float("inf"), 0.01)
    told(study, state=TrialState.FAIL)
    told(study, state=TrialState.PRUNED)
    study.ask()
    before = Comparison(store, "exp").to_dict()
    done = import_trials(store, "their study", "exp")
    assert (done.study, done.trials, done.known) == ("exp/their-study", 5, 0)
    assert len(done.notes) == 3
    assert "objective 1 as flops_ratio, the share of the unpruned model's FLOPs" in done.notes[0]
    found = Comparison(store, "exp").to_dict()
    assert found["searches"][:2] == before["searches"]
    theirs = found["searches"][2]
    assert set(theirs) == set(before["searches"][0])
    for name in ("seed", "evaluations", "charged_flops", "spent_flops", "propose_flops", "budget_score"):
        assert theirs[name] is None, name
    assert theirs["budget_score_ci"] is theirs["cost_ratio_to_grid"] is None
    assert (theirs["name"], theirs["trials"]) == ("their-study", 2)
    assert theirs["hypervolume"] > 0
    grid = [(point["accuracy"], point["flops_ratio"]) for point in found["searches"][0]["front"]]
    lacks = [math.hypot(max(accuracy - 0.35, 0), max(0.15 - cost, 0)) for accuracy, cost in grid]
    assert theirs["igd_plus"] == pytest.approx(sum(lacks) / len(lacks))
    assert theirs["front"] == [
        {
            "trial": 0,
            "schedule": None,
            "keep_ratio": None,
            "accuracy": 0.35,
            "accuracy_held_out": None,
            "accuracy_ci": None,
            "flops_ratio": 0.15,
            "budget": None,
            "tasks": {},
        }
    ]
    assert found["by_budget"][0]["chosen"]["their-study"] == {
        "trial": 0,
        "schedule": None,
        "accuracy_held_out": None,
        "flops_ratio": 0.15,
        "missed": False,
        "tasks": {},
    }
    assert found["by_budget"][0]["difference_to_grid"]["their-study"] is None
    json.dumps(found, allow_nan=False)


def test_trials_keep_what_they_are(store: Store) -> None:
    study = foreign(store, directions=("minimize", "minimize", "maximize"))
    told(study, 5.0, 0.5, 0.75, schedule="cosine", mine=[1, {"a": None}])
    told(study, state=TrialState.FAIL)
    done = import_trials(store, "their study", "exp", entry="theirs", accuracy=2, cost=1)
    original = study.get_trials()
    copied = store.trial_log(done.study).study.get_trials()
    assert copied[0].values == [0.75, 0.5]
    assert copied[0].user_attrs == {
        "schedule": "cosine",
        "mine": [1, {"a": None}],
        "imported_number": 0,
        "imported_values": [5.0, 0.5, 0.75],
    }
    for ours, theirs in zip(copied, original, strict=True):
        for field in ("state", "params", "distributions", "datetime_start", "datetime_complete"):
            assert getattr(ours, field) == getattr(theirs, field)
    facts = Comparison(store, "exp").facts["studies"]["exp/theirs"]
    assert facts["kind"] == "imported"
    assert (facts["source"]["study"], facts["source"]["accuracy"], facts["source"]["cost"]) == ("their study", 2, 1)


def test_again_adds_only_what_is_new(store: Store) -> None:
    study = foreign(store)
    told(study, 0.1, 0.1)
    running = study.ask()
    assert import_trials(store, "their study", "exp").trials == 1
    assert import_trials(store, "their study", "exp").trials == 0
    told(study, 0.3, 0.3)
    study.tell(running, [0.2, 0.2])
    done = import_trials(store, "their study", "exp")
    assert (done.trials, done.known) == (2, 1)
    copied = store.trial_log(done.study).complete()
    assert [(t.values, t.user_attrs["imported_number"]) for t in copied] == [
        ([0.1, 0.1], 0),
        ([0.2, 0.2], 1),
        ([0.3, 0.3], 2),
    ]


def test_a_trial_that_repeats_a_measurement_has_its_held_out_numbers(store: Store) -> None:
    """Known by the evaluation's id; a schedule's text alone may come from another model."""
    ours = store.trial_log("exp/grid").complete()
    best = ours[Comparison(store, "exp").to_dict()["searches"][0]["front"][-1]["trial"]]
    study = foreign(store)
    told(study, *best.values, **best.user_attrs)
    told(study, 0.95, 0.95, schedule=ours[1].user_attrs["schedule"], evaluation="another", keep_ratio="all", budget="x")
    told(study, 0.99, 0.99, schedule=7, keep_ratio=[2.0, True], charged_flops="many", evaluation=[1])
    import_trials(store, "their study", "exp")
    comparison = Comparison(store, "exp")
    found = comparison.to_dict()
    grid, theirs = found["searches"][0]["front"], found["searches"][2]["front"]
    assert theirs[0] == {**grid[-1], "trial": 0}
    assert theirs[0]["accuracy_ci"]
    assert (theirs[1]["schedule"], theirs[1]["accuracy_held_out"]) == (ours[1].user_attrs["schedule"], None)
    assert theirs[1]["keep_ratio"] is theirs[1]["budget"] is None
    assert theirs[2]["schedule"] is theirs[2]["keep_ratio"] is None
    assert found["searches"][2]["charged_flops"] is None
    # What another study measured is not exported under a method that nobody knows.
    exported = export_schedule(comparison, 1.0)
    assert exported["search"] == "grid"
    # The cheapest of the grid within one standard error of its best.
    assert exported["keep_ratio"] == [1.0, 1.0, 0.2, 0.2]
    assert exported["keep_ratio"] in [point["keep_ratio"] for point in grid]


@pytest.mark.parametrize(
    ("directions", "indices", "message"),
    [
        (("maximize",), (None, None), "has one objective"),
        (("minimize", "maximize"), (None, None), "give --accuracy 1 --cost 0"),
        (("minimize", "minimize"), (None, None), "accuracy must be maximised"),
        (("maximize", "minimize", "minimize"), (None, None), "name two: --accuracy I --cost J"),
        (("maximize", "minimize", "minimize"), (0, None), "name two"),
        (("maximize", "minimize", "minimize"), (0, 3), "--cost 3"),
        (("maximize", "minimize", "minimize"), (-1, 1), "--accuracy -1"),
        (("maximize", "minimize", "minimize"), (1, 2), "accuracy must be maximised"),
        (("maximize", "minimize"), (1, 1), "both objective 1"),
    ],
)
def test_objectives_that_cannot_be_compared(
    tmp_path: Path, directions: tuple[str, ...], indices: tuple[int | None, int | None], message: str
) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill(store, "exp")
    foreign(store, directions=directions)
    with pytest.raises(ConfigError) as caught:
        import_trials(store, "their study", "exp", accuracy=indices[0], cost=indices[1])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "exp/their-study" not in optuna.get_all_study_names(store.optuna)


def test_what_is_refused(tmp_path: Path) -> None:
    store, other = Store(f"sqlite:///{tmp_path}/a.db"), Store(f"sqlite:///{tmp_path}/b.db")
    fill(store, "exp")
    told(foreign(store), 0.5, 0.5)
    told(foreign(other), 0.5, 0.5)
    with pytest.raises(StorageError, match=r"no study 'their stud' in .*did you mean 'their study'"):
        import_trials(store, "their stud", "exp")
    with pytest.raises(StorageError, match="no experiment 'none'"):
        import_trials(store, "their study", "none")
    with pytest.raises(StorageError, match="no database at"):
        import_trials(store, "their study", "exp", source=f"sqlite:///{tmp_path}/c.db")
    with pytest.raises(ConfigError, match="is a grid search; choose another --as"):
        import_trials(store, "their study", "exp", entry="grid")
    with pytest.raises(ConfigError, match="entry name 'a/b'"):
        import_trials(store, "their study", "exp", entry="a/b")
    with pytest.raises(ConfigError, match="nothing to import"):
        import_trials(store, "exp/grid", "exp", entry="grid")
    facts = store.require_experiment("exp").facts
    for asked in ({"cost": "prefill_ms"}, {"limits": {"kv_bytes": 0.5}}, {"further_costs": {"kv_bytes": 9.0}}):
        store.save_facts("exp", {**facts, **asked})
        with pytest.raises(ConfigError, match=r"costs or limits other than FLOPs \((prefill_ms|kv_bytes)\)"):
            import_trials(store, "their study", "exp")
    store.save_facts("exp", facts)
    import_trials(store, "their study", "exp")
    with pytest.raises(ConfigError, match="was imported from 'their study'"):
        import_trials(store, "their study", "exp", source=other.url)
    with store.lock("exp"), pytest.raises(LockedError):
        import_trials(Store(store.url), "their study", "exp")


def test_every_view_copes(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """compare, status, report and export of an experiment beside a stranger's study with hostile names."""
    store, other = Store(f"sqlite:///{tmp_path}/a.db"), Store(f"sqlite:///{tmp_path}/b.db")
    fill(store, "exp")
    study = foreign(other, "<script>alert(1)</script>")
    told(study, 0.9, 0.2, schedule="</script><img src=x onerror=alert(2)>")
    told(study, 0.95, 0.4)
    told(study, 0.1, 0.5)
    storage = ("--storage", store.url)
    arguments = ("import", "<script>alert(1)</script>", "--into", "exp", "--from", other.url, *storage)
    code, out, _ = cli(*arguments, "--as", "theirs", "--json")
    assert (code, json.loads(out)) == (0, [{"study": "exp/theirs", "trials": 3, "known": 0}])
    code, out, _ = cli("compare", "exp", *storage)
    assert code == 0
    assert "theirs" in out
    code, out, _ = cli("compare", "exp", "--csv", *storage)
    assert out.splitlines()[3].startswith("exp,theirs,3,,,,,,,0,")
    code, out, _ = cli("status", "exp", "--json", *storage)
    assert [(row["kind"], row["complete"], row["pruned"], row["failed"]) for row in json.loads(out)] == [
        ("grid", 4, 0, 0),
        ("tpe", 4, 1, 1),
        ("imported", 3, 0, 0),
    ]
    assert cli("export", "exp", "--budget", 1.0, *storage)[0] == 0
    code, out, err = cli("report", "exp", "-o", tmp_path / "r.html", *storage)
    assert code == 0, err
    page = (tmp_path / "r.html").read_text()
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page
    assert "trial 1" in page


def test_workers_are_shown_while_somebody_runs(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill(store, "exp")
    row = {
        "worker": "w0",
        "host": "h",
        "pid": 7,
        "doing": "step(layer=2, keep=0.5)",
        "since": time.time() - 5,
        "done": 3,
        "seen": time.time(),
    }
    store.save_workers("exp", [row])
    storage = ("--storage", store.url)
    assert json.loads(cli("status", "--workers", "--json", *storage)[1]) == []
    with store.lock("exp"):
        (shown,) = json.loads(cli("status", "--workers", "--json", *storage)[1])
        assert (shown["worker"], shown["process"], shown["doing"], shown["done"]) == ("w0", "7 on h", row["doing"], 3)
        assert "step(layer=2, keep=0.5)" in cli("status", *storage)[1]


def test_a_run_goes_on_beside_an_import(problem: Any, tmp_path: Path) -> None:
    """Trials of vispco.objective; the second run keeps the entry, and its held-out numbers are those of the grid."""
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(problem, store).run(["tpe"])
    first = store.trial_log("small/tpe").complete()[0]
    study = foreign(store)
    study.enqueue_trial(first.params)
    study.optimize(vispco.objective(problem), n_trials=2)
    import_trials(store, "their study", "small", entry="mine")
    assert Run(problem, store).run(["tpe"]) == 0
    taken = problem.text.replace("  tpe:", "  mine:")
    with pytest.raises(ConfigError, match="entry 'mine' of experiment 'small' was imported; rename the entry"):
        Run(Problem.from_text(taken), store).run(["mine"])
    comparison = Comparison(store, "small")
    mine = next(search for search in comparison.searches if search.name == "mine")
    repeated = mine.trials[0]
    tpe = next(search for search in comparison.searches if search.name == "tpe")
    assert repeated.user_attrs["evaluation"] == first.user_attrs["evaluation"]
    assert comparison.held_out(mine, repeated) == comparison.held_out(tpe, tpe.trials[0])
    row = next(search for search in comparison.to_dict()["searches"] if search["name"] == "mine")
    assert row["charged_flops"] == sum(t.user_attrs["charged_flops"] for t in mine.trials) > 0
    assert (row["evaluations"], row["propose_flops"]) == (2, 0)


def test_a_search_of_the_users_own_gets_a_held_out_score(problem: Problem, tmp_path: Path) -> None:
    text = SMALL.split("searches:")[0] + "searches:\n  random: {kind: random, trials: 2}\n"
    made = fresh(problem, text)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(made, store).run()
    own = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=3))
    own.optimize(vispco.objective(made), n_trials=4)
    for name, attributes in (("mine", None), ("theirs", {"schedule": "step(layer=2, keep=0.5)", "evaluation": "x"})):
        study = optuna.create_study(
            study_name=name, storage=store.optuna, directions=["maximize", "minimize"], sampler=own.sampler
        )
        for trial in own.trials:
            kept = trial.user_attrs if attributes is None else attributes
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, values=trial.values, user_attrs=kept
                )
            )
        import_trials(store, name, "small")
    before = {row["name"]: row["budget_score"] for row in Comparison(store, "small").to_dict()["searches"]}
    assert before["mine"] is None
    progress = Told()
    Run(made, store, progress).run()
    comparison = Comparison(store, "small")
    found = {row["name"]: row["budget_score"] for row in comparison.to_dict()["searches"]}
    evaluator, blind = Evaluator(made), comparison.reference("no_image", "held_out")
    assert blind is not None
    scores = []
    for budget in comparison.budgets:
        fitting = [t for t in own.trials if t.values[1] <= budget]
        best = min(fitting, key=lambda t: (-t.values[0], t.values[1], t.number), default=None)
        schedule = None if best is None else parse_schedule(best.user_attrs["schedule"])
        scores.append(evaluator.evaluate([schedule], "held_out")[0].accuracy if schedule else blind.accuracy)
    assert found["mine"] == pytest.approx(sum(scores) / len(scores))
    assert found["theirs"] is None
    assert any(line.startswith("small/theirs: ") and "are not measured on held_out" in line for line in progress.said)
    assert not any(line.startswith("small/mine") for line in progress.said)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), "0.5", True, [0.5]])
def test_a_budget_that_is_none_is_not_believed(store: Store, odd: Any) -> None:
    """An imported trial may call anything a budget; JSON has no NaN."""
    told(foreign(store), 0.35, 0.15, budget=odd, schedule=odd, charged_flops=odd)
    import_trials(store, "their study", "exp")
    found = Comparison(store, "exp").to_dict()
    json.dumps(found, allow_nan=False)
    (point,) = found["searches"][2]["front"]
    assert point["budget"] is None
    assert point["schedule"] == (odd if isinstance(odd, str) else None)
