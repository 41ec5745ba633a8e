"""What optuna-dashboard shows beside a study's trials: a note in Markdown, and CSV files. Records in, text out.

``comparison`` is the object of ``vispco compare --json``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vispco.dashboards.axis import name_of, share
from vispco.dashboards.text import clean, in_markdown

from vispco.analysis.rows import search_rows
from vispco.analysis.study_result import StudyResult

Rows = list[dict[str, Any]]
FORMULA = ("=", "+", "-", "@", "\t")  # how a text begins that a spreadsheet would compute
SCHEDULE = 80  # characters of a schedule in a note


def study_note(comparison: Mapping[str, Any], search: Mapping[str, Any], study: StudyResult) -> str:
    """The note of one search's study."""
    told = {
        "experiment": comparison["experiment"],
        "search": search["name"],
        "kind": study.kind,
        "method": study.method,
        "family": study.family,
        "seed": search["seed"],
    }
    numbers = {
        "budget_score (held-out)": _with_interval(search["budget_score"], search["budget_score_ci"]),
        "budgets missed": str(search["budgets_missed"]),
        "hypervolume / grid": _number(search["hypervolume_ratio_to_grid"]),
        "compute to find it / grid": _number(search["cost_ratio_to_grid"]),
    }
    known = [[key, in_markdown(str(value))] for key, value in told.items() if value is not None]
    return "\n\n".join(
        [
            _table(["", ""], [*known, *numbers.items()]),
            "**What it would choose**, on the search split, and what that does on the held-out split",
            _table(
                ["budget", "schedule", name_of(comparison), "accuracy (held-out)"],
                [
                    [
                        f"{row['budget']:.3f}",
                        "missed: no image" if row["missed"] else in_markdown(_schedule(row), SCHEDULE),
                        "-" if row["missed"] else f"{share(row):.3f}",
                        _number(row["accuracy_held_out"]),
                    ]
                    for row in choice_rows(comparison, [search["name"]])
                ],
            ),
            _reading(comparison),
        ]
    )


def comparison_note(comparison: Mapping[str, Any]) -> str:
    """The note of the study that holds all fronts."""
    heads = ["search", "trials", "compute / grid", "budget_score (held-out)", "hypervolume / grid"]
    rows = [
        [
            in_markdown(search["name"]),
            str(search["trials"]),
            _number(search["cost_ratio_to_grid"]),
            _with_interval(search["budget_score"], search["budget_score_ci"]),
            _number(search["hypervolume_ratio_to_grid"]),
        ]
        for search in comparison["searches"]
    ]
    return "\n\n".join(
        [
            _table(["", ""], [["experiment", in_markdown(comparison["experiment"])]]),
            "All fronts of the experiment. The trials here are copies of those that are, or were while this page was "
            "open, on a search's front; the parameter `search` says whose. This study is shown, not stored.",
            _table(heads, rows),
            _reading(comparison),
            "`vispco compare` has more, `vispco report` all of it.",
        ]
    )


def experiment_facts(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What holds for all searches: the study attributes of the study that holds all fronts."""
    found = {
        "unpruned, held-out accuracy": comparison["unpruned"]["accuracy_held_out"],
        "without picture, held-out accuracy": comparison["no_image"]["accuracy"],
        **{f"published {row['name']}, held-out accuracy": row["accuracy_held_out"] for row in comparison["defaults"]},
        f"least {name_of(comparison)}": comparison["floor"],
        "budgets": ", ".join(f"{budget:.3f}" for budget in comparison["budgets"]),
    }
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
    return {key: value for key, value in rounded.items() if value is not None}


def unread_note(reason: str) -> str:
    """The note of a study whose experiment cannot be compared."""
    return "This experiment cannot be compared:\n\n" + _table(["reason"], [[in_markdown(reason, 300)]])


def _reading(comparison: Mapping[str, Any]) -> str:
    limits = " or over a limit of the study" if comparison.get("limits") else ""
    return (
        "Trials have the accuracy on the search split, by which schedules are chosen. Grey ones are infeasible: over "
        f"the budget that they were made for, or over the largest of all, {max(comparison['budgets']):.3f}{limits}. "
        "Nothing that you do on these pages changes a result."
    )


# --- rows ----------------------------------------------------------------------------------------


def study_files(comparison: Mapping[str, Any], search: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, str]:
    """File name -> CSV of one search. ``paths``: ``steps`` of its descents and their ``budgets``, if it has any."""
    steps = [
        {"path": key, "budget": paths["budgets"].get(key), "step": n, **_scalars(row)}
        for key, rows in paths.get("steps", {}).items()
        for n, row in enumerate(rows)
    ]
    found = {
        "front.csv": front_rows(comparison, [search["name"]]),
        "choices.csv": choice_rows(comparison, [search["name"]]),
        "trajectory.csv": steps,
    }
    return {name: csv_text(rows) for name, rows in found.items() if rows}


def comparison_files(comparison: dict[str, Any]) -> dict[str, str]:
    """File name -> CSV of all searches."""
    names = [search["name"] for search in comparison["searches"]]
    found = {
        "searches.csv": search_rows(comparison),
        "front.csv": front_rows(comparison, names),
        "choices.csv": choice_rows(comparison, names),
    }
    return {name: csv_text(rows) for name, rows in found.items() if rows}


def front_rows(comparison: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """One row per schedule on the fronts of these searches."""
    return [
        {
            "search": search["name"],
            "trial": point["trial"],
            "schedule": point["schedule"],
            **({"method": point["method"]} if "method" in point else {}),
            "flops_ratio": point["flops_ratio"],
            **_cost(point),
            "accuracy_search": point["accuracy"],
            "accuracy_held_out": point["accuracy_held_out"],
            **_ends("accuracy_held_out", point["accuracy_ci"]),
        }
        for search in comparison["searches"]
        if search["name"] in names
        for point in search["front"]
    ]


def choice_rows(comparison: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """One row per budget and search."""
    rows = []
    for row in comparison["by_budget"]:
        for name in names:
            chosen = row["chosen"].get(name)
            if chosen is None:
                continue
            difference = row["difference_to_grid"].get(name) or {"mean": None, "ci": None}
            rows.append(
                {
                    "budget": row["budget"],
                    "search": name,
                    "trial": chosen["trial"],
                    "schedule": chosen["schedule"],
                    **({"method": chosen["method"]} if "method" in chosen else {}),
                    **{key: chosen[key] for key in ("missed", "flops_ratio", "accuracy_held_out")},
                    **_cost(chosen),
                    "difference_to_grid": difference["mean"],
                    **_ends("difference_to_grid", difference["ci"]),
                }
            )
    return rows


def _cost(row: Mapping[str, Any]) -> dict[str, Any]:
    """Share of the experiment's own cost, where that is not FLOPs."""
    return {key: row[key] for key in ("cost_ratio",) if key in row}


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a head line; texts that a spreadsheet would compute are marked as text by an apostrophe."""
    listed = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in listed for key in row)))
    writer.writeheader()
    writer.writerows([{key: _plain(value) for key, value in row.items()} for row in listed])
    return text.getvalue()


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if isinstance(value, (int, float))}


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


# --- Markdown --------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _schedule(row: Mapping[str, Any]) -> str:
    named = row["schedule"] or f"trial {row['trial']}"
    return f"{named} with {row['method']}" if row.get("method") else named


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    return f"{_number(value)} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else _number(value)
