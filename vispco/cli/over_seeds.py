"""Tables of ``vispco compare --against`` and ``--anytime`` for a terminal of 80 columns, and as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vispco.cli.output import page_width, print_table, print_text
from vispco.config import CHECKPOINTS


def against_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per entry."""
    return [
        {
            "experiment": record["experiment"],
            "against": record["against"],
            "score": record["score"],
            "entry": row["entry"],
            "runs": len(row["seeds"]),
            "deterministic": row["deterministic"],
            **_spread(row, "budget_score"),
            **_spread(row, "score_within_budget"),
            "budgets_missed": row["budgets_missed"],
            **_spread(row, "difference"),
            "regret": row["regret"],
            **{key: row[key] for key in ("covers", "p_value", "p_holm", "verdict")},
            **{key: row[key] for key in ("trials", "hypervolume_ratio_to_grid", "charged_flops", "propose_flops")},
            **{key: row[key] for key in ("charged_share", "propose_share", "spent_flops", "spent_share")},
            "wall_seconds": row["wall_seconds"],
        }
        for row in record["entries"]
    ]


def _spread(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    low, high = row[f"{name}_ci"] or (None, None)
    return {name: row[name], f"{name}_low": low, f"{name}_high": high}


def print_against(record: dict[str, Any]) -> None:
    """Two tables: what each entry delivers against the reference, and what it cost."""
    tests = record["comparisons"]
    against = record["against"]
    print_text(f"{record['experiment']}: budget_score on held-out samples, mean over seeds, against {against}")
    if (best := record["best_known"]) is not None:
        cost = "" if not record["grid_flops"] else f", {best['charged_flops'] / record['grid_flops']:.1f} dense grids"
        print_text(
            f"best known: {best['budget_score']:.3f}, of {best['trials']} trials{cost} charged, "
            f"in {', '.join(best['experiments'])}; regret is minus the points"
        )
        if left := best["left_out"]:
            print_text(f"not counting {left} trial{'' if left == 1 else 's'} at resolutions that no entry searches")
    print("differences in points, with 95 % intervals over seeds and samples;")
    print(f"p after Holm's correction for {tests} comparison{'' if tests == 1 else 's'}\n")
    print_table(
        [
            {
                "entry": row["entry"],
                "seeds": None if row["deterministic"] else len(row["seeds"]),
                "score": row["budget_score"],
                "points": _points(row["difference"]),
                "interval": _interval(row),
                "p": _p(row["p_holm"]),
                "verdict": row["verdict"],
            }
            for row in record["entries"]
        ],
        page_width(),
    )
    for row in record["entries"]:
        if nothing := row["found_nothing"]:
            print_text(
                f"{row['entry']}: {nothing} of {len(row['seeds'])} seeds ended without a schedule; "
                "they count as the model without the picture"
            )
    if left := record["not_run"]:
        print_text(f"not counted, as they have no trials so far: {', '.join(left)}")
    print(f"\ncost as a share of the dense grid's, and the {record['budgets']} budgets\n")
    print_table(
        [
            {
                "entry": row["entry"],
                "trials": round(row["trials"]),
                "propose": row["propose_share"],
                "charged": row["charged_share"],
                "spent": row["spent_share"],
                "seconds": round(row["wall_seconds"]),
                "hv/grid": row["hypervolume_ratio_to_grid"],
                "missed": f"{row['budgets_missed']:.1f}",
            }
            for row in record["entries"]
        ],
        page_width(),
    )
    print("\nspent: with sharing, over what the grid spent so; propose, charged: without")
    if any(row["budgets_missed"] for row in record["entries"]):
        print("missed: budgets that nothing fits; each counts as the model without the picture")
    if any(row["covers"] == "samples" for row in record["entries"]):
        print("s: over samples only, given the schedules that were found")


def anytime_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per entry and checkpoint, and one for its end."""
    return [
        {
            "experiment": record["experiment"],
            "entry": entry["entry"],
            "runs": entry["runs"],
            "at": "end" if point is entry["end"] else "checkpoint",
            "share": point["share"],
            "flops": point["flops"],
            **_spread(point, "score"),
            "covers": point["covers"],
            "budgets_missed": point["budgets_missed"],
            "runs_ended": point["runs_ended"],
        }
        for entry in record["entries"]
        for point in [*entry["checkpoints"], entry["end"]]
    ]


def print_anytime(record: dict[str, Any]) -> None:
    """One table: entries by shares of the dense grid's cost."""
    shares = record["shares"]
    print_text(f"{record['experiment']}: budget_score when stopped at a share of the grid's cost,")
    if shares:
        print("on held-out samples, mean over seeds\n")
    else:
        print("on the search split, where schedules were chosen, so optimistic: for held-out")
        print("samples add anytime: true to the study and run it again; mean over seeds\n")
    rows = []
    for entry in record["entries"]:
        end = entry["end"]
        row: dict[str, Any] = {"entry": entry["entry"], "seeds": entry["runs"]}
        for share in shares or CHECKPOINTS:
            row[f"{share:g}"] = None if share > end["share"] else _at(entry, share, held_out=bool(shares))
        rows.append({**row, "end": end["score"], "at": end["share"]})
    if rows:
        print_table(rows, page_width())
    print("\nend: all compute spent, held-out samples; at: its share")


def _at(entry: Mapping[str, Any], share: float, *, held_out: bool) -> float | None:
    points = entry["checkpoints" if held_out else "search_curve"]
    reached = [point for point in points if point["share"] <= share]
    return reached[-1]["score"] if reached else None


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["difference_ci"] is None:
        return ""
    low, high = row["difference_ci"]
    return f"{_points(low)}..{_points(high)}" + (" s" if row["covers"] == "samples" else "")


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
