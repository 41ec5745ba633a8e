"""The page's tables. Records in, HTML out."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from vispco.dashboards import figures
from vispco.dashboards.text import in_html, percent, points, points_interval, shortened

FEW = 8  # searches that are listed without being asked
LONG = 120  # characters of a schedule in a table


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Cells are text; numbers have three digits, None is a dash."""
    head = "".join(f"<th>{in_html(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else in_html(str(value))


def searches(comparison: dict[str, Any]) -> str:
    """Every run's costs and scores."""
    heads = ["search", "trials", "budget_score", "95 % interval", "missed", "hypervolume / grid"]
    heads += ["charged / grid", "spent / grid", "seconds"]
    rows = []
    for search in comparison["searches"]:
        ci = search["budget_score_ci"]
        rows.append(
            [
                search["name"],
                search["trials"],
                search["budget_score"],
                f"{ci[0]:.3f} to {ci[1]:.3f}" if ci else None,
                search["budgets_missed"],
                search["hypervolume_ratio_to_grid"],
                search["cost_ratio_to_grid"],
                search["spent_ratio_to_grid"],
                round(search["wall_seconds"]),
            ]
        )
    note = (
        "<p>budget_score is the mean over budgets of the held-out accuracy of the schedule that a search would choose; "
        "a missed budget counts as the model without the picture. Intervals resample pictures; they are conditional on "
        "the schedules found and say nothing of other seeds. Charged is what a search would have cost alone, without "
        "cache and sharing, over the grid's cost of that kind; spent is what was run, over what the grid spent.</p>"
    )
    found = table(heads, rows)
    if len(rows) > FEW:
        found = f"<details><summary>All {len(rows)} searches</summary>{found}</details>"
    return found + note


def by_budget(comparison: dict[str, Any]) -> str:
    """What each entry chose for each budget: mean and range where it has several runs."""
    runs = figures.runs_of(comparison)
    rows = [[row["budget"], *(_chosen(row, found) for found in runs.values())] for row in comparison["by_budget"]]
    note = (
        "Held-out accuracy, schedule, and difference to the grid in points with its interval; of several seeds the "
        "mean and the range. A search that has nothing within a budget misses it, and is judged by the model without "
        "the picture, which fits any budget."
    )
    return f'<p>{note}</p><div class="wide">{table(["budget", *runs], rows)}</div>'


def _chosen(row: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    chosen = [found for run in runs if (found := row["chosen"].get(run["name"]))]
    missed = [found for found in chosen if found["missed"]]
    if not chosen:
        return "-"
    if len(runs) > 1:
        known = [found["accuracy_held_out"] for found in chosen if found["accuracy_held_out"] is not None]
        if len(known) < len(runs):
            return "-"
        text = f"{percent(fmean(known))} ({percent(min(known))} to {percent(max(known))})"
        return text + (f", {len(missed)} of {len(runs)} missed" if missed else "")
    what = "missed: without the picture" if missed else shortened(figures.label(chosen[0]), LONG)
    text = f"{percent(chosen[0]['accuracy_held_out'])} {what}"
    gap = row["difference_to_grid"].get(runs[0]["name"])
    if not gap:
        return text
    told = f", {points_interval(gap['ci'])}" if gap["ci"] else ""
    return f"{text} ({points(gap['mean'])}{told})"


def against(found: dict[str, Any]) -> str:
    """Entries over their seeds, against one of them."""
    heads = ["entry", "seeds", "budget_score", "difference", "95 % interval", "p (Holm)", "verdict"]
    heads += ["propose / grid", "charged / grid", "spent / grid", "seconds", "budgets missed"]
    rows = []
    for row in found["entries"]:
        told = points_interval(row["difference_ci"]) if row["difference_ci"] else None
        if told and row["covers"] == "samples":
            told += ", samples only"
        rows.append(
            [
                row["entry"],
                None if row["deterministic"] else len(row["seeds"]),
                row["budget_score"],
                None if row["difference"] is None else points(row["difference"]),
                told,
                row["p_holm"],
                row["verdict"],
                row["propose_share"],
                row["charged_share"],
                row["spent_share"],
                round(row["wall_seconds"]),
                round(row["budgets_missed"], 1),
            ]
        )
    note = (
        f"Mean budget_score over seeds, and its difference to {in_html(found['against'])} in points. Intervals "
        "resample seeds and pictures together, or pictures only, given the schedules found, where a search has too few "
        f"seeds. No search is called better with fewer than {found['seeds_needed']} seeds. A missed budget, within "
        "which a search has nothing, counts as the model without the picture."
    )
    return f"<p>{note}</p>" + table(heads, rows)


def violations(found: dict[str, Any]) -> str:
    """How gradient searches held their budgets: mean violation and KKT residuals per entry and budget."""
    if not found["entries"]:
        return ""
    lines = []
    for entry in found["entries"]:
        within, share = 100 * found["within"], 100 * entry["held"] / entry["pairs"]
        lines.append(
            f"<p>{in_html(entry['entry'])}: {entry['held']} of {entry['pairs']} relaxed solutions within {within:g} % "
            f"of their budgets before the snap ({share:.0f} %); the farthest is {100 * entry['farthest']:+.1f} %.</p>"
        )
        rows = []
        for row in entry["budgets"]:
            known = [100 * value for value in row["relaxed"] if value is not None]
            told = f"{min(known):+.1f} to {max(known):+.1f} %" if known else None
            rows.append([row["budget"], told, row["stationarity"], row["feasibility"], row["complementarity"]])
        heads = ["budget", "violation before the snap", "stationarity", "feasibility", "complementarity"]
        lines.append(table(heads, rows))
    note = "Residuals of the Karush-Kuhn-Tucker conditions, means over seeds: all are 0 at a solution."
    return "".join(lines) + f"<p>{note}</p>"


def provenance(source: dict[str, Any]) -> str:
    """Versions, hashes, seeds, machine."""
    changed = " (with changes that were not committed)" if source.get("dirty") else ""
    rows = [
        ["spec hash", source["spec_hash"]],
        ["unpruned evaluation", source.get("evaluation")],
        ["FLOPs accounting", source["accounting"]],
        ["commit", f"{source['commit']}{changed}" if source.get("commit") else None],
        *([name, version] for name, version in source["versions"].items()),
        ["python", source["python"]],
        ["machine", source["platform"]],
        ["device", source.get("device")],
        ["begun (UTC)", source.get("created")],
    ]
    heads = ["entry", "kind", "method", "family", "seeds"]
    entries = [[e["entry"], e["kind"], e["method"], e["family"], e["seeds"]] for e in source["entries"]]
    return table(["what", "value"], rows) + "<h3>Searches and seeds</h3>" + table(heads, entries)
