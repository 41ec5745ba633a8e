"""What ``vispco export`` writes: the best measured schedule for a budget, with all that is known of it."""

from __future__ import annotations

from typing import Any

from vispco.analysis.comparison import Comparison, Searched
from vispco.analysis.selection import FITS, choose
from vispco.errors import ConfigError
from vispco.pruning.schedule_file import FORMAT, VERSION
from vispco.search.predicted import is_predicted


def export_schedule(comparison: Comparison, budget: float) -> dict[str, Any]:
    """The best measured schedule for ``budget`` over all searches, chosen on the search split.

    Imported trials count where they repeat a measurement of ours; of others the method is not known. Policies that
    read the prompt do not count: a file holds one schedule for all prompts.

    Raises:
        ConfigError: no trial fits the budget.
    """
    candidates = [
        (choose([trial for trial in search.trials if _holds(comparison, search, trial)], budget), search)
        for search in comparison.searches
    ]
    fitting = [(t, s) for t, s in candidates if t is not None and t.values[1] <= budget + FITS]
    if not fitting:
        cheapest = min((t.values[1] for t, _ in candidates if t is not None), default=None)
        least = (
            "it has no schedule that a file can hold"
            if cheapest is None
            else f"its cheapest has flops_ratio {cheapest:.4f}"
        )
        raise ConfigError(
            f"no schedule of {comparison.experiment!r} fits budget {budget}; {least}, give a larger --budget"
        )
    trial, search = min(fitting, key=lambda pair: (-pair[0].values[0], pair[0].values[1]))
    held_out = comparison.held_out(search, trial)
    origin = comparison.origin(search, trial) or search
    return {
        "format": FORMAT,
        "version": VERSION,
        "experiment": comparison.experiment,
        "spec_hash": comparison.stored["spec_hash"],
        "search": search.name,
        "trial": trial.number,
        "method": origin.facts["method"],
        "method_parameters": origin.facts.get("method_parameters", {}),
        "family": origin.facts["family"],
        "schedule": trial.user_attrs["schedule"],
        "keep_ratio": comparison.keep_ratio(search, trial),
        "budget": budget,
        "flops_ratio": trial.values[1],
        "accuracy": trial.values[0],
        "accuracy_held_out": held_out.accuracy if held_out else None,
        "model": comparison.stored["identity"]["model"]["name"],
        "versions": comparison.stored["provenance"]["versions"],
    }


def _holds(comparison: Comparison, search: Searched, trial: Any) -> bool:
    """Whether a schedule file can hold what a trial measured."""
    return comparison.origin(search, trial) is not None and not is_predicted(str(trial.user_attrs.get("schedule")))
