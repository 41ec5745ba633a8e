"""Figures from comparison records; nothing here reads a database.

``comparison`` is the object of ``vispco compare --json``, ``points`` the rows of ``Comparison.points()``, ``bands``
those of ``attainment_bands()``, ``found`` the object of ``vispco compare --anytime --json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from vispco.dashboards.axis import FLOPS_RATIO, hover_named, name_of, share, title_of
from vispco.dashboards.text import in_figure

# Okabe & Ito's palette: told apart with any colour vision, on light and dark ground.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
PUBLISHED = "#b8860b"
DASHES = ("solid", "dash", "dot")
TICKS = 24
NAMED = 4  # published defaults that are named in the figure, not only on hover
GRID = "rgba(128,128,128,0.25)"
KEEP_SCALE = [[0.0, "#f7f4ec"], [0.5, "#7fb3b0"], [1.0, "#0b4f6c"]]


def layout(figure: go.Figure, *, title: str, x: str, y: str) -> go.Figure:
    """The look that all figures share; the page sets ink and ground by its theme."""
    figure.update_layout(
        title={"text": title, "font": {"size": 16}, "x": 0, "xref": "paper"},
        xaxis={"title": {"text": x, "standoff": 8}, "gridcolor": GRID, "zeroline": False, "automargin": True},
        yaxis={"title": {"text": y, "standoff": 8}, "gridcolor": GRID, "zeroline": False, "automargin": True},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7a7a7a", "family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        hoverlabel={"align": "left"},
        margin={"l": 60, "r": 20, "t": 50, "b": 110},
        height=460,
    )
    return figure


def entry_of(search: dict[str, Any]) -> str:
    """The entry of which a search is one run: its name without the seed."""
    return str(search["name"]).removesuffix(f"@{search['seed']}")


def entry_colors(comparison: dict[str, Any]) -> dict[str, str]:
    """Entry -> colour."""
    return color_of(list(runs_of(comparison)))


def entry_dashes(comparison: dict[str, Any]) -> dict[str, str]:
    """Entry -> dash of its lines, which tells apart entries that share a colour."""
    return {entry: DASHES[n // len(COLORS) % len(DASHES)] for n, entry in enumerate(runs_of(comparison))}


def runs_of(comparison: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Entry -> its searches, one for each seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for search in comparison["searches"]:
        found.setdefault(entry_of(search), []).append(search)
    return found


def color_of(names: Sequence[str]) -> dict[str, str]:
    """A colour per search, the same in every figure."""
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}


def label(point: dict[str, Any]) -> str:
    """What a point is called: its schedule, or its trial where an imported study does not say; its method, where its
    search had several."""
    named = point["schedule"] or f"trial {point['trial']}"
    return f"{named} with {point['method']}" if point.get("method") else named


def choices(comparison: dict[str, Any]) -> go.Figure:
    """Held-out accuracy of what each search would choose, per budget: mean over an entry's runs, each run faint."""
    figure = go.Figure()
    colors, dashes = entry_colors(comparison), entry_dashes(comparison)
    for entry, runs in runs_of(comparison).items():
        found = [[(row["budget"], row["chosen"].get(run["name"])) for row in comparison["by_budget"]] for run in runs]
        known = [[(b, c) for b, c in rows if c and c["accuracy_held_out"] is not None] for rows in found]
        if len(runs) > 1:
            for rows in known:
                figure.add_scatter(
                    x=[b for b, _ in rows],
                    y=[c["accuracy_held_out"] for _, c in rows],
                    mode="lines",
                    line={"color": colors[entry], "width": 1},
                    opacity=0.3,
                    hoverinfo="skip",
                    legendgroup=entry,
                    showlegend=False,
                )
        places = [p for p in range(len(comparison["by_budget"])) if all(_measured(rows[p][1]) for rows in found)]
        budgets = [comparison["by_budget"][p]["budget"] for p in places]
        chosen = [[rows[p][1] for rows in found] for p in places]
        figure.add_scatter(
            x=budgets,
            y=[fmean(c["accuracy_held_out"] for c in row) for row in chosen],
            mode="lines+markers",
            line={"color": colors[entry], "dash": dashes[entry]},
            name=in_figure(entry) + (f" ({len(runs)} seeds)" if len(runs) > 1 else ""),
            legendgroup=entry,
            text=[_told(row, name_of(comparison)) for row in chosen],
            hovertemplate="budget %{x:.3f}: accuracy %{y:.3f}<br>%{text}<extra>" + in_figure(entry) + "</extra>",
        )
    add_published(figure, comparison)
    unpruned = comparison["unpruned"]["accuracy_held_out"]
    if unpruned is not None:
        figure.add_hline(y=unpruned, line={"dash": "dot", "color": "#999"}, annotation_text="unpruned")
    layout(figure, title="What a choice delivers (held-out split)", x=title_of(comparison, "budget"), y="accuracy")
    return hover_named(figure, comparison)


def _measured(chosen: dict[str, Any] | None) -> bool:
    return chosen is not None and chosen["accuracy_held_out"] is not None


def _told(row: Sequence[dict[str, Any]], name: str) -> str:
    ratio = f"{name} {fmean(share(c) for c in row):.3f}"
    return f"{in_figure(label(row[0]))}<br>{ratio}" if len(row) == 1 else f"mean {ratio}"


def add_published(figure: go.Figure, comparison: dict[str, Any]) -> None:
    """Published defaults as stars, with the intervals of their held-out accuracy."""
    defaults = comparison["defaults"]
    if not defaults:
        return
    spans = [d.get("accuracy_ci") or [d["accuracy_held_out"]] * 2 for d in defaults]
    named = [d for d in defaults if len(defaults) <= NAMED]
    figure.add_scatter(
        x=[share(d) for d in defaults],
        y=[d["accuracy_held_out"] for d in defaults],
        error_y={
            "type": "data",
            "array": [high - d["accuracy_held_out"] for d, (_, high) in zip(defaults, spans, strict=True)],
            "arrayminus": [d["accuracy_held_out"] - low for d, (low, _) in zip(defaults, spans, strict=True)],
            "thickness": 1,
            "width": 3,
        },
        mode="markers+text" if named else "markers",
        marker={"symbol": "star", "size": 13, "color": PUBLISHED, "line": {"width": 1, "color": "#5a4304"}},
        text=[in_figure(d["name"]) for d in defaults],
        customdata=[[in_figure(d.get("schedule") or ""), *span] for d, span in zip(defaults, spans, strict=True)],
        textposition="bottom right",
        hovertemplate="%{text}<br>%{customdata[0]}<br>accuracy %{y:.3f} (%{customdata[1]:.3f} to %{customdata[2]:.3f})"
        ", flops_ratio %{x:.3f}<extra>published</extra>",
        name="published",
    )


def schedules(search: dict[str, Any], axis: str = FLOPS_RATIO) -> go.Figure:
    """Keep ratio by layer of the schedules on one front, cheapest at the bottom; points without are left out."""
    front = [point for point in search["front"] if point["keep_ratio"]]
    labels = [f"{share(p):.3f}" for p in front]
    figure = go.Figure(
        go.Heatmap(
            z=[p["keep_ratio"] for p in front],
            x=list(range(len(front[0]["keep_ratio"]))) if front else [],
            y=list(range(len(front))),
            text=[[in_figure(label(p))] * len(p["keep_ratio"]) for p in front],
            hovertemplate="layer %{x}: keeps %{z:.1%}<br>%{text}<extra></extra>",
            colorscale=KEEP_SCALE,
            zmin=0,
            zmax=1,
            colorbar={"title": "keep_ratio"},
            xgap=1,
            ygap=1,
        )
    )
    layout(figure, title=f"Schedules on the front of {in_figure(search['name'])}", x="layer", y=axis)
    every = -(-max(1, len(front)) // TICKS)
    figure.update_yaxes(tickvals=list(range(0, len(front), every)), ticktext=labels[::every])
    depth = len(front[0]["keep_ratio"]) if front else 1
    figure.update_xaxes(dtick=-(-depth // TICKS))
    figure.update_layout(margin={"b": 60})
    return figure


def costs(comparison: dict[str, Any]) -> go.Figure:
    """budget_score against charged compute, as a share of the grid's where there is one."""
    figure = go.Figure()
    colors = entry_colors(comparison)
    whole = all(search["cost_ratio_to_grid"] is not None for search in comparison["searches"])
    cost = "cost_ratio_to_grid" if whole else "charged_flops"
    for entry, runs in runs_of(comparison).items():
        shown = [run for run in runs if run["budget_score"] is not None and run[cost] is not None]
        if not shown:
            continue
        spans = [run["budget_score_ci"] or [run["budget_score"]] * 2 for run in shown]
        figure.add_scatter(
            x=[run[cost] for run in shown],
            y=[run["budget_score"] for run in shown],
            error_y={
                "type": "data",
                "array": [high - run["budget_score"] for run, (_, high) in zip(shown, spans, strict=True)],
                "arrayminus": [run["budget_score"] - low for run, (low, _) in zip(shown, spans, strict=True)],
                "thickness": 1,
                "width": 3,
            },
            mode="markers",
            marker={"size": 11, "color": colors[entry]},
            opacity=1 if len(shown) == 1 else 0.6,
            text=[in_figure(run["name"]) for run in shown],
            customdata=[[run["charged_flops"], run["trials"], *span] for run, span in zip(shown, spans, strict=True)],
            hovertemplate="%{text}: budget_score %{y:.3f} (%{customdata[2]:.3f} to %{customdata[3]:.3f})<br>"
            "charged %{customdata[0]:.3s}FLOP, %{customdata[1]} trials<extra></extra>",
            name=in_figure(entry),
        )
    axis = "charged compute, share of the grid's" if whole else "charged_flops"
    layout(figure, title="What it cost to find", x=axis, y="budget_score")
    figure.update_xaxes(type="log")
    return figure


def task_fronts(comparison: dict[str, Any], task: str) -> go.Figure:
    """Held-out accuracy on one task of the schedules on each front, against the compute there."""
    figure = go.Figure()
    colors = entry_colors(comparison)
    for entry, runs in runs_of(comparison).items():
        for number, run in enumerate(runs):
            front = sorted(
                (p for p in run["front"] if task in p["tasks"]), key=lambda p: float(p["tasks"][task]["flops_ratio"])
            )
            figure.add_scatter(
                x=[p["tasks"][task]["flops_ratio"] for p in front],
                y=[p["tasks"][task]["accuracy"] for p in front],
                mode="lines+markers" if len(runs) == 1 else "markers",
                line={"color": colors[entry], "shape": "hv"},
                marker={"size": 7, "color": colors[entry]},
                opacity=1 if len(runs) == 1 else 0.5,
                name=in_figure(entry),
                legendgroup=entry,
                showlegend=number == 0,
                text=[in_figure(label(p)) for p in front],
                hovertemplate="%{text}<br>accuracy %{y:.3f}, flops_ratio %{x:.3f}<extra>"
                + in_figure(run["name"])
                + "</extra>",
            )
    return layout(figure, title=f"{in_figure(task)} (held-out split)", x="flops_ratio", y="accuracy")


def trajectory(search_name: str, paths: dict[str, list[dict[str, Any]]], budgets: dict[str, float]) -> go.Figure:
    """Violation of the budget, multiplier and penalty over the steps of a gradient search, one line per budget.

    ``budgets``: key of a path -> its budget, where it is known.
    """
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.5, 0.25, 0.25])
    for number, (key, rows) in enumerate(sorted(paths.items(), key=lambda item: _number(item[0]))):
        named = f"budget {budgets[key]:.3f}" if key in budgets else in_figure(key)
        for place, quantity in enumerate(("violation", "multiplier", "penalty"), start=1):
            figure.add_scatter(
                x=list(range(1, len(rows) + 1)),
                y=[_rounded(row.get(quantity)) for row in rows],
                mode="lines",
                line={"color": COLORS[number % len(COLORS)], "dash": DASHES[number // len(COLORS) % len(DASHES)]},
                name=named,
                legendgroup=key,
                showlegend=place == 1,
                hovertemplate=f"step %{{x}}: {quantity} %{{y:.4g}}<extra>{named}</extra>",
                row=place,
                col=1,
            )
    layout(figure, title=f"Augmented Lagrangian of {in_figure(search_name)}", x="", y="")
    for place, quantity in enumerate(("violation", "multiplier", "penalty"), start=1):
        figure.update_yaxes(title_text=quantity, gridcolor=GRID, zeroline=place == 1, row=place, col=1)
        figure.update_xaxes(gridcolor=GRID, zeroline=False, title_text="step" if place == 3 else "", row=place, col=1)
    figure.update_layout(height=620)
    return figure


def _number(key: str) -> tuple[int, str]:
    last = key.rpartition("-")[2]
    return (int(last) if last.isdigit() else 0, key)


def _rounded(value: float | None) -> float | None:
    """Four digits are more than a line shows, and a long run has many steps."""
    return None if value is None else float(f"{value:.4g}")


def attainment(bands: Sequence[dict[str, Any]], split: str, axis: str = FLOPS_RATIO) -> go.Figure:
    """Fronts over seeds: the median front of each entry, in the band between what 25 % and 75 % of its runs attain."""
    figure = go.Figure()
    shown = [band for band in bands if band["split"] == split]
    colors = color_of(list(dict.fromkeys(band["entry"] for band in bands)))
    corners = [corner for band in shown for surface in band["surfaces"].values() for corner in surface]
    lowest = min((accuracy for accuracy, _ in corners), default=0.0)
    right = max([1.0, *(ratio for _, ratio in corners)])
    for band in shown:
        name, color, surfaces = band["entry"], colors[band["entry"]], band["surfaces"]
        bottom = lowest if band["no_image"] is None else min(lowest, band["no_image"])
        if band["runs"] > 1:
            edge = [*steps(surfaces["25"], bottom, right), *reversed(steps(surfaces["75"], bottom, right))]
            figure.add_scatter(
                x=[x for x, _ in edge],
                y=[y for _, y in edge],
                fill="toself",
                fillcolor=color,
                opacity=0.2,
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
        middle = steps(surfaces["50"], bottom, right)[1:]
        runs = f"{band['runs']} runs" if band["runs"] > 1 else "1 run"
        figure.add_scatter(
            x=[x for x, _ in middle],
            y=[y for _, y in middle],
            mode="lines",
            line={"color": color, "width": 2},
            name=f"{in_figure(name)} ({runs})",
            legendgroup=name,
            hovertemplate="accuracy %{y:.3f}, flops_ratio %{x:.3f}<extra>" + in_figure(name) + "</extra>",
        )
    named = split.replace("_", "-")
    return layout(figure, title=f"Fronts over seeds, {named} split", x=axis, y="accuracy")


def steps(corners: Sequence[Sequence[float]], bottom: float, right: float) -> list[tuple[float, float]]:
    """Path (flops_ratio, accuracy) along a front, up from ``bottom`` and on to ``right``."""
    path: list[tuple[float, float]] = []
    height = bottom
    for accuracy, ratio in corners:
        path += [(ratio, height), (ratio, accuracy)]
        height = accuracy
    return [*path, (right, height)]


def anytime(found: dict[str, Any]) -> go.Figure:
    """budget_score against charged compute: held-out where it was measured, dotted on the search split."""
    figure = go.Figure()
    colors = color_of([entry["entry"] for entry in found["entries"]])
    for entry in found["entries"]:
        name, color = entry["entry"], colors[entry["entry"]]
        curve, end = entry["search_curve"], entry["end"]
        figure.add_scatter(
            x=[point["share"] for point in curve],
            y=[point["score"] for point in curve],
            mode="lines",
            line={"color": color, "width": 1, "dash": "dot", "shape": "hv"},
            legendgroup=name,
            showlegend=False,
            hovertemplate="search split %{y:.3f} at %{x:.3f} of the grid<extra>" + in_figure(name) + "</extra>",
        )
        points = [p for p in [*entry["checkpoints"], end] if p["score"] is not None and p["share"] <= end["share"]]
        spans = [point["score_ci"] or [point["score"]] * 2 for point in points]
        figure.add_scatter(
            x=[point["share"] for point in points],
            y=[point["score"] for point in points],
            error_y={
                "type": "data",
                "array": [high - point["score"] for point, (_, high) in zip(points, spans, strict=True)],
                "arrayminus": [point["score"] - low for point, (low, _) in zip(points, spans, strict=True)],
                "thickness": 1,
            },
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"size": 8, "symbol": "star" if not curve else "circle"},
            name=in_figure(name),
            legendgroup=name,
            customdata=[point["budgets_missed"] for point in points],
            hovertemplate="%{y:.3f} at %{x:.3f} of the grid, %{customdata:.1f} budgets missed<extra>"
            + in_figure(name)
            + "</extra>",
        )
    layout(
        figure,
        title="Had a search been stopped early (held-out; dotted: search split)",
        x="charged compute, share of the dense grid",
        y="budget_score",
    )
    figure.update_xaxes(type="log")
    return figure
