"""Everything about an experiment file that can be checked without measuring."""

from __future__ import annotations

from typing import Any

from vispco.config import Study
from vispco.costs.bounds import limits_on_tasks
from vispco.errors import ConfigError
from vispco.experiment.planning import plan
from vispco.problem import Problem, make_family
from vispco.pruning.families import FAMILIES, ScheduleFamily
from vispco.pruning.families.resolutions import Resolutions
from vispco.pruning.methods.base import Method
from vispco.pruning.needs import LAYER_BEFORE
from vispco.pruning.targets import target_named
from vispco.search import SEARCHES
from vispco.search.base import Search
from vispco.search.study_cost import check_cost, check_measured, has_plain_cost

PROBE_LAYERS = 8  # any depth will do to ask a family whether it has a grid


def validate(problem: Problem) -> None:
    """Everything that can be checked without measuring: entries, options, methods, families, defaults.

    Raises:
        ConfigError, ScheduleError, ModelError: the first thing that is wrong.
    """
    target = target_named(problem.study.target)
    _served(problem)
    check_cost(problem)
    for planned in plan(problem.study):
        kind: type[Search] = SEARCHES[planned.config.kind]
        if kind.reads_calibration and problem.study.calibration is None:
            for task in problem.tasks:
                if "calibration" not in task.sizes:
                    raise ConfigError(
                        f"searches.{planned.entry}: kind {planned.config.kind!r} reads split 'calibration', and task "
                        f"{task.name!r} gives it no size; add calibration: N to its splits"
                    )
        family = planned.config.family or problem.study.family
        made = make_family(problem.study, planned.config, PROBE_LAYERS)
        try:
            methods = problem.methods(planned.config)
            if len(methods) > 1:
                kind.check_several(planned.options)
            check_measured(problem, methods)
            for method in methods:
                target.check(method, FAMILIES[kind.fixed_family or family])
                _before_decoder(kind, method, made)
                _at_resolutions(kind, planned.options, made)
                kind.check(planned.options, method, made)
            _able(kind, planned.options, problem.study)
        except ConfigError as error:
            raise ConfigError(f"searches.{planned.entry}: {error}") from None
        if kind.is_reference:
            try:
                next(iter(made.dense_grid()))
            except ConfigError as error:
                raise ConfigError(f"searches.{planned.entry}: {error}") from None


def _served(problem: Problem) -> None:
    """Refuse a model that the target's server cannot load pruned, before anything is measured for it."""
    model = problem.study.model
    given = {"resolution": model.resolution != 1, "adapter": model.adapter, "quantization": model.quantization}
    if problem.study.target == "vllm" and (lost := [name for name, asked in given.items() if asked]):
        raise ConfigError(
            f"target vllm does not take model.{', model.'.join(lost)}; measure the model as it is served: merge the "
            "adapter, and leave out resolution and quantization"
        )
    if problem.study.target == "vllm" and not problem.has_given_model:
        from vispco.integrations.vllm.architectures import architecture_of
        from vispco.models.loading import source_of

        architecture_of(source_of(problem.study.model.name))


def _able(kind: type[Search], options: Any, study: Study) -> None:
    """Refuse a search that knows no cost but FLOPs, or no limits, in a study that has them."""
    if not has_plain_cost(study) and not kind.any_cost:
        able = ", ".join(name for name, known in SEARCHES.items() if known.any_cost)
        raise ConfigError(f"kind {kind.kind!r} knows FLOPs only, and the study has cost: or limits:; use {able}")
    if study.cost.also and not kind.several_costs:
        able = ", ".join(name for name, known in SEARCHES.items() if known.several_costs)
        names = ", ".join([study.cost.name, *study.cost.also])
        raise ConfigError(
            f"kind {kind.kind!r} knows one cost, and the study minimises {names}; use {able}, or one cost and limits:"
        )
    if study.cost.also and getattr(options, "race", None) is not None:
        raise ConfigError(
            f"race: stops schedules by accuracy and {study.cost.name}, and the study also minimises "
            f"{', '.join(study.cost.also)}; remove race:, or the other costs"
        )
    if kind.stops_early and limits_on_tasks(study.limits):
        raise ConfigError(
            f"kind {kind.kind!r} stops schedules before it knows what each task loses; remove limits.tasks, or use "
            "tpe, nsga2 or gp"
        )
    blind = not kind.is_reference or limits_on_tasks(study.limits)
    if getattr(options, "race", None) is not None and study.limits and blind:
        raise ConfigError("race: cannot tell whether a schedule keeps the study's limits; remove race:, or limits:")


def _before_decoder(kind: type[Search], method: Method, family: ScheduleFamily) -> None:
    """Refuse a family that drops tokens before layer 0 where a search or a method cannot."""
    if not family.before_decoder or kind.fixed_family:
        return
    if not kind.before_decoder:
        able = [name for name, known in SEARCHES.items() if known.before_decoder]
        raise ConfigError(
            f"kind {kind.kind!r} cannot use family {family.name!r}, which drops tokens before layer 0; "
            f"use {', '.join(able)}"
        )
    if method.needs & LAYER_BEFORE:
        raise ConfigError(
            f"method {method.name!r} reads the layer before, and family {family.name!r} drops tokens before layer 0; "
            "use a method that does not read the decoder, such as divprune"
        )


def _at_resolutions(kind: type[Search], options: Any, family: ScheduleFamily) -> None:
    """Refuse resolutions where a search cannot choose among them."""
    if not isinstance(family, Resolutions):
        return
    if not kind.resolutions:
        able = [name for name, known in SEARCHES.items() if known.resolutions]
        raise ConfigError(
            f"kind {kind.kind!r} cannot search the resolution; use {', '.join(able)}, or give model.resolution"
        )
    if getattr(options, "race", None) is not None:
        raise ConfigError("a race compares schedules on equal prompts, not resolutions; remove race: or resolution:")
