"""Figures from comparison records; nothing here reads a database.

``comparison`` is the object of ``vispco compare --json``, ``points`` the rows of ``Comparison.points()``, ``bands``
those of ``attainment_bands()``, ``found`` the object of ``vispco compare --anytime --json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

# Okabe & Ito's palette: told apart with any colour vision, on light and dark ground.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
KEEP_SCALE = [[0.0, "#f7f4ec"], [0.5, "#7fb3b0"], [1.0, "#0b4f6c"]]


def _layout(figure: go.Figure, *, title: str, x: str, y: str) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 16}},
        xaxis={"title": x, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False},
        yaxis={"title": y, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7a7a7a", "family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.2},
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        height=460,
    )
    return figure


def color_of(names: Sequence[str]) -> dict[str, str]:
    """A colour per search, the same in every figure."""
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}


def label(point: dict[str, Any]) -> str:
    """What a point is called: its schedule, or its trial where an imported study does not say."""
    return point["schedule"] or f"trial {point['trial']}"


def frontiers(comparison: dict[str, Any], points: Sequence[dict[str, Any]]) -> go.Figure:
    """All fronts over all measured schedules, on the search split."""
    figure = go.Figure()
    names = [search["name"] for search in comparison["searches"]]
    colors = color_of(names)
    for name in names:
        behind = [p for p in points if p["search"] == name and not p["on_front"]]
        figure.add_scatter(
            x=[p["flops_ratio"] for p in behind],
            y=[p["accuracy"] for p in behind],
            mode="markers",
            marker={"color": colors[name], "size": 5, "opacity": 0.25},
            text=[escape(label(p)) for p in behind],
            hovertemplate="%{text}<br>accuracy %{y:.3f}, flops_ratio %{x:.3f}<extra>" + escape(name) + "</extra>",
            legendgroup=name,
            showlegend=False,
        )
    for search in comparison["searches"]:
        front, name = search["front"], search["name"]
        figure.add_scatter(
            x=[p["flops_ratio"] for p in front],
            y=[p["accuracy"] for p in front],
            mode="lines+markers",
            line={"color": colors[name], "width": 2, "shape": "hv"},
            marker={"size": 8},
            name=escape(name),
            legendgroup=name,
            text=[escape(label(p)) for p in front],
            hovertemplate="%{text}<br>accuracy %{y:.3f}, flops_ratio %{x:.3f}<extra>" + escape(name) + "</extra>",
        )
    if comparison["unpruned"]["accuracy"] is not None:
        figure.add_hline(
            y=comparison["unpruned"]["accuracy"], line={"dash": "dot", "color": "#999"}, annotation_text="unpruned"
        )
    return _layout(figure, title="Measured schedules and fronts (search split)", x="flops_ratio", y="accuracy")


def choices(comparison: dict[str, Any]) -> go.Figure:
    """Held-out accuracy of what each search would choose, per budget, with published defaults."""
    figure = go.Figure()
    names = [search["name"] for search in comparison["searches"]]
    colors = color_of(names)
    for name in names:
        rows = [(row["budget"], row["chosen"].get(name)) for row in comparison["by_budget"]]
        rows = [(b, c) for b, c in rows if c and c["accuracy_held_out"] is not None]
        figure.add_scatter(
            x=[b for b, _ in rows],
            y=[c["accuracy_held_out"] for _, c in rows],
            mode="lines+markers",
            line={"color": colors[name]},
            name=escape(name),
            text=[f"{escape(label(c))}, flops_ratio {c['flops_ratio']:.3f}" for _, c in rows],
            hovertemplate="budget %{x:.3f}: accuracy %{y:.3f}<br>%{text}<extra>" + escape(name) + "</extra>",
        )
    defaults = comparison["defaults"]
    if defaults:
        figure.add_scatter(
            x=[d["flops_ratio"] for d in defaults],
            y=[d["accuracy_held_out"] for d in defaults],
            mode="markers+text",
            marker={"symbol": "star", "size": 14, "color": "#b8860b"},
            text=[escape(d["name"]) for d in defaults],
            textposition="bottom center",
            name="published",
        )
    unpruned = comparison["unpruned"]["accuracy_held_out"]
    if unpruned is not None:
        figure.add_hline(y=unpruned, line={"dash": "dot", "color": "#999"}, annotation_text="unpruned")
    return _layout(figure, title="What a choice delivers (held-out split)", x="budget", y="accuracy")


def schedules(search: dict[str, Any]) -> go.Figure:
    """Keep ratio by layer of the schedules on one front, cheapest at the bottom; points without are left out."""
    front = [point for point in search["front"] if point["keep_ratio"]]
    labels = [f"{p['flops_ratio']:.3f}" for p in front]
    figure = go.Figure(
        go.Heatmap(
            z=[p["keep_ratio"] for p in front],
            x=list(range(len(front[0]["keep_ratio"]))) if front else [],
            y=list(range(len(front))),
            text=[[escape(label(p))] * len(p["keep_ratio"]) for p in front],
            hovertemplate="layer %{x}: keeps %{z:.0%}<br>%{text}<extra></extra>",
            colorscale=KEEP_SCALE,
            zmin=0,
            zmax=1,
            colorbar={"title": "keep_ratio"},
            xgap=1,
            ygap=1,
        )
    )
    _layout(figure, title=f"Schedules on the front of {escape(search['name'])}", x="layer", y="flops_ratio")
    figure.update_yaxes(tickvals=list(range(len(front))), ticktext=labels)
    figure.update_xaxes(dtick=1)
    return figure


def costs(comparison: dict[str, Any]) -> go.Figure:
    """budget_score against charged compute."""
    figure = go.Figure()
    colors = color_of([search["name"] for search in comparison["searches"]])
    for search in comparison["searches"]:
        if search["budget_score"] is None or search["charged_flops"] is None:
            continue
        low, high = search["budget_score_ci"]
        score = search["budget_score"]
        figure.add_scatter(
            x=[search["charged_flops"]],
            y=[score],
            error_y={"type": "data", "array": [high - score], "arrayminus": [score - low], "thickness": 1},
            mode="markers+text",
            marker={"size": 12, "color": colors[search["name"]]},
            text=[escape(search["name"])],
            textposition="top center",
            name=escape(search["name"]),
            showlegend=False,
        )
    return _layout(figure, title="What it cost to find", x="charged_flops", y="budget_score")


def trajectory(search_name: str, steps: dict[str, list[dict[str, Any]]]) -> go.Figure:
    """Violation of the budget over the steps of a gradient search, one line per budget."""
    figure = go.Figure()
    for number, (key, rows) in enumerate(sorted(steps.items(), key=lambda item: int(item[0].rpartition("-")[2]))):
        figure.add_scatter(
            y=[row["violation"] for row in rows],
            mode="lines",
            line={"color": COLORS[number % len(COLORS)]},
            name=escape(key),
            customdata=[[row["multiplier"], row["penalty"], row["loss"]] for row in rows],
            hovertemplate="violation %{y:.3f}<br>multiplier %{customdata[0]:.2f}, penalty %{customdata[1]:.0f}, "
            "loss %{customdata[2]:.3f}<extra>" + escape(key) + "</extra>",
        )
    return _layout(
        figure, title=f"Constraint violation of {escape(search_name)}", x="step", y="(flops_ratio - budget) / budget"
    )


def attainment(bands: Sequence[dict[str, Any]], split: str) -> go.Figure:
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
            edge = [*_steps(surfaces["25"], bottom, right), *reversed(_steps(surfaces["75"], bottom, right))]
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
        middle = _steps(surfaces["50"], bottom, right)[1:]
        runs = f"{band['runs']} runs" if band["runs"] > 1 else "1 run"
        figure.add_scatter(
            x=[x for x, _ in middle],
            y=[y for _, y in middle],
            mode="lines",
            line={"color": color, "width": 2},
            name=f"{escape(name)} ({runs})",
            legendgroup=name,
            hovertemplate="accuracy %{y:.3f}, flops_ratio %{x:.3f}<extra>" + escape(name) + "</extra>",
        )
    named = split.replace("_", "-")
    return _layout(
        figure, title=f"Fronts over seeds: median, 25 to 75 % ({named} accuracy)", x="flops_ratio", y="accuracy"
    )


def _steps(corners: Sequence[Sequence[float]], bottom: float, right: float) -> list[tuple[float, float]]:
    """Path (flops_ratio, accuracy) along a front, up from ``bottom`` and on to ``right``."""
    path: list[tuple[float, float]] = []
    height = bottom
    for accuracy, ratio in corners:
        path += [(ratio, height), (ratio, accuracy)]
        height = accuracy
    return [*path, (right, height)]


def anytime(found: dict[str, Any]) -> go.Figure:
    """score_within_budget against charged compute: held-out where it was measured, dotted on the search split."""
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
            hovertemplate="search split %{y:.3f} at %{x:.3f} of the grid<extra>" + escape(name) + "</extra>",
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
            name=escape(name),
            legendgroup=name,
            customdata=[point["budgets_missed"] for point in points],
            hovertemplate="%{y:.3f} at %{x:.3f} of the grid, %{customdata:.1f} budgets missed<extra>"
            + escape(name)
            + "</extra>",
        )
    _layout(
        figure,
        title="Had a search been stopped early (held-out; dotted: search split)",
        x="charged compute, share of the dense grid",
        y="score_within_budget",
    )
    figure.update_xaxes(type="log")
    return figure
