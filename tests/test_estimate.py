"""``vispco plan`` against what a run is charged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL, Told, fresh
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.allowances import Allowances
from vispco.experiment.estimate import estimate
from vispco.experiment.run import Run
from vispco.experiment.speed import speed_of
from vispco.problem import Problem
from vispco.storage.store import Store
from vispco.testing.costs import planted_profile

STUDY = SMALL.split("searches:")[0].replace("search: 12", "search: 8") + "searches: {tpe: {kind: tpe, trials: 12}}\n"


def test_a_grids_plan_counts_its_points_and_a_samplers_is_near_its_charge(problem: Any, tmp_path: Path) -> None:
    rows = {row["study"]: row for row in estimate(problem)}
    grid = rows["small/grid"]
    points = list(problem.family().dense_grid())
    assert grid["trials"] == len(points)
    assert rows["total"]["pflops"] == pytest.approx(sum(row["pflops"] for name, row in rows.items() if name != "total"))
    assert all(row["peak_mib"] > 0 for row in rows.values())
    store = Store(f"sqlite:///{tmp_path}/a.db")
    small = Problem.from_text(STUDY)
    planned = {row["study"]: row for row in estimate(small)}["small/tpe"]
    Run(small, store).run()
    charged = store.trial_log("small/tpe").charged_flops()
    assert planned["trials"] == len(store.trial_log("small/tpe").complete())
    assert planned["pflops"] * 1e15 == pytest.approx(charged, rel=0.35)
    assert planned["minutes"] > 0
    store.engine.dispose()


GRIDS = (
    "family: multistep\nsearches: {grid: {kind: grid}, ",
    "searches: {grid: {kind: grid, family: constant, method: divprune}, ",
)


@pytest.mark.parametrize("searches", GRIDS)
def test_a_share_of_compute_is_one_of_the_runs_own_grid(searches: str, problem: Any, tmp_path: Path) -> None:
    made = fresh(problem, STUDY.split("searches:")[0] + searches + "random: {kind: random, compute: 0.25}}")
    planned = {row["study"]: row["pflops"] for row in estimate(made)}["small/random"]
    store = Store(f"sqlite:///{tmp_path}/a.db")
    assert planned * 1e15 == pytest.approx(0.25 * Allowances(Evaluator(made), store).grid_flops, rel=1e-12)
    store.engine.dispose()


def test_gradients_are_planned_as_they_are_charged(problem: Any, tmp_path: Path) -> None:
    """A network that reads prompts has no check, several methods have a network each and no budgets between, and a
    climb takes no more than what is planned for it."""
    steps = "kind: lagrangian, dual_steps: 2, primal_steps: 2, batch: 8"
    entries = (
        f"{{input: {{{steps}, predictor: input, check: 16, measure: 2}}, "
        f"several: {{{steps}, check: 8, between: 2, measure: 2, method: [fastv, fitprune]}}, "
        f"climbing: {{{steps}, check: 8, climb: 3, between: 1, enough: never}}}}"
    )
    made = fresh(problem, STUDY.split("searches:")[0] + f"searches: {entries}\n")
    planned = {row["study"]: row for row in estimate(made)}
    store = Store(f"sqlite:///{tmp_path}/a.db")
    Run(made, store).run()
    for name, (least, most) in {"input": (0.8, 1.25), "several": (0.8, 1.6), "climbing": (1.0, 4.0)}.items():
        log = store.trial_log(f"small/{name}")
        assert planned[f"small/{name}"]["trials"] == len(log.complete()), name
        assert least < planned[f"small/{name}"]["pflops"] * 1e15 / log.charged_flops() < most, name
    store.engine.dispose()


def test_answers_references_and_held_out_are_planned(problem: Any) -> None:
    """Of 5 tokens, by the planted profile: 4 steps, each of 8 layers that read what is cached in the middle one."""
    made = fresh(problem, STUDY)
    made.profile = planted_profile(made.shape, (), "demo")
    before = {row["study"]: row for row in estimate(made)}
    made.tasks[0].max_new_tokens = 5
    after = {row["study"]: row for row in estimate(made)}
    (part,) = Evaluator(made).prepared("search")
    cached = part.n_visual + part.n_text + 2
    ms = float((4 * (8 * (0.1 + 0.4 * (cached - 1) / 199) + 0.3)).sum())
    # 12 trials; three references on both splits, of 8 and 12 samples; 3 budgets' schedules on held_out.
    for name, answers in {"small/tpe": 12, "references": 3 * 2.5, "held_out": 3 * 1.5}.items():
        assert after[name]["minutes"] - before[name]["minutes"] == pytest.approx(answers * ms / 60_000, rel=1e-9)
        assert after[name]["pflops"] == before[name]["pflops"] > 0
    assert after["total"]["minutes"] == pytest.approx(sum(after[name]["minutes"] for name in after if name != "total"))


def test_probed_answers_take_time_and_a_measurement_says_how_much(problem: Any) -> None:
    made = fresh(problem, STUDY)
    evaluator = Evaluator(made)
    assert speed_of(made, evaluator).answers == 0
    made.tasks[0].max_new_tokens = 20
    probed = speed_of(made, evaluator)
    assert probed.answers > 0
    measured = evaluator.unpruned("search")
    timed = speed_of(made, evaluator, replace(measured, seconds=7.0, spent_flops=measured.flops))
    assert timed.seconds(measured.flops, 1) == pytest.approx(7)
    assert timed.answers > 0


def test_the_run_says_about_how_long_it_takes(problem: Any, tmp_path: Path) -> None:
    store, told = Store(f"sqlite:///{tmp_path}/a.db"), Told()
    Run(fresh(problem, STUDY), store, told).run(announce=True)
    (line,) = [line for line in told.said if "planned" in line]
    assert re.search(r"12 trials planned, .*FLOPs, about .* min without sharing, \d+ MiB$", line)
    store.engine.dispose()


def test_plan_command_takes_a_profile(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """Minutes then follow from it, to the digit, and twice the time is twice the minutes."""
    found = []
    for factor in (1.0, 2.0):
        data = json.loads(planted_profile(Problem.from_text(STUDY).shape, (), "demo").to_json())
        times = data["batches"]["1"]
        for curve in (*times["layers"].values(), times["rest"], times["tower"]):
            curve["ms"] = [factor * ms for ms in curve["ms"]]
        (tmp_path / "profile.json").write_text(json.dumps(data))
        (tmp_path / "study.yaml").write_text(f"{STUDY}profile: {tmp_path}/profile.json\n")
        code, out, err = cli("plan", tmp_path / "study.yaml", "--json")
        assert code == 0, err
        found.append(json.loads(out)[0]["minutes"])
    assert found[1] == pytest.approx(2 * found[0], rel=1e-9)


def of_another_machine(folder: Path, name: str = "demo", **changes: Any) -> Path:
    """A planted profile of no machine that is here: a GPU in bfloat16, at batch 4 and 512."""
    data = json.loads(planted_profile(Problem.from_text(STUDY).shape, (), name).to_json())
    data |= {"device": "cuda", "device_name": "Some GPU", "dtype": "bfloat16"}
    one = data["batches"].pop("1")
    data["batches"] = {"4": one, "512": one}
    file = folder / "theirs.json"
    file.write_text(json.dumps(data | changes))
    return file


def test_a_profile_of_another_machine_says_what_that_one_takes(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Minutes at the profile's largest batch within the study's; memory of bfloat16 values, half of float32's; more of
    it where gradients are kept than where they are recomputed."""
    study = tmp_path / "study.yaml"
    study.write_text(
        STUDY.replace("{tpe: {kind: tpe, trials: 12}}", "")
        + "  tpe: {kind: tpe, trials: 12}\n  kept: {kind: lagrangian, batch: 128}\n"
        "  small: {kind: lagrangian, batch: 128, micro_batch: 2, recompute: true}\n"
    )
    profile = of_another_machine(tmp_path)
    code, out, err = cli("plan", study, "--profile", profile, "--json")
    assert code == 0
    assert err.startswith("minutes and memory are of Some GPU (cuda), bfloat16, batch 4; minutes without sharing")
    there = {row["study"]: row for row in json.loads(out)}
    here = {row["study"]: row for row in estimate(Problem.from_yaml(study))}
    for name, row in there.items():
        assert row["trials"] == here[name]["trials"]
        assert row["pflops"] == here[name]["pflops"]
        assert row["peak_mib"] == pytest.approx(here[name]["peak_mib"] / 2, rel=1e-9)
    assert there["small/kept"]["peak_mib"] > there["small/tpe"]["peak_mib"] == there["small/small"]["peak_mib"]
    assert there["total"]["peak_mib"] == there["small/kept"]["peak_mib"]
    data = json.loads(profile.read_text())
    data["batches"]["4"] = data["batches"].pop("512")  # equal times, so that batch 1 takes 4 times as long per prompt
    data["batches"]["1"] = data["batches"].pop("4")
    profile.write_text(json.dumps(data))
    alone = {row["study"]: row for row in json.loads(cli("plan", study, "--profile", profile, "--json")[1])}
    assert alone["small/tpe"]["minutes"] == pytest.approx(4 * there["small/tpe"]["minutes"], rel=1e-9)


def test_a_profile_stands_in_for_the_studys(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A study in milliseconds, whose own profile is on another machine."""
    study = tmp_path / "study.yaml"
    study.write_text(f"{STUDY}cost: {{name: prefill_ms, batch: 4}}\nprofile: not-here.json\n")
    assert "cannot read profile 'not-here.json'" in cli("plan", study)[2]
    code, _, err = cli("plan", study, "--profile", of_another_machine(tmp_path))
    assert (code, err.count("\n")) == (0, 1)


def test_a_plan_says_how_the_timed_model_was_held(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY)
    held = {"model_type": "llava", "quantization": "quanto weights=int8", "adapter": ""}
    code, _, err = cli("plan", study, "--profile", of_another_machine(tmp_path, held=held, attention="eager"))
    told = "the model was timed with quantization quanto weights=int8 instead of none, attention eager instead of sdpa"
    assert (code, f"batch 4 ({told}); minutes" in err) == (0, True)
    code, _, err = cli("plan", study, "--profile", of_another_machine(tmp_path, held={"model_type": "llava_next"}))
    assert (code, err.count("\n")) == (2, 1)
    assert "(model_type llava_next), and 'demo' has model_type llava" in err


def test_a_profile_lies_beside_its_study(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command is given; what is seen from the working directory alone is taken too."""
    for folder, device in (("studies", "cpu"), ("here", "cuda")):
        (tmp_path / folder).mkdir()
        of_another_machine(tmp_path / folder, device=device)
    study = tmp_path / "studies" / "study.yaml"
    study.write_text(f"{STUDY}profile: theirs.json\n")
    monkeypatch.chdir(tmp_path / "here")
    assert "(cpu)" in cli("plan", study)[2]
    (tmp_path / "studies" / "theirs.json").unlink()
    assert "(cuda)" in cli("plan", study)[2]


BAD = {
    "no file": ({}, "cannot read profile"),
    "of another depth": ({"shape": {"layers": 6}, "kinds": ["full"] * 6}, "6 decoder layers, and 'demo' has 8"),
    "of another width": ({"hidden": 64}, "and 'demo' has hidden"),
    "a negative time": ({"ms": -1.0}, "greater than or equal to 0"),
    "of short prompts": ({"tokens": 20}, "the profile has times up to 20 tokens"),
    "no profile": ({"format": "else"}, "is no hardware profile"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_profiles_are_one_line(name: str, cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    changes, message = BAD[name]
    data = json.loads(of_another_machine(tmp_path).read_text())
    data |= {key: value for key, value in changes.items() if key in data and key != "shape"}
    data["shape"] |= changes.get("shape", {}) | {key: value for key, value in changes.items() if key == "hidden"}
    curves = [times["layers"]["full"] for times in data["batches"].values()]
    for curve in curves:
        if "ms" in changes:
            curve["ms"][0] = changes["ms"]
        if "tokens" in changes:
            curve.update(tokens=[1, changes["tokens"]], ms=[1.0, 2.0])
    profile, study = tmp_path / "bad.json", tmp_path / "study.yaml"
    if name != "no file":
        profile.write_text(json.dumps(data))
    study.write_text(STUDY)
    code, out, err = cli("plan", study, "--profile", profile)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
