"""An experiment goes on only with the model, data, entries and plug-ins that its trials were measured with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vispco.config import content_hash, parse_study
from vispco.errors import ConfigError, listed
from vispco.evaluation.content import Content, calibration_content, changes, merged, split_content, split_name
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.identity import measuring_rules
from vispco.experiment.facts import code_of_entry, fixed_settings
from vispco.experiment.planning import plan, plan_in
from vispco.problem import Problem
from vispco.search import SEARCHES
from vispco.search.study_cost import has_plain_cost
from vispco.storage.experiment_record import StoredExperiment
from vispco.storage.importing import IMPORTED
from vispco.storage.store import Store

WAY_OUT = "give the study another experiment name, or start over with --fresh"


def check_unchanged(problem: Problem, store: Store) -> None:
    """Refuse a changed model, task or entry under a name that has trials."""
    stored = store.experiment(problem.study.experiment)
    if stored is None:
        return
    now = problem.study.identity()
    for key in dict.fromkeys((*now, *stored.identity)):
        if key == "content":
            continue
        value = now.get(key)
        if key == "budgets" and isinstance(value, list) and set(stored.facts.get("budgets", ())) <= set(value):
            continue  # further budgets change nothing for those that are there
        if stored.identity.get(key) != value:
            raise ConfigError(
                f"experiment {problem.study.experiment!r} in this database has another {key!r} "
                f"({_short(stored.identity.get(key))} there, {_short(value)} here); "
                f"its trials cannot be mixed: {WAY_OUT}"
            )
    for item in plan_in(store, problem.study):
        if stored.studies.get(item.study, {}).get("kind") == IMPORTED:
            raise ConfigError(
                f"entry {item.entry!r} of experiment {problem.study.experiment!r} was imported; rename the entry"
            )
    for item in plan_in(store, problem.study):
        known, code = stored.studies.get(item.study, {}).get("code", {}), code_of_entry(problem, item)
        changed = ", ".join(key for key in known if known[key] != code.get(key))
        if changed and store.trial_log(item.study).complete():
            raise ConfigError(
                f"entry {item.entry!r} of experiment {problem.study.experiment!r} was run with another version of its "
                f"plug-in ({changed}); put the file back, rename the entry, {WAY_OUT}"
            )
    earlier = parse_study(stored.spec_text, "stored study").searches if stored.spec_text else {}
    for item in plan_in(store, problem.study):
        # The stored file no longer names an entry that was dropped and is put back; its studies are still there.
        known = stored.studies.get(item.study, {}).get("settings")
        if known is None and item.entry in earlier:
            known = fixed_settings(earlier[item.entry])
        if known is not None and known != fixed_settings(problem.study.searches[item.entry]):
            raise ConfigError(
                f"entry {item.entry!r} of experiment {problem.study.experiment!r} was run with other settings; "
                f"only seeds and trials may change: rename the entry, {WAY_OUT}"
            )
    for item in plan_in(store, problem.study):
        before = earlier[item.entry].options.get("trials") if item.entry in earlier else None
        trials = getattr(item.options, "trials", None)
        if before is None or trials is None or before == trials:
            continue
        begun = 0 < len(store.trial_log(item.study).settled()) < trials
        if begun and not SEARCHES[item.config.kind].may_change_trials(item.options, before):
            raise ConfigError(
                f"entry {item.entry!r} of experiment {problem.study.experiment!r} began with trials: {before}; where "
                "trials stop each other, new ones cannot join them: put the number back, or name a new entry"
            )


def check_prices(
    store: Store, stored: StoredExperiment | None, now: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Refuse trials that an earlier version counted otherwise, and say where it judged limits otherwise.

    Args:
        now: what :meth:`StudyCost.facts` says.
    """
    if stored is None or not any(store.trial_log(name).complete() for name in store.study_names(stored.name)):
        return
    before, after = _unpruned(stored.facts), _unpruned(now)
    for cost in before.keys() & after.keys():
        if not math.isclose(before[cost], after[cost], rel_tol=1e-9):
            raise ConfigError(
                f"experiment {stored.name!r} in this database has {before[cost]:.6g} as the unpruned model's {cost}, "
                f"and this version counts {after[cost]:.6g}; its trials cannot be mixed: {WAY_OUT}"
            )
    if stored.facts.get("limit_rules") != now.get("limit_rules"):
        say(
            f"{stored.name}: its trials were judged by what an earlier version took limits to be, and may differ from "
            "new ones where prompts differ in length or the profile is of another dtype; vispco choose judges all "
            "anew, --fresh starts over"
        )


def _unpruned(facts: Mapping[str, Any]) -> dict[str, float]:
    """What the unpruned model has of each cost that is minimised, FLOPs apart."""
    own = {facts["cost"]: facts["cost_terms"]["unpruned"]["search"]} if "cost" in facts else {}
    return {**own, **facts.get("further_costs", {})}


def content_of(evaluator: Evaluator, store: Store, say: Callable[[str], None]) -> Content:
    """What the experiment is measured on, together with what was noted of it before.

    Raises:
        ConfigError: weights, settings or data are not those that its trials were measured with.
    """
    problem, name = evaluator.problem, evaluator.problem.study.experiment
    content = dict(evaluator.model_content)
    for split in ("search", "held_out"):
        for part in evaluator.prepared(split):
            content[split_name(part.task.name, split)] = split_content(part)
    if any(SEARCHES[item.config.kind].reads_calibration for item in plan(problem.study)):
        problem.check_calibration()
        for task in problem.calibration_tasks:
            if "calibration" in task.sizes:
                content[split_name(task.name, "calibration")] = calibration_content(problem, task)
    content.update(measuring_rules(problem))
    if problem.profile is not None and not has_plain_cost(problem.study):
        content["hardware profile"] = {"times": content_hash(problem.profile.model_dump(mode="json"))}
    stored = store.experiment(name)
    if stored is None:
        return content
    before = stored.identity.get("content")
    if before is None:
        if any(store.trial_log(item).complete() for item in store.study_names(name)):
            say(
                f"{name}: its trials are older than the record of what they were measured on, so that it cannot be "
                "verified that weights and data are still the same; from now on a change is refused"
            )
        return content
    if differ := changes(before, content):
        raise ConfigError(
            f"experiment {name!r} in this database was measured with other content under the same names: "
            f"{listed(differ)}; its trials cannot be mixed: put it back, {WAY_OUT}"
        )
    return merged(before, content)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
