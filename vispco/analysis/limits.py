"""An experiment's own limits, by any prices and by the accuracies that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vispco.costs.bounds import Bound, excess_loss, limits_on_costs, limits_on_tasks

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison
    from vispco.analysis.pricing import Pricing
    from vispco.analysis.study_result import StudyResult
    from vispco.evaluation.records import Evaluation


def own_bounds(comparison: Comparison) -> list[Bound]:
    """Limits on costs."""
    return limits_on_costs(comparison.facts.get("limits", {}))


def own_drops(comparison: Comparison) -> dict[str, float]:
    """Points that tasks may lose."""
    return limits_on_tasks(comparison.facts.get("limits", {}))


def excess_losses(unpruned: Evaluation, mine: Evaluation, drops: Mapping[str, float]) -> dict[str, float]:
    """:func:`excess_loss` of each task in ``drops``."""
    return {
        name: excess_loss(unpruned.tasks[name]["accuracy"], mine.tasks[name]["accuracy"], points)
        for name, points in drops.items()
    }


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
            over += excess_losses(unpruned, mine, drops).values()
        known = len(over) == len(bounds) + len(drops)
        found[trial.number] = max(over, default=0.0) if known else None
    return found
