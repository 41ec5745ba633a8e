"""The report's HTML, from the records of :mod:`vispco.dashboards.report`. One file, which loads nothing."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml
from vispco.dashboards import figures, heatmaps, objectives, tables
from vispco.dashboards.axis import of_what, scored, title_of
from vispco.dashboards.decision import decision_html
from vispco.dashboards.glossary import glossary_html, term
from vispco.dashboards.library import digest, library_digest, library_html
from vispco.dashboards.overlay import overlay
from vispco.dashboards.sheet import Sheet, pair
from vispco.dashboards.text import in_html, script_json, shortened
from vispco.dashboards.words import answer_html

from vispco.analysis.decision import Question, points_in_words
from vispco.analysis.headline import HALF

FOLDER = Path(__file__).parent
STYLE = (FOLDER / "report.css").read_text(encoding="utf-8")
SCRIPT = (FOLDER / "report.js").read_text(encoding="utf-8")
PURPOSE = 500  # characters of the study's purpose; all of it is in the study below
Record = dict[str, Any]


def render(record: Record, pictures: Sequence[Mapping[str, str]] = ()) -> str:
    """The page of one experiment."""
    sheet, name = Sheet(), record["comparison"]["experiment"]
    body = f"<h1>{in_html(name)}</h1>{section(sheet, record, pictures)}"
    return _page(name, body, sheet.figures, record["comparison"], [facts(record)])


def render_several(records: Sequence[Record]) -> str:
    """The page of several experiments: their decisions and fronts together, then each folded away."""
    names = [record["comparison"]["experiment"] for record in records]
    whole = Sheet()
    parts = [
        f"<h1>{len(records)} experiments</h1>",
        whole.heading(f"Decisions: the cheapest schedule of each within {points_in_words(records[0]['max_drop'])}"),
        tables.experiments(records),
        whole.one("together", figures.together([record["comparison"] for record in records])),
    ]
    drawn = dict(whole.figures)
    for number, record in enumerate(records):
        sheet = Sheet(f"e{number}-", 3)
        inside = section(sheet, record, ())
        parts.append(
            f'<details class="experiment"><summary><h2>{in_html(names[number])}</h2></summary>{inside}</details>'
        )
        drawn.update(sheet.figures)
    together = {"experiments": [record["comparison"] for record in records]}
    return _page(", ".join(names), "".join(parts), drawn, together, [facts(record) for record in records])


def section(sheet: Sheet, record: Record, pictures: Sequence[Mapping[str, str]]) -> str:
    """What is shown of one experiment: the decision, its front, its searches, and the rest folded away."""
    comparison, seeds = record["comparison"], record["seeds"]
    options = f"{_storage(record)}--max-drop {record['max_drop']:g} -o schedule.json"
    command = f"vispco export {options} {_named(comparison['experiment'])}"
    parts = [
        _purpose(record["study"]),
        decision_html(record["decision"], record["prices"], command, sheet.prefix, record["undecided"]),
        sheet.heading("The front: accuracy against cost"),
        _few(comparison),
        sheet.choice(
            "overlay",
            "Accuracy on",
            {
                "the held-out split": overlay(comparison, record["points"], seeds["bands"]),
                "the search split": overlay(comparison, record["points"], seeds["bands"], "search"),
            },
        ),
        _slider(sheet, comparison, record["answer"]),
        *_objectives(sheet, comparison),
        sheet.heading("The searches compared"),
        answer_html(record["answer"]),
        tables.against(seeds["against"]) if seeds["against"] else tables.searches(comparison),
        pair(sheet.one("costs", figures.costs(comparison)), sheet.one("choices", figures.choices(comparison))),
        sheet.folded("Choice for each budget", tables.by_budget(comparison)),
        sheet.folded("Every run", tables.searches(comparison)) if seeds["against"] else "",
        sheet.folded("Over seeds and over time", *_seeds(sheet, seeds, comparison)),
        sheet.folded("Task by task", *_tasks(sheet, comparison)),
        sheet.folded("Schedules, layer by layer", *_schedules(sheet, comparison)),
        sheet.folded("What each layer is worth", *_layers(sheet, record["layers"])),
        sheet.folded("How the gradient search went", *_paths(sheet, record)),
        sheet.folded("Which tokens survive", *_pictures(pictures)),
        sheet.folded(
            "Provenance, and how to reproduce it", tables.provenance(record["provenance"]), _reproduce(record)
        ),
    ]
    return f'<section class="sheet" data-prefix="{sheet.prefix}">{"".join(parts)}</section>'


def facts(record: Record) -> dict[str, Any]:
    """What the slider needs beside the comparison."""
    comparison = record["comparison"]
    return {
        "colors": figures.entry_colors(comparison),
        "entries": {search["name"]: figures.entry_of(search) for search in comparison["searches"]},
        "export": record["export"],
        "command": ["vispco export", _named(comparison["experiment"]), _storage(record)],
    }


def _page(
    title: str, body: str, drawn: Mapping[str, go.Figure], comparison: dict[str, Any], known: list[dict[str, Any]]
) -> str:
    data = {"comparison": script_json(comparison), "facts": script_json(known)}
    data.update((f"figure-{key}", script_json(figure.to_json())) for key, figure in drawn.items())
    blocks = "".join(f'<script type="application/json" id="{name}">{text}</script>' for name, text in data.items())
    policy = (
        f"default-src 'none'; script-src {digest(SCRIPT)} {library_digest()}; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    )
    each = " of each experiment by itself" if len(known) > 1 else ""
    closing = (
        f'<details id="glossary"><summary><h2>Glossary</h2></summary>{glossary_html()}</details>'
        '<p id="numbers" hidden><a download="comparison.json">The numbers of this page</a>, as '
        f"<code>vispco compare --json</code> prints them{each}.</p>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - VisPCO</title><style>{STYLE}</style>"
        f'</head><body><main><button id="theme" type="button" hidden>Dark</button>{body}{closing}'
        "<noscript><p>The figures need JavaScript; text and tables do not.</p></noscript></main>"
        f"{blocks}<script>{SCRIPT}</script>{library_html()}</body></html>\n"
    )


def _purpose(study: str) -> str:
    """What the study says that it is for."""
    try:
        known = yaml.safe_load(study)
    except yaml.YAMLError:
        known = None
    text = known.get("purpose") if isinstance(known, dict) else None
    if not isinstance(text, str) or not text.strip():
        return ""
    return f'<p class="purpose">{in_html(shortened(" ".join(text.split()), PURPOSE))}</p>'


def _objectives(sheet: Sheet, comparison: dict[str, Any]) -> list[str]:
    """Where several costs are minimised, the fronts in all objectives."""
    if "objectives" not in comparison:
        return []
    names = ", ".join(one["name"] for one in comparison["objectives"])
    note = (
        f"A schedule is on these fronts if no other of its search is at least as good in {names} on the search split. "
        f"Budgets, choices and the front above are in {comparison.get('cost', 'flops')} alone."
    )
    return [
        sheet.heading("The fronts in all objectives"),
        f'<p class="note">{in_html(note)}</p>',
        sheet.choice("objectives", "Axes", objectives.by_axes(comparison)),
        tables.objectives(comparison),
    ]


def _few(comparison: dict[str, Any]) -> str:
    """Which searches are drawn at first."""
    shown, every = figures.drawn_first(comparison), figures.runs_of(comparison)
    if len(shown) == len(every):
        return ""
    names = ", ".join(map(in_html, shown))
    return f'<p class="note">{len(shown)} of {len(every)} searches are drawn ({names}); the legend adds the others.</p>'


def _slider(sheet: Sheet, comparison: dict[str, Any], answered: dict[str, Any]) -> str:
    low, high = min(comparison["floor"], 1.0), 1.0
    start = answered["budget"] if answered["budget"] is not None else HALF
    heads = [("search", ""), (scored(comparison), "held-out split"), ("95 % interval", "interval")]
    heads += [(f"{of_what(comparison)}, of unpruned", "compute"), ("schedule", "schedule")]
    head = "".join(f'<th scope="col">{term(known, shown) if known else escape(shown)}</th>' for shown, known in heads)
    budget, copied = sheet.id("budget"), sheet.id("export")
    return (
        f'<section id="{sheet.id("chooser")}" class="chooser" hidden>'
        f"<h{sheet.level + 1}>The best schedule within a budget</h{sheet.level + 1}>"
        f'<p class="choice"><label for="{budget}">At most <output id="{sheet.id("budget-shown")}" for="{budget}">'
        f"</output> of the unpruned model's {escape(of_what(comparison))}</label> "
        f'<input id="{budget}" type="range" min="{low:.4f}" max="{high}" step="any" value="{start}"></p>'
        f'<div class="scroll tall" tabindex="0" role="region" aria-label="Choices within the budget">'
        f'<table id="{sheet.id("chosen")}" class="chosen" aria-live="polite"><thead><tr>{head}</tr></thead>'
        f'<tbody></tbody></table></div><p id="{sheet.id("export-note")}"></p>'
        f'<div class="command"><pre id="{copied}"></pre>'
        f'<button type="button" class="copy" data-for="{copied}">Copy</button></div></section>'
    )


def _seeds(sheet: Sheet, seeds: dict[str, Any], comparison: dict[str, Any]) -> list[str]:
    parts, axis, cost = [], title_of(comparison), of_what(comparison)
    if seeds["anytime"]:
        parts.append(
            sheet.one(
                "anytime",
                figures.only_first(figures.anytime(seeds["anytime"], figures.entry_colors(comparison)), comparison),
            )
        )
    if any(band["runs"] > 1 for band in seeds["bands"]):
        both = [figures.attainment(seeds["bands"], split, axis, cost) for split in ("held_out", "search")]
        shown = (figures.only_first(figure, comparison) for figure in both)
        parts.append(pair(*(sheet.one(f"seeds-{n}", figure) for n, figure in enumerate(shown))))
    return parts


def _tasks(sheet: Sheet, comparison: dict[str, Any]) -> list[str]:
    """Fronts of each task; one task's are the experiment's own."""
    found = list(dict.fromkeys(t for s in comparison["searches"] for p in s["front"] for t in p["tasks"]))
    if len(found) < 2:
        return []
    return [sheet.choice("task", "Task", {task: figures.task_fronts(comparison, task) for task in found})]


def _schedules(sheet: Sheet, comparison: dict[str, Any]) -> list[str]:
    searches = [s for s in comparison["searches"] if any(point["keep_ratio"] for point in s["front"])]
    if not searches:
        return []
    shown = {search["name"]: figures.schedules(search, of_what(comparison)) for search in searches}
    return [sheet.choice("map", "Front of", shown)]


def _layers(sheet: Sheet, record: dict[str, Any]) -> list[str]:
    """What was learned and what layers cost: sentences, then heat maps."""
    maps = [sheet.one(f"layers-{n}", figure) for n, figure in enumerate(heatmaps.all_maps(record))]
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in record["summary"])
    return [f"<ul>{told}</ul>", pair(*maps)] if told or maps else []


def _paths(sheet: Sheet, record: Record) -> list[str]:
    paths = record["paths"]
    if not paths:
        return []
    shown = {name: figures.trajectory(name, path["steps"], path["budgets"]) for name, path in paths.items()}
    note = (
        f"The {term('violation')} is that of the relaxed schedule; the {term('multiplier')} grows while it is above 0. "
        "With every dual step, steps on the constraints alone restore the budgets, so each line jumps back. The table "
        "has where it ended, before the snap to whole layers."
    )
    return [f"<p>{note}</p>", sheet.choice("path", "Search", shown), tables.violations(record["violations"])]


def _pictures(pictures: Sequence[Mapping[str, str]]) -> list[str]:
    return [
        f'<figure><img alt="patches that survive" src="data:image/png;base64,{one["png"]}">'
        f"<figcaption>{in_html(one['caption'])}</figcaption></figure>"
        for one in pictures
    ]


def _named(experiment: str) -> str:
    """An experiment's name as an argument of a command in a shell."""
    quoted = shlex.quote(experiment)
    return f"-- {quoted}" if experiment.startswith("-") else quoted


def _asked(record: Record) -> str:
    """Options of the page that are not the defaults."""
    drop = "" if record["max_drop"] == Question.max_drop else f"--max-drop {record['max_drop']:g} "
    return drop + (f"--tokens {record['tokens']} " if record["tokens"] else "")


def _storage(record: Record) -> str:
    return f"--storage {shlex.quote(record['storage'])} " if record["storage"] else ""


def _reproduce(record: Record) -> str:
    source, storage = record["provenance"], _storage(record)
    name = _named(record["comparison"]["experiment"])
    lines = [f"git checkout {source['commit']}"] if source.get("commit") else []
    lines += [
        f"vispco run study.yaml {storage}",
        f"vispco compare --json {storage}{name}",
        f"vispco report -o report.html {_asked(record)}{storage}{name}",
    ]
    commands = "\n".join(line.rstrip() for line in lines)
    study = base64.b64encode(record["study"].encode("utf-8", "replace")).decode("ascii")
    return (
        f'<h4>Reproduce</h4><p>With the study below as <a download="study.yaml" href="data:text/yaml;base64,{study}">'
        f"study.yaml</a>:</p><pre>{in_html(commands)}</pre><h4>study.yaml</h4><pre>{in_html(record['study'])}</pre>"
    )
