"""An experiment's own limits, by any prices and by the accuracies that were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vispco.costs.bounds import TASKS, Bound, parse_bound

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison
    from vispco.analysis.pricing import Pricing
    from vispco.analysis.study_result import StudyResult


def own_bounds(comparison: Comparison) -> list[Bound]:
    """Limits on costs."""
    given = comparison.facts.get("limits", {})
    return [parse_bound(name, bound) for name, bound in given.items() if name != TASKS]


def own_drops(comparison: Comparison) -> dict[str, float]:
    """Points that tasks may lose."""
    given = comparison.facts.get("limits", {}).get(TASKS, {})
    return {name: float(limit["max_drop"]) for name, limit in given.items()}


def excesses(comparison: Comparison, pricing: Pricing, search: StudyResult) -> dict[int, float | None]:
    """By how much each trial exceeds its limits, at most 0 within all, as ``limit_excess`` has it for the study's own
    prices; None where a limited cost has no price or a task's accuracy is not known."""
    bounds, drops = own_bounds(comparison), own_drops(comparison)
    ids = {trial.number: str(trial.user_attrs.get("evaluation")) for trial in search.trials}
    measured = comparison.store.get_evaluations(ids.values()) if drops else {}
    unpruned = comparison.reference("unpruned", "search")
    found: dict[int, float | None] = {}
    for trial in search.trials:
        prices = [(bound, pricing.of(bound.cost, search, trial)) for bound in bounds]
        over = [bound.excess(price.absolute, price.share) for bound, price in prices if price is not None]
        mine = measured.get(ids[trial.number])
        if unpruned is not None and mine is not None:
            lost = {name: unpruned.tasks[name]["accuracy"] - mine.tasks[name]["accuracy"] for name in drops}
            over += [lost[name] - points / 100 for name, points in drops.items()]
        known = len(over) == len(bounds) + len(drops)
        found[trial.number] = max(over, default=0.0) if known else None
    return found
