"""The overlay: all fronts of an experiment in one figure. Records in, figure out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from vispco.dashboards.axis import of_what, percents, scored, share, title_of
from vispco.dashboards.figures import (
    add_published,
    entry_colors,
    entry_dashes,
    entry_of,
    label,
    layout,
    only_first,
    reference_lines,
    runs_of,
    steps,
)
from vispco.dashboards.text import in_figure, percent

DIGITS = 3  # of background points, of which there may be ten thousand
TRANSPARENT = 0.15  # opacity of a band that is shown


def overlay(
    comparison: dict[str, Any],
    points: Sequence[dict[str, Any]],
    bands: Sequence[dict[str, Any]] = (),
    split: str = "held_out",
) -> go.Figure:
    """Fronts over all measured schedules; each has a band, which the page shows while its search is pointed at.

    ``held_out``: the accuracy that the front's schedules have there, with published defaults; an entry with one run has
    the 95 % interval of each schedule as its band. ``search``: the accuracy that they were chosen by, which flatters
    them. An entry with several runs is drawn as its median front in the band between what 25 and 75 % of its runs
    attain (``bands``, of :func:`attainment_bands`), its runs' schedules as points. Dominated schedules are known on the
    search split only, so that they are hidden at first where the fronts are held-out ones.
    """
    figure = go.Figure()
    colors, dashes, runs = entry_colors(comparison), entry_dashes(comparison), runs_of(comparison)
    surfaces = {band["entry"]: band for band in bands if band["split"] == split}
    cost = in_figure(of_what(comparison))
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
                x=percents([share(point) for point in front]),
                y=percents([point[key] for point in front]),
                mode="lines+markers" if alone else "markers",
                line={"color": colors[entry], "dash": dashes[entry], "width": 2, "shape": "hv"},
                marker={"size": 8 if alone else 6, "color": colors[entry]},
                opacity=1 if alone else 0.45,
                name=in_figure(entry),
                legendgroup=entry,
                showlegend=number == 0 and (alone or entry not in surfaces),
                text=[in_figure(label(point)) for point in front],
                customdata=[_detail(point, split) for point in front],
                hovertemplate=f"%{{text}}<br>%{{y:.1f}} % accurate%{{customdata}}, {cost} %{{x:.1f}} %<extra>"
                + in_figure(search["name"])
                + "</extra>",
            )
    references = {"unpruned": comparison["unpruned"][key]}
    if split == "held_out":
        add_published(figure, comparison)
        references["no image"] = comparison["no_image"]["accuracy"]
    reference_lines(figure, references)
    layout(figure, title="All fronts", x=title_of(comparison), y=f"{scored(comparison, split)}, %")
    figure.update_layout(hovermode="closest", height=520, margin_r=70)
    return only_first(figure, comparison)


def without_bands(figure: go.Figure) -> go.Figure:
    """For a place that cannot show a band on hover."""
    figure.data = tuple(trace for trace in figure.data if not (trace.meta or {}).get("band"))
    return figure


def _add_dominated(
    figure: go.Figure,
    comparison: dict[str, Any],
    points: Sequence[dict[str, Any]],
    colors: dict[str, str],
    visible: bool | str,
) -> None:
    cost = in_figure(of_what(comparison))
    entries = {search["name"]: entry_of(search) for search in comparison["searches"]}
    behind: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        if not point["on_front"] and point["search"] in entries:
            behind.setdefault(entries[point["search"]], []).append(point)
    for number, (entry, shown) in enumerate(behind.items()):
        figure.add_scatter(
            x=[round(100 * share(point), DIGITS) for point in shown],
            y=[round(100 * point["accuracy"], DIGITS) for point in shown],
            mode="markers",
            marker={"color": colors[entry], "size": 5},
            opacity=0.25,
            text=[in_figure(label(point)) for point in shown],
            hovertemplate=f"%{{text}}<br>search split: %{{y:.1f}} % accurate, {cost} %{{x:.1f}} %<extra>"
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
    return f" ({percent(interval[0])} to {percent(interval[1])})" if interval else ""


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
    _add_band(figure, entry, [*high, *reversed(low)], color)


def _add_attained(figure: go.Figure, band: dict[str, Any], color: str, dash: str) -> None:
    corners = [corner for surface in band["surfaces"].values() for corner in surface]
    bottom = min(accuracy for accuracy, _ in corners)
    right = max([1.0, *(ratio for _, ratio in corners)])
    entry, surfaces = band["entry"], band["surfaces"]
    edge = [*steps(surfaces["25"], bottom, right), *reversed(steps(surfaces["75"], bottom, right))]
    _add_band(figure, entry, edge, color)
    middle = steps(surfaces["50"], bottom, right)[1:]
    figure.add_scatter(
        x=percents([x for x, _ in middle]),
        y=percents([y for _, y in middle]),
        mode="lines",
        line={"color": color, "dash": dash, "width": 2},
        name=f"{in_figure(entry)} ({band['runs']} seeds)",
        legendgroup=entry,
        hoverinfo="skip",
    )


def _add_band(figure: go.Figure, entry: str, edge: Sequence[tuple[float, float]], color: str) -> None:
    figure.add_scatter(
        x=percents([x for x, _ in edge]),
        y=percents([y for _, y in edge]),
        fill="toself",
        fillcolor=color,
        opacity=0,
        meta={"band": entry, "opacity": TRANSPARENT},
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=entry,
        showlegend=False,
    )
