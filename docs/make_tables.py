"""Write the tables of docs/findings.md: ``python docs/make_tables.py [STORAGE]``.

Runs studies/demo/methods.yaml and studies/demo/families.yaml first; what is in the database already is not run again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

from marked import fill, table
from vispco.analysis.comparison import Comparison
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.store import Store, default_url

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "findings.md"


def number(value: float | None, low_high: list[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else "")


def methods(found: dict[str, Any]) -> str:
    rows = [
        [
            f"`{search['name']}`",
            number(search["budget_score"], search["budget_score_ci"]),
            number(*search["held_out_hypervolume"]),
            str(len(search["front"])),
        ]
        for search in sorted(found["searches"], key=lambda s: -s["budget_score"])
    ]
    return table(["method", "`budget_score`", "hypervolume", "schedules on the front"], rows)


def defaults(found: dict[str, Any]) -> str:
    rows = []
    for default in sorted(found["defaults"], key=lambda d: d["flops_ratio"]):
        method = default["name"].split(":")[0]
        search = next(s for s in found["searches"] if s["name"] == method)
        fitting = [p for p in search["front"] if p["flops_ratio"] <= default["flops_ratio"]]
        best = max(fitting, key=lambda p: p["accuracy"])
        rows.append(
            [
                f"`{default['name']}`",
                f"{default['flops_ratio']:.3f}",
                number(default["accuracy_held_out"], default["accuracy_ci"]),
                f"{number(best['accuracy_held_out'])} by `{best['schedule']}`",
            ]
        )
    return table(["published default", "`flops_ratio`", "accuracy", "best step schedule within the same compute"], rows)


def families(found: dict[str, Any]) -> str:
    groups: dict[str, list[dict[str, Any]]] = {}
    for search in found["searches"]:
        groups.setdefault(search["name"].split("@")[0], []).append(search)
    rows = []
    for name, runs in sorted(groups.items(), key=lambda item: -mean(r["budget_score"] for r in item[1])):
        scores = [run["budget_score"] for run in runs]
        spread = f"{min(scores):.3f} to {max(scores):.3f}" if len(runs) > 1 else "-"
        rows.append(
            [
                f"`{name}`" + (" (dense step grid)" if name == "grid" else ""),
                str(runs[0]["trials"]),
                str(len(runs)),
                number(mean(scores)),
                spread,
                number(mean(r["held_out_hypervolume"][0] for r in runs)),
                number(runs[0]["budget_score"], runs[0]["budget_score_ci"]),
                number(*runs[0]["held_out_hypervolume"]),
                f"{mean(run['budgets_missed'] for run in runs):.1f}",
            ]
        )
    head = ["family", "trials", "seeds", "`budget_score`", "range over seeds", "hypervolume"]
    head += ["first seed: `budget_score`", "first seed: hypervolume", "budgets missed"]
    return table(head, rows)


def main() -> None:
    store = Store(sys.argv[1] if len(sys.argv) > 1 else default_url())
    found = {}
    for name in ("methods", "families"):
        problem = Problem.from_yaml(ROOT / "studies" / "demo" / f"{name}.yaml")
        Run(problem, store).run()
        comparison = Comparison(store, problem.study.experiment)
        found[name] = comparison.to_dict()
        for search, records in zip(found[name]["searches"], comparison.searches, strict=True):
            search["held_out_hypervolume"] = comparison.held_out_hypervolume(records)
    fill(
        PAGE,
        {
            "methods": methods(found["methods"]),
            "defaults": defaults(found["methods"]),
            "families": families(found["families"]),
        },
    )


if __name__ == "__main__":
    main()
