"""Run an experiment: references, every entry's search, held-out measurements. Idempotent; resumes by itself."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from vispco.config import SearchConfig, Study, check_options, content_hash, parse_study
from vispco.content import Content, calibration_content, changes, listed, merged, split_content, split_name
from vispco.costs import Prompts, Setting
from vispco.costs.profile import parse_profile
from vispco.errors import ConfigError, LockedError, MeasurementError, ScheduleError, StorageError, VispcoError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import check_prunable, vision_flops
from vispco.evaluation.records import Evaluation, Failed, Outcome
from vispco.evaluation.units import Executor
from vispco.fronts import checkpoints_to_confirm, choose, front, is_measured, trials_to_confirm
from vispco.plugin_files import code_of
from vispco.problem import Problem, make_family
from vispco.provenance import provenance
from vispco.pruning.families import FAMILIES, ScheduleFamily
from vispco.pruning.families.resolutions import Resolutions
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.needs import LAYER_BEFORE, check_needs
from vispco.pruning.published import PUBLISHED, named_schedule
from vispco.pruning.schedules import Policy, Ratios, Schedule, keep_all, parse_schedule
from vispco.pruning.targets import target_named
from vispco.registry import suggest
from vispco.search import SEARCHES
from vispco.search.base import Advance, Search, SearchContext
from vispco.search.gradient.team import Alone, Team
from vispco.search.grid import grid_points
from vispco.search.progress import result_so_far
from vispco.search.study_cost import StudyCost, check_cost, drops_of, has_plain_cost
from vispco.storage.store import Store
from vispco.storage.trials import TrialLog
from vispco.tasks.aggregation import MEAN

ACCOUNTING = "exact"
PROBE_LAYERS = 8  # any depth will do to ask a family whether it has a grid


class Progress(Protocol):
    """Shows what a run does; ``track`` wraps one part of it.

    ``result`` says what a search has come to so far; it reads the trials, so it is asked for now and then only.
    """

    def track(self, title: str, result: Callable[[], str] | None = None) -> AbstractContextManager[Advance]: ...

    def say(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def track(self, title: str, result: Callable[[], str] | None = None) -> AbstractContextManager[Advance]:
        return nullcontext(lambda done, total, note: None)

    def say(self, text: str) -> None:
        return None


@dataclass(frozen=True)
class Planned:
    """One study to run: an entry at one seed."""

    entry: str
    config: SearchConfig
    seed: int
    study: str
    options: Any


def study_name(experiment: str, entry: str, seed: int | None) -> str:
    return f"{experiment}/{entry}" if seed is None else f"{experiment}/{entry}@{seed}"


def plan(study: Study, only: Sequence[str] | None = None) -> list[Planned]:
    """The studies of an experiment, entries that others take their compute from first.

    Raises:
        ConfigError: unknown entry, kind or option; a compute reference to nothing or in a circle.
    """
    for name in only or []:
        if name not in study.searches:
            raise ConfigError(f"no search entry {name!r}; {suggest(name, list(study.searches))}")
    options = {}
    for name, entry in study.searches.items():
        cls: type[Search] = SEARCHES[entry.kind]
        options[name] = check_options(cls.Options, name, entry.kind, entry.options)
    ordered: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(f"searches take their compute from each other in a circle: {' -> '.join([*path, name])}")
        for key in ("compute", "spent"):
            source = getattr(options[name], key, None)
            if isinstance(source, str):
                if source not in study.searches:
                    raise ConfigError(
                        f"searches.{name}.{key} names no entry: {source!r}; {suggest(source, list(study.searches))}"
                    )
                visit(source, (*path, name))
        if name not in ordered:
            ordered.append(name)

    for name in study.searches:
        visit(name, ())
    planned = []
    for name in ordered:
        if only and name not in only:
            continue
        entry = _with_family(name, study.searches[name])
        for seed in entry.seeds if entry.seeds is not None else [None]:
            planned.append(Planned(name, entry, seed or 0, study_name(study.experiment, name, seed), options[name]))
    return planned


def _with_family(name: str, entry: SearchConfig) -> SearchConfig:
    """The entry with the family of its kind of search, where that has only one."""
    fixed = SEARCHES[entry.kind].fixed_family
    if fixed is not None and entry.family not in (None, fixed):
        raise ConfigError(
            f"searches.{name}.family = {entry.family!r}: schedules of kind {entry.kind!r} belong to family {fixed!r}; "
            "remove family:"
        )
    return entry if fixed is None else entry.model_copy(update={"family": fixed})


def validate(problem: Problem) -> None:
    """Everything that can be checked without measuring: entries, options, methods, families, defaults.

    Raises:
        ConfigError, ScheduleError: the first thing that is wrong.
    """
    target = target_named(problem.study.target)
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
            for method in methods:
                target.check(method, FAMILIES[kind.fixed_family or family])
                _before_decoder(kind, method, made)
                _at_resolutions(kind, planned.options, made)
                kind.check(planned.options, method, made)
            _able(kind, planned.options, len(methods), problem.study)
        except ConfigError as error:
            raise ConfigError(f"searches.{planned.entry}: {error}") from None
        if planned.config.kind == "grid":
            try:
                next(iter(made.dense_grid()))
            except ConfigError as error:
                raise ConfigError(f"searches.{planned.entry}: {error}") from None


def _able(kind: type[Search], options: Any, methods: int, study: Study) -> None:
    """Refuse a search that knows no cost but FLOPs, or no limits, in a study that has them."""
    if not has_plain_cost(study) and methods > 1:
        raise ConfigError("method: several are searched under budgets in FLOPs without limits; give each its own entry")
    if not has_plain_cost(study) and resolutions(study):
        raise ConfigError(
            "resolution: is searched under budgets in FLOPs without limits; remove it, or cost: and limits:"
        )
    if not has_plain_cost(study) and not kind.any_cost:
        able = ", ".join(name for name, known in SEARCHES.items() if known.any_cost)
        raise ConfigError(f"kind {kind.kind!r} knows FLOPs only, and the study has cost: or limits:; use {able}")
    if getattr(options, "race", None) is not None and study.limits and (kind.kind != "grid" or drops_of(study)):
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


def resolutions(study: Study) -> list[float]:
    """Resolutions that some entry searches, without the model's own."""
    listed = {share for entry in study.searches.values() for share in entry.resolution or study.resolution or []}
    return sorted(listed - {study.model.resolution}, reverse=True)


class Run:
    """One driver's work on one experiment."""

    def __init__(
        self,
        problem: Problem,
        store: Store,
        progress: Progress | None = None,
        executor: Executor | None = None,
        team: Team | None = None,
    ) -> None:
        self.problem, self.store = problem, store
        self.team: Team = team or Alone()
        self._blind = 0.0
        self._plain: Evaluation | None = None
        self._policies: dict[str, Callable[[str], Policy]] = {}
        self.failures: dict[str, Exception] = {}
        self.study = problem.study
        self.progress: Progress = progress or Silent()
        self.evaluator = Evaluator(problem, store, executor)
        self.cost = StudyCost(self.evaluator)

    def run(self, only: Sequence[str] | None = None, *, fresh: bool = False, announce: bool = False) -> int:
        """Bring the experiment to its end; returns how many trials were added.

        ``announce``: say first what is planned, if there are no trials yet.

        Raises:
            ConfigError: the study is wrong, or differs from what this database holds under its name.
            VispcoError: an entry ended early, the first one's own error; the others are done by then.
            LockedError: another driver runs it.
        """
        self._recall_profile()
        validate(self.problem)
        plan(self.study, only)
        with self.store.lock(self.study.experiment, waiting=self.progress.say), self._workers_shown():
            if fresh:
                self.store.delete_experiment(self.study.experiment)
            planned = self._plan(only)
            self._check_unchanged()
            with self.progress.track("prepare") as advance:
                advance(0, 3, "model and samples")
                check_prunable(self.problem, self.evaluator.prepared("search"))
                floor = self.cost.floor(self.problem.family(), self.problem.default_method)
                budgets = self.cost.budgets(floor)
                self._check_entries_fit()
                content = self._content()
                self.store.save_experiment(
                    self.study.experiment,
                    spec_text=self.problem.portable_text,
                    spec_hash=self.study.spec_hash(),
                    identity={**self.study.identity(), "content": content},
                    provenance=provenance(self.study.model.device),
                )
                advance(1, 3, "references")
                facts = self._references()
                advance(3, 3, "references")
            checkpoints = self._checkpoints()
            facts.update(accounting=ACCOUNTING, floor=floor, budgets=budgets, **self._entry_facts())
            facts.update(costs=self._cost_facts(), **self._profile_facts(), **self.cost.facts())
            facts.update(model_type=self.problem.model.config.model_type)
            if checkpoints:
                facts.update(anytime=checkpoints)
            self.store.save_facts(self.study.experiment, facts)
            before = sum(len(self.store.trial_log(p.study).complete()) for p in planned)
            if announce and not before:
                self._announce(only)
            for number, item in enumerate(planned, start=1):
                self._fenced(item, budgets, f"{item.study} ({number} of {len(planned)})")
            self._confirm([item for item in planned if item.study in self._policies], budgets, checkpoints)
            self._tell_alike(planned)
            after = sum(len(self.store.trial_log(p.study).complete()) for p in planned)
        if self.failures:
            raise self._ended_early(len(planned))
        return after - before

    def _plan(self, only: Sequence[str] | None = None) -> list[Planned]:
        """The studies of this run. Seed 0 of an entry is one study, whether or not the file lists its seeds: an entry
        that began without seeds goes on where it is."""
        stored = self.store.experiment(self.study.experiment)
        known = stored["facts"].get("studies", {}) if stored else {}
        planned = []
        for item in plan(self.study, only):
            listed = self.study.searches[item.entry].seeds is not None
            other = study_name(self.study.experiment, item.entry, None if listed else 0)
            goes_on = item.seed == 0 and item.study not in known and other in known
            planned.append(replace(item, study=other) if goes_on else item)
        return planned

    def _announce(self, only: Sequence[str] | None) -> None:
        """What ``vispco plan`` computes, at the speed that the plain model was just measured with."""
        from vispco.estimate import estimate, in_words

        self.progress.say(
            f"{self.study.experiment}: {in_words(estimate(self.problem, self.evaluator, only, self._plain))}"
        )

    def _fenced(self, item: Planned, budgets: list[float], title: str) -> None:
        """One entry; what ends it is said, kept in ``failures``, and ends no other."""
        try:
            self._search(item, budgets, title)
        except (LockedError, StorageError):
            raise
        except Exception as error:
            if os.environ.get("VISPCO_DEBUG"):
                self.progress.say(traceback.format_exc().rstrip())
            self.failures[item.study] = error
            self.progress.say(f"{item.study} ended early: {_one_line(error)}")

    def _tell_alike(self, planned: Sequence[Planned]) -> None:
        """Point out seeds that found the same, which intervals over seeds would take for agreement."""
        found: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for item in planned:
            if not SEARCHES[item.config.kind].deterministic:
                schedules = tuple(t.user_attrs["schedule"] for t in self.store.trial_log(item.study).complete())
                found.setdefault((item.entry, schedules), []).append(item.seed)
        for (entry, schedules), seeds in found.items():
            if schedules and len(seeds) > 1:
                reads = SEARCHES[self.study.searches[entry].kind].reads_calibration
                hint = "; give calibration more samples, or a mini-batch fewer" if reads else ""
                self.progress.say(
                    f"{self.study.experiment}/{entry}: seeds {', '.join(map(str, seeds))} found the same "
                    f"{len(schedules)} schedules, so they count for one{hint}"
                )

    def _ended_early(self, planned: int) -> Exception:
        """The first failure, by its own kind, and how many there are."""
        (study, first), *others = self.failures.items()
        more = f" (and {len(others)} more of {planned} studies)" if others else ""
        done = "; the other studies are done, run again to try this one again" if len(self.failures) < planned else ""
        kind = type(first) if isinstance(first, VispcoError) else MeasurementError
        return kind(f"{study}{more}: {_one_line(first)}{done}")

    @contextmanager
    def _workers_shown(self) -> Iterator[None]:
        """Keep the database's table of who works on what up to date; empty when nobody does."""
        board, name = self.evaluator.executor.board, self.study.experiment
        board.write = lambda rows: self.store.save_workers(name, rows)
        try:
            yield
        finally:
            board.write = None
            with suppress(VispcoError):
                self.store.save_workers(name, [])

    def _check_unchanged(self) -> None:
        """Refuse a changed model, task or entry under a name that has trials."""
        stored = self.store.experiment(self.study.experiment)
        if stored is None:
            return
        way_out = "give the study another experiment name, or start over with --fresh"
        now = self.study.identity()
        for key in (*now, *(key for key in ("cost", "limits") if key not in now)):
            value = now.get(key)
            if key == "budgets" and isinstance(value, list) and set(stored["facts"].get("budgets", ())) <= set(value):
                continue  # further budgets change nothing for those that are there
            if stored["identity"].get(key) != value:
                raise ConfigError(
                    f"experiment {self.study.experiment!r} in this database has another {key!r} "
                    f"({_short(stored['identity'].get(key))} there, {_short(value)} here); "
                    f"its trials cannot be mixed: {way_out}"
                )
        for item in self._plan():
            if stored["facts"].get("studies", {}).get(item.study, {}).get("kind") == "imported":
                raise ConfigError(
                    f"entry {item.entry!r} of experiment {self.study.experiment!r} was imported; rename the entry"
                )
        for item in self._plan():
            known, code = stored["facts"].get("studies", {}).get(item.study, {}).get("code"), self._code(item)
            if known and known != code and self.store.trial_log(item.study).complete():
                changed = ", ".join(key for key in known if known[key] != code.get(key))
                raise ConfigError(
                    f"entry {item.entry!r} of experiment {self.study.experiment!r} was run with another version of its "
                    f"plug-in ({changed}); put the file back, rename the entry, {way_out}"
                )
        earlier = parse_study(stored["spec_text"], "stored study").searches if stored["spec_text"] else {}
        for item in self._plan():
            # The stored file no longer names an entry that was dropped and is put back; its studies are still there.
            known = stored["facts"].get("studies", {}).get(item.study, {}).get("settings")
            if known is None and item.entry in earlier:
                known = _fixed(earlier[item.entry])
            if known is not None and known != _fixed(self.study.searches[item.entry]):
                raise ConfigError(
                    f"entry {item.entry!r} of experiment {self.study.experiment!r} was run with other settings; "
                    f"only seeds and trials may change: rename the entry, {way_out}"
                )

    def _content(self) -> Content:
        """What the experiment is measured on, together with what was noted of it before.

        Raises:
            ConfigError: weights, settings or data are not those that its trials were measured with.
        """
        problem, name = self.problem, self.study.experiment
        found = dict(self.evaluator.model_content)
        for split in ("search", "held_out"):
            for part in self.evaluator.prepared(split):
                found[split_name(part.task.name, split)] = split_content(part)
        if any(SEARCHES[item.config.kind].reads_calibration for item in plan(self.study)):
            for task in problem.calibration_tasks:
                if "calibration" in task.sizes:
                    found[split_name(task.name, "calibration")] = calibration_content(problem, task)
        if problem.profile is not None and not has_plain_cost(self.study):
            found["hardware profile"] = {"times": content_hash(problem.profile.model_dump(mode="json"))}
        stored = self.store.experiment(name)
        if stored is None:
            return found
        before = stored["identity"].get("content")
        if before is None:
            if any(self.store.trial_log(item).complete() for item in self.store.study_names(name)):
                self.progress.say(
                    f"{name}: its trials are older than the record of what they were measured on, so that it cannot be "
                    "verified that weights and data are still the same; from now on a change is refused"
                )
            return found
        if differ := changes(before, found):
            raise ConfigError(
                f"experiment {name!r} in this database was measured with other content under the same names: "
                f"{listed(differ)}; its trials cannot be mixed: put it back, give the study another "
                "experiment name, or start over with --fresh"
            )
        return merged(before, found)

    def _check_entries_fit(self) -> None:
        for share in resolutions(self.study):
            self.evaluator.at(share).prepared("search")  # which says what a model cannot do
        for item in self._plan():
            family = self.problem.family(item.config)
            for method in self.problem.methods(item.config):
                self.cost.floor(family, method)
        self._profile_facts()
        for default in self.study.defaults:
            check_needs(PUBLISHED[default].make_method(), self.problem.adapter)

    def _references(self) -> dict[str, Any]:
        """Measure and link the plain model, the model without pictures, and published defaults."""
        name = self.study.experiment
        for split in ("search", "held_out"):
            plain = [keep_all(), Ratios([0.0] * self.problem.shape.layers)]
            unpruned, no_image = self.evaluator.evaluate(plain, split)
            self.store.link(name, "reference", "unpruned", unpruned)
            self.store.link(name, "reference", "no_image", no_image)
            if split == "search":
                self._blind, self._plain = no_image.accuracy, unpruned
                self.cost.unpruned_tasks = {name: task["accuracy"] for name, task in unpruned.tasks.items()}
            for default in self.study.defaults:
                known = PUBLISHED[default]
                schedule = known.for_layers(self.problem.shape.layers)
                evaluation = self.evaluator.evaluate([schedule], split, known.make_method())[0]
                self.store.link(name, "default", default, evaluation)
        rules = {task.name: task.rule for task in self.problem.tasks if task.rule != MEAN}
        if self.study.score != "task":
            rules = {}  # their mean
        return {"layers": self.problem.shape.layers, **({"aggregations": rules} if rules else {})}

    def _cost_facts(self) -> dict[str, Any]:
        """What every cost of every trial follows from: sizes of the model and lengths of the prompts."""
        setting = replace(Setting.of(self.problem.adapter), vision_flops=vision_flops(self.problem))
        prompts = {
            split: Prompts.of([(part.n_visual, part.n_text) for part in self.evaluator.prepared(split)]).to_list()
            for split in ("search", "held_out")
        }
        shares = resolutions(self.study)
        smaller = {f"{share:g}": self._resolution_facts(share) for share in shares}
        return {**setting.to_dict(), "prompts": prompts, **({"resolutions": smaller} if smaller else {})}

    def _resolution_facts(self, share: float) -> dict[str, Any]:
        """What costs at a resolution follow from: rows [visual, text, weight, visual and text of the whole picture]."""
        other, prompts = self.evaluator.at(share), {}
        for split in ("search", "held_out"):
            parts = zip(other.prepared(split), self.evaluator.prepared(split), strict=True)
            prompts[split] = Prompts.of([(a.n_visual, a.n_text, b.n_visual, b.n_text) for a, b in parts]).to_list()
        return {"vision_flops": vision_flops(other.problem), "prompts": prompts}

    def _recall_profile(self) -> None:
        """A stored hardware profile stays where the study, or this machine, has none."""
        if self.study.profile is not None and Path(self.study.profile).exists():
            return
        stored = self.store.experiment(self.study.experiment)
        known = stored["facts"].get("profile") if stored else None
        if known is not None:
            self.problem.profile = parse_profile(known, "the stored profile")

    def _profile_facts(self) -> dict[str, Any]:
        """The hardware profile, which is stored with the experiment."""
        made = self.problem.profile
        if made is None:
            return {}
        made.check_model(self.study.model.name, self.problem.shape)
        return {"profile": made.model_dump(mode="json")}

    def _entry_facts(self) -> dict[str, Any]:
        """Per study what analysis needs and trials do not say; studies that the file no longer names are kept."""
        stored = self.store.experiment(self.study.experiment)
        studies = dict(stored["facts"].get("studies", {})) if stored else {}
        begun = {facts["entry"]: facts.get("defaults", 1) for facts in studies.values()}
        for item in self._plan():
            methods = self.problem.methods(item.config)
            method, several = methods[0], len(methods) > 1
            points = self._points(item) if item.config.kind == "grid" else None
            studies[item.study] = {
                "entry": item.entry,
                "seed": item.seed,
                "kind": item.config.kind,
                "method": ", ".join(one.name for one in methods),
                "method_parameters": {} if several else method.parameters(),
                "method_key": None if several else method.key(),
                **({"methods": {one.key(): _method_facts(one) for one in methods}} if several else {}),
                "family": item.config.family or self.study.family,
                "points": points,
                "deterministic": SEARCHES[item.config.kind].deterministic,
                "defaults": begun.get(item.entry, SEARCHES[item.config.kind].defaults),
                "settings": _fixed(self.study.searches[item.entry]),
                **({"code": code} if (code := self._code(item)) else {}),
            }
        return {"studies": studies}

    def _code(self, item: Planned) -> dict[str, str]:
        """Of what an entry takes from plug-in files."""
        family = FAMILIES[item.config.family or self.study.family]
        return code_of(search=SEARCHES[item.config.kind], method=self.problem.method(item.config), family=family)

    def _points(self, item: Planned) -> int:
        """Schedules of a grid."""
        family, method = self.problem.family(item.config), self.problem.method(item.config)
        return len(grid_points(family, method, self.cost))

    def _search(self, item: Planned, budgets: list[float], title: str) -> None:
        log = self.store.trial_log(item.study)
        failed = log.fail_running()
        if failed:
            self.progress.say(f"{item.study}: {failed} trials left by a dead driver marked as failed")
        cls: type[Search] = SEARCHES[item.config.kind]
        options = self._as_begun(item, cls)
        with self.progress.track(title, lambda: result_so_far(log, budgets, self._blind)) as advance:
            methods = self.problem.methods(item.config)
            context = SearchContext(
                evaluator=self.evaluator,
                method=methods[0],
                methods=methods if len(methods) > 1 else (),
                family=self.problem.family(item.config),
                budgets=budgets,
                seed=item.seed,
                log=log,
                store=self.store,
                cost=self.cost,
                allowance=self._allowance(item),
                paid_allowance=self._paid_allowance(item),
                advance=advance,
                say=lambda text: self.progress.say(f"{item.study}: {text}"),
                team=self.team,
            )
            search = cls(context, options)
            search.run()
            if settled := len(log.settled()):
                advance(settled, settled, "")
            self._policies[item.study] = search.policy

    def _as_begun(self, item: Planned, cls: type[Search]) -> Any:
        """The entry's options; one that began under earlier defaults keeps them, so that its trials are of one kind."""
        stored = self.store.experiment(self.study.experiment)
        defaults = stored["facts"]["studies"][item.study].get("defaults", 1) if stored else cls.defaults
        options = cls.as_begun(item.options, defaults)
        changed = {key: value for key, value in options if value != getattr(item.options, key)}
        if changed:
            told = ", ".join(f"{key}: {value}" for key, value in changed.items())
            self.progress.say(f"{item.study}: goes on with the defaults that it began with ({told})")
        return options

    def _allowance(self, item: Planned) -> int | None:
        """FLOPs an entry may be charged, if they are limited: a share of the grid's cost, or what another entry was
        charged, at the same seed if it ran there, else its mean."""
        source = getattr(item.options, "compute", None)
        if source is None:
            return None
        if isinstance(source, float):
            return int(source * self._grid_flops)
        return self._mean_of(item, source, TrialLog.charged_flops)

    def _paid_allowance(self, item: Planned) -> int | None:
        """FLOPs an entry may spend after sharing, if they are limited: a share of what the dense grid costs when it
        is measured together, or what another entry spent."""
        source = getattr(item.options, "spent", None)
        if source is None:
            return None
        if isinstance(source, float):
            schedules, method = self._dense_grid
            return int(source * self.evaluator.shared_price(schedules, "search", method))
        return self._mean_of(item, source, TrialLog.spent_flops)

    def _mean_of(self, item: Planned, source: str, total: Callable[[TrialLog], int]) -> int:
        """``total`` of entry ``source``, at the same seed if it ran there, else its mean."""
        theirs = [other for other in self._plan() if other.entry == source]
        wanted = [other for other in theirs if other.seed == item.seed] or theirs
        logs = [self.store.trial_log(other.study) for other in wanted]
        if not all(log.complete() for log in logs):
            raise ConfigError(
                f"searches.{item.entry}: entry {source!r}, whose compute it may spend, has no trials yet; "
                f"run both: --search {source} --search {item.entry}"
            )
        totals = [total(log) for log in logs]
        if not all(totals):
            raise ConfigError(
                f"searches.{item.entry}: entry {source!r} spent nothing, as all that it measured was known before; "
                f"use compute: {source}, or a share of the grid's cost"
            )
        return sum(totals) // len(totals)

    def _checkpoints(self) -> dict[str, Any]:
        """The study's ``anytime`` shares, and the dense grid's naive cost that they are shares of; {} without."""
        shares = self.study.checkpoints
        return {"shares": shares, "grid_flops": self._grid_flops} if shares else {}

    @cached_property
    def _grid_flops(self) -> int:
        """The dense grid's naive cost."""
        grid, method = self._dense_grid
        return sum(self.evaluator.price(schedule, "search", method) for schedule in grid)

    @cached_property
    def _dense_grid(self) -> tuple[list[Schedule], Method]:
        """Of the study's first grid; where it has none, the dense step grid."""
        entries = [entry for entry in self.study.searches.values() if entry.kind == "grid"]
        entry = entries[0] if entries else SearchConfig(kind="grid", family="step")
        return list(self.problem.family(entry).dense_grid()), self.problem.method(entry)

    def _confirm(self, planned: list[Planned], budgets: list[float], checkpoints: dict[str, Any]) -> None:
        """Measure on the held-out split what a search would have chosen, and its front. Nothing is chosen here."""
        limits = [share * checkpoints["grid_flops"] for share in checkpoints.get("shares", [])]
        todo: dict[str, tuple[Method, dict[str, Policy]]] = {}
        for item in planned:
            methods = {method.key(): method for method in self.problem.methods(item.config)}
            only = next(iter(methods))
            log = self.store.trial_log(item.study)
            wanted = trials_to_confirm(log.complete(), budgets)
            if limits and item.config.kind != "grid":
                paid = log.trials(TrialState.COMPLETE, TrialState.PRUNED)
                wanted = [*wanted, *checkpoints_to_confirm(paid, budgets, limits)]
            for trial in wanted:
                text, key = trial.user_attrs["schedule"], trial.user_attrs.get("method", only)
                _, schedules = todo.setdefault(key, (methods[key], {}))
                if text not in schedules:
                    schedules[text] = self._policies[item.study](text)
        self._add_imported(todo, budgets)
        total, done = sum(len(schedules) for _, schedules in todo.values()), 0
        with self.progress.track("held-out") as advance:
            for key, (method, schedules) in todo.items():
                for schedule, outcome in zip(
                    schedules, self.evaluator.outcomes(list(schedules.values()), "held_out", method), strict=True
                ):
                    if not isinstance(outcome, Evaluation):
                        self.progress.say(f"held-out: {schedule} with {key} could not be measured: {_why(outcome)}")
                    else:
                        self.store.link(self.study.experiment, "schedule", f"{key}|{schedule}", outcome)
                    done += 1
                    advance(done, total, schedule)

    def _add_imported(self, todo: dict[str, tuple[Method, dict[str, Policy]]], budgets: list[float]) -> None:
        """What imported studies would have chosen, where a trial's evaluation shows that we would measure the same."""
        stored = self.store.experiment(self.study.experiment)
        studies = stored["facts"]["studies"] if stored else {}
        names = [name for name, facts in studies.items() if facts["kind"] == "imported"]
        own = [method for entry in self.study.searches.values() for method in self.problem.methods(entry)]
        methods = {method.key(): method for method in (self.problem.default_method, *own)}
        for name in names:
            trials = [trial for trial in self.store.trial_log(name).complete() if is_measured(trial)]
            chosen = {t.number: t for t in (*(choose(trials, b) for b in budgets), *front(trials)) if t is not None}
            unknown = 0
            for trial in chosen.values():
                found = self._measured_as(trial, methods)
                unknown += found is None
                if found is not None:
                    key, schedule = found
                    (evaluation,) = self.evaluator.evaluate([schedule], "search", methods[key])
                    self.store.link(self.study.experiment, "schedule", f"{key}|{schedule.text()}", evaluation)
                    todo.setdefault(key, (methods[key], {}))[1].setdefault(schedule.text(), schedule)
            if unknown:
                self.progress.say(
                    f"{name}: {unknown} of {len(chosen)} choices are not measured on held_out: their trials do not say "
                    "a schedule and an evaluation of this experiment (vispco.objective notes both)"
                )

    def _measured_as(self, trial: FrozenTrial, methods: Mapping[str, Method]) -> tuple[str, Schedule] | None:
        """Key of the method with which the evaluator would measure what an imported trial did, and its schedule."""
        text, evaluation = trial.user_attrs.get("schedule"), trial.user_attrs.get("evaluation")
        if not isinstance(text, str):
            return None
        for key, method in methods.items():
            with suppress(ScheduleError):
                schedule = parse_schedule(text)
                if self.evaluator.ids([schedule], "search", method) == [evaluation]:
                    return key, schedule
        return None


def evaluate_once(problem: Problem, schedule: str | None, split: str, method: str | None = None) -> Evaluation:
    """Measure one schedule without a store; ``schedule`` as in :func:`named_schedule`, or None for the plain model."""
    policy, named = (
        named_schedule(schedule, problem.shape.layers, problem.model.config) if schedule else (keep_all(), None)
    )
    chosen = make_method(method) if method else named or problem.default_method
    return Evaluator(problem).evaluate([policy], split, chosen)[0]


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())[:500]
    return words if isinstance(error, VispcoError) else f"{type(error).__name__}: {words}"


def _why(outcome: Outcome) -> str:
    return outcome.error if isinstance(outcome, Failed) else "it was stopped"


def _method_facts(method: Method) -> dict[str, Any]:
    return {"method": method.name, "method_parameters": method.parameters()}


def _fixed(entry: SearchConfig) -> dict[str, Any]:
    """Settings of an entry that may not change while it has trials."""
    dump = entry.model_dump(mode="json")
    dump.pop("seeds")
    dump["options"] = {key: value for key, value in dump["options"].items() if key != "trials"}
    return dump


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
