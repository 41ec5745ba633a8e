"""Write docs/pays.json, the figure and the tables of docs/findings.md: ``python docs/make_pays.py [FOLDER]``.

Reads the databases that ``python benchmarks/learned.py --best-known --folder FOLDER`` wrote; what is not there stays as
docs/pays.json has it. ``--from-json`` draws and writes again what docs/pays.json holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from marked import fill, kept, table
from vispco.analysis.comparison import Comparison
from vispco.analysis.regret import BEST_KNOWN
from vispco.analysis.seeds import against, entries
from vispco.analysis.violations import violations
from vispco.fronts import choose
from vispco.storage.store import Store

ROOT = Path(__file__).parent.parent
KEPT, PAGE = ROOT / "docs" / "pays.json", ROOT / "docs" / "findings.md"
SHAPES = {"step": "one step", "multistep": "up to three steps", "layerwise": "a ratio per layer"}
MARKERS = {"learned": "o", "random": "v", "tpe": "s", "warm": "^", "dop": "D", "grid": "P"}
COLORS = {"step": "#4477aa", "multistep": "#cc3311", "layerwise": "#228833"}


def searched(comparison: Comparison) -> dict[str, Any]:
    """Every entry against the grid, and the learned one against every other."""
    over_learned = {row["entry"]: row for row in against(comparison, "learned")["entries"]}
    best = against(comparison, BEST_KNOWN)
    known = any(name.startswith(BEST_KNOWN) for name in best["best_known"]["experiments"])
    regret = {row["entry"]: row["regret"] for row in best["entries"]} if known else {}
    rows = []
    for row in against(comparison, "grid")["entries"]:
        name, behind = row["entry"], over_learned[row["entry"]]
        rows.append(
            {
                "entry": name,
                **{key: row[key] for key in ("kind", "trials", "budgets_missed", "budget_score")},
                "seeds": len(row["seeds"]),
                "points": None if row["difference"] is None else 100 * row["difference"],
                "interval": row["difference_ci"] and [100 * end for end in row["difference_ci"]],
                "learned_ahead": None if behind["difference"] is None else -100 * behind["difference"],
                "learned_ahead_interval": behind["difference_ci"] and [-100 * x for x in behind["difference_ci"][::-1]],
                **{part: row[f"{part}_share"] for part in ("propose", "charged", "spent")},
                "hypervolume": row["hypervolume_ratio_to_grid"],
                "regret": None if regret.get(name) is None else 100 * regret[name],
            }
        )
    held = next(entry for entry in violations(comparison)["entries"] if entry["entry"] == "learned")
    grids = best["best_known"]["charged_flops"] / comparison.grid_flops()
    return {
        "entries": rows,
        "held": {key: held[key] for key in ("pairs", "held", "over")},
        "best_known": {"trials": best["best_known"]["trials"], "grids": grids} if known else None,
    }


def defaults(comparison: Comparison) -> list[dict[str, Any]]:
    """What the learned search would choose for the compute of each published default, minus that default; held out."""
    rows, runs = [], entries(comparison)["learned"].runs
    for name, default in sorted(comparison.defaults().items(), key=lambda item: -item[1].flops_ratio):
        chosen = [choose(comparison.front(run), default.flops_ratio) for run in runs]
        held = [comparison.held_out(run, trial) for run, trial in zip(runs, chosen, strict=True) if trial]
        more = comparison.mean_difference([one for one in held if one is not None], default)
        cell = {"points": 100 * more["mean"], "interval": [100 * end for end in more["ci"]], "runs": len(held)}
        rows.append({"default": name, "flops_ratio": default.flops_ratio, "accuracy": default.accuracy, **cell})
    return rows


def figure(told: dict[str, Any], output: Path) -> None:
    from matplotlib.ticker import FuncFormatter
    from vispco.dashboards import matplotlib_figures

    def draw() -> Any:
        from matplotlib.figure import Figure

        made = Figure(figsize=(6.9, 3.1))
        left, right = made.subplots(1, 2, width_ratios=[1.15, 1])
        shown = set()
        for case in told["cases"]:
            if case["model"] != "demo" or case["method"] != "fastv":
                continue
            for row in case["entries"]:
                kind = row["entry"]  # what those with -paid spent depends on what was measured before them
                if row["interval"] is None or kind not in MARKERS:
                    continue
                shown |= {case["family"]}
                bars = [[row["points"] - row["interval"][0]], [row["interval"][1] - row["points"]]]
                color = COLORS[case["family"]]
                filled = color if kind == "learned" else "white"
                style = {"fmt": MARKERS[kind], "color": color, "mfc": filled, "elinewidth": 0.6, "markersize": 4}
                left.errorbar(row["charged"], row["points"], yerr=bars, **style)
        left.axhline(0, color="black", linewidth=0.8)
        left.set_xscale("log")
        left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        left.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        left.set_xticks([0.08, 0.1, 0.12, 0.15, 0.2])
        left.set_xlabel("charged, over what the dense grid is charged")
        left.set_ylabel("points above the dense step grid")
        for family in sorted(shown, key=list(SHAPES).index):
            left.plot([], [], "-", color=COLORS[family], label=SHAPES[family])
        for kind, marker in MARKERS.items():
            if kind != "grid":
                left.plot([], [], marker, color="grey", mfc="grey" if kind == "learned" else "white", label=kind)
        left.legend(fontsize=6, ncols=2, loc="lower right")
        rows = sorted(told["defaults"], key=lambda row: row["flops_ratio"])
        for place, row in enumerate(rows):
            bars = [[row["points"] - row["interval"][0]], [row["interval"][1] - row["points"]]]
            style = {"fmt": "o", "color": COLORS["multistep"], "elinewidth": 0.6, "markersize": 4}
            right.errorbar(row["points"], place, xerr=bars, **style)
        right.axvline(0, color="black", linewidth=0.8)
        right.set_yticks(range(len(rows)), [f"{row['default']}  {row['flops_ratio']:.2f}" for row in rows], fontsize=6)
        right.set_xlabel("points of learned steps above it")
        right.set_title("default, its flops_ratio", loc="left", x=-0.44, fontsize=6)
        return made

    matplotlib_figures.save(draw, output)


def points(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:+.1f} ({interval[0]:+.1f} to {interval[1]:+.1f})"


def search_table(told: dict[str, Any]) -> str:
    head = ["model", "schedules", "entry", "`budget_score`", "points against the grid", "`learned` is ahead by"]
    head += ["charged", "spent", "regret"]
    rows = []
    for case in told["cases"]:
        words = SHAPES[case["family"]] + (f", {case['method']}" if case["method"] != "fastv" else "")
        for row in case["entries"]:
            ahead = points(row["learned_ahead"], row["learned_ahead_interval"])
            regret = "-" if row["regret"] is None else f"{row['regret']:.1f}"
            rows.append(
                [
                    *(f"`{case['model']}`", words, f"`{row['entry']}`", f"{row['budget_score']:.3f}"),
                    *(points(row["points"], row["interval"]), ahead),
                    *(f"{row['charged']:.3f}", f"{row['spent']:.3f}", regret),
                ]
            )
    return table(head, rows)


def default_table(told: dict[str, Any]) -> str:
    rows = [
        "| published default | `flops_ratio` | accuracy | learned, up to three steps |",
        "| --- | --- | --- | --- |",
    ]
    for row in told["defaults"]:
        cell = points(row["points"], row["interval"])
        rows.append(f"| `{row['default']}` | {row['flops_ratio']:.3f} | {row['accuracy']:.3f} | {cell} |")
    return "\n".join(rows)


def read(folder: str | None) -> dict[str, Any]:
    """What docs/pays.json holds, renewed by every database of ``folder``."""
    told: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    cases = {(case["model"], case["family"], case["method"]): case for case in told.get("cases", ())}
    for path in sorted(Path(folder or "learned").glob("*.db")):
        comparison = Comparison(Store(f"sqlite:///{path}", read_only=True), f"learned-{path.stem}")
        identity = comparison.stored.identity
        key = identity["model"]["name"], entries(comparison)["learned"].runs[0].family, identity["method"]["name"]
        cases[key] = {"model": key[0], "family": key[1], "method": key[2], **searched(comparison)}
        if key == ("demo", "multistep", "fastv"):
            told["defaults"] = defaults(comparison)
    order = list(SHAPES)
    told["cases"] = [cases[key] for key in sorted(cases, key=lambda key: (key[0], order.index(key[1]), key[2]))]
    return told


def main() -> None:
    told = kept(KEPT, read)
    figure(told, ROOT / "docs" / "pays.png")
    fill(PAGE, {"learned-searches": search_table(told), "learned-defaults": default_table(told)})


if __name__ == "__main__":
    main()
