"""Comparison tables for a terminal of 80 columns, and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from vispco.analysis.objectives import in_words
from vispco.analysis.rows import search_rows
from vispco.cli.output import in_blocks, page_width, print_table, print_text
from vispco.costs.bounds import amount
from vispco.errors import ConfigError
from vispco.registry import suggest
from vispco.search.progress import in_flops

SCHEDULE = 26  # columns for the best schedule: a step with four digits
CELL = 6  # of an accuracy that is marked
SPREAD_CELL = 12  # of one with the spread of its seeds
Runs = Mapping[str, Sequence[str]]  # entry -> its searches, one for each seed


def print_comparison(comparison: dict[str, Any]) -> None:
    """Two tables: the searches, and the choice of each search per budget. Seeds of one entry share a line."""
    unpruned, no_image = comparison["unpruned"], comparison["no_image"]
    print_text(f"{comparison['experiment']}: {_score(comparison)} on held-out samples")
    print(
        f"unpruned {_number(unpruned['accuracy_held_out'])}, no image {_number(no_image['accuracy'])}, "
        f"least {comparison.get('cost', 'flops_ratio')} {comparison['floor']:.3f}{_of_unpruned(comparison)}"
    )
    if "objectives" in comparison:
        print_text(
            f"objectives: {in_words(comparison['objectives'])}; budgets are in {comparison.get('cost', 'flops')}"
        )
    for name, count in comparison.get("unpriced", {}).items():
        what = "trials without a price are" if count > 1 else "trial without a price is"
        print_text(f"{name}: {count} {what} left out (a policy that reads the prompt, or an unknown schedule)")
    if comparison.get("times_of"):
        print_text(comparison["times_of"])
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
            f"published {default['name']}: {_score(comparison)} {default['accuracy_held_out']:.3f} "
            f"at flops_ratio {default['flops_ratio']:.3f}{_other_share(comparison, default)}"
        )
    print()
    if not comparison["searches"]:
        print("no trials yet")
        return
    runs = runs_of(comparison)
    by_name = {row["search"]: row for row in search_rows(comparison)}
    rows = [_merged(entry, [by_name[name] for name in names]) for entry, names in runs.items()]
    rows.sort(key=lambda row: -(row["score"] or 0.0))
    for column in ("seeds", "hv/grid"):
        if all(row[column] is None for row in rows):
            for row in rows:
                del row[column]
    print_table(rows, page_width())
    several = any(len(names) > 1 for names in runs.values())
    print()
    print_text(
        f"score: budget_score, the mean held-out {_score(comparison)} over budgets, from 0 to 1; interval: 95 % over "
        "samples"
        + (", of several seeds their range (--search NAME@SEED shows one)" if several else "")
        + "; missed: budgets that nothing fits"
    )
    if any(search["cost_ratio_to_grid"] is not None for search in comparison["searches"]):
        print_text(
            "charged, spent: times the grid's FLOPs, without and with sharing; hv/grid: hypervolume, times the grid's"
        )
    share = f", a share of {comparison['cost']}{_of_unpruned(comparison)}" if "cost" in comparison else ""
    print()
    print_text(
        f"held-out {_score(comparison)} (0 to 1) of the schedule that each search would choose, per budget{share}"
        + ("; of several seeds mean and standard deviation" if several else "")
    )
    print()
    for number, shown in enumerate(_blocks(runs, SCHEDULE)):
        cells_of = [
            _cells(comparison, row, {name: runs[name] for name in shown}, None) for row in comparison["by_budget"]
        ]
        if not number:
            for cells, row in zip(cells_of, comparison["by_budget"], strict=True):
                cells["best schedule"] = _best(row)
        else:
            print()
        print_table(cells_of, page_width())
    _explain_missed(comparison)
    if "objectives" in comparison:
        _print_objectives(comparison, runs)


def _print_objectives(comparison: dict[str, Any], runs: Runs) -> None:
    """The fronts in all objectives; of several seeds the mean."""
    by_name = {search["name"]: search["objectives"] for search in comparison["searches"]}
    rows = []
    for entry, names in runs.items():
        found = [by_name[name] for name in names]
        ratios = [one["hypervolume_ratio_to_grid"] for one in found]
        rows.append(
            {
                "search": entry,
                "on the front": fmean(len(one["front"]) for one in found),
                "hypervolume": fmean(one["hypervolume"] for one in found),
                "hv/grid": None if None in ratios else fmean(ratios),
            }
        )
    print()
    print_text(f"all {len(comparison['objectives'])} objectives, on the search split, costs as shares of the unpruned")
    print()
    print_table(sorted(rows, key=lambda row: -row["hypervolume"]), page_width())


def runs_of(comparison: dict[str, Any]) -> dict[str, list[str]]:
    """Entry -> its searches, one for each seed."""
    by_entry: dict[str, list[str]] = {}
    for search in comparison["searches"]:
        by_entry.setdefault(str(search["name"]).removesuffix(f"@{search['seed']}"), []).append(search["name"])
    # One seed that was asked for by name keeps it.
    return {entry if len(names) > 1 else names[0]: names for entry, names in by_entry.items()}


def _merged(entry: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line for all seeds of an entry."""
    several = len(rows) > 1

    def mean(name: str) -> Any:
        values = [row[name] for row in rows]
        return None if None in values else fmean(values)

    score, first = mean("budget_score"), rows[0]
    low, high = first["budget_score_low"], first["budget_score_high"]
    if several and score is not None:
        low, high = (pick(row["budget_score"] for row in rows) for pick in (min, max))
    missed = mean("budgets_missed")
    return {
        "search": entry,
        "seeds": len(rows) if several else None,
        "score": score,
        "interval": _interval(low, high),
        "missed": missed if several and missed % 1 else round(missed),
        "charged": _cost(mean("cost_ratio_to_grid"), mean("charged_flops")),
        "spent": _cost(mean("spent_ratio_to_grid"), mean("spent_flops")),
        "seconds": round(mean("wall_seconds")),
        "hv/grid": mean("hypervolume_ratio_to_grid"),
    }


def _cells(comparison: dict[str, Any], row: dict[str, Any], runs: Runs, task: str | None) -> dict[str, Any]:
    """One budget's line: what each entry's choice delivers, on all tasks or on one."""
    cells: dict[str, Any] = {"budget": row["budget"]}
    if task is None:
        cells.update(_in_unit(comparison, row["budget"]))
    for entry, names in runs.items():
        chosen = [row["chosen"][name] for name in names if name in row["chosen"]]
        values = [one["accuracy_held_out"] if task is None else one["tasks"].get(task) for one in chosen]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(names):
            cells[entry] = "-"
            continue
        spread = f"\u00b1{stdev(known):.3f}" if len(known) > 1 else ""
        cells[entry] = f"{fmean(known):.3f}{spread}{'*' if any(one['missed'] for one in chosen) else ''}"
    return cells


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
    # A share of FLOPs is a mean over prompts, which times a mean is not the mean.
    if whole is None or comparison["cost"] == "flops":
        return {}
    return {"is": amount(budget * whole, comparison["cost_unit"])}


def _other_share(comparison: dict[str, Any], default: dict[str, Any]) -> str:
    share = default.get("cost_ratio")
    return "" if share is None else f", {comparison['cost']} {share:.3f}"


def _limits(limits: dict[str, Any]) -> str:
    tasks = limits.get("tasks", {})
    told = [f"{name} {limit}" for name, limit in limits.items() if name != "tasks"]
    return ", ".join([*told, *(f"{name} at most {limit['max_drop']:g} points" for name, limit in tasks.items())])


def _score(comparison: dict[str, Any]) -> str:
    return str(comparison.get("score", "accuracy"))


def print_tasks(comparison: dict[str, Any]) -> None:
    """One table per task: what the schedules that were chosen for all tasks together give on this one."""
    print_text(f"{comparison['experiment']}: held-out {_score(comparison)} of each search's choice, task by task")
    runs = runs_of(comparison)
    for task, unpruned in comparison["unpruned"]["tasks"].items():
        blind = comparison["no_image"]["tasks"].get(task)
        print()
        print_text(f"{task}: unpruned {_number(unpruned)}, no image {_number(blind)}")
        for number, shown in enumerate(_blocks(runs, 0)):
            if number:
                print()
            chosen = {name: runs[name] for name in shown}
            print_table([_cells(comparison, row, chosen, task) for row in comparison["by_budget"]], page_width())
    _explain_missed(comparison)


def only(comparison: dict[str, Any], searches: Sequence[str]) -> dict[str, Any]:
    """A comparison with some searches, by name or by entry.

    Raises:
        ConfigError: it has none of that name.
    """
    if "experiments" in comparison:
        return {**comparison, "experiments": [only(part, searches) for part in comparison["experiments"]]}
    names = [search["name"] for search in comparison["searches"]]
    for wanted in searches:
        if not any(wanted in (name, name.partition("@")[0]) for name in names):
            raise ConfigError(f"no search {wanted!r} in {comparison['experiment']!r}; {suggest(wanted, names)}")
    kept = {name for name in names if name in searches or name.partition("@")[0] in searches}
    by_budget = [
        {**row, **{key: {n: v for n, v in row[key].items() if n in kept} for key in row if isinstance(row[key], dict)}}
        for row in comparison["by_budget"]
    ]
    return {**comparison, "searches": [s for s in comparison["searches"] if s["name"] in kept], "by_budget": by_budget}


def _blocks(runs: Runs, kept_free: int) -> list[list[str]]:
    """Entries whose columns fit beside the budget's; the first block leaves ``kept_free`` columns."""
    cell = SPREAD_CELL if any(len(names) > 1 for names in runs.values()) else CELL
    return in_blocks(list(runs), page_width() - len("budget") - 2, cell, kept_free)


def _explain_missed(comparison: dict[str, Any]) -> None:
    if any(chosen["missed"] for row in comparison["by_budget"] for chosen in row["chosen"].values()):
        print_text("* missed: the search has nothing within the budget; it counts as no image, which fits any budget")


def _cost(ratio: float | None, flops: float | None) -> float | str | None:
    """As a share of the grid's, or in FLOPs where there is none."""
    return ratio if ratio is not None or flops is None else in_flops(flops)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f}..{high:.3f}"
