"""What is stored once for an experiment: what its analysis needs and its trials do not say."""

from __future__ import annotations

from typing import Any

from vispco.config import SearchConfig
from vispco.costs import Prompts, Setting
from vispco.costs.held import held
from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.planning import Planned, plan_in, resolutions
from vispco.plugin_files import code_of
from vispco.problem import Problem
from vispco.pruning.families import FAMILIES
from vispco.pruning.methods.base import Method
from vispco.search import SEARCHES, Search
from vispco.search.grid import grid_points
from vispco.search.study_cost import StudyCost
from vispco.storage.store import Store


def cost_facts(evaluator: Evaluator, cost: StudyCost) -> dict[str, Any]:
    """What every cost of every trial follows from: sizes of the model and lengths of the prompts."""
    setting = Setting.of(evaluator.problem.adapter, vision_flops=cost.vision_flops(evaluator))
    prompts = {
        split: Prompts.of([(part.n_visual, part.n_text) for part in evaluator.prepared(split)]).to_list()
        for split in ("search", "held_out")
    }
    shares = resolutions(evaluator.problem.study)
    smaller = {f"{share:g}": _resolution_facts(evaluator, cost, share) for share in shares}
    return {**setting.to_dict(), "prompts": prompts, **({"resolutions": smaller} if smaller else {})}


def _resolution_facts(evaluator: Evaluator, cost: StudyCost, share: float) -> dict[str, Any]:
    """What costs at a resolution follow from: rows [visual, text, weight, visual and text of the whole picture]."""
    other, prompts = evaluator.at(share), {}
    for split in ("search", "held_out"):
        parts = zip(other.prepared(split), evaluator.prepared(split), strict=True)
        prompts[split] = Prompts.of([(a.n_visual, a.n_text, b.n_visual, b.n_text) for a, b in parts]).to_list()
    return {"vision_flops": cost.vision_flops(other), "prompts": prompts}


def profile_facts(problem: Problem) -> dict[str, Any]:
    """The hardware profile, which is stored with the experiment."""
    made = problem.profile
    if made is None:
        return {}
    made.check_model(problem.study.model.name, problem.shape, held(problem.adapter))
    return {"profile": made.model_dump(mode="json")}


def study_facts(problem: Problem, store: Store, cost: StudyCost) -> dict[str, Any]:
    """Per study what analysis needs and trials do not say; studies that the file no longer names are kept."""
    stored = store.experiment(problem.study.experiment)
    studies = dict(stored.studies) if stored else {}
    begun = {facts["entry"]: facts.get("defaults", 1) for facts in studies.values()}
    for item in plan_in(store, problem.study):
        methods = problem.methods(item.config)
        method, several = methods[0], len(methods) > 1
        kind: type[Search] = SEARCHES[item.config.kind]
        points = _points(problem, cost, item) if kind.is_reference else None
        studies[item.study] = {
            "entry": item.entry,
            "seed": item.seed,
            "kind": item.config.kind,
            "method": ", ".join(one.name for one in methods),
            "method_parameters": {} if several else method.parameters(),
            "method_key": None if several else method.key(),
            **({"methods": {one.key(): _method_facts(one) for one in methods}} if several else {}),
            "family": item.config.family or problem.study.family,
            "points": points,
            "deterministic": kind.deterministic,
            "defaults": begun.get(item.entry, kind.defaults),
            "settings": fixed_settings(problem.study.searches[item.entry]),
            **({"code": code} if (code := code_of_entry(problem, item)) else {}),
            **({"found_nothing": True} if studies.get(item.study, {}).get("found_nothing") else {}),
        }
    return {"studies": studies}


def code_of_entry(problem: Problem, item: Planned) -> dict[str, str]:
    """Of what an entry takes from plug-in files."""
    family = FAMILIES[item.config.family or problem.study.family]
    first, *others = problem.methods(item.config)
    more = {f"method {method.name}": method for method in others}
    return code_of(search=SEARCHES[item.config.kind], method=first, family=family, **more)


def _points(problem: Problem, cost: StudyCost, item: Planned) -> int:
    """Schedules of a grid."""
    family, method = problem.family(item.config), problem.method(item.config)
    return len(grid_points(family, method, cost))


def _method_facts(method: Method) -> dict[str, Any]:
    return {"method": method.name, "method_parameters": method.parameters()}


def fixed_settings(entry: SearchConfig) -> dict[str, Any]:
    """Settings of an entry that may not change while it has trials."""
    dump = entry.model_dump(mode="json")
    dump.pop("seeds")
    dump["options"] = {key: value for key, value in dump["options"].items() if key != "trials"}
    return dump
