"""Table of ``vispco compare --per-target``, and as CSV."""

from __future__ import annotations

from typing import Any

from vispco.cli.output import page_width, print_table, print_text


def target_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per target."""
    return [
        {"experiment": found["experiment"], "baseline": found["baseline"], **row, "chosen": "; ".join(row["chosen"])}
        for row in found["targets"]
    ]


def print_targets(found: dict[str, Any]) -> None:
    print_text(f"{found['experiment']}: best schedules that run on each target, on held-out samples")
    baseline = "not measured" if found["baseline"] is None else f"{found['baseline']:.3f}"
    print(f"published defaults: {baseline}\n")
    rows = [
        {
            "target": row["target"],
            "schedules": row["schedules"],
            "score": "-" if row["score"] is None or not row["schedules"] else f"{row['score']:.3f}",
            "missed": row["budgets_missed"],
            "of the gain": "-" if row["survives"] is None else f"{100 * row['survives']:.0f} %",
        }
        for row in found["targets"]
    ]
    print_table(rows, page_width())
    print()
    print_text("score: mean over budgets of the best schedule that runs there; missed: budgets that none fits")
