"""``vispco choose`` and the same options of ``vispco export``: from options to a question, and the answer as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vispco.analysis.comparison import Comparison, side_by_side
from vispco.analysis.decision import EVERY, Question, decide, nothing_cheaper, points_in_words
from vispco.analysis.pricing import Pricing
from vispco.analysis.repriced import Repriced
from vispco.cli.output import print_text
from vispco.cli.progress import TerminalProgress
from vispco.costs.base import make_cost
from vispco.costs.bounds import amount, parse_limit
from vispco.costs.profile import busy, read_profile
from vispco.errors import ConfigError
from vispco.storage.store import Store


def question(
    max_drop: float, cost: str | None, limits: Sequence[str], task_drops: Sequence[str], sure: float, default: str
) -> Question:
    """What the options ask; ``default`` is the experiment's cost."""
    tasks: dict[str, float] = {}
    for text in task_drops:
        name, equals, points = text.partition("=")
        try:
            tasks[name if equals else EVERY] = float(points if equals else name)
        except ValueError:
            raise ConfigError(
                f"--max-task-drop {text!r} is no number of points; write --max-task-drop 2 for every task, or "
                "--max-task-drop NAME=2"
            ) from None
    return Question(max_drop, cost or default, tuple(parse_limit(text) for text in limits), tasks, sure)


def pricing(comparison: Comparison, profile: Path | None, answer_tokens: int | None, batch: int | None) -> Pricing:
    given = read_profile(profile) if profile is not None else None
    return Pricing(comparison, given, answer_tokens=answer_tokens, batch=batch)


def decided(comparison: Comparison, asked: Question, priced: Pricing, *, measure: bool = False) -> dict[str, Any]:
    """The decision; with ``measure`` its schedule is measured on the held-out split if it was not."""
    decision = decide(comparison, asked, priced)
    if not measure or decision["chosen"]["accuracy_held_out"] is not None or decision["chosen"]["search"] is None:
        return decision
    from vispco.confirming import confirm

    chosen = decision["chosen"]
    confirm(comparison, chosen["search"], chosen["trial"], TerminalProgress())
    fresh = Comparison(comparison.store, comparison.experiment)
    same = {"answer_tokens": priced.answer_tokens, "batch": priced.batch}
    return decide(fresh, asked, Pricing(fresh, priced.given, **same))


def repriced(store: Store, experiments: Sequence[str], cost: str | None, profile: Path | None) -> dict[str, Any]:
    """``vispco compare`` under another cost, which may differ from experiment to experiment if none is given."""
    given = read_profile(profile) if profile is not None else None
    default = {name: cost or Comparison(store, name).cost for name in experiments}
    return side_by_side([Repriced(store, name, default[name], given) for name in experiments])


def print_decision(decision: dict[str, Any], storage: str | None = None) -> None:
    chosen, unpruned, cost = decision["chosen"], decision["unpruned"], make_cost(decision["cost"])
    drop = points_in_words(decision["max_drop"])
    if chosen["search"] is None:
        print_text(f"Prune nothing: {nothing_cheaper(decision)}.")
        return
    print_text(
        f"{chosen['schedule']} with {chosen['method']}: {amount(chosen['cost'], cost.unit)} "
        f"{cost.per(decision['batch'])} instead of {amount(unpruned['cost'], cost.unit)}, the cheapest of "
        f"{decision['candidates']} measured schedules within {drop} of the unpruned model (trial {chosen['trial']} of "
        f"{chosen['search']})"
    )
    lines = [f"{decision['cost']}: {chosen['cost_ratio']:.3f} of the unpruned model's"]
    for limit in decision["limits"]:
        own = make_cost(limit["cost"]).unit
        told = [f"{v:.3g}" if limit["relative"] else amount(v, own) for v in (_reached(limit), limit["bound"])]
        lines.append(f"{limit['cost']}: {told[0]}, limit {told[1]}")
    lines.append(f"search split, where it was chosen: {_pair(decision, 'accuracy')}")
    if chosen["accuracy_held_out"] is not None and unpruned["accuracy_held_out"] is not None:
        lines.append(f"held-out split: {_pair(decision, 'accuracy_held_out')}")
    for name, test in {"": decision["held_out"], **decision["tasks"]}.items():
        if test is not None:
            lines.append(
                f"{f'{name}: ' if name else ''}{100 * test['difference']:+.1f} points held-out, with "
                f"{100 * decision['sure']:g} % confidence no less than {100 * test['low']:+.1f}"
            )
    verdict = {True: "confirmed", False: "not confirmed", None: "cannot be confirmed"}[decision["confirmed"]]
    lines.append(verdict + (f": {decision['why']}" if decision["why"] else ""))
    if not decision["exact_lengths"] and decision["cost"] != "flops":
        lines.append("costs are of a prompt of average length: this experiment did not store its prompts' lengths")
    if decision["times_of"]:
        lines.append(decision["times_of"])
    if said := busy(decision["noise"]):
        lines.append(said)
    for line in lines:
        print_text(f"  {line}")


def _pair(decision: dict[str, Any], key: str) -> str:
    return f"{decision['score']} {decision['chosen'][key]:.3f}, unpruned {decision['unpruned'][key]:.3f}"


def _reached(limit: dict[str, Any]) -> float:
    return float(limit["share" if limit["relative"] else "absolute"])
