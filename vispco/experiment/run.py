"""Run an experiment: references, every entry's search, held-out measurements. Idempotent; resumes by itself."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from vispco.costs.held import held, told_apart
from vispco.costs.profile import parse_profile
from vispco.errors import LockedError, MeasurementError, StorageError, VispcoError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import check_prunable, unread
from vispco.evaluation.records import Evaluation
from vispco.evaluation.units import Executor
from vispco.experiment.allowances import Allowances
from vispco.experiment.estimate import estimate, in_words
from vispco.experiment.facts import cost_facts, profile_facts, study_facts
from vispco.experiment.held_out import HeldOut
from vispco.experiment.planning import Planned, plan, plan_in, resolutions
from vispco.experiment.progress import Progress, Silent
from vispco.experiment.unchanged import check_prices, check_unchanged, content_of
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.provenance import provenance
from vispco.pruning.methods.base import make_method
from vispco.pruning.needs import check_needs
from vispco.pruning.published import PUBLISHED, named_schedule
from vispco.pruning.schedules import Policy, Ratios, keep_all
from vispco.search import SEARCHES
from vispco.search.base import Search, SearchContext
from vispco.search.gradient.team import Alone, Team
from vispco.search.progress import result_so_far
from vispco.search.study_cost import StudyCost
from vispco.storage.store import Store
from vispco.tasks.aggregation import MEAN

ACCOUNTING = "exact"


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
        self.allowances = Allowances(self.evaluator, store, self.cost)

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
            planned = plan_in(self.store, self.study, only)
            check_unchanged(self.problem, self.store)
            with self.progress.track("prepare") as advance:
                advance(0, 3, "model and samples")
                check_prunable(self.problem, self.evaluator.prepared("search"))
                if told := unread(self.problem, self.evaluator.prepared("search")):
                    self.progress.say(f"{self.study.experiment}: {told}")
                floor = self.cost.floor(self.problem.family(), self.problem.default_method)
                budgets = self.cost.budgets(floor)
                self._check_entries_fit()
                if (made := self.problem.profile) and (apart := told_apart(made, held(self.problem.adapter))):
                    self.progress.say(f"{self.study.experiment}: {apart}")
                known = self.store.experiment(self.study.experiment)
                content = content_of(self.evaluator, self.store, self.progress.say)
                priced = self.cost.facts()
                check_prices(self.store, known, priced, self.progress.say)
                self._save(content, provenance(self.study.model.device))
                advance(1, 3, "references")
                facts = self._references()
                advance(3, 3, "references")
            checkpoints = self.allowances.checkpoints()
            facts.update(
                accounting=ACCOUNTING, floor=floor, budgets=budgets, **study_facts(self.problem, self.store, self.cost)
            )
            facts.update(costs=cost_facts(self.evaluator, self.cost), **profile_facts(self.problem), **priced)
            facts.update(model_type=self.problem.model.config.model_type)
            if checkpoints:
                facts.update(anytime=checkpoints)
            self.store.save_facts(self.study.experiment, facts)
            before = sum(len(self.store.trial_log(p.study).complete()) for p in planned)
            if announce and not before:
                self._announce(only)
            for number, item in enumerate(planned, start=1):
                self._fenced(item, budgets, f"{item.study} ({number} of {len(planned)})")
            HeldOut(self.evaluator, self.store, self.progress).confirm(planned, self._policies, budgets, checkpoints)
            self._tell_alike(planned)
            after = sum(len(self.store.trial_log(p.study).complete()) for p in planned)
            if known is not None and after == before:
                self._save(content, known.provenance)  # of the run that measured, not of one that had nothing to do
        if self.failures:
            raise self._ended_early(len(planned))
        return after - before

    def _save(self, content: dict[str, Any], provenance: Mapping[str, Any]) -> None:
        self.store.save_experiment(
            self.study.experiment,
            spec_text=self.problem.portable_text,
            spec_hash=self.study.spec_hash(),
            identity={**self.study.identity(), "content": content},
            provenance=provenance,
        )

    def _announce(self, only: Sequence[str] | None) -> None:
        """What ``vispco plan`` computes, at the speed that the plain model was just measured with."""
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

    def _check_entries_fit(self) -> None:
        for share in resolutions(self.study):
            self.evaluator.at(share).prepared("search")  # which says what a model cannot do
        for item in plan_in(self.store, self.study):
            family = self.problem.family(item.config)
            for method in self.problem.methods(item.config):
                self.cost.floor(family, method)
        profile_facts(self.problem)
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

    def _recall_profile(self) -> None:
        """A stored hardware profile stays where the study, or this machine, has none."""
        file = self.problem.profile_file
        if file is not None and file.exists():
            return
        stored = self.store.experiment(self.study.experiment)
        known = stored.facts.get("profile") if stored else None
        if known is not None:
            self.problem.profile = parse_profile(known, "the stored profile")
            if file is not None:
                kept = "the profile stored with the experiment is used"
                self.progress.say(f"{self.study.experiment}: there is no file {str(file)!r}; {kept}")

    def _search(self, item: Planned, budgets: list[float], title: str) -> None:
        log = self.store.trial_log(item.study)
        self._note_ended(item.study, False)
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
                allowance=self.allowances.charged(item),
                paid_allowance=self.allowances.spent(item),
                advance=advance,
                say=lambda text: self.progress.say(f"{item.study}: {text}"),
                team=self.team,
            )
            search = cls(context, options)
            search.run()
            if settled := len(log.settled()):
                advance(settled, settled, "")
            self._policies[item.study] = search.policy
        self._note_ended(item.study, not log.complete())

    def _note_ended(self, study: str, nothing: bool) -> None:
        """Of a study that came to its end with ``nothing``: its trials cannot say that it was not interrupted."""
        stored = self.store.experiment(self.study.experiment)
        if stored is None or bool(stored.studies[study].get("found_nothing")) == nothing:
            return
        own = {**stored.studies[study], "found_nothing": nothing}
        self.store.save_facts(self.study.experiment, {**stored.facts, "studies": {**stored.studies, study: own}})

    def _as_begun(self, item: Planned, cls: type[Search]) -> Any:
        """The entry's options; one that began under earlier defaults keeps them, so that its trials are of one kind."""
        stored = self.store.experiment(self.study.experiment)
        defaults = stored.facts["studies"][item.study].get("defaults", 1) if stored else cls.defaults
        options = cls.as_begun(item.options, defaults)
        changed = {key: value for key, value in options if value != getattr(item.options, key)}
        if changed:
            told = ", ".join(f"{key}: {value}" for key, value in changed.items())
            self.progress.say(f"{item.study}: goes on with the defaults that it began with ({told})")
        return options


def evaluate_once(
    problem: Problem,
    schedule: str | None,
    split: str,
    method: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Measure one schedule without a store; ``schedule`` as in :func:`named_schedule`, or None for the plain model."""
    policy, named = (
        named_schedule(schedule, problem.shape.layers, problem.model.config) if schedule else (keep_all(), None)
    )
    chosen = make_method(method) if method else named or problem.default_method
    evaluator = Evaluator(problem)
    evaluator.counts(policy, split, chosen)  # a schedule that does not fit is refused first, and alone
    if told := unread(problem, evaluator.prepared(split)):
        say(told)
    return evaluator.evaluate([policy], split, chosen)[0]


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())[:500]
    return words if isinstance(error, VispcoError) else f"{type(error).__name__}: {words}"
