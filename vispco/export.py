"""What ``vispco export`` writes: the best measured schedule for a budget, with all that is known of it."""

from __future__ import annotations

from typing import Any

from vispco.analysis.comparison import Comparison, Searched
from vispco.analysis.selection import choose, front
from vispco.errors import ConfigError
from vispco.pruning.schedule_file import FORMAT, VERSION
from vispco.search.predicted import is_predicted


def export_schedule(comparison: Comparison, budget: float) -> dict[str, Any]:
    """The best measured schedule for ``budget`` over all searches, chosen on the search split.

    Imported trials count where they repeat a measurement of ours; of others the method is not known. Policies that
    read the prompt do not count: a file holds one schedule for all prompts.

    Raises:
        ConfigError: no trial fits the budget, or it is no share of the unpruned compute.
    """
    held = _holdable(comparison)
    costs = [trial.values[1] for trials, _ in held for trial in trials]
    if not 0 < budget <= max([1.0, *costs]):  # choosing can cost more than it saves
        raise ConfigError(
            f"budget {budget:g} is no share of the unpruned model's compute; give a number above 0 and at most 1, "
            "such as 0.5 for half"
        )
    fitting = _choices(budget, held)
    if not fitting:
        least = f"its cheapest has flops_ratio {min(costs):.4f}" if costs else "it has no schedule that a file can hold"
        raise ConfigError(
            f"no schedule of {comparison.experiment!r} fits budget {budget}; {least}, give a larger --budget"
        )
    trial, search = min(fitting, key=_preference)
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


def export_steps(comparison: Comparison) -> list[dict[str, Any]]:
    """What :func:`export_schedule` chooses as the budget grows: from ``flops_ratio`` on, until the next row's."""
    held = [(front(trials), search) for trials, search in _holdable(comparison)]
    found: list[dict[str, Any]] = []
    for budget in sorted({trial.values[1] for trials, _ in held for trial in trials}):
        trial, search = min(_choices(budget, held), key=_preference)
        row = {"search": search.name, "trial": trial.number, "schedule": trial.user_attrs["schedule"]}
        if not found or row.items() - found[-1].items():
            found.append({"flops_ratio": budget, **row})
    return found


Held = list[tuple[list[Any], Searched]]


def _holdable(comparison: Comparison) -> Held:
    """Trials of each search whose schedule a file can hold."""
    return [([t for t in search.trials if _holds(comparison, search, t)], search) for search in comparison.searches]


def _choices(budget: float, held: Held) -> list[tuple[Any, Searched]]:
    """Each search's choice, of those that have one."""
    chosen = [(choose(trials, budget), search) for trials, search in held]
    return [(trial, search) for trial, search in chosen if trial is not None]


def _preference(pair: tuple[Any, Searched]) -> tuple[float, float]:
    return (-pair[0].values[0], pair[0].values[1])


def _holds(comparison: Comparison, search: Searched, trial: Any) -> bool:
    """Whether a schedule file can hold what a trial measured."""
    return comparison.origin(search, trial) is not None and not is_predicted(str(trial.user_attrs.get("schedule")))
