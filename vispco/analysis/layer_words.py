"""The layer record in plain words; every number is the record's, in percent or points; every rule is stated and tested.

Neighbouring budgets whose schedules prune at the same layer are one range, in at most ``RANGES`` ranges: beyond
that, the two neighbours whose layers are nearest to each other are joined. A difference between layers is only named
where their intervals do not overlap.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RANGES = 4
HARMLESS = 0.01  # of accuracy: one point
SAME = 0.005


@dataclass(frozen=True)
class Range:
    """Neighbouring budgets, and the layers (ascending) of their schedules; ``nothing``: some of them do not prune."""

    budgets: tuple[float, ...]
    layers: tuple[int, ...]
    nothing: bool = False

    @property
    def width(self) -> float:
        """How far its layers lie apart; that of a range in which some prune and some do not is infinite."""
        if self.nothing and self.layers:
            return float("inf")
        return self.layers[-1] - self.layers[0] if self.layers else 0

    def __add__(self, other: Range) -> Range:
        layers = tuple(sorted({*self.layers, *other.layers}))
        return Range(self.budgets + other.budgets, layers, self.nothing or other.nothing)


def ranges(layers: Sequence[tuple[float, int | None]], most: int = RANGES) -> list[Range]:
    """(budget, layer) pairs by budget, put together into at most ``most`` ranges; layer None prunes nothing."""
    parts: list[Range] = []
    for budget, layer in layers:
        one = Range((budget,), () if layer is None else (layer,), layer is None)
        if parts and (parts[-1].layers, parts[-1].nothing) == (one.layers, one.nothing):
            parts[-1] += one
        else:
            parts.append(one)
    while len(parts) > most:
        joined = [a + b for a, b in itertools.pairwise(parts)]
        best = min(range(len(joined)), key=lambda i: (joined[i].width, len(joined[i].budgets), i))
        parts[best : best + 2] = [joined[best]]
    merged: list[Range] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last and last.nothing == part.nothing and (last + part).width in (last.width, part.width):
            merged[-1] += part  # one of the two says all that both would
        else:
            merged.append(part)
    return merged


def summary(record: Mapping[str, Any]) -> list[str]:
    """Paragraphs about a layer record: one per entry, per method, and per entry with gradients."""
    told = [learned(entry) for entry in record["learned"]]
    told += [sensitivity(table) for table in record["sensitivity"]]
    told += [gradient(entry) for entry in record["gradient"]]
    return [part for part in told if part] or ["Nothing is complete yet: no search has a schedule for any budget."]


# --- what was learned --------------------------------------------------------------------------------


def learned(entry: Mapping[str, Any]) -> str:
    """At which layers the chosen schedules prune, how hard, and how much seeds differ; '' if nothing is chosen."""
    name, seeds = entry["entry"], entry["seeds"]
    rows = sorted((row for row in entry["rows"] if row["keep_ratio"]), key=lambda row: row["budget"])
    told = []
    if rows:
        who = f"{name} ({seeds} seeds)" if seeds > 1 else name
        told.append(f"{who}: {_ranges_told(rows)}.")
        told += _trend(rows) + _agreement(entry["rows"], seeds)
    over = [row for row in entry["rows"] if row["over"]]
    if none := [row["budget"] for row in over if row["over"] == seeds]:
        told.append(f"{'It' if told else name} has nothing that fits {_listed(none, 'budget')}.")
    if some := [row["budget"] for row in over if row["over"] < seeds]:
        told.append(
            f"{_missing([row['over'] for row in over if row['over'] < seeds], seeds)} {_listed(some, 'budget')}."
        )
    return " ".join(told)


def _missing(over: Sequence[int], seeds: int) -> str:
    most = max(over)
    return f"{'' if min(over) == most else 'Up to '}{most} of its {seeds} seeds {'misses' if most == 1 else 'miss'}"


def _place(row: Mapping[str, Any]) -> tuple[float, int | None]:
    return row["budget"], row["layer"]["median"] if row["layer"] else None


def _ranges_told(rows: Sequence[Mapping[str, Any]]) -> str:
    by_budget = {row["budget"]: row for row in rows}
    digits, several = _digits(list(by_budget)), ranges([_place(row) for row in rows])
    gradual = any(row["steps"] > 1 for row in rows)
    parts = []
    for number, part in enumerate(several):
        where = _where(part.budgets, number == 0, number == len(several) - 1, digits)
        parts.append(f"{where} {_done(part, [by_budget[b]['keep']['mean'] for b in part.budgets], gradual)}")
    return "; ".join(parts)


def _where(budgets: Sequence[float], first: bool, last: bool, digits: int) -> str:
    low, high = (f"{100 * budget:.{digits}f}" for budget in (budgets[0], budgets[-1]))
    if len(budgets) == 1:
        return f"at a budget of {low} %"
    if first and last:
        return f"at all {len(budgets)} budgets, {low} to {high} %,"
    if first:
        return f"up to a budget of {high} %"
    return f"from {low} % on" if last else f"from {low} to {high} %"


def _done(part: Range, keeps: Sequence[float], gradual: bool) -> str:
    if not part.layers:
        return "it prunes nothing"
    kept = _span([_percent(keep) for keep in (min(keeps), max(keeps))]) + " %"
    layers = _layers(part.layers)
    nothing = ", or prunes nothing" if part.nothing else ""
    if gradual:
        return f"half of what it drops is gone by {layers}, and {kept} of the tokens stay at the end{nothing}"
    return f"it prunes at {layers} and keeps {kept} of the tokens{nothing}"


def _trend(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Only where every range lies after the one before."""
    several = ranges([_place(row) for row in rows])
    if len(several) < 2 or any(part.nothing for part in several):
        return []
    pairs = list(itertools.pairwise(several))
    if all(a.layers[-1] < b.layers[0] for a, b in pairs):
        return ["The larger the budget, the later it prunes."]
    if all(a.layers[0] > b.layers[-1] for a, b in pairs):
        return ["The larger the budget, the earlier it prunes."]
    return []


def _agreement(rows: Sequence[Mapping[str, Any]], seeds: int) -> list[str]:
    spreads = [row["layer"]["high"] - row["layer"]["low"] for row in rows if row["layer"] and row["seeds"] > 1]
    if seeds < 2 or not spreads:
        return []
    same = sum(spread == 0 for spread in spreads)
    if same == len(spreads):
        return [f"Its seeds agree on the layer at all {same} budgets." if same > 1 else "Its seeds agree on the layer."]
    return [f"Its seeds agree on the layer at {same} of {len(spreads)} budgets and differ by up to {max(spreads)}."]


# --- sensitivity -------------------------------------------------------------------------------------


def sensitivity(table: Mapping[str, Any]) -> str:
    """What one step costs early and late, and which layer is dearest per unit of compute saved."""
    column = table["keeps"].index(table["reference_keep"])
    cells = [
        (layer, lost[column], saved[column], ci)
        for layer, lost, saved, ci in zip(table["layers"], table["lost"], table["saved"], table["lost_ci"], strict=True)
        if lost[column] is not None
    ]
    step = f"one step of {table['method']} that keeps {100 * table['reference_keep']:.0f} % of the tokens"
    late = next((i for i in range(len(cells)) if all(cell[1] <= HARMLESS + 1e-9 for cell in cells[i:])), None)
    told, harmless = "On the search split ", _points(HARMLESS)
    if late == 0:
        told += f"{step} costs at most {harmless} of accuracy at every layer from {cells[0][0]} to {cells[-1][0]}."
    else:
        layer, lost, saved, ci = cells[0]
        told += f"{step} at layer {layer} {_cost(lost, ci)} and saves {100 * saved:.0f} % of the compute; "
        if late is None:
            told += f"at layer {cells[-1][0]} it {_cost(cells[-1][1], cells[-1][3])}."
        elif late == len(cells) - 1:
            told += f"at layer {cells[late][0]} it costs at most {harmless}."
        else:
            told += f"from layer {cells[late][0]} on it costs at most {harmless}."
    return " ".join([told, *_per_compute(table)])


def _per_compute(table: Mapping[str, Any]) -> list[str]:
    layers, values, bounds = table["layers"], table["per_compute"], table["per_compute_ci"]
    if None in values:
        return []
    high, low = (pick(range(len(values)), key=lambda i: values[i]) for pick in (max, min))
    if values[high] - values[low] < SAME:
        return [f"Per unit of compute saved, all layers cost {table['method']} the same, {_points(values[high])}."]
    if sure := [i for i in range(len(values)) if bounds[i]]:
        dear, cheap = max(sure, key=lambda i: bounds[i][0]), min(sure, key=lambda i: bounds[i][1])
        if bounds[dear][0] <= bounds[cheap][1]:
            told = f"the layers cost {table['method']} from {_number(values[low])} to {_points(values[high])}"
            return [f"Per unit of compute saved, {told}; no layer is shown to cost more than another."]
        if (dear, cheap) != (high, low):
            return [
                f"Per unit of compute saved, layer {layers[dear]} costs {table['method']} more "
                f"({_points(values[dear])}{_interval(bounds[dear])}) than layer {layers[cheap]} "
                f"({_number(values[cheap])}{_interval(bounds[cheap])})."
            ]
    return [
        f"Per unit of compute saved, layer {layers[high]} costs {table['method']} most "
        f"({_points(values[high])}{_interval(bounds[high])}) and layer {layers[low]} least "
        f"({_number(values[low])}{_interval(bounds[low])})."
    ]


def _cost(lost: float, ci: Sequence[float] | None) -> str:
    if _number(lost) == "0":
        verb = "costs no accuracy"
    else:
        verb = f"{'costs' if lost > 0 else 'gains'} {_points(abs(lost))} of accuracy"
    if ci is None:
        return verb
    low, high = sorted(ci) if lost >= 0 else sorted((-ci[0], -ci[1]))
    return f"{verb} ({_number(low)} to {_number(high)})"


# --- gradient ----------------------------------------------------------------------------------------


def gradient(entry: Mapping[str, Any]) -> str:
    """At which layer keeping more tokens is worth most to the loss; '' without rows."""
    places: list[tuple[float, int | None]] = []
    for row in sorted(entry["rows"], key=lambda row: row["budget"]):
        best = max(range(len(row["worth"])), key=lambda layer: row["worth"][layer])
        places.append((row["budget"], best if row["worth"][best] > 0 else None))
    if all(layer is None for _, layer in places):
        return f"By the gradient of {entry['entry']}, more tokens are worth nothing at any layer." if places else ""
    digits, several = _digits([budget for budget, _ in places]), ranges(places)
    parts = []
    for number, part in enumerate(several):
        where = _where(part.budgets, number == 0, number == len(several) - 1, digits)
        layers = f"at {_layers(part.layers)}" if part.layers else "nowhere"
        parts.append(f"{layers} {where.removesuffix(',')}")
    return f"By the gradient of {entry['entry']}, more tokens are worth most {'; '.join(parts)}."


# --- numbers -----------------------------------------------------------------------------------------


def _digits(budgets: Sequence[float]) -> int:
    """Decimals of budgets in percent: as many as tell them apart."""
    return next((n for n in (0, 1, 2) if len({f"{100 * b:.{n}f}" for b in budgets}) == len(set(budgets))), 3)


def _number(value: float) -> str:
    """An accuracy, or a difference of two, in whole points."""
    text = f"{100 * value:.0f}"
    return "0" if text == "-0" else text


def _points(value: float) -> str:
    text = _number(value)
    return f"{text} point" if text == "1" else f"{text} points"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if 0 < share < 0.01 else f"{100 * share:.0f}"


def _interval(ci: Sequence[float] | None) -> str:
    return f", {_number(ci[0])} to {_number(ci[1])}" if ci else ""


def _span(texts: Sequence[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _layers(layers: Sequence[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"


def _listed(budgets: Sequence[float], what: str) -> str:
    digits = _digits(budgets)
    shown = [f"{100 * budget:.{digits}f}" for budget in sorted(budgets)]
    if len(shown) == 1:
        return f"a {what} of {shown[0]} %"
    if len(shown) > 3:
        return f"{len(shown)} {what}s, {shown[0]} to {shown[-1]} %"
    return f"{what}s of {', '.join(shown)} %"
