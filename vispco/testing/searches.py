"""What every search must pass, on the demo model and eight samples."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from optuna.trial import FrozenTrial

from vispco.config import check_options, parse_study
from vispco.errors import ConfigError
from vispco.experiment.run import Run
from vispco.models.loading import load_model
from vispco.problem import Problem
from vispco.search import SEARCHES, Search
from vispco.storage.store import Store
from vispco.storage.trials import TrialLog

SPLITS = {"calibration": 16, "search": 8, "held_out": 8}
OWN = {"spent_flops", "propose_spent", "token"}  # attributes that may differ between runs


@cache
def demo() -> tuple[Any, Any]:
    return load_model("demo")


class SearchConformance:
    """Set ``search``, the class, and ``options`` with which it ends after about a dozen trials.

    ``method``, ``family``: names of what it is tried with.
    """

    search: ClassVar[type[Search]]
    options: ClassVar[dict[str, Any]] = {}
    method: ClassVar[str] = "fastv"
    family: ClassVar[str] = "step"

    def study(self, seed: int) -> str:
        entry = {"kind": self.search.kind, "seeds": [seed], **self.options}
        return yaml.safe_dump(
            {
                "experiment": "conformance",
                "tasks": [{"name": "mosaic-vqa", "splits": SPLITS}],
                "method": self.method,
                "family": self.family,
                "budgets": 3,
                "batch_size": 8,
                "searches": {"mine": entry},
            }
        )

    def run(self, store: Store, seed: int = 0) -> int:
        """How many trials were added."""
        model, processor = demo()
        text = self.study(seed)
        return Run(Problem(parse_study(text), text, model=model, processor=processor), store).run()

    def trials(self, store: Store, seed: int = 0) -> list[FrozenTrial]:
        return store.trial_log(f"conformance/mine@{seed}").settled()

    def said(self, store: Store, seed: int = 0) -> list[Any]:
        """What must be the same however often a run was interrupted."""
        return [
            (t.state, t.values, t.params, {key: value for key, value in t.user_attrs.items() if key not in OWN})
            for t in self.trials(store, seed)
        ]

    @pytest.fixture(scope="class")
    def finished(self, tmp_path_factory: pytest.TempPathFactory) -> Store:
        store = Store(f"sqlite:///{tmp_path_factory.mktemp('search')}/a.db")
        assert self.run(store) > 0, "it measured nothing"
        return store

    def test_is_known_by_its_name(self) -> None:
        assert SEARCHES[self.search.kind] is self.search

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="no-such-option"):
            check_options(self.search.Options, "mine", self.search.kind, {**self.options, "no-such-option": 1})

    def test_trials_are_schedules_with_their_costs(self, finished: Store) -> None:
        layers = finished.require_experiment("conformance").facts["layers"]
        for trial in self.trials(finished):
            ratios = trial.user_attrs["keep_ratio"]
            assert len(ratios) == layers
            assert all(0 <= after <= before <= 1 for before, after in itertools.pairwise([1.0, *ratios]))
            assert trial.user_attrs["charged_flops"] > 0
            assert trial.values is None or all(math.isfinite(value) for value in trial.values)

    def test_a_finished_search_adds_nothing(self, finished: Store) -> None:
        assert self.run(finished) == 0

    @pytest.mark.parametrize("stop", ["at the first", "in the middle"])
    def test_interrupted_it_ends_like_an_undisturbed_run(
        self, finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
    ) -> None:
        """What it proposes follows from the seed and the trials that are there."""
        store, add = Store(f"sqlite:///{tmp_path}/a.db"), TrialLog.add
        before = 1 if stop == "at the first" else len(self.trials(finished)) // 2

        def interrupted(log: TrialLog, *arguments: Any, **more: Any) -> None:
            if len(self.trials(store)) >= before:
                raise KeyboardInterrupt
            add(log, *arguments, **more)

        with monkeypatch.context() as patched:
            patched.setattr(TrialLog, "add", interrupted)
            if len(self.trials(finished)) > before:
                with pytest.raises(KeyboardInterrupt):
                    self.run(store)
        self.run(store)
        assert self.said(store) == self.said(finished)

    def test_one_that_says_so_does_not_depend_on_its_seed(self, finished: Store, tmp_path: Path) -> None:
        if not self.search.deterministic:
            return
        store = Store(f"sqlite:///{tmp_path}/a.db")
        self.run(store, 1)
        assert self.said(store, 1) == self.said(finished)
