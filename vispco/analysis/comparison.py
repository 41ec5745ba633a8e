"""Compare the searches of an experiment, from the database alone: the object that ``compare --json`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vispco.analysis.indicators import additive_epsilon, hypervolume, igd_plus
from vispco.analysis.selection import choose, front
from vispco.analysis.statistics import difference, group_bootstrap, interval, mean_scores
from vispco.errors import StorageError
from vispco.evaluation.records import Evaluation
from vispco.storage.store import Store


@dataclass(frozen=True)
class Searched:
    """One study as analysis sees it."""

    name: str
    study: str
    facts: dict[str, Any]
    trials: list[Any]


class Comparison:
    """Reads one experiment once; every number below comes from these records."""

    def __init__(self, store: Store, experiment: str) -> None:
        self.store, self.experiment = store, experiment
        self.stored = store.require_experiment(experiment)
        self.facts = self.stored["facts"]
        if not self.facts:
            raise StorageError(f"experiment {experiment!r} has no results yet; run it (vispco resume {experiment})")
        self.budgets: list[float] = self.facts["budgets"]
        known = set(store.study_names(experiment))
        self.searches = [
            Searched(study.removeprefix(f"{experiment}/"), study, facts, store.trial_log(study).complete())
            for study, facts in self.facts["studies"].items()
            if study in known
        ]
        self._links = {role: store.linked(experiment, role) for role in ("reference", "default", "schedule")}
        ids = [i for links in self._links.values() for i in links.values()]
        self._evaluations = store.get_evaluations(ids)
        held_out = self.reference("unpruned", "held_out")
        self.groups = store.groups_of(held_out.id) if held_out else {}

    # --- lookups ---------------------------------------------------------------------------------

    def reference(self, key: str, split: str) -> Evaluation | None:
        return self._evaluations.get(self._links["reference"].get((key, split), ""))

    def held_out(self, search: Searched, trial: Any) -> Evaluation | None:
        """The held-out measurement of a trial's schedule, if it was made."""
        key = f"{search.facts['method_key']}|{trial.user_attrs['schedule']}"
        return self._evaluations.get(self._links["schedule"].get((key, "held_out"), ""))

    def grid(self) -> Searched | None:
        """The first complete grid: the empirical frontier that others are compared with. Half a grid is none."""
        grids = (search for search in self.searches if search.facts["kind"] == "grid")
        return next((grid for grid in grids if len(grid.trials) >= grid.facts["points"]), None)

    def chosen(self, search: Searched) -> list[Any]:
        """The trial that the search would have chosen for each budget."""
        return [choose(search.trials, budget) for budget in self.budgets]

    def held_out_hypervolume(self, search: Searched) -> tuple[float | None, list[float] | None]:
        """Hypervolume of the front's schedules at their held-out accuracy, and its interval.

        The reference point is the held-out accuracy without a picture, and flops_ratio 1. The interval is a
        bootstrap over groups, conditional on the schedules. (None, None) while one is not measured there.
        """
        trials = front(search.trials)
        measured = [self.held_out(search, trial) for trial in trials]
        held_out = [evaluation for evaluation in measured if evaluation is not None]
        no_image = self.reference("no_image", "held_out")
        if not held_out or len(held_out) < len(trials) or no_image is None:
            return None, None
        costs = np.array([evaluation.flops_ratio for evaluation in held_out])
        reference = (no_image.accuracy, 1.0)

        def volume(accuracies: Any) -> float:
            return hypervolume(np.column_stack([accuracies, costs]), reference=reference)

        # The same seed draws the same groups for every schedule.
        draws = np.column_stack([group_bootstrap(e.scores, self.groups, resamples=500) for e in held_out])
        volumes = np.array([volume(accuracies) for accuracies in draws])
        return volume([evaluation.accuracy for evaluation in held_out]), interval(volumes)

    def reference_point(self) -> tuple[float, float]:
        """(no-image accuracy on the search split, flops_ratio 1)."""
        no_image = self.reference("no_image", "search")
        return (no_image.accuracy if no_image else 0.0, 1.0)

    def points(self) -> list[dict[str, Any]]:
        """Every measured schedule of every search, on the search split."""
        rows = []
        for search in self.searches:
            on_front = {trial.number for trial in front(search.trials)}
            for trial in search.trials:
                rows.append(
                    {
                        "search": search.name,
                        "trial": trial.number,
                        "schedule": trial.user_attrs["schedule"],
                        "accuracy": trial.values[0],
                        "flops_ratio": trial.values[1],
                        "on_front": trial.number in on_front,
                    }
                )
        return rows

    # --- the object ------------------------------------------------------------------------------

    def to_dict(self, reference_point: tuple[float, float] | None = None) -> dict[str, Any]:
        reference = reference_point or self.reference_point()
        unpruned, unpruned_held = self.reference("unpruned", "search"), self.reference("unpruned", "held_out")
        no_image = self.reference("no_image", "held_out")
        samples = sum(len(s) for s in unpruned.scores.values()) if unpruned else 0
        return {
            "experiment": self.experiment,
            "spec_hash": self.stored["spec_hash"],
            "accounting": self.facts["accounting"],
            "floor": self.facts["floor"],
            "budgets": self.budgets,
            "unpruned": {
                "accuracy": unpruned.accuracy if unpruned else None,
                "accuracy_held_out": unpruned_held.accuracy if unpruned_held else None,
                "flops": unpruned.flops / samples if unpruned else None,
            },
            "no_image": {"accuracy": no_image.accuracy if no_image else None},
            "reference_point": {"accuracy": reference[0], "flops_ratio": reference[1]},
            "defaults": self._defaults(),
            "searches": [self._search(search, reference) for search in self.searches if search.trials],
            "by_budget": self._by_budget(),
        }

    def _defaults(self) -> list[dict[str, Any]]:
        found = []
        for (name, split), evaluation_id in sorted(self._links["default"].items()):
            evaluation = self._evaluations.get(evaluation_id)
            if split == "held_out" and evaluation is not None:
                found.append(
                    {
                        "name": name,
                        "accuracy_held_out": evaluation.accuracy,
                        "flops_ratio": evaluation.flops_ratio,
                        "schedule": evaluation.schedule,
                        "accuracy_ci": interval(group_bootstrap(evaluation.scores, self.groups)),
                    }
                )
        return found

    def _search(self, search: Searched, reference: tuple[float, float]) -> dict[str, Any]:
        points = [trial.values for trial in search.trials]
        grid = self.grid()
        grid_points = [trial.values for trial in front(grid.trials)] if grid else None
        volume = hypervolume(points, reference=reference)
        grid_volume = hypervolume(grid_points, reference=reference) if grid_points else 0.0
        charged = sum(trial.user_attrs["charged_flops"] for trial in search.trials)
        grid_charged = sum(trial.user_attrs["charged_flops"] for trial in grid.trials) if grid else 0
        score, score_ci = self._budget_score(search)
        attributes = [trial.user_attrs for trial in search.trials]
        return {
            "name": search.name,
            "study": search.study,
            "seed": search.facts["seed"],
            "trials": len(search.trials),
            "evaluations": len({attrs["evaluation"] for attrs in attributes}),
            "charged_flops": charged,
            "spent_flops": sum(attrs["spent_flops"] for attrs in attributes),
            "propose_flops": sum(attrs["propose_flops"] for attrs in attributes),
            "wall_seconds": sum(t.duration.total_seconds() for t in search.trials if t.duration is not None),
            "budget_score": score,
            "budget_score_ci": score_ci,
            "hypervolume": volume,
            "hypervolume_ratio_to_grid": volume / grid_volume if grid_volume else None,
            "cost_ratio_to_grid": charged / grid_charged if grid_charged else None,
            "igd_plus": igd_plus(points, reference_set=grid_points) if grid_points else None,
            "epsilon": additive_epsilon(points, reference_set=grid_points) if grid_points else None,
            "front": [self._point(search, trial) for trial in front(search.trials)],
        }

    def _budget_score(self, search: Searched) -> tuple[float | None, list[float] | None]:
        """Mean over budgets of the chosen schedules' held-out accuracy; null while one is not measured there."""
        held_out = [self.held_out(search, trial) for trial in self.chosen(search)]
        measured = [evaluation for evaluation in held_out if evaluation is not None]
        if len(measured) < len(self.budgets):
            return None, None
        scores = mean_scores([evaluation.scores for evaluation in measured])
        score = float(np.mean([evaluation.accuracy for evaluation in measured]))
        return score, interval(group_bootstrap(scores, self.groups))

    def _point(self, search: Searched, trial: Any) -> dict[str, Any]:
        held_out = self.held_out(search, trial)
        return {
            "trial": trial.number,
            "schedule": trial.user_attrs["schedule"],
            "keep_ratio": trial.user_attrs["keep_ratio"],
            "accuracy": trial.values[0],
            "accuracy_held_out": held_out.accuracy if held_out else None,
            "accuracy_ci": interval(group_bootstrap(held_out.scores, self.groups)) if held_out else None,
            "flops_ratio": trial.values[1],
            "budget": trial.user_attrs.get("budget"),
            "tasks": {name: dict(task) for name, task in held_out.tasks.items()} if held_out else {},
        }

    def _by_budget(self) -> list[dict[str, Any]]:
        grid = self.grid()
        rows = []
        for budget in self.budgets:
            chosen: dict[str, Any] = {}
            differences: dict[str, Any] = {}
            best = choose(grid.trials, budget) if grid else None
            grid_held = self.held_out(grid, best) if grid and best is not None else None
            for search in self.searches:
                trial = choose(search.trials, budget)
                if trial is None:
                    continue
                held_out = self.held_out(search, trial)
                chosen[search.name] = {
                    "trial": trial.number,
                    "schedule": trial.user_attrs["schedule"],
                    "accuracy_held_out": held_out.accuracy if held_out else None,
                    "flops_ratio": trial.values[1],
                }
                if grid is not None and search is not grid:
                    differences[search.name] = self._difference(held_out, grid_held)
            rows.append({"budget": budget, "chosen": chosen, "difference_to_grid": differences})
        return rows

    def _difference(self, first: Evaluation | None, second: Evaluation | None) -> dict[str, Any] | None:
        if first is None or second is None:
            return None
        paired = difference(first.scores, second.scores)
        return {"mean": first.accuracy - second.accuracy, "ci": interval(group_bootstrap(paired, self.groups))}


def compare(store: Store, experiments: Sequence[str]) -> dict[str, Any]:
    """One experiment's object, or several under ``experiments`` that share the lowest reference point.

    Raises:
        StorageError: no such experiment, or one without results.
    """
    comparisons = [Comparison(store, name) for name in experiments]
    if len(comparisons) == 1:
        return comparisons[0].to_dict()
    shared = min(comparison.reference_point() for comparison in comparisons)
    return {
        "reference_point": {"accuracy": shared[0], "flops_ratio": shared[1]},
        "experiments": [comparison.to_dict(shared) for comparison in comparisons],
    }
