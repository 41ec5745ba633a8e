"""Table of ``vispco compare --with-published`` for a terminal of 80 columns, and as CSV."""

from __future__ import annotations

from typing import Any

from vispco.analysis.published_results import LEARNED, PLAIN, TASKS
from vispco.cli.output import in_blocks, page_width, print_table, print_text

FIXED = 44  # columns for budget, task and the paper's two
CELL = 5


def published_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per budget, task and source; scores in per cent."""
    rows = []
    for row in record["rows"]:
        at = {"experiment": record["experiment"], "budget": row["budget"], "task": row["task"]}
        for name, printed in row["published"].items():
            if printed is not None:
                more = {"schedule": None, "flops_ratio": None}
                rows.append({**at, "source": f"published: {name}", **_score(printed), **more})
        for name, own in row["ours"].items():
            if own is not None:
                more = {"schedule": own["schedule"], "flops_ratio": own["flops_ratio"]}
                rows.append({**at, "source": name, **_score(own), **more})
    return rows


def _score(cell: dict[str, Any]) -> dict[str, Any]:
    return {"value": cell["value"], "deviation": cell.get("deviation"), "kept": cell["kept"]}


def print_published(record: dict[str, Any]) -> None:
    """Scores in per cent where model and tasks are the paper's, else the share of the unpruned score that is kept."""
    absolute = record["same_model"] and bool(record["tasks"])
    method = record["method"]
    print_text(f"{record['experiment']} beside the tables of {record['source']}")
    what = "scores in per cent" if absolute else "per cent of the unpruned score that is kept"
    print_text(f"{what}; {record['model']}, {method}, {record['kernel']}")
    if not record["same_model"]:
        print_text(f"The paper does not have this model; {record['model']} is its main one.")
    if not record["same_method"]:
        print_text(f"The paper does not have this method; {method} is shown.")
    if not record["tasks"]:
        print_text("No task is one of the paper's eight; its average over those stands beside this experiment's.")
    elif len(record["tasks"]) < len(TASKS):
        print_text("average: over the paper's eight tasks there, over this experiment's here")
    print()
    names = list(record["rows"][0]["ours"])
    for shown in in_blocks(names, page_width() - FIXED, CELL):
        rows = []
        for row in record["rows"]:
            cells: dict[str, Any] = {"budget": f"{row['budget']:.2f}", "task": row["task"]}
            for head, name in ((method, PLAIN), ("+ VisPCO", LEARNED)):
                cells[head] = _cell(row["published"][name], absolute)
            cells.update({name: _cell(row["ours"][name], absolute) for name in shown})
            rows.append(cells)
        print_table(rows, page_width())
        print()
    if absolute:
        for title, scores in (("the paper", record["unpruned"]["published"]), ("here", record["unpruned"]["ours"])):
            listed = ", ".join(f"{name} {value:.1f}" for name, value in scores.items() if value is not None)
            print_text(f"unpruned, {title}: {listed}")
    print_text(f"{method}: mean and deviation over sampled configurations; + VisPCO: the paper's own; both as printed")
    print_text("budgets there are nominal and scorers looser: set beside, not compared (docs/paper.md)")
    for anomaly in record["anomalies"]:
        print_text(f"odd in print: {anomaly}")


def _cell(cell: dict[str, Any] | None, absolute: bool) -> str:
    if cell is None or cell["kept"] is None:
        return "-"
    scale = 1.0 if absolute or not cell["value"] else 100 * cell["kept"] / cell["value"]
    text = f"{cell['value'] * scale:.1f}"
    return text + (f"±{cell['deviation'] * scale:.1f}" if cell.get("deviation") is not None else "")
