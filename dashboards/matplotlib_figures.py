"""``vispco plot``: figures for a paper, at the width of a column. Records in, matplotlib figure out.

Text is 7 or 8 points at the printed size and stays text in PDF (TrueType); equal records give equal files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vispco.dashboards.axis import scored, share
from vispco.dashboards.figures import DASHES, PUBLISHED, TICKS, entry_colors, path_name, runs_of, steps
from vispco.dashboards.text import clean, shortened

from vispco.errors import ConfigError
from vispco.outputs import BY_SUFFIX, output_file

try:
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ConfigError(
        "vispco plot needs matplotlib, which is not installed; pip install 'vispco[plot]' (vispco report needs nothing)"
    ) from error

COLUMN = 3.3  # inches; two columns and their gap are 6.875
FORMATS = (".pdf", ".svg", ".png")
DPI = 300
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "vispco",
    "text.parse_math": False,
    "savefig.dpi": DPI,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.02,
}
MARKERS = "osD^vP*X"
LINES = {"solid": "-", "dash": "--", "dot": ":"}


def save(draw: Callable[[], Figure], output: Path) -> None:
    """Draw in the style of a paper and write the file; its suffix is the format.

    Raises:
        ConfigError: another suffix, or the file cannot be written.
    """
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"cannot write {str(output)!r}: end it with {', '.join(FORMATS)}")
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(output.suffix.lower(), {})
    with matplotlib.rc_context(STYLE):
        figure = draw()
        with output_file(output, BY_SUFFIX[output.suffix.lower()]) as partial:
            figure.savefig(partial, metadata=metadata)


def front(
    comparison: dict[str, Any],
    points: Sequence[dict[str, Any]],
    bands: Sequence[dict[str, Any]],
    *,
    split: str = "held_out",
    width: float = COLUMN,
) -> Figure:
    """All fronts, as :func:`vispco.dashboards.overlay.overlay` has them."""
    figure, axes = _axes(width, 0.75)
    key = "accuracy" if split == "search" else "accuracy_held_out"
    surfaces = {band["entry"]: band for band in bands if band["split"] == split}
    colors = entry_colors(comparison)
    if split == "search":
        behind = [point for point in points if not point["on_front"]]
        axes.plot(
            [share(p) for p in behind],
            [p["accuracy"] for p in behind],
            linestyle="none",
            marker=".",
            markersize=2,
            color="0.75",
            zorder=1,
            rasterized=len(behind) > 2000,
        )
    handles = []
    for number, (entry, runs) in enumerate(runs_of(comparison).items()):
        look = {"color": colors[entry], "marker": MARKERS[number % len(MARKERS)]}
        if len(runs) > 1 and entry in surfaces:
            handles.append((_attained(axes, surfaces[entry], look["color"]), f"{_name(entry)} ({len(runs)} seeds)"))
            continue
        for run in runs:
            shown = [point for point in run["front"] if point[key] is not None]
            x, y = [share(p) for p in shown], [p[key] for p in shown]
            spans = [p["accuracy_ci"] for p in shown]
            if len(runs) == 1 and split == "held_out" and shown and all(spans):
                right = [*x, max(1.0, x[-1])]
                low, high = ([span[side] for span in [*spans, spans[-1]]] for side in (0, 1))
                axes.fill_between(right, low, high, step="post", color=look["color"], alpha=0.12, linewidth=0)
            (line,) = axes.plot(x, y, drawstyle="steps-post", **look)
        handles.append((line, _name(entry)))
    if split == "held_out":
        handles += _published(axes, comparison)
    _reference(axes, comparison["unpruned"][key], "unpruned")
    axes.set(xlabel=_share_of(comparison), ylabel=scored(comparison, split))
    _legend(figure, handles)
    return figure


def _share_of(comparison: dict[str, Any]) -> str:
    return f"share of {comparison['cost']}" if "cost" in comparison else "FLOPs ratio"


def choices(comparison: dict[str, Any], *, width: float = COLUMN) -> Figure:
    """Held-out accuracy of the choice for each budget; of several runs the mean, in the range of the runs.

    A missed budget is a hollow marker at the no-image accuracy.
    """
    figure, axes = _axes(width, 0.7)
    colors, handles = entry_colors(comparison), []
    for number, (entry, runs) in enumerate(runs_of(comparison).items()):
        rows = []
        for row in comparison["by_budget"]:
            found = [row["chosen"].get(run["name"]) for run in runs]
            chosen = [c for c in found if c and c["accuracy_held_out"] is not None]
            if len(chosen) == len(runs):
                missed = any(c["missed"] for c in chosen)
                rows.append((row["budget"], [c["accuracy_held_out"] for c in chosen], missed))
        x = [budget for budget, _, _ in rows]
        if len(runs) > 1:
            low, high = [min(known) for _, known, _ in rows], [max(known) for _, known, _ in rows]
            axes.fill_between(x, low, high, color=colors[entry], alpha=0.15, linewidth=0)
        means, marker = [fmean(known) for _, known, _ in rows], MARKERS[number % len(MARKERS)]
        (line,) = axes.plot(x, means, color=colors[entry], marker=marker)
        hollow = [(x, mean) for x, mean, (_, _, missed) in zip(x, means, rows, strict=True) if missed]
        if hollow:
            axes.plot(*zip(*hollow, strict=True), linestyle="", color=colors[entry], marker=marker, markerfacecolor="w")
        handles.append((line, _name(entry) + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")))
    handles += _published(axes, comparison)
    _reference(axes, comparison["unpruned"]["accuracy_held_out"], "unpruned")
    axes.set(xlabel=f"budget ({_share_of(comparison)})", ylabel=scored(comparison))
    _legend(figure, handles)
    return figure


def cost(comparison: dict[str, Any], *, width: float = COLUMN) -> Figure:
    """budget_score against what a search cost."""
    figure, axes = _axes(width, 0.7)
    whole = all(search["cost_ratio_to_grid"] is not None for search in comparison["searches"])
    key = "cost_ratio_to_grid" if whole else "charged_flops"
    colors, handles = entry_colors(comparison), []
    for number, (entry, runs) in enumerate(runs_of(comparison).items()):
        shown = [run for run in runs if run["budget_score"] is not None and run[key]]
        if not shown:
            continue
        spans = [run["budget_score_ci"] or [run["budget_score"]] * 2 for run in shown]
        made = axes.errorbar(
            [run[key] for run in shown],
            [run["budget_score"] for run in shown],
            yerr=[
                [run["budget_score"] - low for run, (low, _) in zip(shown, spans, strict=True)],
                [high - run["budget_score"] for run, (_, high) in zip(shown, spans, strict=True)],
            ],
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            elinewidth=0.6,
            capsize=1.5,
            color=colors[entry],
            alpha=1 if len(shown) == 1 else 0.6,
        )
        handles.append((made, _name(entry)))
    axes.set_xscale("log")
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted(_plain)
    axes.tick_params(axis="x", which="minor", labelsize=6)
    axes.set(xlabel="compute charged / grid" if whole else "compute charged (FLOPs)", ylabel="budget score")
    _legend(figure, handles)
    return figure


def schedules(search: dict[str, Any], *, width: float = COLUMN) -> Figure:
    """Keep ratio by layer of the schedules on one front, cheapest at the bottom."""
    shown = [point for point in search["front"] if point["keep_ratio"]]
    figure, axes = _axes(width, min(1.2, 0.3 + 0.04 * len(shown)))
    if shown:
        # KEEP_SCALE of the report, on white paper.
        scale = LinearSegmentedColormap.from_list("keep", ["#ffffff", "#7fb3b0", "#0b4f6c"])
        image = axes.imshow([p["keep_ratio"] for p in shown], aspect="auto", origin="lower", cmap=scale, vmin=0, vmax=1)
        every = -(-len(shown) // (TICKS // 2))
        axes.set_yticks(range(0, len(shown), every), [f"{share(p):.2f}" for p in shown[::every]])
        bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=25)
        bar.set_label("keep ratio")
        bar.outline.set_linewidth(0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer", ylabel="share of the cost" if any("cost_ratio" in p for p in shown) else "FLOPs ratio")
    return figure


def trajectory(paths: dict[str, Any], *, width: float = COLUMN) -> Figure:
    """Violation, multiplier and penalty over the steps of one augmented Lagrangian search."""
    figure = Figure(figsize=(width, width * 1.1))
    parts = figure.subplots(3, 1, sharex=True, height_ratios=[2, 1, 1])
    handles = []
    budgets, colors = paths["budgets"], matplotlib.colormaps["viridis"]
    order = sorted(paths["steps"], key=lambda key: budgets.get(key, 0.0), reverse=True)
    for number, key in enumerate(order):
        rows = paths["steps"][key]
        for axes, quantity in zip(parts, ("violation", "multiplier", "penalty"), strict=True):
            (line,) = axes.plot(
                range(1, len(rows) + 1),
                [row.get(quantity) for row in rows],
                color=colors(0.9 * number / max(1, len(order) - 1)),
                linestyle=LINES[DASHES[number % len(DASHES)]],
                linewidth=0.9,
            )
            axes.set_ylabel(quantity)
        handles.append((line, _name(path_name(key, f"{budgets[key]:.2f}" if key in budgets else None))))
    parts[0].axhline(0, color="0.6", linewidth=0.5)
    parts[-1].set_xlabel("step")
    parts[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(parts)
    _legend(figure, handles)
    return figure


def _axes(width: float, aspect: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, width * aspect))
    return figure, figure.add_subplot()


def _name(text: str) -> str:
    return str(shortened(" ".join(clean(text).split()), 32))


def _attained(axes: Any, band: dict[str, Any], color: str) -> Any:
    """The median front of several runs in its band; returns the line."""
    surfaces = band["surfaces"]
    corners = [corner for surface in surfaces.values() for corner in surface]
    bottom, right = min(accuracy for accuracy, _ in corners), max([1.0, *(ratio for _, ratio in corners)])
    edge = [*steps(surfaces["25"], bottom, right), *reversed(steps(surfaces["75"], bottom, right))]
    axes.fill([x for x, _ in edge], [y for _, y in edge], color=color, alpha=0.2, linewidth=0)
    middle = steps(surfaces["50"], bottom, right)[1:]
    (line,) = axes.plot([x for x, _ in middle], [y for _, y in middle], color=color)
    return line


def _published(axes: Any, comparison: dict[str, Any]) -> list[tuple[Any, str]]:
    defaults = comparison["defaults"]
    if not defaults:
        return []
    (stars,) = axes.plot(
        [share(d) for d in defaults],
        [d["accuracy_held_out"] for d in defaults],
        linestyle="none",
        marker="*",
        markersize=7,
        color=PUBLISHED,
        zorder=5,
    )
    return [(stars, _name(defaults[0]["name"]) if len(defaults) == 1 else "published defaults")]


def _reference(axes: Any, accuracy: float | None, name: str) -> None:
    if accuracy is not None:
        axes.axhline(accuracy, color="0.5", linewidth=0.6, linestyle=":")
        axes.annotate(name, (1, accuracy), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=6.5)


def _plain(value: float, _: int | None = None) -> str:
    """Ticks of a log scale without exponents, of which only 1, 2 and 5 are named."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _legend(figure: Figure, handles: Sequence[tuple[Any, str]]) -> None:
    if handles:
        lines, names = zip(*handles, strict=True)
        column = 0.048 * max(map(len, names)) + 0.35  # inches
        fitting = max(1, min(len(names), int(figure.get_figwidth() / column)))
        figure.legend(lines, names, loc="outside lower center", ncols=fitting, handlelength=1.6, columnspacing=1.0)
