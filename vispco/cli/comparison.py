"""Comparison tables for a terminal of 80 columns, and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vispco.cli.output import in_blocks, page_width, print_table, print_text
from vispco.costs.bounds import amount
from vispco.errors import ConfigError
from vispco.registry import suggest
from vispco.search.progress import in_flops

SCHEDULE = 26  # columns for the best schedule: a step with four digits
CELL = 6  # of an accuracy that is marked


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
        }
        for search in comparison["searches"]
    ]


def print_comparison(comparison: dict[str, Any]) -> None:
    """Two tables: the searches, and the choice of each search per budget."""
    unpruned, no_image = comparison["unpruned"], comparison["no_image"]
    print_text(f"{comparison['experiment']}: accuracy on held-out samples")
    print(
        f"unpruned {_number(unpruned['accuracy_held_out'])}, without picture {_number(no_image['accuracy'])}, "
        f"least {comparison.get('cost', 'flops_ratio')} {comparison['floor']:.3f}{_of_unpruned(comparison)}"
    )
    if comparison.get("limits"):
        print_text(f"within limits: {_limits(comparison['limits'])}")
    plain, blind = unpruned["accuracy_held_out"], no_image["accuracy"]
    if plain is not None and blind is not None and plain <= blind:
        print_text(
            "No better than without the picture: the model may not get the prompt that it expects, and then no "
            "schedule means anything. See what it answers: vispco eval --model ... --task ... "
            "--log-samples answers.jsonl"
        )
    for default in comparison["defaults"]:
        print_text(
            f"published {default['name']}: accuracy {default['accuracy_held_out']:.3f} "
            f"at flops_ratio {default['flops_ratio']:.3f}{_other_share(comparison, default)}"
        )
    print()
    if not comparison["searches"]:
        print("no trials yet")
        return
    best_first = sorted(search_rows(comparison), key=lambda row: -(row["budget_score"] or 0.0))
    has_grid = any(row["hypervolume_ratio_to_grid"] is not None for row in best_first)
    print_table(
        [
            {
                "search": row["search"],
                "budget_score": row["budget_score"],
                "95 %": _interval(row["budget_score_low"], row["budget_score_high"]),
                "missed": row["budgets_missed"],
                "charged": _cost(row["cost_ratio_to_grid"], row["charged_flops"]),
                "spent": _cost(row["spent_ratio_to_grid"], row["spent_flops"]),
                "seconds": round(row["wall_seconds"]),
                **({"hv/grid": row["hypervolume_ratio_to_grid"]} if has_grid else {}),
            }
            for row in best_first
        ],
        page_width(),
    )
    print("\n95 %: interval of budget_score over samples")
    if any(row["cost_ratio_to_grid"] is not None for row in best_first):
        print("charged, spent: shares of the grid's FLOPs, without and with sharing")
    share = f", a share of {comparison['cost']}{_of_unpruned(comparison)}" if "cost" in comparison else ""
    print(f"\naccuracy of the schedule that each search would choose, per budget{share}\n")
    names = [search["name"] for search in comparison["searches"]]
    for number, shown in enumerate(_blocks(names, SCHEDULE)):
        rows = []
        for row in comparison["by_budget"]:
            cells: dict[str, Any] = {"budget": row["budget"], **_in_unit(comparison, row["budget"])}
            for name in shown:
                chosen = row["chosen"].get(name)
                cells[name] = _number(chosen["accuracy_held_out"]) + _missed(chosen) if chosen else "-"
            if not number:
                cells["best schedule"] = _best(row)
            rows.append(cells)
        if number:
            print()
        print_table(rows, page_width())
    _explain_missed(comparison)


def _best(row: dict[str, Any]) -> str:
    """The schedule with the highest held-out accuracy of those that were chosen for a budget."""
    best = max(
        (c for c in row["chosen"].values() if c["accuracy_held_out"] is not None and not c["missed"]),
        key=lambda c: c["accuracy_held_out"],
        default=None,
    )
    return with_method(best) if best else "-"


def with_method(chosen: dict[str, Any]) -> str:
    """A schedule, with its method where the search had several."""
    named = chosen["schedule"] or f"trial {chosen['trial']}"
    return f"{named} {chosen['method']}" if "method" in chosen else named


def _of_unpruned(comparison: dict[str, Any]) -> str:
    """How much the unpruned model has of a cost that budgets are in."""
    whole = comparison["unpruned"].get("cost")
    return "" if whole is None else f" of {amount(whole, comparison['cost_unit'])}"


def _in_unit(comparison: dict[str, Any], budget: float) -> dict[str, str]:
    """A budget in its cost's unit beside its share."""
    whole = comparison["unpruned"].get("cost")
    return {} if whole is None else {"is": amount(budget * whole, comparison["cost_unit"])}


def _other_share(comparison: dict[str, Any], default: dict[str, Any]) -> str:
    share = default.get("cost_ratio")
    return "" if share is None else f", {comparison['cost']} {share:.3f}"


def _limits(limits: dict[str, Any]) -> str:
    tasks = limits.get("tasks", {})
    told = [f"{name} {limit}" for name, limit in limits.items() if name != "tasks"]
    return ", ".join([*told, *(f"{name} at most {limit['max_drop']:g} points" for name, limit in tasks.items())])


def task_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per task, budget and search: accuracy of the schedule that the search would choose."""
    return [
        {
            "experiment": comparison["experiment"],
            "task": task,
            "budget": row["budget"],
            "search": search,
            "schedule": chosen["schedule"],
            "flops_ratio": chosen["flops_ratio"],
            "accuracy_held_out": chosen["tasks"].get(task),
            "unpruned": unpruned,
        }
        for task, unpruned in comparison["unpruned"]["tasks"].items()
        for row in comparison["by_budget"]
        for search, chosen in row["chosen"].items()
    ]


def print_tasks(comparison: dict[str, Any]) -> None:
    """One table per task: what the schedules that were chosen for all tasks together give on this one."""
    print_text(f"{comparison['experiment']}: held-out accuracy of each search's choice, task by task")
    names = [search["name"] for search in comparison["searches"]]
    for task, unpruned in comparison["unpruned"]["tasks"].items():
        blind = comparison["no_image"]["tasks"].get(task)
        print()
        print_text(f"{task}: unpruned {_number(unpruned)}, without picture {_number(blind)}")
        for number, shown in enumerate(_blocks(names, 0)):
            rows = []
            for row in comparison["by_budget"]:
                cells: dict[str, Any] = {"budget": row["budget"]}
                for name in shown:
                    chosen = row["chosen"].get(name)
                    cells[name] = _number(chosen["tasks"].get(task)) + _missed(chosen) if chosen else "-"
                rows.append(cells)
            if number:
                print()
            print_table(rows, page_width())
    _explain_missed(comparison)


def only(found: dict[str, Any], searches: Sequence[str]) -> dict[str, Any]:
    """A comparison with some searches, by name or by entry.

    Raises:
        ConfigError: it has none of that name.
    """
    if "experiments" in found:
        return {**found, "experiments": [only(part, searches) for part in found["experiments"]]}
    names = [search["name"] for search in found["searches"]]
    for wanted in searches:
        if not any(wanted in (name, name.partition("@")[0]) for name in names):
            raise ConfigError(f"no search {wanted!r} in {found['experiment']!r}; {suggest(wanted, names)}")
    kept = {name for name in names if name in searches or name.partition("@")[0] in searches}
    by_budget = [
        {**row, **{key: {n: v for n, v in row[key].items() if n in kept} for key in row if isinstance(row[key], dict)}}
        for row in found["by_budget"]
    ]
    return {**found, "searches": [s for s in found["searches"] if s["name"] in kept], "by_budget": by_budget}


def _blocks(names: Sequence[str], kept_free: int) -> list[list[str]]:
    """Names of searches whose columns fit beside the budget's; the first block leaves ``kept_free`` columns."""
    return in_blocks(names, page_width() - len("budget") - 2, CELL, kept_free)


def _explain_missed(comparison: dict[str, Any]) -> None:
    if any(chosen["missed"] for row in comparison["by_budget"] for chosen in row["chosen"].values()):
        print("* missed: the search has nothing within the budget; it counts as the model")
        print("  without the picture, which fits any budget")


def _missed(chosen: dict[str, Any]) -> str:
    return "*" if chosen["missed"] else ""


def _cost(ratio: float | None, flops: int | None) -> float | str | None:
    """As a share of the grid's, or in FLOPs where there is none."""
    return ratio if ratio is not None or flops is None else in_flops(flops)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f}..{high:.3f}"
