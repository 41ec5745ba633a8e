"""``vispco report``: one self-contained HTML page; works from a file and without a network."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml
from plotly.offline import get_plotlyjs
from vispco.dashboards import figures, heatmaps, tables
from vispco.dashboards.axis import name_of, of_what, title_of
from vispco.dashboards.overlay import overlay
from vispco.dashboards.text import in_html, script_json, shortened
from vispco.dashboards.words import answer_html, decision_html

from vispco.analysis.anytime import anytime
from vispco.analysis.attainment import attainment_bands
from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import Question, decide
from vispco.analysis.headline import HALF, answer
from vispco.analysis.layers import layer_record
from vispco.analysis.seeds import against
from vispco.analysis.violations import violations
from vispco.errors import ConfigError, StorageError
from vispco.exporting import export_steps
from vispco.outputs import HTML, check_output, write_output
from vispco.storage.opening import DEFAULT_URL, redact
from vispco.storage.store import Store

FOLDER = Path(__file__).parent
STYLE = (FOLDER / "report.css").read_text(encoding="utf-8")
SCRIPT = (FOLDER / "report.js").read_text(encoding="utf-8")
PURPOSE = 500  # characters of the study's purpose; all of it is in the study below
Figures = dict[str, go.Figure]


def write_report(store: Store, experiment: str, output: Path, *, tokens: int = 0) -> None:
    """Write the page of one experiment.

    Args:
        tokens: on how many held-out samples the surviving tokens are shown, for which the model is loaded and run.

    Raises:
        StorageError: no such experiment, or one without results.
        ConfigError: the file cannot be written or holds something else, or no schedule can be exported to be shown
            on samples.
        ModelError: ``tokens`` without the model at hand.
    """
    comparison = Comparison(store, experiment)
    check_output(output, HTML)
    pictures = []
    if tokens:
        from vispco.dashboards.tokens import sample_pictures

        pictures = sample_pictures(comparison, tokens)
    page = render(report_record(comparison), pictures)
    write_output(output, page, HTML)


def report_record(comparison: Comparison) -> dict[str, Any]:
    """All that the page shows; ``comparison`` is the object of ``vispco compare --json``."""
    return {
        "comparison": comparison.to_dict(),
        "decision": decision(comparison),
        "answer": answer(comparison),
        "points": comparison.points(),
        "paths": gradient_paths(comparison),
        "violations": violations(comparison),
        "seeds": over_seeds(comparison),
        "layers": layer_record(comparison),
        "export": export_steps(comparison),
        "storage": "" if comparison.store.url == DEFAULT_URL else redact(comparison.store.url),
        "study": comparison.stored["spec_text"],
        "provenance": provenance(comparison),
    }


def decision(comparison: Comparison) -> dict[str, Any] | None:
    """The decision for a loss of one point, in the experiment's cost; None where it has no unpruned model."""
    try:
        return decide(comparison, Question(cost=comparison.facts.get("cost", "flops")))
    except (ConfigError, StorageError):
        return None


def over_seeds(comparison: Comparison) -> dict[str, Any]:
    """What is said of entries rather than of single runs; None where there is no grid to relate to."""
    grid = comparison.grid()
    return {
        "against": against(comparison, grid.entry) if grid else None,
        "bands": attainment_bands(comparison),
        "anytime": anytime(comparison) if comparison.grid_flops() else None,
    }


def gradient_paths(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Search -> ``steps`` of each of its budgets, and ``budgets`` by key, of gradient searches."""
    found = {}
    for search in comparison.searches:
        steps = {key: rows for key, rows in comparison.store.trajectory(search.study).items() if _is_gradient(rows)}
        if steps:
            # As the search numbers them: from the largest to the smallest.
            known = {f"budget-{n}": b for n, b in enumerate(sorted(comparison.budgets, reverse=True))}
            found[search.name] = {"steps": steps, "budgets": known}
    return found


def _is_gradient(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Other searches store other things there."""
    return bool(rows) and all("violation" in row for row in rows)


def provenance(comparison: Comparison) -> dict[str, Any]:
    """Where the numbers come from."""
    stored = comparison.stored
    entries: dict[str, dict[str, Any]] = {}
    for facts in comparison.facts["studies"].values():
        known = entries.setdefault(
            facts["entry"],
            {
                "entry": facts["entry"],
                "kind": facts["kind"],
                "method": facts.get("method"),
                "family": facts.get("family"),
                "seeds": [],
            },
        )
        known["seeds"].append(facts.get("seed"))
    for entry in entries.values():
        entry["seeds"] = ", ".join("-" if seed is None else str(seed) for seed in entry["seeds"])
    unpruned = comparison.reference("unpruned", "held_out")
    created = stored.get("created")
    return {
        **stored["provenance"],
        "spec_hash": stored["spec_hash"],
        "accounting": comparison.facts["accounting"],
        "evaluation": unpruned.id if unpruned else None,
        "created": created.isoformat(" ", "seconds") if created else None,
        "entries": list(entries.values()),
    }


# --- the page ------------------------------------------------------------------------------------


def render(record: dict[str, Any], pictures: Sequence[Mapping[str, str]] = ()) -> str:
    """The page's HTML."""
    comparison, answered = record["comparison"], record["answer"]
    drawn: Figures = {}
    parts = [
        f"<h1>{in_html(comparison['experiment'])}</h1>",
        _purpose(record["study"]),
        decision_html(record["decision"]),
        answer_html(answered),
        "<h2>Every front in one picture</h2>",
        _choice(
            drawn,
            "overlay",
            "Accuracy on",
            {
                "the held-out split": overlay(comparison, record["points"], record["seeds"]["bands"]),
                "the search split": overlay(comparison, record["points"], record["seeds"]["bands"], "search"),
            },
        ),
        _slider(comparison, answered),
        "<h2>What each search found, and its cost</h2>",
        tables.searches(comparison),
        _pair(_one(drawn, "costs", figures.costs(comparison)), _one(drawn, "choices", figures.choices(comparison))),
        *_seeds(drawn, record["seeds"], comparison),
        "<h2>Choice per budget</h2>",
        tables.by_budget(comparison),
        *_tasks(drawn, comparison),
        *_schedules(drawn, comparison),
        _layers(drawn, record["layers"]),
        *_paths(drawn, record["paths"], tables.violations(record["violations"])),
        *_pictures(pictures),
        "<h2>Provenance</h2>",
        tables.provenance(record["provenance"]),
        _reproduce(record),
    ]
    facts = {
        "colors": {s["name"]: figures.entry_colors(comparison)[figures.entry_of(s)] for s in comparison["searches"]},
        "export": record["export"],
        "command": ["vispco export", _named(comparison["experiment"]), _storage(record)],
    }
    data = {
        "comparison": script_json(comparison),
        "figures": "{" + ",".join(f'"{key}":{script_json(f.to_json())}' for key, f in drawn.items()) + "}",
        "facts": script_json(facts),
    }
    blocks = "".join(f'<script type="application/json" id="{name}">{text}</script>' for name, text in data.items())
    scripts = [SCRIPT, get_plotlyjs()]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    ours, library = (f"<script>{script}</script>" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(comparison['experiment'])} - VisPCO</title><style>{STYLE}</style>"
        f'</head><body><main><button id="theme" type="button" hidden>Dark</button>{"".join(parts)}'
        "<noscript><p>The figures need JavaScript; text and tables do not.</p></noscript></main>"
        f"{blocks}{ours}{library}</body></html>\n"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _one(drawn: Figures, key: str, figure: go.Figure) -> str:
    """A place for a figure."""
    drawn[key] = figure
    return f'<div id="{key}" class="figure" data-figure="{key}" style="height:{figure.layout.height}px"></div>'


def _choice(drawn: Figures, key: str, label: str, shown: Mapping[str, go.Figure]) -> str:
    """A place for one of several figures, and what chooses between them."""
    for number, figure in enumerate(shown.values()):
        drawn[f"{key}-{number}"] = figure
    names = "".join(f'<option value="{key}-{n}">{escape(name)}</option>' for n, name in enumerate(shown))
    chooser = (
        f'<p class="choice picker"><label>{label} <select data-for="{key}" dir="auto">{names}</select></label></p>'
    )
    height = max(figure.layout.height for figure in shown.values())
    place = f'<div id="{key}" class="figure" data-figure="{key}-0" style="height:{height}px"></div>'
    return (chooser if len(shown) > 1 else "") + place


def _pair(*parts: str) -> str:
    return f'<div class="pair">{"".join(parts)}</div>'


def _purpose(study: str) -> str:
    """What the study says that it is for."""
    try:
        known = yaml.safe_load(study)
    except yaml.YAMLError:
        known = None
    text = known.get("purpose") if isinstance(known, dict) else None
    return (
        f"<p>{in_html(shortened(' '.join(text.split()), PURPOSE))}</p>"
        if isinstance(text, str) and text.strip()
        else ""
    )


def _slider(comparison: dict[str, Any], answered: dict[str, Any]) -> str:
    low, high = min(comparison["floor"], 1.0), 1.0
    start = answered["budget"] if answered["budget"] is not None else HALF
    return (
        '<section id="chooser" hidden><h3>The best schedule within a budget</h3>'
        '<p class="choice"><label for="budget">At most <output id="budget-shown" for="budget"></output> of the '
        f'{of_what(comparison)}</label> <input id="budget" type="range" min="{low:.4f}" max="{high}" step="any" '
        f'value="{start}"></p>'
        '<div class="scroll tall"><table id="chosen" aria-live="polite"><thead><tr><th>search</th>'
        f"<th>held-out accuracy</th><th>95 % interval</th><th>{name_of(comparison)}</th><th>schedule</th></tr></thead>"
        "<tbody></tbody></table></div>"
        '<p id="export-note"></p><div class="command"><pre id="export"></pre>'
        '<button type="button" id="copy">Copy</button></div></section>'
    )


def _seeds(drawn: Figures, seeds: dict[str, Any], comparison: dict[str, Any]) -> list[str]:
    parts, axis = [], title_of(comparison)
    if seeds["against"]:
        parts += ["<h2>What may be said of the searches</h2>", tables.against(seeds["against"])]
    if seeds["anytime"]:
        parts.append(_one(drawn, "anytime", figures.anytime(seeds["anytime"])))
    if any(band["runs"] > 1 for band in seeds["bands"]):
        both = [figures.attainment(seeds["bands"], split, axis) for split in ("held_out", "search")]
        parts.append(_pair(*(_one(drawn, f"seeds-{n}", figure) for n, figure in enumerate(both))))
    return parts


def _tasks(drawn: Figures, comparison: dict[str, Any]) -> list[str]:
    """Fronts of each task; one task's are the experiment's own."""
    found = list(dict.fromkeys(t for s in comparison["searches"] for p in s["front"] for t in p["tasks"]))
    if len(found) < 2:
        return []
    shown = {task: figures.task_fronts(comparison, task) for task in found}
    return ["<h2>Task by task</h2>", _choice(drawn, "task", "Task", shown)]


def _schedules(drawn: Figures, comparison: dict[str, Any]) -> list[str]:
    searches = [s for s in comparison["searches"] if any(point["keep_ratio"] for point in s["front"])]
    if not searches:
        return []
    shown = {search["name"]: figures.schedules(search, name_of(comparison)) for search in searches}
    return ["<h2>Schedules, layer by layer</h2>", _choice(drawn, "map", "Front of", shown)]


def _layers(drawn: Figures, record: dict[str, Any]) -> str:
    """What was learned and what layers cost: sentences, then heat maps."""
    maps = [_one(drawn, f"layers-{n}", figure) for n, figure in enumerate(heatmaps.all_maps(record))]
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in record["summary"])
    return f"<h2>What each layer is worth</h2><ul>{told}</ul>{_pair(*maps)}"


def _paths(drawn: Figures, paths: dict[str, dict[str, Any]], held: str) -> list[str]:
    if not paths:
        return []
    shown = {name: figures.trajectory(name, path["steps"], path["budgets"]) for name, path in paths.items()}
    note = (
        "Violation is (cost - budget) / budget of the relaxed schedule, where costs are shares of the unpruned "
        "model's: above 0 it is over the budget. The "
        "multiplier grows while it is. With every dual step the budgets are restored by steps on the constraints "
        "alone, so each line jumps back; the table says where it ended, before the snap."
    )
    return ["<h2>How the gradient search went</h2>", f"<p>{note}</p>", _choice(drawn, "path", "Search", shown), held]


def _pictures(pictures: Sequence[Mapping[str, str]]) -> list[str]:
    if not pictures:
        return []
    shown = "".join(
        f'<figure><img alt="patches that survive" src="data:image/png;base64,{one["png"]}">'
        f"<figcaption>{in_html(one['caption'])}</figcaption></figure>"
        for one in pictures
    )
    return ["<h2>Which tokens survive</h2>", shown]


def _named(experiment: str) -> str:
    """An experiment's name as an argument of a command in a shell."""
    quoted = shlex.quote(experiment)
    return f"-- {quoted}" if experiment.startswith("-") else quoted


def _storage(record: dict[str, Any]) -> str:
    return f"--storage {shlex.quote(record['storage'])} " if record["storage"] else ""


def _reproduce(record: dict[str, Any]) -> str:
    source, storage = record["provenance"], _storage(record)
    name = _named(record["comparison"]["experiment"])
    lines = [f"git checkout {source['commit']}"] if source.get("commit") else []
    lines += [
        f"vispco run study.yaml {storage}",
        f"vispco compare --json {storage}{name}",
        f"vispco report -o report.html {storage}{name}",
    ]
    commands = "\n".join(line.rstrip() for line in lines)
    study = base64.b64encode(record["study"].encode("utf-8", "replace")).decode("ascii")
    return (
        f'<h3>Reproduce</h3><p>With the study below as <a download="study.yaml" href="data:text/yaml;base64,{study}">'
        f"study.yaml</a>:</p><pre>{in_html(commands)}</pre>"
        f"<details open><summary>study.yaml</summary><pre>{in_html(record['study'])}</pre></details>"
        '<p id="numbers" hidden><a download="comparison.json">The numbers of this page</a>, as '
        "<code>vispco compare --json</code> prints them.</p>"
    )
