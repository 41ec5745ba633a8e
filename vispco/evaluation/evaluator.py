"""The shared evaluator: the only code that measures. Every search asks it; nothing else runs the task."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vispco.config import content_hash
from vispco.errors import ConfigError, MeasurementError
from vispco.evaluation.content import Content, model_content
from vispco.evaluation.identity import measurement_context, model_identity
from vispco.evaluation.job import Job, Pending
from vispco.evaluation.measurement import EvaluationStore, Measurement, Watch
from vispco.evaluation.outcomes import evaluation_of, failure_of, flops_ratio_of, stopped_of
from vispco.evaluation.prepared import PreparedSplit
from vispco.evaluation.prompt_costs import PromptCosts
from vispco.evaluation.race import RaceProtocol, run_race
from vispco.evaluation.records import Evaluation, Failed, Outcome
from vispco.evaluation.units import Executor, InProcess, UnitRunner
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Counts, Policy, Ratios, keep_all, policy_text, resolution_of

if TYPE_CHECKING:
    from vispco.problem import Problem


class Evaluator(PromptCosts):
    """Measures policies on the splits of a problem.

    Prompts and visual features are prepared once per split. Policies that are asked for together run as a tree over
    layers: what they have in common runs once, with the results each would have alone. Results are cached by
    content, in memory and in ``store`` if one is given: equal context and equal realised counts are never measured
    twice, and an interrupted measurement goes on where it was saved last.

    Args:
        executor: where the work is done; default: in this process.
        whole: the evaluator of whole pictures that this one measures smaller ones for; costs are shares of its.
    """

    whole: Evaluator | None

    def __init__(
        self,
        problem: Problem,
        store: EvaluationStore | None = None,
        executor: Executor | None = None,
        *,
        whole: Evaluator | None = None,
    ) -> None:
        self.store = store
        self._smaller: dict[float, Evaluator] = {}
        self.executor: Executor
        if whole is None:
            super().__init__(problem, UnitRunner(problem, problem.study.memory_limit))
            self.executor = executor or InProcess(self.runner)
            self.executor.attach(self.runner)
        else:
            super().__init__(problem, whole.runner.at(problem.study.model.resolution), whole)
            self.executor = whole.executor
        self._memory: dict[str, Evaluation] = {}
        self._turn = threading.Lock()

    def at(self, resolution: float | None) -> Evaluator:
        """The evaluator of schedules for pictures at ``resolution``; None, or the study's own: this one.

        It measures with the same model, tasks, store and executor. ``flops_ratio`` is relative to the plain model on
        whole pictures there too. Prompts and features are prepared, and kept, once per resolution.
        """
        if resolution is None or resolution == self.resolution:
            return self
        if self.whole is not None:
            return self.whole.at(resolution)
        if resolution not in self._smaller:
            problem = self.problem.at_resolution(resolution)
            self._smaller[resolution] = Evaluator(problem, self.store, whole=self)
        return self._smaller[resolution]

    # --- measuring -------------------------------------------------------------------------------

    def evaluate(
        self, policies: Sequence[Policy], split: str = "search", method: Method | None = None
    ) -> list[Evaluation]:
        """Measure each policy on ``split``, in order. Threads that ask at once are served one after another.

        Args:
            policies: schedules, or any policy.
            method: defaults to the problem's.

        Raises:
            ScheduleError: a policy does not fit the model or the method.
            MeasurementError: the model gave something that cannot be scored, such as logits that are not finite.
        """
        measured = []
        with self._turn:
            for outcome in self.outcomes(policies, split, method):
                if not isinstance(outcome, Evaluation):
                    raise MeasurementError(f"{outcome.schedule} with {outcome.method}: {getattr(outcome, 'error', '')}")
                measured.append(outcome)
        return measured

    def outcomes(
        self,
        policies: Sequence[Policy],
        split: str = "search",
        method: Method | None = None,
        watch: Watch = lambda units: None,
    ) -> Iterator[Outcome]:
        """Measure policies, one outcome each, in order, as soon as they are there; one that fails stops no other.

        ``watch`` gets the number of units of work done.

        Raises:
            ScheduleError: a policy does not fit the model or the method; nothing was measured.
        """
        method = method or self.problem.default_method
        homes = [self.at(resolution_of(policy)) for policy in policies]
        streams: dict[float, Iterator[Outcome]] = {}
        for home in dict.fromkeys(homes):
            own = [policy for policy, at in zip(policies, homes, strict=True) if at is home]
            if home is not self:
                if self.problem.study.score != "task":
                    raise ConfigError(
                        f"score: {self.problem.study.score} compares answers to equal pictures; "
                        f"a schedule at resolution {home.resolution:g} shows smaller ones"
                    )
                home.ids(own, split, method)  # refused before anything is measured
            streams[home.resolution] = home._outcomes(own, split, method, watch)
        for home in homes:
            yield next(streams[home.resolution])

    def _outcomes(self, policies: Sequence[Policy], split: str, method: Method, watch: Watch) -> Iterator[Outcome]:
        """:meth:`outcomes` at this evaluator's resolution."""
        ids, pending = self._ask(policies, split, method)
        unknown = [waiting for i, waiting in pending.items() if i not in self._memory]
        job = self._job(split, method, unknown)
        finished = self._measurement(job).finish(watch)
        fresh: dict[str, Evaluation] = {}
        failed: dict[str, Failed] = {}
        for policy, i in zip(policies, ids, strict=True):
            while i not in self._memory and i not in failed:
                outcome = next(finished)
                if isinstance(outcome, Failed):
                    failed[outcome.id] = outcome
                else:
                    self._memory[outcome.id] = replace(outcome, spent_flops=0, seconds=0.0)
                    fresh[outcome.id] = outcome
            if i in failed:
                yield replace(failed[i], schedule=policy_text(policy))
            else:
                yield replace(fresh.pop(i, self._memory[i]), schedule=policy_text(policy))

    def race(
        self,
        policies: Sequence[Policy],
        make_race: Callable[[Sequence[float], Sequence[PreparedSplit]], RaceProtocol],
        split: str = "search",
        method: Method | None = None,
        watch: Watch = lambda units: None,
        ratio: Callable[[Sequence[Counts]], float] | None = None,
    ) -> list[Outcome]:
        """Measure policies block by block, all of them side by side, without those that the race stops; in order.

        What was measured before, by whomever, is known to the race when its turn comes and changes no decision.

        Args:
            make_race: from each policy's cost and the prepared tasks, a :class:`vispco.search.racing.Race`.
            ratio: cost of a policy, as a share, from its counts [S, L] of each task; default: its flops_ratio.

        Raises:
            ScheduleError: a policy does not fit the model or the method; nothing was measured.
        """
        method, started = method or self.problem.default_method, time.monotonic()
        ids, pending = self._ask(policies, split, method)
        job = self._job(split, method, list(pending.values()))
        costs = [ratio(one.counts) if ratio is not None else flops_ratio_of(self, job, one) for one in job.pending]
        race = make_race(costs, job.parts)
        runners = list(job.pending)
        for waiting in runners:
            if (known := self._memory.get(waiting.id)) is not None:
                job.know(waiting, known.scores)
        measurement = self._measurement(job)
        run_race(measurement, race, watch)
        made: dict[str, Outcome] = {}
        share = (time.monotonic() - started) / max(1, sum(waiting.spent_flops for waiting in runners))
        for waiting in runners:
            seconds = share * waiting.spent_flops
            if waiting.error is not None:
                made[waiting.id] = failure_of(job, waiting)
            elif waiting.stopped_at:
                made[waiting.id] = stopped_of(self, job, waiting, seconds)
            elif waiting.id in self._memory:
                made[waiting.id] = self._memory[waiting.id]
            else:
                made[waiting.id] = evaluation_of(self, job, waiting, seconds)
        finished = [e for e in made.values() if isinstance(e, Evaluation) and e.id not in self._memory]
        measurement.keep(finished)
        self._memory.update({e.id: replace(e, spent_flops=0, seconds=0.0) for e in finished})
        outcomes: list[Outcome] = []
        for policy, i in zip(policies, ids, strict=True):
            outcome = made[i]
            outcomes.append(replace(outcome, schedule=policy_text(policy)))
            made[i] = outcome if isinstance(outcome, Failed) else replace(outcome, spent_flops=0, seconds=0.0)
        return outcomes

    def ids(self, policies: Sequence[Policy], split: str, method: Method | None = None) -> list[str]:
        """Evaluation id of each policy, whether or not it is measured.

        Raises:
            ScheduleError: a policy does not fit the model or the method.
        """
        method = method or self.problem.default_method
        homes = [self.at(resolution_of(policy)) for policy in policies]
        ids = {
            home: iter(home._ask([p for p, at in zip(policies, homes, strict=True) if at is home], split, method)[0])
            for home in dict.fromkeys(homes)
        }
        return [next(ids[home]) for home in homes]

    def _ask(self, policies: Sequence[Policy], split: str, method: Method) -> tuple[list[str], dict[str, Pending]]:
        """Evaluation ids of policies in order, and one pending measurement for each distinct id."""
        counts = [self.counts(policy, split, method) for policy in policies]
        context = content_hash(self.context(split, method))
        ids = [content_hash([context, [content_hash([c.shape, c.tolist()]) for c in given]]) for given in counts]
        self._recall(ids)
        return ids, {
            i: Pending(i, policy_text(policy), given, [np.full(len(c), np.nan, np.float32) for c in given])
            for policy, given, i in zip(policies, counts, ids, strict=True)
        }

    def _job(self, split: str, method: Method, pending: Sequence[Pending]) -> Job:
        return Job(self.prepared(split), self.problem.shape, split, method, pending, self.resolution)

    def _measurement(self, job: Job) -> Measurement:
        return Measurement(job, self.executor, self.store, partial(evaluation_of, self, job))

    def _recall(self, ids: Sequence[str]) -> None:
        wanted = [i for i in dict.fromkeys(ids) if i not in self._memory]
        if wanted and self.store is not None:
            self._memory.update(self.store.get_evaluations(wanted))

    def unpruned(self, split: str) -> Evaluation:
        """The plain model."""
        return self.evaluate([keep_all()], split)[0]

    def no_image(self, split: str) -> Evaluation:
        """The model without visual tokens: what the question alone is worth."""
        return self.evaluate([Ratios([0.0] * self.problem.shape.layers)], split)[0]

    # --- identity --------------------------------------------------------------------------------

    @cached_property
    def model_content(self) -> Content:
        """See :func:`vispco.evaluation.content.model_content`."""
        return model_content(self.problem)

    @cached_property
    def _model_identity(self) -> dict[str, Any]:
        return model_identity(self.problem, self.model_content)

    def context(self, split: str, method: Method) -> dict[str, Any]:
        """Everything a result depends on, beside the counts."""
        digests = [part.digest for part in self.prepared(split)]
        relative_to = self.whole.resolution if self.whole is not None else None
        return measurement_context(self.problem, method, split, digests, self._model_identity, relative_to)
