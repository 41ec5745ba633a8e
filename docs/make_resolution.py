"""Write docs/resolution.json, its figure and its table of docs/findings.md: ``python docs/make_resolution.py [URL]``.

Runs studies/demo/resolution.yaml first; what is in the database already is not run again. ``--from-json`` draws and
writes again what docs/resolution.json holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marked import fill, kept
from vispco.analysis.comparison import Comparison
from vispco.analysis.seeds import against, entries
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.store import Store, default_url

ROOT = Path(__file__).parent.parent
KEPT, PAGE = ROOT / "docs" / "resolution.json", ROOT / "docs" / "findings.md"
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

        made = Figure(figsize=(4.2, 2.8))
        axes = made.subplots()
        for row in told["entries"]:
            runs = list(zip(row["accuracy"], row["missed"], strict=True))
            places = [
                (budget, [accuracy[at] for accuracy, missed in runs if not missed[at]])
                for at, budget in enumerate(told["budgets"])
            ]
            known = [(budget, values) for budget, values in places if values]
            means = [sum(values) / len(values) for _, values in known]
            color, x = COLORS[row["entry"]], [budget for budget, _ in known]
            axes.plot(x, means, "o-", color=color, label=WORDS[row["entry"]])
            low, high = ([pick(values) for _, values in known] for pick in (min, max))
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        axes.axhline(told["unpruned"], color="black", linewidth=0.6, linestyle=":")
        axes.set_xlabel("budget: total FLOPs over the whole picture's, unpruned")
        axes.set_ylabel("held-out accuracy")
        axes.legend(loc="lower right")
        return made

    matplotlib_figures.save(draw, output)


def table(told: dict[str, Any]) -> str:
    rows = ["| searched | `budget_score` | points above `both` | budgets missed |", "| --- | --- | --- | --- |"]
    for row in sorted(told["entries"], key=lambda row: -row["budget_score"]):
        low, high = row["difference_ci"] or (0, 0)
        points = f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" if row["difference"] else "-"
        missed = f"{row['budgets_missed']:.1f}"
        rows.append(f"| `{row['entry']}`: {WORDS[row['entry']]} | {row['budget_score']:.3f} | {points} | {missed} |")
    return "\n".join(rows)


def read(url: str | None) -> dict[str, Any]:
    problem = Problem.from_yaml(ROOT / "studies" / "demo" / "resolution.yaml")
    store = Store(url or default_url())
    Run(problem, store).run()
    return measured(Comparison(store, problem.study.experiment))


def main() -> None:
    told = kept(KEPT, read)
    figure(told, ROOT / "docs" / "resolution.png")
    fill(PAGE, {"resolution": table(told)})


if __name__ == "__main__":
    main()
