"""The page's tables. Records in, HTML out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from statistics import fmean
from typing import Any

from vispco.dashboards import figures
from vispco.dashboards.axis import scored
from vispco.dashboards.glossary import term
from vispco.dashboards.text import in_html, percent, points, points_interval, shortened

LONG = 120  # characters of a schedule in a table
Heads = Sequence[tuple[str, str]]  # of each column its name, and its term in the glossary or ""
Row = Sequence[Any]


def table(heads: Heads, rows: Sequence[Row], name: str) -> str:
    """Cells are text; None is a dash. On a narrow page each row becomes a block of named cells."""
    return grouped(heads, {"": rows}, name)


def grouped(heads: Heads, groups: dict[str, Sequence[Row]], name: str) -> str:
    """A table in parts, each under its own heading."""
    head = "".join(f'<th scope="col">{term(known, shown) if known else escape(shown)}</th>' for shown, known in heads)
    parts = []
    for title, rows in groups.items():
        titled = f'<tr class="group"><th colspan="{len(heads)}" scope="rowgroup">{in_html(title)}</th></tr>'
        body = "".join(_row(heads, row) for row in rows)
        parts.append(f"<tbody>{titled if title else ''}{body}</tbody>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table><thead><tr>{head}</tr>'
        f"</thead>{''.join(parts)}</table></div>"
    )


def _row(heads: Heads, row: Row) -> str:
    cells = "".join(
        f'<td data-label="{escape(shown)}">{"-" if value is None else in_html(str(value))}</td>'
        for (shown, _), value in zip(heads, row, strict=True)
    )
    return f"<tr>{cells}</tr>"


def times(value: float | None) -> str | None:
    """A multiple, with digits enough to tell small ones apart.

    >>> times(0.2156), times(0.0123)
    ('0.22', '0.012')
    """
    if value is None:
        return None
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def between(interval: Sequence[float] | None) -> str | None:
    """An interval of shares in percent."""
    return f"{percent(interval[0])} to {percent(interval[1])}" if interval else None


def searches(comparison: dict[str, Any]) -> str:
    """Every run's costs and scores."""
    heads = [("run", ""), ("trials", "trial"), ("budget score", "budget score"), ("95 % interval", "interval")]
    heads += [("missed budgets", "missed"), ("hypervolume, times the grid's", "hypervolume")]
    heads += [("charged, times the grid's", "charged"), ("spent, times the grid's", "spent"), ("seconds", "")]
    rows = [
        [
            search["name"],
            search["trials"],
            percent(search["budget_score"]),
            between(search["budget_score_ci"]),
            search["budgets_missed"],
            times(search["hypervolume_ratio_to_grid"]),
            times(search["cost_ratio_to_grid"]),
            times(search["spent_ratio_to_grid"]),
            f"{search['wall_seconds']:.0f}",
        ]
        for search in comparison["searches"]
    ]
    return table(heads, rows, "Every run")


def objectives(comparison: dict[str, Any]) -> str:
    """Every run's front in all objectives, where several costs are minimised."""
    heads = [("run", ""), ("schedules on the front", "front"), ("hypervolume", "hypervolume")]
    heads += [("hypervolume, times the grid's", "hypervolume")]
    rows = []
    for search in comparison["searches"]:
        found = search["objectives"]
        ratio = times(found["hypervolume_ratio_to_grid"])
        rows.append([search["name"], len(found["front"]), f"{found['hypervolume']:.4f}", ratio])
    return table(heads, rows, "Fronts in all objectives")


def by_budget(comparison: dict[str, Any]) -> str:
    """What each entry chose for each budget; budgets with the same choice share a row."""
    heads = [("budget", "budget"), (scored(comparison), "held-out split"), ("95 % interval", "interval")]
    heads += [("points to the grid", "grid"), ("interval of that", "interval"), ("schedule", "schedule")]
    groups: dict[str, Sequence[Row]] = {
        name: _alone(comparison, runs[0]) if len(runs) == 1 else _seeds(comparison, runs)
        for name, runs in figures.runs_of(comparison).items()
    }
    return grouped(heads, groups, "Choice for each budget")


def _budgets(rows: Sequence[dict[str, Any]]) -> str:
    first, last = sorted((rows[0]["budget"], rows[-1]["budget"]))
    return percent(first) if len(rows) == 1 else f"{percent(first)} to {percent(last)}"


def _alone(comparison: dict[str, Any], run: dict[str, Any]) -> list[Row]:
    intervals = {point["trial"]: point["accuracy_ci"] for point in run["front"]}
    groups: list[Row] = []
    rows = [row for row in comparison["by_budget"] if run["name"] in row["chosen"]]
    # A missed budget is compared with what the grid has there, so each stays a row of its own.
    for _, same in groupby(rows, lambda row: (row["chosen"][run["name"]]["trial"], _gap(row, run))):
        together = list(same)
        chosen, gap = together[0]["chosen"][run["name"]], together[0]["difference_to_grid"].get(run["name"])
        missed = chosen["missed"]
        groups.append(
            [
                _budgets(together),
                percent(chosen["accuracy_held_out"]),
                None if missed else between(intervals.get(chosen["trial"])),
                points(gap["mean"]) if gap else None,
                points_interval(gap["ci"]) if gap and gap["ci"] else None,
                "\u25cb missed: no image" if missed else shortened(figures.label(chosen), LONG),
            ]
        )
    return groups


def _gap(row: dict[str, Any], run: dict[str, Any]) -> Any:
    gap = row["difference_to_grid"].get(run["name"])
    return gap and (gap["mean"], tuple(gap["ci"] or ()))


def _seeds(comparison: dict[str, Any], runs: Sequence[dict[str, Any]]) -> list[Row]:
    """Mean over seeds, and their range."""
    lines: list[Row] = []
    for row in comparison["by_budget"]:
        chosen = [row["chosen"][run["name"]] for run in runs if run["name"] in row["chosen"]]
        known = [one["accuracy_held_out"] for one in chosen if one["accuracy_held_out"] is not None]
        missed = sum(bool(one["missed"]) for one in chosen)
        gaps = [gap["mean"] for run in runs if (gap := row["difference_to_grid"].get(run["name"]))]
        told = f"{len(runs)} seeds" + (f", \u25cb {missed} of them missed it" if missed else "")
        whole = len(known) == len(runs)
        lines.append(
            [
                percent(row["budget"]),
                percent(fmean(known)) if whole else None,
                f"{percent(min(known))} to {percent(max(known))}, range over seeds" if whole else None,
                points(fmean(gaps)) if len(gaps) == len(runs) else None,
                None,
                told,
            ]
        )
    return lines


def against(record: dict[str, Any]) -> str:
    """Entries over their seeds, against one of them."""
    heads = [("search", ""), ("seeds", "seed"), ("budget score", "budget score")]
    heads += [
        (f"points to {shortened(record['against'], 20)}", ""),
        ("95 % interval", "interval"),
        ("verdict", "p-value"),
    ]
    heads += [("charged, times the grid's", "charged"), ("spent, times the grid's", "spent")]
    heads += [("seconds", ""), ("missed budgets", "missed")]
    rows = []
    for row in record["entries"]:
        told = points_interval(row["difference_ci"]) if row["difference_ci"] else None
        p = f" (p = {row['p_holm']:.3f})" if row["p_holm"] is not None else ""
        rows.append(
            [
                row["entry"],
                None if row["deterministic"] else len(row["seeds"]),
                percent(row["budget_score"]),
                None if row["difference"] is None else points(row["difference"]),
                f"{told}, samples only" if told and row["covers"] == "samples" else told,
                row["verdict"] + p,
                times(row["charged_share"]),
                times(row["spent_share"]),
                f"{row['wall_seconds']:.0f}",
                f"{row['budgets_missed']:g}" if row["budgets_missed"] in (0, 1) else f"{row['budgets_missed']:.1f}",
            ]
        )
    note = (
        f'<p class="note">Means over seeds. <i>Samples only</i>: the interval says nothing of other seeds. No search '
        f"with seeds is called better with fewer than {record['seeds_needed']}; two without any need none.</p>"
    )
    return table(heads, rows, "Searches compared") + note


def violations(record: dict[str, Any]) -> str:
    """How gradient searches held their budgets: mean violation and KKT residuals per entry and budget."""
    if not record["entries"]:
        return ""
    lines = []
    heads = [("budget", "budget"), ("violation before the snap", "violation")]
    heads += [("stationarity", ""), ("feasibility", ""), ("complementarity", "")]
    for entry in record["entries"]:
        within, share = 100 * record["within"], 100 * entry["held"] / entry["pairs"]
        lines.append(
            f"<p>{in_html(entry['entry'])}: {entry['held']} of {entry['pairs']} relaxed solutions within {within:g} % "
            f"of their budgets before the snap ({share:.0f} %); the farthest is {100 * entry['farthest']:+.1f} %.</p>"
        )
        rows = []
        for row in entry["budgets"]:
            known = [100 * value for value in row["relaxed"] if value is not None]
            told = f"{min(known):+.1f} to {max(known):+.1f} %" if known else None
            residuals = [row[name] for name in ("stationarity", "feasibility", "complementarity")]
            numbers = [None if value is None else f"{value:.3f}" for value in residuals]
            rows.append([percent(row["budget"]), told, *numbers])
        lines.append(table(heads, rows, f"Budgets of {entry['entry']}"))
    note = "Residuals of the Karush-Kuhn-Tucker conditions, means over seeds: all are 0 at a solution."
    return "".join(lines) + f'<p class="note">{note}</p>'


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
        ["started (UTC)", source.get("created")],
    ]
    heads = [("search", ""), ("kind", ""), ("method", "method"), ("family", "family"), ("seeds", "seed")]
    entries = [[e["entry"], e["kind"], e["method"], e["family"], e["seeds"]] for e in source["entries"]]
    made = table([("what", ""), ("value", "")], rows, "Provenance")
    return made + "<h4>Searches and seeds</h4>" + table(heads, entries, "Searches and seeds")


def experiments(records: Sequence[dict[str, Any]]) -> str:
    """One row for each experiment: its decision."""
    heads = [("experiment", ""), ("model", ""), ("tasks", ""), ("cheapest schedule", "decision")]
    heads += [("cost, of unpruned", "compute"), ("held-out accuracy", "held-out split"), ("of unpruned", "unpruned")]
    heads += [("within the loss", "confirmed")]
    rows = []
    for record in records:
        decision, row = (
            record["decision"],
            [record["comparison"]["experiment"], record["model"], ", ".join(record["tasks"])],
        )
        if decision is None:
            rows.append([*row, None, None, None, None, None])
            continue
        chosen, whole = decision["chosen"], decision["unpruned"]["accuracy_held_out"]
        mine = chosen["accuracy_held_out"]
        verdict = {True: "confirmed", False: "not confirmed", None: "not testable"}[decision["confirmed"]]
        rows.append(
            [
                *row,
                shortened(figures.label(chosen), LONG) if chosen["search"] else "prune nothing",
                f"{percent(chosen['cost_ratio'], 0)} of {decision['cost']}",
                percent(mine),
                percent(mine / whole, 0) if mine is not None and whole else None,
                verdict,
            ]
        )
    return table(heads, rows, "Decisions")
