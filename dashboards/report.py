"""``vispco report``: one self-contained HTML page; works from a file and without a network."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from vispco.dashboards import figures, heatmaps

from vispco.analysis.anytime import anytime
from vispco.analysis.attainment import attainment_bands
from vispco.analysis.comparison import Comparison
from vispco.analysis.entries import against
from vispco.analysis.layers import layer_record
from vispco.analysis.selection import FITS
from vispco.errors import ConfigError
from vispco.storage.store import Store

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def write_report(store: Store, experiment: str, output: Path) -> None:
    """Write the page of one experiment.

    Raises:
        StorageError: no such experiment, or one without results.
        ConfigError: the file cannot be written.
    """
    comparison = Comparison(store, experiment)
    page = render(
        comparison.to_dict(),
        comparison.points(),
        {s.name: steps for s in comparison.searches if (steps := _gradient_steps(store, s.study))},
        comparison.stored,
        over_seeds(comparison),
        layer_record(comparison),
    )
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {str(output)!r}: {error.strerror}; choose another file with -o") from None


def over_seeds(comparison: Comparison) -> dict[str, Any]:
    """What is said of entries rather than of single runs; None where there is no grid to relate to."""
    grid = comparison.grid()
    return {
        "against": against(comparison, grid.entry) if grid else None,
        "bands": attainment_bands(comparison),
        "anytime": anytime(comparison) if comparison.grid_flops() else None,
    }


def _gradient_steps(store: Store, study: str) -> dict[str, list[dict[str, Any]]]:
    """Trajectories of a study's budgets; other searches store other things there."""
    return {key: rows for key, rows in store.trajectory(study).items() if all("violation" in row for row in rows)}


def render(
    comparison: dict[str, Any],
    points: list[dict[str, Any]],
    trajectories: dict[str, dict[str, list[dict[str, Any]]]],
    stored: dict[str, Any],
    seeds: dict[str, Any],
    layers: dict[str, Any],
) -> str:
    """The page's HTML."""
    searches = [s for s in comparison["searches"] if any(point["keep_ratio"] for point in s["front"])]
    drawn = [figures.frontiers(comparison, points), figures.choices(comparison), figures.costs(comparison)]
    maps = [figures.schedules(search) for search in searches]
    paths = [figures.trajectory(name, steps) for name, steps in trajectories.items()]
    parts = [
        f"<h1>{escape(comparison['experiment'])}</h1>",
        f'<p class="lead">{_summary(comparison)}</p>',
        _search_table(comparison),
        *(_figure(figure, f"figure-{i}") for i, figure in enumerate(drawn)),
        "<h2>Schedules, layer by layer</h2>",
        '<div class="pair">' + "".join(_figure(f, f"map-{i}") for i, f in enumerate(maps)) + "</div>",
        _layer_section(layers),
        _budget_table(comparison),
        *_seeds_section(seeds),
        *(["<h2>How the gradient search went</h2>"] if paths else []),
        *(_figure(figure, f"path-{i}") for i, figure in enumerate(paths)),
        _provenance(comparison, stored),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(comparison['experiment'])} - VisPCO</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _figure(figure: go.Figure, element: str) -> str:
    data = _script_json(figure.to_json())
    return (
        f'<div id="{element}" class="figure"></div><script>addEventListener("DOMContentLoaded",()=>{{const f={data};'
        f'Plotly.newPlot("{element}",f.data,f.layout,{{responsive:true,displayModeBar:false}})}});</script>'
    )


def _script_json(text: str) -> str:
    """JSON that cannot end a script element."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _summary(comparison: dict[str, Any]) -> str:
    """The answer in words, every number from the comparison object."""
    unpruned = comparison["unpruned"]["accuracy_held_out"]
    rows = [row for row in comparison["by_budget"] if row["chosen"]]
    sentences = []
    if unpruned is not None:
        sentences.append(f"Unpruned, the model answers {_percent(unpruned)} of the held-out questions.")
    if rows and unpruned:
        row = min(rows, key=lambda r: abs(r["budget"] - 0.5))
        measured = {n: c for n, c in row["chosen"].items() if c["accuracy_held_out"] is not None}
        if measured:
            told = ", ".join(f"{escape(n)} {_percent(c['accuracy_held_out'])}" for n, c in measured.items())
            sentences.append(f"With at most {row['budget']:.0%} of the compute, the chosen schedules give: {told}.")
    for default in comparison["defaults"]:
        sentences.append(
            f"The published default {escape(default['name'])} gives {_percent(default['accuracy_held_out'])} at "
            f"{default['flops_ratio']:.0%} of the compute."
        )
    for search in comparison["searches"]:
        if search["cost_ratio_to_grid"] is not None and search["cost_ratio_to_grid"] != 1.0:
            sentences.append(f"{escape(search['name'])} cost {search['cost_ratio_to_grid']:.2f} of the grid.")
    return " ".join(sentences) or "No search has finished yet."


def _layer_section(record: dict[str, Any]) -> str:
    """What was learned and what layers cost: sentences, then heat maps."""
    maps = "".join(_figure(figure, f"layers-{i}") for i, figure in enumerate(heatmaps.all_maps(record)))
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in record["summary"])
    return f'<h2>What each layer is worth</h2><ul>{told}</ul><div class="pair">{maps}</div>'


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else part / whole


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _search_table(comparison: dict[str, Any]) -> str:
    heads = [
        "search",
        "trials",
        "cost / grid",
        "budget_score",
        "95 % interval",
        "hypervolume / grid",
        "spent / charged",
    ]
    rows = []
    for search in comparison["searches"]:
        ci = search["budget_score_ci"]
        rows.append(
            [
                search["name"],
                search["trials"],
                search["cost_ratio_to_grid"],
                search["budget_score"],
                f"{ci[0]:.3f} to {ci[1]:.3f}" if ci else None,
                search["hypervolume_ratio_to_grid"],
                _share(search["spent_flops"], search["charged_flops"]),
            ]
        )
    note = (
        "<p>budget_score is the mean over budgets of the held-out accuracy of the schedule that a search would choose. "
        "Intervals resample pictures; they are conditional on the schedules found and say nothing of other seeds.</p>"
    )
    return _table(heads, rows) + note


def _budget_table(comparison: dict[str, Any]) -> str:
    names = [search["name"] for search in comparison["searches"]]
    rows = []
    for row in comparison["by_budget"]:
        cells: list[Any] = [row["budget"]]
        for name in names:
            chosen = row["chosen"].get(name)
            text = "-"
            if chosen:
                text = f"{_percent(chosen['accuracy_held_out'])} {figures.label(chosen)}"
                if chosen["flops_ratio"] > row["budget"] + FITS:
                    text += f", over the budget at {chosen['flops_ratio']:.3f}"
            gap = row["difference_to_grid"].get(name)
            if gap:
                text += f" ({100 * gap['mean']:+.1f}, {100 * gap['ci'][0]:+.1f} to {100 * gap['ci'][1]:+.1f})"
            cells.append(text)
        rows.append(cells)
    note = (
        "Held-out accuracy, schedule, and difference to the grid in points with its interval. A search that has "
        "nothing within a budget is judged by its cheapest schedule, which is then over the budget."
    )
    return f"<h2>Choice per budget</h2><p>{note}</p>" + _table(["budget", *names], rows)


def _seeds_section(seeds: dict[str, Any]) -> list[str]:
    parts = []
    if seeds["against"]:
        parts += ["<h2>What may be said of the searches</h2>", _against_table(seeds["against"])]
    drawn = [figures.anytime(seeds["anytime"])] if seeds["anytime"] else []
    if any(band["runs"] > 1 for band in seeds["bands"]):
        drawn += [figures.attainment(seeds["bands"], split) for split in ("held_out", "search")]
    return parts + [_figure(figure, f"seeds-{i}") for i, figure in enumerate(drawn)]


def _against_table(found: dict[str, Any]) -> str:
    heads = ["entry", "seeds", "budget_score", "difference", "95 % interval", "p (Holm)", "verdict"]
    heads += ["propose / grid", "cost / grid", "budgets missed", "score within budget"]
    rows = []
    for row in found["entries"]:
        low, high = row["difference_ci"] or (None, None)
        told = None if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
        if told and row["covers"] == "samples":
            told += ", samples only"
        rows.append(
            [
                row["entry"],
                None if row["deterministic"] else len(row["seeds"]),
                row["budget_score"],
                None if row["difference"] is None else f"{100 * row['difference']:+.1f}",
                told,
                row["p_holm"],
                row["verdict"],
                row["propose_share"],
                row["charged_share"],
                round(row["budgets_missed"], 1),
                row["score_within_budget"],
            ]
        )
    note = (
        f"Mean budget_score over seeds, and its difference to {escape(found['against'])} in points. Intervals resample "
        "seeds and pictures together, or pictures only, given the schedules found, where a search has too few seeds. "
        f"No search is called better with fewer than {found['seeds_needed']} seeds. A missed budget counts with the "
        "search's cheapest schedule, which flatters budget_score; within budget, as the model without a picture."
    )
    return f"<p>{note}</p>" + _table(heads, rows)


def _provenance(comparison: dict[str, Any], stored: dict[str, Any]) -> str:
    source = stored["provenance"]
    rows = [["spec hash", comparison["spec_hash"]], ["FLOPs accounting", comparison["accounting"]]]
    rows += [["commit", f"{source.get('commit') or '-'}{' (changed)' if source.get('dirty') else ''}"]]
    rows += [[name, value] for name, value in source["versions"].items()]
    rows += [["python", source["python"]], ["machine", source["platform"]]]
    spec = escape(stored["spec_text"])
    name = json.dumps(comparison["experiment"])
    return (
        "<h2>Provenance</h2>"
        + _table(["what", "value"], rows)
        + f"<h3>Study</h3><pre>{spec}</pre><h3>Reproduce</h3>"
        + f"<pre>vispco run study.yaml\nvispco report {escape(name)}</pre>"
    )
