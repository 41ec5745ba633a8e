"""The top of the page: the cheapest schedule within the asked loss, as a sentence, a picture and a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from vispco.dashboards.glossary import term
from vispco.dashboards.text import in_html, percent, points, shortened, whole_percent
from vispco.dashboards.tiles import Tile, tiles

from vispco.analysis.decision import nothing_cheaper, points_in_words
from vispco.costs.base import make_cost
from vispco.costs.bounds import amount
from vispco.costs.profile import busy

COST_NAMES = {
    "flops": "compute",
    "total_flops": "compute with tower and answer",
    "kv_bytes": "KV cache",
    "peak_bytes": "peak memory beside the weights",
    "prefill_ms": "time of the prefill",
    "latency_ms": "time of the whole answer",
}


def decision_html(
    decision: dict[str, Any] | None,
    prices: Sequence[dict[str, Any]] = (),
    command: str = "",
    prefix: str = "",
    undecided: str = "",
) -> str:
    """The decision, or why there is none.

    Args:
        prices: what the schedule costs, the study's own cost first (``decision_prices`` of the report).
        command: what exports the schedule.
        prefix: begins the ids.
        undecided: why there is no decision.
    """
    if decision is None:
        return f'<p class="lead" id="{prefix}decision">No decision: {in_html(undecided)}.</p>' if undecided else ""
    chosen, asked = decision["chosen"], points_in_words(decision["max_drop"])
    if chosen["search"] is None:
        return f'<p class="lead" id="{prefix}decision">Prune nothing: {in_html(nothing_cheaper(decision))}.</p>'
    text = (
        f"The cheapest {term('schedule')} within {asked} of the {term('unpruned')} model takes "
        f"{_taken(decision)}: "
        f"<code>{in_html(shortened(chosen['schedule'], 90))}</code> with {in_html(chosen['method'])}."
    )
    return (
        f'<p class="lead" id="{prefix}decision">{text}</p>{schedule_picture(chosen["keep_ratio"])}'
        f"{tiles([_kept(decision), *map(_saved, prices), _sure(decision)])}{_why(decision)}{_export(command, prefix)}"
    )


def _taken(decision: dict[str, Any]) -> str:
    """What the schedule costs, in the cost's unit and as a share."""
    chosen, cost = decision["chosen"], make_cost(decision["cost"])
    mine, whole = (amount(value, cost.unit) for value in (chosen["cost"], decision["unpruned"]["cost"]))
    return (
        f"<strong>{mine}</strong> {cost.per(decision['batch'])} instead of {whole} "
        f"({escape(cost_name(cost.name))}, <strong>{percent(chosen['cost_ratio'], 0)}</strong>)"
    )


def cost_name(cost: str) -> str:
    """A cost in a sentence."""
    return COST_NAMES.get(cost, cost)


def schedule_picture(keep_ratio: Sequence[float] | None) -> str:
    """A bar for each layer, as high as the share of the visual tokens that it reads; "" where that is not known."""
    if not keep_ratio:
        return ""
    layers, height = len(keep_ratio), 60
    width = max(8, min(40, 640 // layers))
    bars = "".join(
        f'<rect class="all" x="{n * width}" y="0" width="{width - 1}" height="{height}"/>'
        f'<rect class="kept" x="{n * width}" y="{height * (1 - ratio):.1f}" width="{width - 1}" '
        f'height="{height * ratio:.1f}"><title>layer {n}: {whole_percent(ratio)} of the visual tokens</title></rect>'
        for n, ratio in enumerate(keep_ratio)
    )
    runs: list[list[Any]] = []
    for n, ratio in enumerate(keep_ratio):
        shown = whole_percent(ratio)
        if runs and runs[-1][2] == shown:
            runs[-1][1] = n
        else:
            runs.append([n, n, shown])
    told = "; ".join(
        f"layer {first} {shown}" if first == last else f"layers {first} to {last} {shown}"
        for first, last, shown in runs
    )
    return (
        f'<figure class="schedule"><svg role="img" aria-label="Visual tokens that enter each layer: {escape(told)}" '
        f'viewBox="0 0 {layers * width} {height}" style="max-width:{layers * width}px">{bars}</svg>'
        f"<figcaption>Share of the visual tokens that enters each decoder layer, 0 to {layers - 1}: {escape(told)}."
        "</figcaption></figure>"
    )


def _kept(decision: dict[str, Any]) -> Tile:
    mine, whole = decision["chosen"]["accuracy_held_out"], decision["unpruned"]["accuracy_held_out"]
    where = term("held-out split")
    if mine is None or not whole:
        mine, whole = decision["chosen"]["accuracy"], decision["unpruned"]["accuracy"]
        where = f"{term('search split')}, where it was chosen"
    share = percent(mine / whole, 0) if whole else "-"
    return Tile(
        share,
        f"of the unpruned {term('accuracy', decision['score'])} kept",
        f"{percent(mine)} of {percent(whole)} on the {where}",
    )


def _saved(price: dict[str, Any]) -> Tile:
    name = escape(cost_name(price["cost"]))
    used, whole = (amount(price[key], price["unit"]) for key in ("absolute", "unpruned"))
    if price["share"] > 1:
        return Tile(f"+{percent(price['share'] - 1, 0)}", f"{name} added", f"{used} instead of {whole} {price['per']}")
    return Tile(percent(1 - price["share"], 0), f"{name} saved", f"{used} instead of {whole} {price['per']}")


def _sure(decision: dict[str, Any]) -> Tile:
    verdict = {True: "Confirmed", False: "Not confirmed", None: "Not testable"}[decision["confirmed"]]
    test = decision["held_out"]
    if test is None:
        return Tile(verdict, term("confirmed", "on the held-out split"))
    return Tile(
        verdict,
        f"{points(test['difference'])} points on the {term('held-out split')}",
        f"at worst {points(test['low'])}, with {100 * decision['sure']:g} % confidence",
        small=True,
    )


def _why(decision: dict[str, Any]) -> str:
    notes = [said for said in (decision["times_of"], busy(decision["noise"])) if said]
    shaky = "".join(f'<p class="why">{in_html(said[0].upper() + said[1:])}.</p>' for said in notes)
    if not decision["why"]:
        return shaky
    lead = "Not confirmed" if decision["confirmed"] is False else "It cannot be confirmed"
    return f'<p class="why">{lead}: {in_html(decision["why"])}.</p>{shaky}'


def _export(command: str, prefix: str) -> str:
    if not command:
        return ""
    return (
        f'<div class="command"><pre id="{prefix}export-decision">{in_html(command)}</pre>'
        f'<button type="button" class="copy" data-for="{prefix}export-decision">Copy</button></div>'
        "<p>In Python: <code>with vispco.prune(model, schedule=&quot;schedule.json&quot;): model.generate(...)</code>"
        "</p>"
    )
