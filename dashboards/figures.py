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
from vispco.dashboards.axis import ACCURACY, of_what, percents, scored, share, title_of
from vispco.dashboards.text import in_figure, percent

# Okabe & Ito's palette: told apart with any colour vision, on light and dark ground.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
PUBLISHED = "#b8860b"
DASHES = ("solid", "dash", "dot")
TICKS = 24
NAMED = 4  # published defaults that the legend names
FIRST = 4  # searches that are drawn at first
GRID = "rgba(128,128,128,0.25)"
LOG: dict[str, Any] = {"type": "log", "tickmode": "auto", "nticks": 6, "exponentformat": "power"}
Scale = list[list[Any]]
KEEP_SCALE: Scale = [[0.0, "#f7f4ec"], [0.5, "#7fb3b0"], [1.0, "#0b4f6c"]]
KEEP_DARK: Scale = [[0.0, "#22282c"], [0.5, "#2f7f8c"], [1.0, "#a9e2dc"]]


def layout(figure: go.Figure, *, title: str, x: str, y: str) -> go.Figure:
    """The look that all figures share; the page sets ink and ground by its theme."""
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True}
    figure.update_layout(
        template="none",
        title={"text": title, "font": {"size": 16}, "x": 0, "xref": "paper"},
        xaxis={"title": {"text": x, "standoff": 8, "font": {"size": 13}}, **axis},
        yaxis={"title": {"text": y, "standoff": 8, "font": {"size": 13}}, **axis},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7a7a7a", "family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        hoverlabel={"align": "left"},
        margin={"l": 56, "r": 16, "t": 44, "b": 100},
        height=420,
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


def drawn_first(comparison: dict[str, Any]) -> list[str]:
    """The entries that figures draw at first: the grid and the best by mean budget_score, at most four."""
    scores = {
        entry: fmean(run["budget_score"] if run["budget_score"] is not None else -1.0 for run in runs)
        for entry, runs in runs_of(comparison).items()
    }
    grid = grid_of(comparison)
    ranked = sorted(scores, key=lambda entry: (entry != grid, -scores[entry]))[:FIRST]
    return [entry for entry in scores if entry in ranked]


def grid_of(comparison: dict[str, Any]) -> str | None:
    """The complete grid, to which others have differences."""
    for row in comparison["by_budget"]:
        if row["difference_to_grid"]:
            return next((name for name in row["chosen"] if name not in row["difference_to_grid"]), None)
    return None


def only_first(figure: go.Figure, comparison: dict[str, Any]) -> go.Figure:
    """Searches beyond the first four are left to the legend."""
    rest = set(runs_of(comparison)) - set(drawn_first(comparison))
    for trace in figure.data:
        if trace.legendgroup in rest:
            trace.visible = "legendonly"
    return figure


def reference_lines(figure: go.Figure, accuracies: dict[str, float | None]) -> None:
    """Dotted lines with their names beside the plot, where no curve runs through them."""
    for name, accuracy in accuracies.items():
        if accuracy is not None:
            figure.add_hline(y=100 * accuracy, line={"dash": "dot", "color": "#999"})
            figure.add_annotation(
                text=name,
                x=1,
                xref="paper",
                xanchor="left",
                y=100 * accuracy,
                yanchor="middle",
                showarrow=False,
                xshift=4,
            )


def color_of(names: Sequence[str]) -> dict[str, str]:
    """A colour per search, the same in every figure."""
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}


def label(point: dict[str, Any]) -> str:
    """What a point is called: its schedule, or its trial where an imported study does not say; its method, where its
    search had several."""
    named = point["schedule"] or f"trial {point['trial']}"
    return f"{named} with {point['method']}" if point.get("method") else named


def choices(comparison: dict[str, Any]) -> go.Figure:
    """Held-out accuracy of what each search would choose, per budget: mean over an entry's runs, each run faint.

    A missed budget is a hollow marker at the no-image accuracy.
    """
    figure = go.Figure()
    colors, dashes = entry_colors(comparison), entry_dashes(comparison)
    for entry, runs in runs_of(comparison).items():
        found = [[(row["budget"], row["chosen"].get(run["name"])) for row in comparison["by_budget"]] for run in runs]
        known = [[(b, c) for b, c in rows if c and c["accuracy_held_out"] is not None] for rows in found]
        if len(runs) > 1:
            for rows in known:
                figure.add_scatter(
                    x=percents([b for b, _ in rows]),
                    y=percents([c["accuracy_held_out"] for _, c in rows]),
                    mode="lines",
                    line={"color": colors[entry], "width": 1},
                    opacity=0.3,
                    hoverinfo="skip",
                    legendgroup=entry,
                    showlegend=False,
                )
        places = [p for p in range(len(comparison["by_budget"])) if all(_measured(rows[p][1]) for rows in found)]
        chosen = [[rows[p][1] for rows in found] for p in places]
        missed = [any(c["missed"] for c in row) for row in chosen]
        figure.add_scatter(
            x=percents([comparison["by_budget"][p]["budget"] for p in places]),
            y=percents([fmean(c["accuracy_held_out"] for c in row) for row in chosen]),
            mode="lines+markers",
            line={"color": colors[entry], "dash": dashes[entry]},
            marker={"size": 8, "symbol": ["circle-open" if one else "circle" for one in missed]},
            name=in_figure(entry) + (f" ({len(runs)} seeds)" if len(runs) > 1 else ""),
            legendgroup=entry,
            text=[_told(row, of_what(comparison)) for row in chosen],
            hovertemplate="budget %{x:.1f} %: %{y:.1f} % accurate<br>%{text}<extra>" + in_figure(entry) + "</extra>",
        )
    add_published(figure, comparison)
    reference_lines(figure, {"unpruned": comparison["unpruned"]["accuracy_held_out"]})
    layout(figure, title="What a choice delivers", x=title_of(comparison, "budget"), y=f"{scored(comparison)}, %")
    figure.update_layout(margin_r=70)
    return only_first(figure, comparison)


def _measured(chosen: dict[str, Any] | None) -> bool:
    return chosen is not None and chosen["accuracy_held_out"] is not None


def _told(row: Sequence[dict[str, Any]], cost: str) -> str:
    missed = sum(bool(c["missed"]) for c in row)
    if missed:
        return "missed: no image" if len(row) == 1 else f"{missed} of {len(row)} seeds miss it: no image"
    ratio = f"{cost} {percent(fmean(share(c) for c in row))}"
    return f"{in_figure(label(row[0]))}<br>{ratio}" if len(row) == 1 else f"mean {ratio}"


def add_published(figure: go.Figure, comparison: dict[str, Any]) -> None:
    """Published defaults as stars with their intervals, named by the legend where they are few."""
    defaults, cost = comparison["defaults"], in_figure(of_what(comparison))
    groups = [[one] for one in defaults] if len(defaults) <= NAMED else [defaults]
    for shown in groups:
        spans = [d.get("accuracy_ci") or [d["accuracy_held_out"]] * 2 for d in shown]
        texts = [
            f"{in_figure(d['name'])}<br>{in_figure(d.get('schedule') or '')}<br>{percent(d['accuracy_held_out'])} "
            f"accurate ({percent(low)} to {percent(high)})"
            for d, (low, high) in zip(shown, spans, strict=True)
        ]
        figure.add_scatter(
            x=percents([share(d) for d in shown]),
            y=percents([d["accuracy_held_out"] for d in shown]),
            error_y=_bars([d["accuracy_held_out"] for d in shown], spans),
            mode="markers",
            marker={"symbol": "star", "size": 13, "color": PUBLISHED, "line": {"width": 1, "color": "#5a4304"}},
            text=texts,
            hovertemplate=f"%{{text}}, {cost} %{{x:.1f}} %<extra>published</extra>",
            name=f"published: {in_figure(shown[0]['name'])}" if len(shown) == 1 else f"published ({len(shown)})",
            legendgroup=f"published {shown[0]['name']}",
        )


def _bars(values: Sequence[float], spans: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Error bars of accuracies, in percent."""
    pairs = list(zip(values, spans, strict=True))
    return {
        "type": "data",
        "array": percents([high - value for value, (_, high) in pairs]),
        "arrayminus": percents([value - low for value, (low, _) in pairs]),
        "thickness": 1,
        "width": 3,
    }


def schedules(search: dict[str, Any], cost: str = "compute") -> go.Figure:
    """Keep ratio by layer of the schedules on one front, cheapest at the bottom; points without are left out."""
    front = [point for point in search["front"] if point["keep_ratio"]]
    figure = go.Figure(
        go.Heatmap(
            z=[percents(p["keep_ratio"]) for p in front],
            x=list(range(len(front[0]["keep_ratio"]))) if front else [],
            y=list(range(len(front))),
            text=[[in_figure(label(p))] * len(p["keep_ratio"]) for p in front],
            hovertemplate="layer %{x}: keeps %{z:.1f} %<br>%{text}<extra></extra>",
            colorscale=KEEP_SCALE,
            meta={"dark": KEEP_DARK},
            zmin=0,
            zmax=100,
            colorbar={"title": "kept, %"},
            xgap=1,
            ygap=1,
        )
    )
    title = f"Schedules on the front of {in_figure(search['name'])}"
    layout(figure, title=title, x="layer", y=f"{cost}, % of unpruned")
    every = -(-max(1, len(front)) // TICKS)
    labels = [f"{100 * share(p):.1f}" for p in front]
    figure.update_yaxes(tickvals=list(range(0, len(front), every)), ticktext=labels[::every])
    depth = len(front[0]["keep_ratio"]) if front else 1
    figure.update_xaxes(dtick=-(-depth // TICKS))
    figure.update_layout(margin={"b": 60})
    return figure


def costs(comparison: dict[str, Any]) -> go.Figure:
    """budget_score against charged compute, in units of the grid's where there is one."""
    figure = go.Figure()
    colors = entry_colors(comparison)
    whole = all(search["cost_ratio_to_grid"] is not None for search in comparison["searches"])
    cost = "cost_ratio_to_grid" if whole else "charged_flops"
    for entry, runs in runs_of(comparison).items():
        shown = [run for run in runs if run["budget_score"] is not None and run[cost] is not None]
        if not shown:
            continue
        spans = [run["budget_score_ci"] or [run["budget_score"]] * 2 for run in shown]
        unit = " times the grid's compute" if whole else " FLOPs"
        figure.add_scatter(
            x=[run[cost] for run in shown],
            y=percents([run["budget_score"] for run in shown]),
            error_y=_bars([run["budget_score"] for run in shown], spans),
            mode="markers",
            marker={"size": 11, "color": colors[entry]},
            opacity=1 if len(shown) == 1 else 0.6,
            text=[
                f"{in_figure(run['name'])}: budget score {percent(run['budget_score'])} ({percent(low)} to "
                f"{percent(high)})<br>{run['trials']} trials"
                for run, (low, high) in zip(shown, spans, strict=True)
            ],
            hovertemplate="%{text}, %{x:.3g}" + unit + "<extra></extra>",
            name=in_figure(entry),
            legendgroup=entry,
        )
    axis = "charged compute, times the grid's" if whole else "charged compute, FLOPs"
    layout(figure, title="What it costs to find", x=axis, y="budget score, %")
    figure.update_xaxes(**LOG)
    return only_first(figure, comparison)


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
                x=percents([p["tasks"][task]["flops_ratio"] for p in front]),
                y=percents([p["tasks"][task]["accuracy"] for p in front]),
                mode="lines+markers" if len(runs) == 1 else "markers",
                line={"color": colors[entry], "shape": "hv"},
                marker={"size": 7, "color": colors[entry]},
                opacity=1 if len(runs) == 1 else 0.5,
                name=in_figure(entry),
                legendgroup=entry,
                showlegend=number == 0,
                text=[in_figure(label(p)) for p in front],
                hovertemplate="%{text}<br>%{y:.1f} % accurate, compute %{x:.1f} %<extra>"
                + in_figure(run["name"])
                + "</extra>",
            )
    layout(figure, title=in_figure(task), x="compute, % of unpruned", y=f"{scored(comparison)}, %")
    return only_first(figure, comparison)


def path_name(key: str, budget: str | None) -> str:
    """What a gradient search's path is called: its budget, after the method where there are several."""
    return key if budget is None else f"{key.rpartition('budget-')[0]}{budget}"


def trajectory(search_name: str, paths: dict[str, list[dict[str, Any]]], budgets: dict[str, float]) -> go.Figure:
    """Violation of the budget, multiplier and penalty over the steps of a gradient search, one line per budget.

    ``budgets``: key of a path -> its budget, where it is known.
    """
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.5, 0.25, 0.25])
    for number, (key, rows) in enumerate(sorted(paths.items(), key=lambda item: _number(item[0]))):
        named = path_name(in_figure(key), f"budget {percent(budgets[key])}" if key in budgets else None)
        for place, quantity in enumerate(("violation", "multiplier", "penalty"), start=1):
            figure.add_scatter(
                x=list(range(1, len(rows) + 1)),
                y=[_rounded(row.get(quantity), 100 if quantity == "violation" else 1) for row in rows],
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
    for place, quantity in enumerate(("violation, %", "multiplier", "penalty"), start=1):
        figure.update_yaxes(
            title={"text": quantity, "font": {"size": 13}}, gridcolor=GRID, zeroline=place == 1, row=place, col=1
        )
        figure.update_xaxes(
            gridcolor=GRID,
            zeroline=False,
            title={"text": "step" if place == 3 else "", "font": {"size": 13}},
            row=place,
            col=1,
        )
    figure.update_layout(height=620)
    return figure


def _number(key: str) -> tuple[int, str]:
    last = key.rpartition("-")[2]
    return (int(last) if last.isdigit() else 0, key)


def _rounded(value: float | None, scale: float) -> float | None:
    """Four digits are more than a line shows, and a long run has many steps."""
    return None if value is None else float(f"{scale * value:.4g}")


def attainment(
    bands: Sequence[dict[str, Any]], split: str, axis: str = "compute, % of unpruned", cost: str = "compute"
) -> go.Figure:
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
                x=percents([x for x, _ in edge]),
                y=percents([y for _, y in edge]),
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
            x=percents([x for x, _ in middle]),
            y=percents([y for _, y in middle]),
            mode="lines",
            line={"color": color, "width": 2},
            name=f"{in_figure(name)} ({runs})",
            legendgroup=name,
            hovertemplate=f"%{{y:.1f}} % accurate, {in_figure(cost)} %{{x:.1f}} %<extra>{in_figure(name)}</extra>",
        )
    named = split.replace("_", "-")
    return layout(figure, title=f"Fronts over seeds, {named} split", x=axis, y=ACCURACY)


def steps(corners: Sequence[Sequence[float]], bottom: float, right: float) -> list[tuple[float, float]]:
    """Path (flops_ratio, accuracy) along a front, up from ``bottom`` and on to ``right``."""
    path: list[tuple[float, float]] = []
    height = bottom
    for accuracy, ratio in corners:
        path += [(ratio, height), (ratio, accuracy)]
        height = accuracy
    return [*path, (right, height)]


def anytime(found: dict[str, Any], colors: dict[str, str]) -> go.Figure:
    """budget_score against charged compute: held-out where it was measured, dotted on the search split."""
    figure = go.Figure()
    for entry in found["entries"]:
        name, color = entry["entry"], colors[entry["entry"]]
        curve, end = entry["search_curve"], entry["end"]
        figure.add_scatter(
            x=[point["share"] for point in curve],
            y=percents([point["score"] for point in curve]),
            mode="lines",
            line={"color": color, "width": 1, "dash": "dot", "shape": "hv"},
            legendgroup=name,
            showlegend=False,
            hovertemplate="search split %{y:.1f} % at %{x:.3f} times the grid's compute<extra>"
            + in_figure(name)
            + "</extra>",
        )
        points = [p for p in [*entry["checkpoints"], end] if p["score"] is not None and p["share"] <= end["share"]]
        spans = [point["score_ci"] or [point["score"]] * 2 for point in points]
        figure.add_scatter(
            x=[point["share"] for point in points],
            y=percents([point["score"] for point in points]),
            error_y=_bars([point["score"] for point in points], spans),
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"size": 8, "symbol": "star" if not curve else "circle"},
            name=in_figure(name),
            legendgroup=name,
            customdata=[point["budgets_missed"] for point in points],
            hovertemplate="%{y:.1f} % at %{x:.3f} times the grid's compute, %{customdata:.1f} budgets missed<extra>"
            + in_figure(name)
            + "</extra>",
        )
    layout(
        figure,
        title="Had a search been stopped early (dotted: search split)",
        x="charged compute, times the grid's",
        y="budget score, %",
    )
    figure.update_xaxes(**LOG)
    return figure


def together(comparisons: Sequence[dict[str, Any]]) -> go.Figure:
    """The best search's front of several experiments: how much of the unpruned accuracy is kept at which cost."""
    figure = go.Figure()
    colors = color_of([comparison["experiment"] for comparison in comparisons])
    costs = {of_what(comparison) for comparison in comparisons}
    for comparison in comparisons:
        whole, name = comparison["unpruned"]["accuracy_held_out"], comparison["experiment"]
        measured = [s for s in comparison["searches"] if all(p["accuracy_held_out"] is not None for p in s["front"])]
        best = max(measured, key=lambda search: search["budget_score"] or 0.0, default=None)
        if best is None or not whole:
            continue
        cost = "" if len(costs) == 1 else f", {of_what(comparison)}"
        figure.add_scatter(
            x=percents([share(point) for point in best["front"]]),
            y=percents([point["accuracy_held_out"] / whole for point in best["front"]]),
            mode="lines+markers",
            line={"color": colors[name], "shape": "hv"},
            name=in_figure(f"{name} ({best['name']}{cost})"),
            text=[in_figure(label(point)) for point in best["front"]],
            hovertemplate="%{text}<br>keeps %{y:.1f} % of the accuracy at %{x:.1f} % of the "
            + in_figure(of_what(comparison))
            + "<extra>"
            + in_figure(name)
            + "</extra>",
        )
    axis = in_figure(costs.pop()) if len(costs) == 1 else "cost"
    layout(figure, title="The best front of each", x=f"{axis}, % of unpruned", y="held-out accuracy, % of unpruned")
    return figure
