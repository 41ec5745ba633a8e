"""Heat maps of a layer record (the object of ``vispco layers --json``); nothing here reads a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from vispco.dashboards.axis import percents
from vispco.dashboards.figures import KEEP_DARK, KEEP_SCALE, TICKS, Scale
from vispco.dashboards.text import in_figure, whole_percent

LOSS_SCALE: Scale = [[0.0, "#f7f4ec"], [0.35, "#f0b67f"], [1.0, "#8c2d19"]]
LOSS_DARK: Scale = [[0.0, "#22282c"], [0.35, "#9a4d1c"], [1.0, "#ffc091"]]
WORTH_SCALE: Scale = [[0.0, "#2c5f8a"], [0.5, "#f7f4ec"], [1.0, "#a23b2a"]]
WORTH_DARK: Scale = [[0.0, "#7db8e8"], [0.5, "#22282c"], [1.0, "#f0836f"]]
SHOWN = 3  # schedules in one hover text


def all_maps(record: dict[str, Any]) -> list[go.Figure]:
    """Every map that the record has numbers for."""
    maps = [learned(entry) for entry in record["learned"] if any(row["keep_ratio"] for row in entry["rows"])]
    maps += [sensitivity(table) for table in record["sensitivity"]]
    return [*maps, *(gradient(entry) for entry in record["gradient"])]


def learned(entry: dict[str, Any]) -> go.Figure:
    """Keep ratio over layers and budgets of what one entry chose: mean over seeds, their range in the hover text."""
    rows = [row for row in entry["rows"] if row["keep_ratio"]]
    depth = len(rows[0]["keep_ratio"]) if rows else 0
    return _map(
        z=[percents(row["keep_ratio"]) for row in rows],
        x=list(range(depth)),
        y=[f"{100 * row['budget']:.1f}" for row in rows],
        text=[[_learned_text(row, layer) for layer in range(depth)] for row in rows],
        title=f"What {in_figure(entry['entry'])} keeps, by budget",
        axis="budget, %",
        scale=(KEEP_SCALE, KEEP_DARK),
        bounds=(0, 100),
        unit="kept, %",
    )


def _learned_text(row: dict[str, Any], layer: int) -> str:
    mean, low, high = (row[name][layer] for name in ("keep_ratio", "low", "high"))
    text = f"keeps {whole_percent(mean)}"
    if row["seeds"] > 1:
        text += f" ({whole_percent(low)} to {whole_percent(high)} over {row['seeds']} seeds)"
    if row["over"]:
        text += f"<br>{row['over']} more seed{'' if row['over'] == 1 else 's'} with nothing that fits"
    named = list(dict.fromkeys(schedule for schedule in row["schedules"] if schedule))
    return "<br>".join([text, *map(_shortened, named[:SHOWN]), *(["..."] if len(named) > SHOWN else [])])


def sensitivity(table: dict[str, Any]) -> go.Figure:
    """Accuracy that one step costs, over its layer and keep ratio, on the search split."""
    keeps = table["keeps"]
    texts: list[list[str]] = []
    for column, keep in enumerate(keeps):
        texts.append([])
        for lost, saved in zip(table["lost"], table["saved"], strict=True):
            cell = lost[column], saved[column]
            told = (
                "" if cell[0] is None else f"<br>loses {100 * cell[0]:.1f} points, saves {cell[1]:.0%} of the compute"
            )
            texts[-1].append(f"keeps {keep:.0%}{told}")
    values = [[lost[column] for lost in table["lost"]] for column in range(len(keeps))]
    most = max((value for row in values for value in row if value is not None), default=0)
    return _map(
        z=[percents(row) for row in values],
        x=table["layers"],
        y=[f"{100 * keep:g}" for keep in keeps],
        text=texts,
        title=f"Accuracy that one step loses, {in_figure(table['method'])} (search split)",
        axis="kept, %",
        scale=(LOSS_SCALE, LOSS_DARK),
        bounds=(0, 100 * max(most, 0.01)),
        unit="points",
    )


def gradient(entry: dict[str, Any]) -> go.Figure:
    """What keeping more tokens at a layer is worth; each budget's row is coloured by its own largest value."""
    rows = entry["rows"]
    largest = [max((abs(value) for value in row["worth"]), default=0) or 1.0 for row in rows]
    texts = [
        [f"worth {value:.4f} ({low:.4f} to {high:.4f})" for value, low, high in zip(*bounds, strict=True)]
        for bounds in ((row["worth"], row["low"], row["high"]) for row in rows)
    ]
    return _map(
        z=[[value / most for value in row["worth"]] for row, most in zip(rows, largest, strict=True)],
        x=list(range(len(rows[0]["worth"]))) if rows else [],
        y=[f"{100 * row['budget']:.1f}" for row in rows],
        text=texts,
        title=f"What more tokens are worth to the loss, {in_figure(entry['entry'])}",
        axis="budget, %",
        scale=(WORTH_SCALE, WORTH_DARK),
        bounds=(-1, 1),
        unit="of the row's<br>largest",
    )


def _map(
    *,
    z: Sequence[Sequence[float | None]],
    x: Sequence[int],
    y: Sequence[str],
    text: Sequence[Sequence[str]],
    title: str,
    axis: str,
    scale: tuple[Scale, Scale],
    bounds: tuple[float, float],
    unit: str,
) -> go.Figure:
    """Layers to the right, rows from below; cells that were not measured stay empty."""
    heat = go.Heatmap(
        z=z,
        x=x,
        y=list(range(len(y))),
        text=text,
        hovertemplate="layer %{x}, " + axis + " %{customdata}<br>%{text}<extra></extra>",
        customdata=[[label] * len(x) for label in y],
        xgap=1 if len(x) <= 2 * TICKS else 0,
        ygap=1,
        colorscale=scale[0],
        meta={"dark": scale[1]},
        zmin=bounds[0],
        zmax=bounds[1],
        colorbar={"title": unit},
    )
    figure = go.Figure(heat)
    figure.update_layout(
        template="none",
        title={"text": title, "font": {"size": 16}, "x": 0, "xref": "paper"},
        hoverlabel={"align": "left"},
        xaxis={"title": {"text": "layer", "font": {"size": 13}}, "dtick": -(-max(1, len(x)) // TICKS)},
        yaxis={"title": {"text": axis, "standoff": 8, "font": {"size": 13}}, "automargin": True, **_labelled(y)},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7a7a7a", "family": "system-ui, sans-serif", "size": 13},
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        height=420,
    )
    return figure


def _labelled(labels: Sequence[str]) -> dict[str, Any]:
    """At most ``TICKS`` of the labels, each at its row."""
    every = -(-max(1, len(labels)) // TICKS)
    return {"tickvals": list(range(0, len(labels), every)), "ticktext": list(labels[::every])}


def _shortened(schedule: str) -> str:
    """A long schedule, such as a ratio for each of a hundred layers, would fill the page."""
    return str(in_figure(schedule, 80))
