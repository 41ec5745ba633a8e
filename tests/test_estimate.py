"""``vispco plan`` against what a run is charged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL
from vispco.experiment.estimate import estimate
from vispco.experiment.run import Run
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
