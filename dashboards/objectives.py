"""Figures of experiments that minimise several costs: parallel coordinates, and any two objectives.

Records in, figures out. Lines are plain scatter traces: plotly's own parallel coordinates have no hover text and no
legend.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from vispco.dashboards.axis import scored
from vispco.dashboards.figures import GRID, entry_colors, label, layout, only_first, runs_of
from vispco.dashboards.text import in_figure, percent

from vispco.costs.bounds import amount

ACCURACY = "accuracy"
ROOM = 0.12  # above and below the axes, for what their ends are


def by_axes(comparison: dict[str, Any]) -> dict[str, go.Figure]:
    """What the page chooses among: all objectives together, then each pair."""
    names = [one["name"] for one in comparison["objectives"]]
    pairs = [*((cost, ACCURACY) for cost in names[1:]), *itertools.combinations(names[1:], 2)]
    return {
        "all, in parallel": parallel(comparison),
        **{f"{y} against {x}": pair_of(comparison, x, y) for x, y in pairs},
    }


def parallel(comparison: dict[str, Any]) -> go.Figure:
    """A line for each schedule on the fronts in all objectives; on every axis up is better.

    Axes reach from the worst to the best value that is drawn; both are written at their ends.
    """
    figure, colors = go.Figure(), entry_colors(comparison)
    names = [one["name"] for one in comparison["objectives"]]
    every = [point for runs in runs_of(comparison).values() for point in _points(runs)]
    ends = {name: _ends(name, [value_of(point, name) for point in every]) for name in names}
    for entry, runs in runs_of(comparison).items():
        x: list[int | None] = []
        y: list[float | None] = []
        told: list[str] = []
        for point in _points(runs):
            x += [*range(len(names)), None]
            y += [*(round(_place(value_of(point, name), ends[name]), 4) for name in names), None]
            told += [_told(point, names)] * (len(names) + 1)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            line={"color": colors[entry], "width": 1.5},
            marker={"size": 5, "color": colors[entry]},
            opacity=0.6,
            name=in_figure(entry),
            legendgroup=entry,
            text=told,
            hovertemplate="%{text}<extra>" + in_figure(entry) + "</extra>",
        )
    for place, name in enumerate(names):
        for height, value, anchor in ((0.0, ends[name][0], "top"), (1.0, ends[name][1], "bottom")):
            text = "-" if value is None else percent(value)
            figure.add_annotation(x=place, y=height, text=text, showarrow=False, yanchor=anchor, yshift=0)
    layout(figure, title="Fronts in all objectives, up is better: held-out accuracy, costs of unpruned", x="", y="")
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=[in_figure(name) for name in names], tickangle=0)
    figure.update_xaxes(range=[-0.3, len(names) - 0.7], gridcolor=GRID, gridwidth=2)
    figure.update_yaxes(range=[-ROOM, 1 + ROOM], showticklabels=False, showgrid=False)
    figure.update_layout(hovermode="closest", height=520)
    return only_first(figure, comparison)


def pair_of(comparison: dict[str, Any], x: str, y: str) -> go.Figure:
    """The schedules on the fronts in all objectives, by two of these."""
    figure, colors = go.Figure(), entry_colors(comparison)
    names = [one["name"] for one in comparison["objectives"]]
    for entry, runs in runs_of(comparison).items():
        points = _points(runs)
        figure.add_scatter(
            x=[_percent(value_of(point, x)) for point in points],
            y=[_percent(value_of(point, y)) for point in points],
            mode="markers",
            marker={"size": 8, "color": colors[entry]},
            opacity=0.7,
            name=in_figure(entry),
            legendgroup=entry,
            text=[_told(point, names) for point in points],
            hovertemplate="%{text}<extra>" + in_figure(entry) + "</extra>",
        )
    title = "Fronts in all objectives, by two of them"
    layout(figure, title=title, x=_title(comparison, x), y=_title(comparison, y))
    figure.update_layout(hovermode="closest", height=520)
    return only_first(figure, comparison)


def value_of(point: dict[str, Any], name: str) -> float:
    """Accuracy on the held-out split, or a cost as a share of the unpruned model's."""
    return float(point["accuracy_held_out"] if name == ACCURACY else point["costs"][name])


def _points(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all runs of an entry, those that were measured on the held-out split."""
    return [point for run in runs for point in run["objectives"]["front"] if point["accuracy_held_out"] is not None]


def _ends(name: str, values: Sequence[float]) -> tuple[float | None, float | None]:
    """Worst and best."""
    if not values:
        return None, None
    return (min(values), max(values)) if name == ACCURACY else (max(values), min(values))


def _place(value: float, ends: tuple[float | None, float | None]) -> float:
    """From 0, the worst, to 1, the best; in the middle where all are equal."""
    worst, best = ends
    assert worst is not None
    assert best is not None
    return 0.5 if worst == best else (value - worst) / (best - worst)


def _told(point: dict[str, Any], names: Sequence[str]) -> str:
    values = [f"{in_figure(name)} {percent(value_of(point, name))}" for name in names]
    return "<br>".join([in_figure(label(point)), *values])


def _percent(value: float) -> float:
    return round(100 * value, 4)


def _title(comparison: dict[str, Any], name: str) -> str:
    if name == ACCURACY:
        return f"{scored(comparison)}, %"
    one = next(one for one in comparison["objectives"] if one["name"] == name)
    whole = f" ({amount(one['unpruned'], one['unit'])})" if one["unit"] else ""
    return f"{name}, % of unpruned{whole}"
