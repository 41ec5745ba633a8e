"""What ``vispco export`` writes: the recommended schedule for a budget or a decision, with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import holds, nothing_cheaper
from vispco.analysis.noninferiority import paired_error
from vispco.analysis.study_result import StudyResult
from vispco.analysis.targets import runs_on, targets_of_trial
from vispco.costs.base import make_cost
from vispco.errors import ConfigError, ScheduleError
from vispco.fronts import fits, front
from vispco.pruning.methods.base import make_method
from vispco.pruning.schedule_file import FORMAT, VERSION
from vispco.pruning.schedules import parse_schedule
from vispco.pruning.targets import Target, target_named
from vispco.storage.reading import TrialRecord

Pair = tuple[TrialRecord, StudyResult]
PIXELS = ("min_pixels", "max_pixels")


def export_schedule(comparison: Comparison, budget: float, target: str | None = None) -> dict[str, Any]:
    """The schedule that :func:`recommended` names for ``budget``; with ``target``, of those that run there.

    Imported trials count where they repeat a measurement of ours; of others the method is not known. Policies that
    read the prompt do not count: a file holds one schedule for all prompts.

    Raises:
        ConfigError: no trial fits the budget, or it is no share of the unpruned compute.
    """
    points = Recommendation(comparison, None if target is None else target_named(target))
    dearest = max([1.0, *(_cost(pair) for pair in points.pairs)])  # choosing can cost more than it saves
    if not 0 < budget <= dearest:
        raise ConfigError(
            f"budget {budget:g} is no share of the unpruned model's "
            f"{'compute' if comparison.unpruned_cost is None else comparison.cost}; give a number above 0 and at most "
            "1, such as 0.5 for half"
        )
    chosen = points.within(budget)
    if chosen is None:
        where = "" if target is None else f" on target {target!r}"
        if points.pairs:
            cheapest = min(_cost(pair) for pair in points.pairs)
            what = "flops_ratio" if comparison.unpruned_cost is None else f"a share of {comparison.cost} of"
            why, way = f"its cheapest{where} has {what} {cheapest:.4f}", "give a larger --budget"
        elif not (able := sorted((target_named(target).methods if target else None) or ())):
            why, way = "it has no schedule that a file can hold", "give a larger --budget"
        else:
            why = f"none of its schedules runs{where}"
            way = f"run a study with target: {target}, family: constant and method: {' or '.join(able)}"
        raise ConfigError(f"no schedule of {comparison.experiment!r} fits budget {budget}; {why}, {way}")
    return schedule_record(comparison, *chosen, budget=budget)


def export_decision(comparison: Comparison, decision: dict[str, Any]) -> dict[str, Any]:
    """The schedule of a decision (:func:`vispco.analysis.decision.decide`), with what was asked and found.

    Raises:
        ConfigError: nothing may be pruned.
    """
    chosen = decision["chosen"]
    if chosen["search"] is None:
        raise ConfigError(
            f"{comparison.experiment!r} has nothing to export: {nothing_cheaper(decision)}; allow a larger --max-drop"
        )
    search = next(search for search in comparison.searches if search.name == chosen["search"])
    trial = next(trial for trial in search.trials if trial.number == chosen["trial"])
    kept = ("cost", "max_drop", "sure", "limits", "confirmed", "held_out", "tasks")
    asked = {**{key: decision[key] for key in kept}, "cost_ratio": chosen["cost_ratio"]}
    return {**schedule_record(comparison, trial, search, budget=None), "decision": asked}


def schedule_record(
    comparison: Comparison, trial: TrialRecord, search: StudyResult, *, budget: float | None
) -> dict[str, Any]:
    """The contents of a schedule file."""
    held_out = comparison.held_out(search, trial)
    origin = comparison.origin(search, trial) or search
    return {
        "format": FORMAT,
        "version": VERSION,
        "experiment": comparison.experiment,
        "spec_hash": comparison.stored.spec_hash,
        "search": search.name,
        "trial": trial.number,
        "method": origin.method,
        "method_parameters": dict(origin.method_parameters),
        "family": origin.family,
        "schedule": trial.user_attrs["schedule"],
        "keep_ratio": comparison.keep_ratio(search, trial),
        "budget": budget,
        "flops_ratio": comparison.flops_ratio(search, trial),
        **_cost_of(comparison, trial),
        "accuracy": trial.accuracy,
        "accuracy_held_out": held_out.accuracy if held_out else None,
        "targets": targets_of_trial(comparison, origin, trial),
        "model": comparison.stored.identity["model"]["name"],
        "model_type": comparison.facts.get("model_type"),
        **_conditions(comparison),
        "versions": comparison.stored.provenance["versions"],
    }


def _conditions(comparison: Comparison) -> dict[str, Any]:
    """How model and pictures were given, where that is not as they come; {} where it is."""
    identity = comparison.stored.identity
    known = {key: identity.get("model", {}).get(key) for key in ("resolution", "adapter", "quantization")}
    found = {key: value for key, value in known.items() if value not in (None, 1.0)}
    limits = {
        task["name"]: {key: value for key, value in (task.get("options") or {}).items() if key in PIXELS}
        for task in identity.get("tasks", ())
        if isinstance(task, dict)
    }
    if any(limits.values()):
        found["pixels"] = limits
    return {"conditions": found} if found else {}


def _cost_of(comparison: Comparison, trial: TrialRecord) -> dict[str, Any]:
    """The cost that budgets are in, with its unit; {} for FLOPs."""
    if comparison.unpruned_cost is None:
        return {}
    share = trial.cost
    unit = make_cost(comparison.cost).unit
    return {"cost": {"name": comparison.cost, "unit": unit, "value": share * comparison.unpruned_cost, "ratio": share}}


def export_steps(comparison: Comparison) -> list[dict[str, Any]]:
    """What :func:`export_schedule` chooses as the budget grows: from ``flops_ratio`` on, until the next row's."""
    points = Recommendation(comparison)
    steps: list[dict[str, Any]] = []
    for budget in sorted({_cost(pair) for pair in points.pairs}):
        pair = points.within(budget)
        assert pair is not None
        trial, search = pair
        row = {"search": search.name, "trial": trial.number, "schedule": trial.user_attrs["schedule"]}
        if not steps or row.items() - steps[-1].items():
            steps.append({"flops_ratio": budget, **row})
    return steps


def server_settings(exported: dict[str, Any], name: str) -> dict[str, Any]:
    """What the server behind target ``name`` takes of an exported schedule, by option name.

    For vLLM the mapping is a file for its ``--config``; the architecture is the model's, with this package's prefix,
    and a model of this package keeps its name for clients.

    Raises:
        ScheduleError: the schedule does not run there.
        ModelError: the model's configuration cannot be read, or vLLM's plug-in does not serve its family.
    """
    method = make_method(exported["method"], exported["method_parameters"])
    schedule, layers = parse_schedule(exported["schedule"]), len(exported["keep_ratio"])
    settings = target_named(name).written(schedule, method, layers)
    if name == "vllm":
        from vispco.integrations.vllm.architectures import architecture_of
        from vispco.models.loading import source_of

        conditions = exported.get("conditions", {})
        if lost := [key for key in ("resolution", "adapter", "quantization") if key in conditions]:
            raise ScheduleError(
                f"it was measured with {_listed(conditions, lost)}, which vLLM's plug-in does not take; measure the "
                "model as it is served: merge the adapter, and leave out resolution and quantization"
            )
        source = source_of(exported["model"])
        # A model of this package is a folder there; clients go on to ask for it by its name.
        called = {} if source == exported["model"] else {"served-model-name": exported["model"]}
        called |= _pixel_limits(conditions)
        return {"model": source, **called, "hf-overrides": {"architectures": [architecture_of(source)], **settings}}
    return settings


def _listed(conditions: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {conditions[name]}" for name in names)


def _pixel_limits(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Limits on pictures as vLLM takes them, if all tasks have the same."""
    limits = list(conditions.get("pixels", {}).values())
    if any(one != limits[0] for one in limits[1:]):
        raise ScheduleError(
            f"its tasks were measured with different min_pixels and max_pixels ({conditions['pixels']}), and a server "
            "has one set of them; export from an experiment with one"
        )
    return {"mm-processor-kwargs": limits[0]} if limits else {}


class Recommendation:
    """Which schedule to take within a budget, over all searches, by the search split.

    The one-standard-error rule (Breiman et al. 1984, 3.4.3): the cheapest schedule that is at most one standard error
    of the paired difference less accurate than the most accurate one. The most accurate alone would often cost half as
    much again for one sample more. ``pairs``: the fronts of all searches, schedules that a file can hold and that run
    on ``target``, if there is one.
    """

    def __init__(self, comparison: Comparison, target: Target | None = None) -> None:
        self.comparison = comparison
        held = [
            ([t for t in s.trials if holds(comparison, s, t) and runs_on(comparison, s, t, target)], s)
            for s in comparison.searches
        ]
        self.pairs: list[Pair] = [(trial, search) for trials, search in held for trial in front(trials)]
        measured = comparison.store.get_evaluations({_evaluation(pair) for pair in self.pairs} - {""})
        unpruned = comparison.reference("unpruned", "search")
        groups = comparison.store.groups_of(unpruned.id) if unpruned else {}
        self._parts = comparison.parts_of(groups, measured.values())
        self._measured = measured
        self._errors: dict[tuple[str, str], float] = {}

    def within(self, budget: float) -> Pair | None:
        """The recommended schedule; None if nothing fits."""
        fitting = [pair for pair in self.pairs if fits(pair[0], budget)]
        if not fitting:
            return None
        best = min(fitting, key=lambda pair: (-_accuracy(pair), _cost(pair)))
        close = [pair for pair in fitting if _accuracy(best) - _accuracy(pair) <= self._error(best, pair)]
        return min(close, key=lambda pair: (_cost(pair), -_accuracy(pair)))

    def _error(self, first: Pair, second: Pair) -> float:
        """Standard error of the difference in accuracy; 0 where samples are not known one by one."""
        key = _evaluation(first), _evaluation(second)
        if key not in self._errors:
            groups = self._parts.groups
            known = [e for one in key if (e := self._measured.get(one)) and e.scores.keys() <= groups.keys()]
            scores = [self._parts.of(evaluation) for evaluation in known]
            error = paired_error(scores[0], scores[1], groups) if len(scores) == 2 else 0.0
            self._errors[key] = error if isfinite(error) else 0.0
        return self._errors[key]


def _evaluation(pair: Pair) -> str:
    return str(pair[0].user_attrs.get("evaluation", ""))


def _accuracy(pair: Pair) -> float:
    return pair[0].accuracy


def _cost(pair: Pair) -> float:
    return pair[0].cost
