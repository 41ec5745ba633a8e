"""The object that ``compare --json`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vispco.analysis.indicators import additive_epsilon, hypervolume, igd_plus
from vispco.analysis.objectives import objective_rows, objectives_of
from vispco.analysis.study_result import StudyResult
from vispco.costs.base import make_cost
from vispco.evaluation.records import Evaluation
from vispco.fronts import within_limits
from vispco.storage.reading import TrialRecord

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison


def comparison_object(comparison: Comparison, reference: tuple[float, float]) -> dict[str, Any]:
    """Numbers of one experiment; hypervolumes reach up to ``reference``."""
    unpruned, unpruned_held = comparison.reference("unpruned", "search"), comparison.reference("unpruned", "held_out")
    no_image = comparison.reference("no_image", "held_out")
    return {
        "experiment": comparison.experiment,
        "spec_hash": comparison.stored.spec_hash,
        "accounting": comparison.facts["accounting"],
        "floor": comparison.facts["floor"],
        "budgets": comparison.budgets,
        "unpruned": {
            "accuracy": unpruned.accuracy if unpruned else None,
            "accuracy_held_out": unpruned_held.accuracy if unpruned_held else None,
            "flops": comparison.pricing.unpruned("flops") if unpruned else None,
            "tasks": _by_task(unpruned_held),
            **({} if comparison.unpruned_cost is None else {"cost": comparison.unpruned_cost}),
        },
        "no_image": {"accuracy": no_image.accuracy if no_image else None, "tasks": _by_task(no_image)},
        "reference_point": {"accuracy": reference[0], "flops_ratio": reference[1]},
        "defaults": _defaults(comparison),
        "searches": [_search(comparison, search, reference) for search in _counted(comparison)],
        "by_budget": _by_budget(comparison),
        **_cost_unit(comparison),
        **({} if comparison.score == "accuracy" else {"score": comparison.score}),
        **({"objectives": objective_rows(comparison)} if comparison.further else {}),
        **({"limits": comparison.facts["limits"]} if "limits" in comparison.facts else {}),
    }


def _counted(comparison: Comparison) -> list[StudyResult]:
    """Searches with trials, and runs of their entries that ended without any and so miss every budget."""
    known = {search.entry for search in comparison.searches if search.trials}
    return [one for one in comparison.searches if one.trials or (one.found_nothing and one.entry in known)]


def _cost_unit(comparison: Comparison) -> dict[str, Any]:
    """Which cost budgets are in; {} for FLOPs."""
    if comparison.unpruned_cost is None:
        return {}
    return {"cost": comparison.cost, "cost_unit": make_cost(comparison.cost).unit}


def _with_cost(
    comparison: Comparison, search: StudyResult, row: dict[str, Any], trial: TrialRecord | None
) -> dict[str, Any]:
    """A row about a trial with its FLOPs, and beside them its share of the experiment's own cost."""
    if comparison.unpruned_cost is None:
        return row
    if trial is None:
        return {**row, "cost_ratio": None}
    return {**row, "flops_ratio": comparison.flops_ratio(search, trial), "cost_ratio": trial.cost}


def _defaults(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "accuracy_held_out": evaluation.accuracy,
            "flops_ratio": evaluation.flops_ratio,
            "schedule": evaluation.schedule,
            "accuracy_ci": comparison.interval_of(evaluation),
            **({} if comparison.unpruned_cost is None else {"cost_ratio": comparison.default_share(name)}),
        }
        for name, evaluation in comparison.defaults().items()
    ]


def _search(comparison: Comparison, search: StudyResult, reference: tuple[float, float]) -> dict[str, Any]:
    points = [(trial.accuracy, trial.cost) for trial in search.trials if within_limits(trial)]
    grid = comparison.grid()
    grid_points = [(trial.accuracy, trial.cost) for trial in comparison.front(grid)] if grid else None
    volume = hypervolume(points, reference=reference)
    grid_volume = hypervolume(grid_points, reference=reference) if grid_points else 0.0
    charged = search.total("charged_flops")
    grid_charged = grid.full_flops if grid else None
    measured = [trial.user_attrs.get("evaluation") for trial in search.trials]
    score, score_ci = comparison.budget_score(search)
    return {
        "name": search.name,
        "study": search.study,
        "seed": search.seed,
        "trials": len(search.trials),
        "evaluations": None if None in measured else len(set(measured)),
        "charged_flops": charged,
        "spent_flops": search.total("spent_flops"),
        "propose_flops": search.total("propose_flops"),
        "wall_seconds": search.seconds,
        "budget_score": score,
        "budget_score_ci": score_ci,
        "budgets_missed": comparison.missed(search),
        "score_within_budget": score,  # the name of budget_score when there were two scores
        "score_within_budget_ci": score_ci,
        "hypervolume": volume,
        "hypervolume_ratio_to_grid": volume / grid_volume if grid_volume else None,
        "cost_ratio_to_grid": share(charged, grid_charged),
        "spent_ratio_to_grid": share(search.total("spent_flops"), comparison.grid_spent()),
        "seconds_ratio_to_grid": share(search.seconds, grid.seconds if grid else None) if charged else None,
        "igd_plus": igd_plus(points, reference_set=grid_points) if grid_points and points else None,
        "epsilon": additive_epsilon(points, reference_set=grid_points) if grid_points and points else None,
        "front": [_point(comparison, search, trial) for trial in comparison.front(search)],
        **({"objectives": objectives_of(comparison, search, reference[0])} if comparison.further else {}),
    }


def _point(comparison: Comparison, search: StudyResult, trial: TrialRecord) -> dict[str, Any]:
    held_out = comparison.held_out(search, trial)
    row = {
        "trial": trial.number,
        "schedule": trial.user_attrs.get("schedule"),
        **_named(search, trial),
        "keep_ratio": comparison.kept(search, trial),
        "accuracy": trial.accuracy,
        "accuracy_held_out": held_out.accuracy if held_out else None,
        "accuracy_ci": comparison.interval_of(held_out) if held_out else None,
        "flops_ratio": trial.cost,
        "budget": trial.user_attrs.get("budget"),
        "tasks": {name: dict(task) for name, task in held_out.tasks.items()} if held_out else {},
    }
    return _with_cost(comparison, search, row, trial)


def _by_budget(comparison: Comparison) -> list[dict[str, Any]]:
    grid = comparison.grid()
    rows = []
    for number, budget in enumerate(comparison.budgets):
        chosen: dict[str, Any] = {}
        differences: dict[str, Any] = {}
        grid_held = comparison.delivered_by(grid, comparison.chosen(grid)[number]) if grid else None
        for search in _counted(comparison):
            trial = comparison.chosen(search)[number]
            held_out = comparison.delivered_by(search, trial)
            no_image = held_out if trial is None else None
            row = {
                "trial": trial.number if trial else None,
                "schedule": trial.user_attrs.get("schedule") if trial else no_image and no_image.schedule,
                **(_named(search, trial) if trial else {}),
                "accuracy_held_out": held_out.accuracy if held_out else None,
                "flops_ratio": trial.cost if trial else no_image and no_image.flops_ratio,
                "missed": trial is None,
                "tasks": _by_task(held_out),
            }
            chosen[search.name] = _with_cost(comparison, search, row, trial)
            if grid is not None and search is not grid:
                differences[search.name] = (
                    comparison.difference(held_out, grid_held) if held_out and grid_held else None
                )
        rows.append({"budget": budget, "chosen": chosen, "difference_to_grid": differences})
    return rows


def point_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Every measured schedule of every search, on the search split; ``schedule`` is None if it is not known."""
    rows = []
    for search in comparison.searches:
        on_front = {trial.number for trial in comparison.front(search)}
        for trial in search.trials:
            row = {
                "search": search.name,
                "trial": trial.number,
                "schedule": trial.user_attrs.get("schedule"),
                **_named(search, trial),
                "accuracy": trial.accuracy,
                "flops_ratio": trial.cost,
                "on_front": trial.number in on_front,
            }
            rows.append(_with_cost(comparison, search, row, trial))
    return rows


def share(part: float | None, whole: float | None) -> float | None:
    """``part`` over ``whole``; None where either is not known."""
    return part / whole if part is not None and whole else None


def _by_task(evaluation: Evaluation | None) -> dict[str, float]:
    return {name: task["accuracy"] for name, task in evaluation.tasks.items()} if evaluation else {}


def _named(search: StudyResult, trial: TrialRecord) -> dict[str, Any]:
    """The method of a trial, where its search had a choice."""
    return {"method": search.of_trial(trial).method} if search.several else {}
