"""What the searches deliver near half the compute, in sentences: the record of :mod:`vispco.analysis.headline`."""

from __future__ import annotations

from typing import Any

from vispco.dashboards.axis import of_what
from vispco.dashboards.glossary import term
from vispco.dashboards.tables import times
from vispco.dashboards.text import in_html, percent, points, points_interval, shortened
from vispco.dashboards.tiles import Tile, tiles

SCORES = {
    "agreement": "A score is the share of the unpruned model's answer before the first token that differs. It does not "
    "say whether answers are right.",
    "likelihood": "A score is the geometric mean of the probabilities of the tokens of the unpruned model's answer. It "
    "does not say whether answers are right.",
}


def answer_html(record: dict[str, Any]) -> str:
    """Sentences, the numbers in large, and a line for each entry."""
    row = next((row for row in record["entries"] if row["entry"] == record["headline"]), None)
    if row is None:
        return "<p>No search has a schedule that is measured on the held-out split yet.</p>"
    sentences = [_chosen(record, row), _grid(record, row), *_defaults(record, row), _cost(record, row)]
    lead, *others = [sentence for sentence in sentences if sentence]
    if len(record["entries"]) > 2:
        others.append(
            f"{in_html(row['entry'])} is highlighted because its choice is the most accurate on the search split, of "
            "the searches of which all choices are measured on the held-out split. Grids, published schedules and "
            "imported studies are highlighted only where nothing else is, and a search with a run that misses the "
            "budget only where all others have one too."
        )
    others += [SCORES[name]] if (name := record.get("score")) in SCORES else []
    rest = "".join(f"<li>{sentence}</li>" for sentence in [*others, _caution(record, row)])
    return f'<p>{lead}</p>{_tiles(record, row)}<ul class="answer">{rest}</ul>'


def _chosen(record: dict[str, Any], row: dict[str, Any]) -> str:
    budget, name = percent(record["budget"], 0), in_html(row["entry"])
    several = row["runs"] > 1
    what = f"the schedules that {name} chose" if several else f"the schedule that {name} chose"
    text = f"With at most {budget} of the {of_what(record)}, {what} on the search split"
    if not several and row["schedules"] and row["schedules"][0]:
        text += f" (<code>{in_html(shortened(row['schedules'][0], 90))}</code>)"
    score = percent(row["accuracy_held_out"])
    held = " on average" if several else ""
    text += f" scores <strong>{score}</strong> on the held-out split{held}"
    if several:
        text = text.replace(" scores ", " score ")
    text += f"{_within(row['accuracy_ci'])}."
    if record["unpruned"] is not None:
        kept = "" if row["kept"] is None else f": it keeps {percent(row['kept'], 0)} of that"
        text += f" Unpruned, the model scores {percent(record['unpruned'])}{kept}."
    if row["missed"]:
        whose = f"{row['missed']} of its {row['runs']} runs have" if several else "It has"
        text += f" {whose} nothing within that budget, which counts as {term('no image')}."
    return text


def _within(interval: list[float] | None) -> str:
    return f" (95 % interval {percent(interval[0])} to {percent(interval[1])})" if interval else ""


def _gap(difference: float, interval: list[float] | None) -> str:
    text = f"<strong>{points(difference)} points</strong>"
    if interval is None:
        return text
    return f"{text} ({points_interval(interval)}{', not shown to differ' if interval[0] <= 0 <= interval[1] else ''})"


def _grid(record: dict[str, Any], row: dict[str, Any]) -> str:
    grid = next((other for other in record["entries"] if other["entry"] == record["grid"]), None)
    if grid is None:
        return "No complete grid was run, so there is no reference to compare with."
    if grid is row or row["difference"] is None:
        return ""
    return (
        f"The choice of the complete grid ({in_html(grid['entry'])}) scores {percent(grid['accuracy_held_out'])} for "
        f"the same budget: the difference is {_gap(row['difference'], row['difference_ci'])}."
    )


def _defaults(record: dict[str, Any], row: dict[str, Any]) -> list[str]:
    told = []
    for default in record["defaults"]:
        text = (
            f"The published default {in_html(default['name'])} scores {percent(default['accuracy_held_out'])}"
            f"{_within(default['accuracy_ci'])}"
        )
        if default["flops_ratio"] is None:
            told.append(f"{text}. Its {of_what(record)} is not known, so no choice is set beside it.")
            continue
        text += f" with {percent(default['flops_ratio'])} of the {of_what(record)}."
        mine = next((one for one in default["entries"] if one["entry"] == row["entry"]), None)
        if mine is not None:
            text += (
                f" Within that compute, {in_html(row['entry'])} would have chosen for "
                f"{percent(mine['accuracy_held_out'])}: {_gap(mine['difference'], mine['difference_ci'])}."
            )
        else:
            text += f" {_not_beside(default['nothing'][row['entry']], row)}"
        told.append(text)
    return told or ["No published default was measured: name some under <code>defaults</code> in the study."]


def _not_beside(nothing: int, row: dict[str, Any]) -> str:
    """Why an entry's choice is not set beside a default."""
    name = in_html(row["entry"])
    if nothing == row["runs"]:
        return f"{name} has nothing that is as cheap."
    if nothing:
        return (
            f"{nothing} of {row['runs']} runs of {name} {'has' if nothing == 1 else 'have'} nothing that is as cheap."
        )
    return f"What {name} would have chosen within that is not measured on the held-out split."


def _cost(record: dict[str, Any], row: dict[str, Any]) -> str:
    if row["charged_share"] is None or row["entry"] == record["grid"]:
        return ""
    others = [
        f"{in_html(other['entry'])} {times(other['charged_share'])}"
        for other in record["entries"]
        if other is not row and other["entry"] != record["grid"] and other["charged_share"] is not None
    ]
    rest = f" (others: {', '.join(others)})" if others else ""
    return (
        f"{in_html(row['entry'])} needs {_costs(row)}{rest}, and took {row['wall_seconds']:.0f} seconds to find its "
        "schedules."
    )


def _costs(row: dict[str, Any]) -> str:
    alone = f"{times(row['charged_share'])} times the grid's compute"
    return alone if row["spent_share"] is None else f"{alone} on its own, {times(row['spent_share'])} with sharing"


def _caution(record: dict[str, Any], row: dict[str, Any]) -> str:
    if row["deterministic"]:
        return "Intervals cover other questions of the same kind, not other data sets or models."
    if row["covers"] == "samples":
        seeds = "one seed" if row["runs"] == 1 else f"{row['runs']} seeds"
        return (
            f"From {seeds}: intervals cover other questions of the same kind, given the schedules found, and say "
            f"nothing of other seeds. No search is called better with fewer than {record['seeds_needed']} seeds."
        )
    return f"Mean over {row['runs']} seeds; intervals cover other seeds and other questions of the same kind together."


def _tiles(record: dict[str, Any], row: dict[str, Any]) -> str:
    shown = []
    if row["kept"] is not None and row["flops_ratio"] is not None:
        where = f"of the unpruned accuracy at {percent(row['flops_ratio'], 0)} of the {of_what(record)}"
        shown.append(Tile(percent(row["kept"], 0), where))
    for default in record["defaults"][:1]:
        mine = next((one for one in default["entries"] if one["entry"] == row["entry"]), None)
        if mine is not None:
            what = f"{_above(mine['difference'])} the {term('published default')} {in_html(shortened(default['name']))}"
            shown.append(Tile(_size(mine["difference"]), what, _span(mine["difference_ci"])))
    if row["difference"] is not None:
        what = f"{_above(row['difference'])} the {term('grid')}'s choice"
        shown.append(Tile(_size(row["difference"]), what, _span(row["difference_ci"])))
    if row["charged_share"] is not None and row["entry"] != record["grid"]:
        spent = "" if row["spent_share"] is None else f"{times(row['spent_share'])} with sharing"
        shown.append(Tile(f"{times(row['charged_share'])} \u00d7", "the grid's compute to find it", spent))
    return str(tiles(shown))


def _size(difference: float) -> str:
    return f"{abs(100 * difference):.1f}"


def _above(difference: float) -> str:
    return "points above" if difference >= 0 else "points below"


def _span(interval: list[float] | None) -> str:
    return f"95 %: {points_interval(interval)}" if interval else ""
