"""Experiments that minimise several costs: the front in all objectives, and the volume that it dominates.

Values are (accuracy, share of each cost of the unpruned model's), on the search split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vispco.analysis.indicators import hypervolume
from vispco.costs.base import make_cost
from vispco.costs.bounds import amount

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison
    from vispco.analysis.study_result import StudyResult


def objective_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Name, unit and the unpruned model's value of each objective, in the order of a trial's values.

    FLOPs that budgets are in are shares, of which the unpruned model has 1.
    """
    plain = comparison.reference("unpruned", "search")
    rows = [{"name": "accuracy", "unit": None, "unpruned": plain.accuracy if plain else None}]
    wholes = {comparison.cost: comparison.unpruned_cost, **comparison.further}
    for name, whole in wholes.items():
        unit = None if whole is None else make_cost(name).unit
        rows.append({"name": name, "unit": unit, "unpruned": 1.0 if whole is None else whole})
    return rows


def objectives_of(comparison: Comparison, search: StudyResult, worst: float) -> dict[str, Any]:
    """The front of a search in all objectives, and its hypervolume up to (``worst``, 1, 1, ...).

    Args:
        worst: accuracy of the reference point.
    """
    reference = (worst, *(1.0 for _ in range(1 + len(comparison.further))))
    grid = comparison.grid()

    def volume(of: StudyResult) -> float:
        points = [trial.values for trial in comparison.front_of_all(of) if trial.values is not None]
        return hypervolume(points, reference=reference)

    reached, whole = volume(search), volume(grid) if grid else 0.0
    rows = []
    for trial in comparison.front_of_all(search):
        held_out = comparison.held_out(search, trial)
        rows.append(
            {
                "trial": trial.number,
                "schedule": trial.user_attrs.get("schedule"),
                **({"method": search.of_trial(trial).method} if search.several else {}),
                "accuracy": trial.accuracy,
                "accuracy_held_out": held_out.accuracy if held_out else None,
                "costs": comparison.costs_of(trial),
            }
        )
    return {
        "hypervolume": reached,
        "hypervolume_ratio_to_grid": reached / whole if whole else None,
        "front": rows,
    }


def in_words(objectives: list[dict[str, Any]]) -> str:
    """What is optimised, with what the unpruned model has of each cost.

    >>> in_words([{"name": "accuracy", "unit": None, "unpruned": 0.8}, {"name": "flops", "unit": None, "unpruned": 1.0},
    ...           {"name": "kv_bytes", "unit": "bytes", "unpruned": 2048.0}])
    'accuracy, flops, kv_bytes (2 KiB unpruned)'
    """
    told = []
    for one in objectives:
        has = f" ({amount(one['unpruned'], one['unit'])} unpruned)" if one["unit"] else ""
        told.append(f"{one['name']}{has}")
    return ", ".join(told)
