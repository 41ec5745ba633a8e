"""Write docs/pays.json, the figure and the tables of docs/findings.md: ``python docs/make_pays.py [STORAGE]``.

Reads the experiments of studies/demo/learned-*.yaml, which ``python benchmarks/learned.py`` runs. ``--from-json``
draws and writes again what docs/pays.json holds.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.seeds import against, entries
from vispco.fronts import choose
from vispco.storage.store import Store, default_url

DOCS = Path(__file__).parent
SHAPES = {"step": "one step", "multistep": "up to three steps", "layerwise": "a ratio per layer"}
OTHERS = {
    "fitprune": "one step, FitPrune",
    "sparsevlm": "one step, SparseVLM",
    "qwen": "one step, Qwen2.5-VL shape",
    "deep": "one step, 26 layers",
}
KINDS = {"lagrangian": "o", "random": "v", "tpe": "s"}
COLORS = {"step": "#4477aa", "multistep": "#cc3311", "layerwise": "#228833"}


def searched(store: Store) -> list[dict[str, Any]]:
    """Every entry against its study's dense step grid."""
    rows = []
    for study in [*SHAPES, *OTHERS]:
        comparison = Comparison(store, f"learned-{study}")
        known = entries(comparison)
        for row in against(comparison, "grid")["entries"]:
            if row["entry"] == "grid":
                continue
            rows.append(
                {
                    "study": study,
                    "entry": row["entry"],
                    "kind": known[row["entry"]].runs[0].kind,
                    "seeds": row["seeds"],
                    "points": 100 * row["difference"],
                    "interval": [100 * end for end in row["difference_ci"]],
                    "propose": row["propose_share"],
                    "charged": row["charged_share"],
                    "hypervolume": row["hypervolume_ratio_to_grid"],
                }
            )
    return rows


def defaults(store: Store) -> list[dict[str, Any]]:
    """What a search would choose for the compute of each published default, minus that default; held-out points."""
    found: dict[str, dict[str, Any]] = {}
    for study in SHAPES:
        comparison = Comparison(store, f"learned-{study}")
        low = entries(comparison)["low"].runs
        for name, default in comparison.defaults().items():
            row = found.setdefault(
                name, {"default": name, "flops_ratio": default.flops_ratio, "accuracy": default.accuracy}
            )
            chosen = [choose(comparison.front(run), default.flops_ratio) for run in low]
            held = [comparison.held_out(run, trial) for run, trial in zip(low, chosen, strict=True) if trial]
            more = comparison.mean_difference([one for one in held if one is not None], default)
            row[study] = {"points": 100 * more["mean"], "interval": [100 * end for end in more["ci"]]}
    return sorted(found.values(), key=lambda row: -row["flops_ratio"])


def figure(told: dict[str, Any], output: Path) -> None:
    from matplotlib.ticker import FuncFormatter
    from vispco.dashboards import matplotlib_figures

    def draw() -> Any:
        from matplotlib.figure import Figure

        made = Figure(figsize=(6.9, 3.1))
        left, right = made.subplots(1, 2, width_ratios=[1.15, 1])
        for row in told["searches"]:
            if row["study"] not in SHAPES or row["kind"] not in KINDS or row["entry"] in ("input", "random-static"):
                continue
            learned = row["kind"] == "lagrangian"
            bars = [[row["points"] - row["interval"][0]], [row["interval"][1] - row["points"]]]
            left.errorbar(
                row["charged"],
                row["points"],
                yerr=bars,
                fmt=KINDS[row["kind"]],
                color=COLORS[row["study"]],
                mfc=COLORS[row["study"]] if learned else "white",
                elinewidth=0.6,
                markersize=4,
            )
        left.axhline(0, color="black", linewidth=0.8)
        left.set_xscale("log")
        left.set_xticks([0.1, 0.15, 0.2, 0.25])
        left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        left.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        left.set_xlabel("all compute of the search, over the dense grid's")
        left.set_ylabel("points above the dense step grid")
        for study, words in SHAPES.items():
            left.plot([], [], "-", color=COLORS[study], label=words)
        for kind, marker in KINDS.items():
            left.plot([], [], marker, color="grey", mfc="grey" if kind == "lagrangian" else "white", label=kind)
        left.legend(fontsize=6, ncols=2, loc="lower right")
        rows = sorted(told["defaults"], key=lambda row: row["flops_ratio"])
        for place, row in enumerate(rows):
            one = row["multistep"]
            bars = [[one["points"] - one["interval"][0]], [one["interval"][1] - one["points"]]]
            right.errorbar(
                one["points"], place, xerr=bars, fmt="o", color=COLORS["multistep"], elinewidth=0.6, markersize=4
            )
        right.axvline(0, color="black", linewidth=0.8)
        right.set_yticks(range(len(rows)), [f"{row['default']}  {row['flops_ratio']:.2f}" for row in rows], fontsize=6)
        right.set_xlabel("points of learned steps above it")
        right.set_title("default, its flops_ratio", loc="left", x=-0.44, fontsize=6)
        return made

    matplotlib_figures.save(draw, output)


def points(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{cell['points']:+.1f} ({low:+.1f} to {high:+.1f})"


def search_table(told: dict[str, Any]) -> str:
    rows = [
        "| schedules | entry | points against the dense step grid | propose | charged | hypervolume |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in told["searches"]:
        words = (SHAPES | OTHERS)[row["study"]]
        shares = f"{row['propose']:.3f} | {row['charged']:.3f} | {row['hypervolume']:.3f}"
        rows.append(f"| {words} | `{row['entry']}` | {points(row)} | {shares} |")
    return "\n".join(rows)


def default_table(told: dict[str, Any]) -> str:
    heads = " | ".join(f"learned, {words}" for words in SHAPES.values())
    rows = [f"| published default | `flops_ratio` | accuracy | {heads} |", "| --- " * (3 + len(SHAPES)) + "|"]
    for row in told["defaults"]:
        cells = " | ".join(points(row[study]) for study in SHAPES)
        rows.append(f"| `{row['default']}` | {row['flops_ratio']:.3f} | {row['accuracy']:.3f} | {cells} |")
    return "\n".join(rows)


def main() -> None:
    arguments = sys.argv[1:]
    kept = DOCS / "pays.json"
    if arguments == ["--from-json"]:
        told = json.loads(kept.read_text(encoding="utf-8"))
    else:
        store = Store(arguments[0] if arguments else default_url(), read_only=True)
        told = {"searches": searched(store), "defaults": defaults(store)}
        told = json.loads(json.dumps(told), parse_float=lambda text: round(float(text), 6))
        kept.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    figure(told, DOCS / "pays.png")
    page = DOCS / "findings.md"
    text = page.read_text(encoding="utf-8")
    for name, made in (("learned-searches", search_table(told)), ("learned-defaults", default_table(told))):
        block = f"<!-- {name} -->\n{made}\n<!-- end -->"
        text = re.sub(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
