"""Write docs/resolution.json, its figure and its table of docs/findings.md: ``python docs/make_resolution.py [MODEL]``.

Runs the studies first, or that of MODEL (demo-qwen, smol) alone; what is in the database already is not run again.
``--from-json`` draws and writes again what docs/resolution.json holds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import marked
from vispco.analysis.comparison import Comparison
from vispco.analysis.seeds import against, entries
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.store import Store, default_url

ROOT = Path(__file__).parent.parent
KEPT, PAGE = ROOT / "docs" / "resolution.json", ROOT / "docs" / "findings.md"
STUDIES = {"demo-qwen": "demo/resolution.yaml", "smol": "testbed/resolution.yaml"}
WORDS = {"size": "smaller pictures", "pruning": "pruned whole pictures", "both": "size and schedule together"}
COLORS = {"size": "#4477aa", "pruning": "#cc3311", "both": "#228833"}


def measured(comparison: Comparison) -> dict[str, Any]:
    """By entry: the score, its distance to ``both``, and accuracy at each budget over seeds."""
    unpruned, blind = comparison.reference("unpruned", "held_out"), comparison.reference("no_image", "held_out")
    assert unpruned is not None
    assert blind is not None
    rows = []
    for row in against(comparison, "both")["entries"]:
        runs = entries(comparison)[row["entry"]].runs
        delivered = [comparison.delivered(run) for run in runs]
        assert None not in delivered, f"{row['entry']}: not all choices are measured; run the study again"
        rows.append(
            {
                **{key: row[key] for key in ("entry", "budget_score", "difference", "difference_ci", "budgets_missed")},
                "accuracy": [[one.accuracy for one in given] for given in delivered if given is not None],
                "missed": [[trial is None for trial in comparison.chosen(run)] for run in runs],
            }
        )
    sizes = next(run for run in comparison.searches if run.name == "size")
    return {
        "budgets": comparison.budgets,
        "unpruned": unpruned.accuracy,
        "no_image": blind.accuracy,
        "sizes": [[trial.user_attrs["schedule"], trial.cost] for trial in sizes.trials],
        "entries": rows,
    }


def figure(told: dict[str, Any], output: Path) -> None:
    from vispco.dashboards import matplotlib_figures

    def draw() -> Any:
        from matplotlib.figure import Figure

        made = Figure(figsize=(6.9, 2.8))
        for axes, (model, case) in zip(made.subplots(1, len(told), sharey=True), told.items(), strict=True):
            draw_case(axes, case)
            axes.set_title(model)
        made.axes[0].set_ylabel("held-out accuracy")
        made.axes[0].legend(loc="lower right")
        return made

    matplotlib_figures.save(draw, output)


def draw_case(axes: Any, case: dict[str, Any]) -> None:
    for row in case["entries"]:
        runs = list(zip(row["accuracy"], row["missed"], strict=True))
        places = [
            (budget, [accuracy[at] for accuracy, missed in runs if not missed[at]])
            for at, budget in enumerate(case["budgets"])
        ]
        known = [(budget, values) for budget, values in places if values]
        means = [sum(values) / len(values) for _, values in known]
        color, x = COLORS[row["entry"]], [budget for budget, _ in known]
        over = {"linestyle": (0, (3, 2)), "zorder": 3} if row["entry"] == "both" else {}  # it may lie on another
        axes.plot(x, means, marker="o", color=color, label=WORDS[row["entry"]], **over)
        low, high = ([pick(values) for _, values in known] for pick in (min, max))
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    axes.axhline(case["unpruned"], color="black", linewidth=0.6, linestyle=":")
    axes.set_xlabel("budget: share of all FLOPs")


def table(told: dict[str, Any]) -> str:
    rows = []
    for model, case in told.items():
        for row in sorted(case["entries"], key=lambda row: -row["budget_score"]):
            low, high = (100 * end for end in row["difference_ci"] or (0, 0))
            points = f"{100 * row['difference']:+.1f} ({low:+.1f} to {high:+.1f})" if row["difference_ci"] else "-"
            what, missed = f"`{row['entry']}`: {WORDS[row['entry']]}", f"{row['budgets_missed']:.1f}"
            rows.append([f"`{model}`", what, f"{row['budget_score']:.3f}", points, missed])
    return marked.table(["model", "searched", "`budget_score`", "points above `both`", "budgets missed"], rows)


def main() -> None:
    asked = sys.argv[1] if len(sys.argv) > 1 else None
    if asked not in (None, "--from-json", *STUDIES):
        raise SystemExit(f"no study of {asked}; give one of {', '.join(STUDIES)}, --from-json, or nothing")
    told = json.loads(KEPT.read_text(encoding="utf-8"))
    for model in STUDIES if asked is None else STUDIES.keys() & {asked}:
        problem, store = Problem.from_yaml(ROOT / "studies" / STUDIES[model]), Store(default_url())
        Run(problem, store).run()
        told = marked.keep(KEPT, {**told, model: measured(Comparison(store, problem.study.experiment))})
    figure(told, ROOT / "docs" / "resolution.png")
    marked.fill(PAGE, {"resolution": table(told)})


if __name__ == "__main__":
    main()
