"""A comparison as flat rows, for CSV files and tables."""

from __future__ import annotations

from typing import Any


def search_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per search."""
    return [
        {
            "experiment": comparison["experiment"],
            "search": search["name"],
            "trials": search["trials"],
            "cost_ratio_to_grid": search["cost_ratio_to_grid"],
            "spent_ratio_to_grid": search["spent_ratio_to_grid"],
            "seconds_ratio_to_grid": search["seconds_ratio_to_grid"],
            "budget_score": search["budget_score"],
            "budget_score_low": search["budget_score_ci"][0] if search["budget_score_ci"] else None,
            "budget_score_high": search["budget_score_ci"][1] if search["budget_score_ci"] else None,
            "budgets_missed": search["budgets_missed"],
            "score_within_budget": search["score_within_budget"],
            "hypervolume": search["hypervolume"],
            "hypervolume_ratio_to_grid": search["hypervolume_ratio_to_grid"],
            "igd_plus": search["igd_plus"],
            "epsilon": search["epsilon"],
            "charged_flops": search["charged_flops"],
            "spent_flops": search["spent_flops"],
            "propose_flops": search["propose_flops"],
            "wall_seconds": search["wall_seconds"],
            **_of_all(search),
        }
        for search in comparison["searches"]
    ]


def _of_all(search: dict[str, Any]) -> dict[str, Any]:
    """Of an experiment that minimises several costs."""
    found = search.get("objectives")
    if found is None:
        return {}
    return {
        "all_objectives_front": len(found["front"]),
        "all_objectives_hypervolume": found["hypervolume"],
        "all_objectives_hypervolume_ratio_to_grid": found["hypervolume_ratio_to_grid"],
    }


def task_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per task, budget and search: accuracy of the schedule that the search would choose."""
    return [
        {
            "experiment": comparison["experiment"],
            "task": task,
            "budget": row["budget"],
            "search": search,
            **({"method": chosen["method"]} if "method" in chosen else {}),
            "schedule": chosen["schedule"],
            "missed": chosen["missed"],
            "flops_ratio": chosen["flops_ratio"],
            "accuracy_held_out": chosen["tasks"].get(task),
            "unpruned": unpruned,
        }
        for task, unpruned in comparison["unpruned"]["tasks"].items()
        for row in comparison["by_budget"]
        for search, chosen in row["chosen"].items()
    ]
