"""Write docs/testbed.json and the testbed's tables of docs/findings.md: ``python docs/make_testbed.py [STORAGE]``.

Reads the experiment of studies/testbed/methods.yaml, which ``vispco run`` runs, and the figures that
``python benchmarks/testbed.py --json docs/testbed-model.json`` wrote. ``--from-json`` writes the tables again from what
docs/testbed.json holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from marked import fill, kept, table
from vispco.analysis.comparison import Comparison
from vispco.analysis.study_result import StudyResult
from vispco.evaluation.records import Evaluation
from vispco.fronts import front
from vispco.pruning.schedules import parse_schedule
from vispco.storage.store import Store, default_url
from vispco.tasks.base import make_task
from vispco.tasks.scene_vqa import GROUP_OF

DOCS = Path(__file__).parent
KEPT, MODEL, PAGE = DOCS / "testbed.json", DOCS / "testbed-model.json", DOCS / "findings.md"
NEAR = 0.1  # of flops_ratio: schedules of like compute


# --- what the experiments say ---------------------------------------------------------------------


def chosen(comparison: Comparison) -> dict[str, list[tuple[str, Evaluation]]]:
    """Schedule and held-out measurement for each budget, by search; a missed budget has the model without picture."""
    found: dict[str, list[tuple[str, Evaluation]]] = {}
    for search in comparison.searches:
        row = []
        for trial in comparison.chosen(search):
            evaluation = comparison.delivered_by(search, trial)
            assert evaluation is not None, f"{search.name}: {trial} has no held-out measurement; run the study again"
            row.append((trial.user_attrs["schedule"] if trial else "none", evaluation))
        found[search.name] = row
    return found


def methods(comparison: Comparison) -> dict[str, Any]:
    """Every method at every budget, and against random tokens."""
    choices = chosen(comparison)
    rows = []
    for name, row in choices.items():
        less = [
            comparison.mean_difference([e], other) for (_, e), (_, other) in zip(row, choices["random"], strict=True)
        ]
        rows.append(
            {
                "method": name,
                "schedules": [schedule for schedule, _ in row],
                "accuracy": [e.accuracy for _, e in row],
                "flops_ratio": [e.flops_ratio for _, e in row],
                "above_random": [
                    {"points": 100 * one["mean"], "interval": [100 * x for x in one["ci"]]} for one in less
                ],
                "mean": float(np.mean([e.accuracy for _, e in row])),
            }
        )
    unpruned, blind = comparison.reference("unpruned", "held_out"), comparison.reference("no_image", "held_out")
    assert unpruned is not None
    assert blind is not None
    return {
        "budgets": comparison.budgets,
        "unpruned": unpruned.accuracy,
        "no_image": blind.accuracy,
        "samples": sum(map(len, unpruned.scores.values())),
        "methods": sorted(rows, key=lambda row: -row["mean"]),
    }


def kinds(comparison: Comparison, budget: int) -> dict[str, Any]:
    """Accuracy by type of question at one budget."""
    (task,) = comparison.reference("unpruned", "held_out").scores
    columns = {"unpruned": comparison.reference("unpruned", "held_out")}
    columns |= {name: row[budget][1] for name, row in chosen(comparison).items()}
    size = len(columns["unpruned"].scores[task])
    asked = np.array([sample.category for sample in make_task(task, {"held_out": size}).samples("held_out")])
    return {
        "budget": comparison.budgets[budget],
        "kinds": {
            kind: {name: float(e.scores[task][asked == kind].mean()) for name, e in columns.items() if e is not None}
            for kind in GROUP_OF
            if kind in asked
        },
    }


def layers(search: StudyResult, budgets: list[float]) -> dict[str, Any]:
    """Best over mean of step schedules at like compute, and the layers along the front; on the search split."""
    gaps = []
    for budget in budgets:
        near = [t.values[0] for t in search.trials if budget - NEAR <= t.values[1] <= budget]
        if len(near) > 1:
            gaps.append(max(near) - float(np.mean(near)))
    along = [parse_schedule(trial.user_attrs["schedule"]) for trial in front(search.trials)]
    return {
        "points": 100 * float(np.mean(gaps)) if gaps else None,
        "front": [[step.layer, step.keep] for step in along],
    }


# --- tables ---------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def model_table(told: dict[str, Any]) -> str:
    rows = [
        [f"`{kind}`", number(score), number(told["kinds without image"][kind])] for kind, score in told["kinds"].items()
    ]
    for group, score in told["groups"].items():
        rows.append([f"**{group}**", f"**{score:.3f}**", number(told["groups without image"][group])])
    return table(["type of question", "unpruned", "without the picture"], rows)


def methods_table(told: dict[str, Any]) -> str:
    head = ["method", *(f"budget {budget:g}" for budget in told["budgets"]), "mean"]
    rows = []
    for row in told["methods"]:
        cells = []
        for score, more in zip(row["accuracy"], row["above_random"], strict=True):
            low, high = more["interval"]
            beside = "" if row["method"] == "random" else f" ({low:+.0f} to {high:+.0f})"
            cells.append(f"{score:.3f}{beside}")
        rows.append([f"`{row['method']}`", *cells, number(row["mean"])])
    return table(head, rows)


def kinds_table(told: dict[str, Any]) -> str:
    names = list(next(iter(told["kinds"].values())))
    rows = [[f"`{kind}`", *(number(row[name]) for name in names)] for kind, row in told["kinds"].items()]
    return table(["type of question", *(f"`{name}`" if name != "unpruned" else name for name in names)], rows)


def layers_table(told: dict[str, Any]) -> str:
    rows = []
    for name, row in told.items():
        along = ", ".join(f"{layer} ({keep:g})" for layer, keep in row["front"])
        rows.append([f"`{name}`", "-" if row["points"] is None else f"{row['points']:.1f}", along])
    return table(["method", "best above mean, points", "layers along the front (share kept)"], rows)


def lengths_table(told: dict[str, Any]) -> str:
    rows = told["lengths"]
    sizes = list(rows["unpruned"])
    lines = [[name, *(number(row[size][0]) if size in row else "-" for size in sizes)] for name, row in rows.items()]
    counts = ["samples: unpruned, pruned"]
    pruned = list(rows.values())[-1]
    counts += [f"{rows['unpruned'][size][1]}, {pruned[size][1] if size in pruned else 0}" for size in sizes]
    return table(["tokens of the right answer", *sizes], [*lines, counts])


def tables(told: dict[str, Any]) -> dict[str, str]:
    makers = {
        "model": model_table,
        "methods": methods_table,
        "kinds": kinds_table,
        "layers": layers_table,
    }
    made = {f"testbed-{name}": make(told[name]) for name, make in makers.items()}
    return {**made, "testbed-lengths": lengths_table(told["model"])}


def read(url: str | None) -> dict[str, Any]:
    comparison = Comparison(Store(url or default_url(), read_only=True), "testbed-methods")
    return {
        "model": json.loads(MODEL.read_text(encoding="utf-8")),
        "methods": methods(comparison),
        "kinds": kinds(comparison, 1),
        "layers": {search.name: layers(search, comparison.budgets) for search in comparison.searches},
    }


def main() -> None:
    fill(PAGE, tables(kept(KEPT, read)))


if __name__ == "__main__":
    main()
