"""The overlay: all fronts of an experiment in one figure. Records in, figure out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from vispco.dashboards.axis import hover_named, share, title_of
from vispco.dashboards.figures import add_published, entry_colors, entry_dashes, entry_of, label, layout, runs_of, steps
from vispco.dashboards.text import in_figure

DIGITS = 5  # of background points, of which there may be ten thousand


def overlay(
    comparison: dict[str, Any],
    points: Sequence[dict[str, Any]],
    bands: Sequence[dict[str, Any]] = (),
    split: str = "held_out",
) -> go.Figure:
    """Fronts with their bands over all measured schedules.

    ``held_out``: the accuracy that the front's schedules have there, with published defaults; an entry with one run has
    the 95 % interval of each schedule as its band. ``search``: the accuracy that they were chosen by, which flatters
    them. An entry with several runs is drawn as its median front in the band between what 25 and 75 % of its runs
    attain (``bands``, of :func:`attainment_bands`), its runs' schedules as points. Dominated schedules are known on the
    search split only, so that they are hidden at first where the fronts are held-out ones.
    """
    figure = go.Figure()
    colors, dashes, runs = entry_colors(comparison), entry_dashes(comparison), runs_of(comparison)
    surfaces = {band["entry"]: band for band in bands if band["split"] == split}
    _add_dominated(figure, comparison, points, colors, visible=True if split == "search" else "legendonly")
    key = "accuracy" if split == "search" else "accuracy_held_out"
    for entry, searches in runs.items():
        if len(searches) > 1 and entry in surfaces:
            _add_attained(figure, surfaces[entry], colors[entry], dashes[entry])
        for number, search in enumerate(searches):
            front = [point for point in search["front"] if point[key] is not None]
            alone = len(searches) == 1
            if alone and split == "held_out":
                _add_interval(figure, entry, front, colors[entry])
            figure.add_scatter(
                x=[share(point) for point in front],
                y=[point[key] for point in front],
                mode="lines+markers" if alone else "markers",
                line={"color": colors[entry], "dash": dashes[entry], "width": 2, "shape": "hv"},
                marker={"size": 8 if alone else 6, "color": colors[entry]},
                opacity=1 if alone else 0.45,
                name=in_figure(entry),
                legendgroup=entry,
                showlegend=number == 0 and (alone or entry not in surfaces),
                text=[in_figure(label(point)) for point in front],
                customdata=[_detail(point, split) for point in front],
                hovertemplate="%{text}<br>accuracy %{y:.3f}%{customdata}, flops_ratio %{x:.3f}<extra>"
                + in_figure(search["name"])
                + "</extra>",
            )
    references = {"unpruned": comparison["unpruned"][key]}
    if split == "held_out":
        add_published(figure, comparison)
        references["no picture"] = comparison["no_image"]["accuracy"]
    for name, accuracy in references.items():
        if accuracy is not None:
            figure.add_hline(y=accuracy, line={"dash": "dot", "color": "#999"}, annotation_text=name)
    told = "held-out split" if split == "held_out" else "search split, where they were chosen"
    layout(figure, title=f"All fronts ({told})", x=title_of(comparison), y="accuracy")
    figure.update_layout(hovermode="closest", height=520)
    return hover_named(figure, comparison)


def _add_dominated(
    figure: go.Figure,
    comparison: dict[str, Any],
    points: Sequence[dict[str, Any]],
    colors: dict[str, str],
    visible: bool | str,
) -> None:
    entries = {search["name"]: entry_of(search) for search in comparison["searches"]}
    behind: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        if not point["on_front"] and point["search"] in entries:
            behind.setdefault(entries[point["search"]], []).append(point)
    for number, (entry, shown) in enumerate(behind.items()):
        figure.add_scatter(
            x=[round(share(point), DIGITS) for point in shown],
            y=[round(point["accuracy"], DIGITS) for point in shown],
            mode="markers",
            marker={"color": colors[entry], "size": 5},
            opacity=0.25,
            text=[in_figure(label(point)) for point in shown],
            hovertemplate="%{text}<br>search split: accuracy %{y:.3f}, flops_ratio %{x:.3f}<extra>"
            + in_figure(entry)
            + "</extra>",
            name="dominated (search split)",
            legendgroup="dominated",
            legendrank=2000,
            showlegend=number == 0,
            visible=visible,
        )


def _detail(point: dict[str, Any], split: str) -> str:
    interval = point["accuracy_ci"] if split == "held_out" else None
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


def _add_interval(figure: go.Figure, entry: str, front: Sequence[dict[str, Any]], color: str) -> None:
    """Band of the schedules' intervals; a schedule serves all budgets up to the next one's compute."""
    known = [point for point in front if point["accuracy_ci"]]
    if not known:
        return
    right = max(1.0, share(known[-1]))
    edges = [*(share(point) for point in known), right]
    low: list[tuple[float, float]] = []
    high: list[tuple[float, float]] = []
    for point, start, end in zip(known, edges, edges[1:], strict=False):
        low += [(start, point["accuracy_ci"][0]), (end, point["accuracy_ci"][0])]
        high += [(start, point["accuracy_ci"][1]), (end, point["accuracy_ci"][1])]
    _add_band(figure, entry, [*high, *reversed(low)], color, 0.1)


def _add_attained(figure: go.Figure, band: dict[str, Any], color: str, dash: str) -> None:
    corners = [corner for surface in band["surfaces"].values() for corner in surface]
    bottom = min(accuracy for accuracy, _ in corners)
    right = max([1.0, *(ratio for _, ratio in corners)])
    entry, surfaces = band["entry"], band["surfaces"]
    edge = [*steps(surfaces["25"], bottom, right), *reversed(steps(surfaces["75"], bottom, right))]
    _add_band(figure, entry, edge, color, 0.2)
    middle = steps(surfaces["50"], bottom, right)[1:]
    figure.add_scatter(
        x=[x for x, _ in middle],
        y=[y for _, y in middle],
        mode="lines",
        line={"color": color, "dash": dash, "width": 2},
        name=f"{in_figure(entry)} ({band['runs']} seeds)",
        legendgroup=entry,
        hoverinfo="skip",
    )


def _add_band(figure: go.Figure, entry: str, edge: Sequence[tuple[float, float]], color: str, opacity: float) -> None:
    figure.add_scatter(
        x=[x for x, _ in edge],
        y=[y for _, y in edge],
        fill="toself",
        fillcolor=color,
        opacity=opacity,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=entry,
        showlegend=False,
    )
