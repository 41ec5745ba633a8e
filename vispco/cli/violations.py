"""The table of ``vispco compare --violations``, and as CSV."""

from __future__ import annotations

from typing import Any

from vispco.analysis.violations import RESIDUALS
from vispco.cli.output import page_width, print_table, print_text

SEEDS = 8  # columns that fit beside the budget and two residuals


def violation_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per entry, budget and seed; residuals are means over seeds."""
    return [
        {
            "experiment": found["experiment"],
            "entry": entry["entry"],
            "budget": row["budget"],
            "seed": seed,
            "relaxed_violation": value,
            **{name: row[name] for name in RESIDUALS},
        }
        for entry in found["entries"]
        for row in entry["budgets"]
        for seed, value in zip(entry["seeds"], row["relaxed"], strict=True)
    ]


def print_violations(found: dict[str, Any]) -> None:
    """One table per entry: budgets down, seeds across."""
    print_text(f"{found['experiment']}: violation of the relaxed solutions before the snap, in % of the budget")
    print("columns are seeds; stat., compl.: KKT residuals, means over seeds")
    for entry in found["entries"]:
        print()
        shown = entry["seeds"][:SEEDS]
        rows = []
        for row in entry["budgets"]:
            cells: dict[str, Any] = {"budget": row["budget"]}
            for seed, value in zip(shown, row["relaxed"], strict=False):
                cells[f"@{seed}"] = "-" if value is None else f"{100 * value:+.1f}"
            rows.append({**cells, "stat.": _short(row["stationarity"]), "compl.": _short(row["complementarity"])})
        print_table(rows, page_width())
        share = entry["held"] / entry["pairs"]
        told = f"{entry['held']} of {entry['pairs']} within {100 * found['within']:g} % ({100 * share:.0f} %)"
        print_text(f"{entry['entry']}: {told}, farthest {100 * entry['farthest']:+.1f} %")
        if entry["over"] is not None:
            told = "none above its budget" if entry["over"] <= 1e-9 else f"one is {entry['over']:.4f} above its budget"
            print(f"after the snap, of the trials measured: {told}")
        if len(shown) < len(entry["seeds"]):
            print(f"(first {SEEDS} of {len(entry['seeds'])} seeds; all of them: --csv)")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
