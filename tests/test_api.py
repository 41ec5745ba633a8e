"""The Python API does what the commands do."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import vispco
from conftest import SMALL, fresh
from report_data import fill
from vispco.errors import ConfigError, ScheduleError
from vispco.problem import Problem
from vispco.pruning.methods import METHODS, make_method
from vispco.storage.store import Store

STUDY = SMALL.partition("searches:")[0] + "searches:\n  random: {kind: random, trials: 2}\n"


def test_an_experiment_from_a_problem_or_a_file(problem: Problem, tmp_path: Path) -> None:
    """Run, read, run again; with the cost that is counted beside the model."""
    url = f"sqlite:///{tmp_path}/a.db"
    made = fresh(problem, STUDY)
    found = vispco.run(made, storage=url)
    assert isinstance(found, vispco.Comparison)
    (search,) = found.searches
    assert len(search.trials) == 2
    (tmp_path / "study.yaml").write_text(STUDY)
    again = vispco.run(tmp_path / "study.yaml", storage=url, overrides=["searches.random.trials=3"])
    assert len(again.searches[0].trials) == 3
    with vispco.open_store(url, read_only=True) as store:
        assert vispco.Comparison(store, "small").budgets == found.budgets
    with pytest.raises(ConfigError, match="overrides change a study file"):
        vispco.run(made, storage=url, overrides=["budgets=2"])
    # Every sample's own lengths, as the evaluator has them.
    (part,) = vispco.Evaluator(problem).prepared("search")
    trial = search.trials[0]
    mean = np.mean(
        [
            vispco.flops_ratio(problem.model, str(trial.user_attrs["schedule"]), visual=int(v), text=int(t))
            for v, t in zip(part.n_visual, part.n_text, strict=True)
        ]
    )
    assert mean == pytest.approx(trial.values[1], rel=1e-12)


def test_report_and_export(tmp_path: Path, cli: Any) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    fill(Store(url), "made")
    written = vispco.report("made", tmp_path / "r.html", storage=url)
    assert written.read_text().startswith("<!doctype html")
    found = vispco.export("made", tmp_path / "best.json", budget=0.8, storage=url)
    assert vispco.load_schedule(tmp_path / "best.json").text() == found["schedule"]
    assert cli("export", "made", "--budget", "0.8", "-o", tmp_path / "cli.json", "--storage", url)[0] == 0
    assert (tmp_path / "cli.json").read_text() == (tmp_path / "best.json").read_text()
    for wrong in (
        {},
        {"budget": 0.5, "max_drop": 1.0},
        {"budget": 0.5, "cost": "kv_bytes"},
        {"max_drop": 1, "target": "vllm"},
    ):
        with pytest.raises(ConfigError):
            vispco.export("made", storage=url, **wrong)


def test_methods_are_objects_too() -> None:
    assert vispco.methods.FastV() == make_method("fastv")
    assert vispco.methods.SparseVLM(release="1.5") == make_method("sparsevlm", {"release": "1.5"})
    offered = {getattr(vispco.methods, name) for name in vispco.methods.__all__}
    own = {METHODS[name] for name in METHODS if METHODS[name].__module__.startswith("vispco.pruning")}
    assert own <= offered


def test_all_that_a_plug_in_imports_is_there() -> None:
    assert isinstance(vispco.plugins, ModuleType)
    assert all(getattr(vispco.plugins, name) is not None for name in vispco.plugins.__all__)
    assert set(vispco.plugins.__all__) == set(vispco.plugins._HOMES)


def test_an_exported_schedule_is_priced_and_run_by_its_own_method(problem: Problem, tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    facts = {"format": "vispco-schedule", "version": 2, "schedule": "step(layer=2, keep=0.5)", "model": "demo"}
    file.write_text(json.dumps({**facts, "method": "sparsevlm", "method_parameters": {"release": "1.5"}}))
    loaded, sizes = vispco.load_schedule(file), {"visual": 64, "text": 20}
    own = vispco.flops_ratio(problem.model, loaded, loaded.make_method(), **sizes)
    assert vispco.flops_ratio(problem.model, loaded, **sizes) == own
    assert own != vispco.flops_ratio(problem.model, loaded, "fastv", **sizes)
    for text, why in (
        ("step(layer=2, keep=0.5, resolution=0.5)", "is for smaller pictures"),
        ("step(layer=0, keep=0.5)", "there is none before layer 0"),
    ):
        with pytest.raises(ScheduleError, match=why):
            vispco.flops_ratio(problem.model, text, **sizes)
    with vispco.prune(problem.model, schedule=loaded, heads=2) as session:
        assert session.method.parameters() == {**loaded.make_method().parameters(), "heads": 2}
