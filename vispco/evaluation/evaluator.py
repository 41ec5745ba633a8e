"""The shared evaluator: the only code that measures. Every search asks it; nothing else runs the task."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vispco.config import content_hash
from vispco.costs import Setting, kv_cache_bytes, prefill_flops, shared_flops, unpruned_flops
from vispco.errors import ConfigError, MeasurementError, VispcoError
from vispco.evaluation.content import Content, model_content
from vispco.evaluation.decoding import changed_logits, check_decoding, needs_generate
from vispco.evaluation.job import Job, Order, Pending, Place
from vispco.evaluation.pixels import pixel_limits
from vispco.evaluation.prepared import PreparedSplit
from vispco.evaluation.records import Evaluation as Evaluation
from vispco.evaluation.records import Failed, Outcome, Stopped
from vispco.evaluation.units import Executor, InProcess, UnitRunner
from vispco.models.loading import weights_hash
from vispco.plugin_files import code_of
from vispco.pruning.forward.counts import checked_counts
from vispco.pruning.methods.base import Method
from vispco.pruning.needs import check_needs
from vispco.pruning.schedules import Counts, Policy, Ratios, Schedule, keep_all, resolution_of

if TYPE_CHECKING:
    from vispco.problem import Problem

EVALUATOR_VERSION = 3
SAVE_SECONDS = 10.0

Watch = Callable[[int], None]


class Looking(Protocol):
    """What :meth:`Evaluator.race` needs of a race; see :class:`vispco.search.racing.Race`."""

    @property
    def order(self) -> Order: ...

    @property
    def stopped_at(self) -> NDArray[np.int64]: ...

    @property
    def unwitnessed(self) -> NDArray[np.bool_]: ...

    def look(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]: ...


class EvaluationStore(Protocol):
    """Where evaluations are kept between runs, finished ones and parts of others."""

    def get_evaluations(self, ids: Sequence[str]) -> dict[str, Evaluation]: ...

    def put_evaluations(self, evaluations: Sequence[Evaluation], groups: Mapping[str, Sequence[str]]) -> None: ...

    def load_blocks(self, ids: Sequence[str]) -> dict[str, dict[tuple[str, int], NDArray[np.float64]]]: ...

    def save_blocks(self, rows: Sequence[tuple[str, str, int, NDArray[np.float32]]]) -> None: ...


class Evaluator:
    """Measures policies on the splits of a problem.

    Prompts and visual features are prepared once per split. Policies that are asked for together run as a tree over
    layers: what they have in common runs once, with the results each would have alone. Results are cached by
    content, in memory and in ``store`` if one is given: equal context and equal realised counts are never measured
    twice, and an interrupted measurement goes on where it was saved last.

    Args:
        executor: where the work is done; default: in this process.
        whole: the evaluator of whole pictures that this one measures smaller ones for; costs are shares of its.
    """

    def __init__(
        self,
        problem: Problem,
        store: EvaluationStore | None = None,
        executor: Executor | None = None,
        *,
        whole: Evaluator | None = None,
    ) -> None:
        self.problem = problem
        self.store = store
        self.whole = whole
        self._smaller: dict[float, Evaluator] = {}
        self.executor: Executor
        if whole is None:
            self.runner = UnitRunner(problem, problem.study.memory_limit)
            self.executor = executor or InProcess(self.runner)
            self.executor.attach(self.runner)
        else:
            self.runner = whole.runner.at(self.resolution)
            self.executor = whole.executor
        self._memory: dict[str, Evaluation] = {}
        self._turn = threading.Lock()

    @property
    def resolution(self) -> float:
        return self.problem.study.model.resolution

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
        found = []
        with self._turn:
            for outcome in self.outcomes(policies, split, method):
                if not isinstance(outcome, Evaluation):
                    raise MeasurementError(f"{outcome.schedule} with {outcome.method}: {getattr(outcome, 'error', '')}")
                found.append(outcome)
        return found

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
                home.ids(own, split, method)  # refused before anything is measured
            streams[home.resolution] = home._outcomes(own, split, method, watch)
        for home in homes:
            yield next(streams[home.resolution])

    def _outcomes(self, policies: Sequence[Policy], split: str, method: Method, watch: Watch) -> Iterator[Outcome]:
        """:meth:`outcomes` at this evaluator's resolution."""
        ids, pending = self._ask(policies, split, method)
        unknown = [waiting for i, waiting in pending.items() if i not in self._memory]
        job = Job(self.prepared(split), self.problem.shape, split, method, unknown, self.resolution)
        finished = self._finish(job, watch)
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
                yield replace(failed[i], schedule=_text(policy))
            else:
                yield replace(fresh.pop(i, self._memory[i]), schedule=_text(policy))

    def race(
        self,
        policies: Sequence[Policy],
        make_race: Callable[[Sequence[float], Sequence[PreparedSplit]], Looking],
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
        job = Job(self.prepared(split), self.problem.shape, split, method, list(pending.values()), self.resolution)
        costs = [ratio(one.counts) if ratio is not None else self._ratio(job, one) for one in job.pending]
        race = make_race(costs, job.parts)
        runners = list(job.pending)
        for waiting in runners:
            if (known := self._memory.get(waiting.id)) is not None:
                job.know(waiting, known.scores)
        with self._saving(job):
            self._restore(job)
            blocks = range(len(job.parts[0].looks))
            for block in blocks:
                self._run(job, job.block(block), watch)
                race.look(job.ordered(race.order, block))
                for waiting, at in zip(runners, race.stopped_at, strict=True):
                    waiting.stopped_at = int(at)
            for number in np.flatnonzero(race.unwitnessed):
                runners[number].stopped_at = 0
            self._run(job, [place for block in blocks for place in job.block(block)], watch)
            self._save(job)
        made: dict[str, Outcome] = {}
        share = (time.monotonic() - started) / max(1, sum(waiting.spent_flops for waiting in runners))
        for waiting in runners:
            seconds = share * waiting.spent_flops
            if waiting.error is not None:
                made[waiting.id] = Failed(waiting.id, split, method.name, waiting.name, waiting.error)
            elif waiting.stopped_at:
                made[waiting.id] = self._stopped(job, waiting, seconds)
            elif waiting.id in self._memory:
                made[waiting.id] = self._memory[waiting.id]
            else:
                made[waiting.id] = self._evaluation(job, waiting, seconds)
        finished = [e for e in made.values() if isinstance(e, Evaluation) and e.id not in self._memory]
        self._keep(job, finished)
        self._memory.update({e.id: replace(e, spent_flops=0, seconds=0.0) for e in finished})
        found: list[Outcome] = []
        for policy, i in zip(policies, ids, strict=True):
            outcome = made[i]
            found.append(replace(outcome, schedule=_text(policy)))
            made[i] = outcome if isinstance(outcome, Failed) else replace(outcome, spent_flops=0, seconds=0.0)
        return found

    def ids(self, policies: Sequence[Policy], split: str, method: Method | None = None) -> list[str]:
        """Evaluation id of each policy, whether or not it is measured.

        Raises:
            ScheduleError: a policy does not fit the model or the method.
        """
        method = method or self.problem.default_method
        homes = [self.at(resolution_of(policy)) for policy in policies]
        found = {
            home: iter(home._ask([p for p, at in zip(policies, homes, strict=True) if at is home], split, method)[0])
            for home in dict.fromkeys(homes)
        }
        return [next(found[home]) for home in homes]

    def _ask(self, policies: Sequence[Policy], split: str, method: Method) -> tuple[list[str], dict[str, Pending]]:
        """Evaluation ids of policies in order, and one pending measurement for each distinct id."""
        counts = [self.counts(policy, split, method) for policy in policies]
        context = content_hash(self.context(split, method))
        ids = [content_hash([context, [content_hash([c.shape, c.tolist()]) for c in given]]) for given in counts]
        self._recall(ids)
        return ids, {
            i: Pending(i, _text(policy), given, [np.full(len(c), np.nan, np.float32) for c in given])
            for policy, given, i in zip(policies, counts, ids, strict=True)
        }

    def _recall(self, ids: Sequence[str]) -> None:
        wanted = [i for i in dict.fromkeys(ids) if i not in self._memory]
        if wanted and self.store is not None:
            self._memory.update(self.store.get_evaluations(wanted))

    def _finish(self, job: Job, watch: Watch) -> Iterator[Evaluation | Failed]:
        """Run a job's units; its evaluations are stored chunk by chunk, unfinished ones now and then."""
        if not job.pending:
            return
        places = [(task, number) for task, part in enumerate(job.parts) for number in range(len(part.batches))]
        chunks = job.chunks()
        waiting = [list(chunk) for chunk in chunks]
        self._landed = time.monotonic()
        with self._saving(job):
            self._restore(job)
            yield from self._complete(job, waiting, len(places))
            for done in self._units(job, places, chunks):
                watch(done)
                yield from self._complete(job, waiting, len(places))

    def _run(self, job: Job, places: Sequence[Place], watch: Watch) -> None:
        for done in self._units(job, places, job.chunks()):
            watch(done)

    def _units(self, job: Job, places: Sequence[Place], chunks: Sequence[Sequence[Pending]]) -> Iterator[int]:
        """Run what is left at ``places``; the number of units done, after each."""
        saved = time.monotonic()
        for done, (number, result) in enumerate(self.executor.run(job.units(places, chunks)), start=1):
            job.absorb(number, result)
            yield done
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save(job)
                saved = time.monotonic()

    @contextmanager
    def _saving(self, job: Job) -> Iterator[None]:
        """Whatever stops the work, also Ctrl-C: what is measured is kept."""
        try:
            yield
        except BaseException:
            # A second error must not hide the first.
            with suppress(VispcoError, OSError):
                self._save(job)
            raise

    def _restore(self, job: Job) -> None:
        if self.store is not None:
            blocks = self.store.load_blocks([pending.id for pending in job.pending])
            for pending in job.pending:
                job.restore(pending, blocks.get(pending.id, {}))

    def _save(self, job: Job) -> None:
        if self.store is not None and (rows := job.unsaved()):
            self.store.save_blocks(rows)

    def _complete(self, job: Job, waiting: list[list[Pending]], places: int) -> Iterator[Evaluation | Failed]:
        """Hand over chunks, in order, whose policies have all ended."""
        while waiting and all(not p.alive or len(p.done) == places for p in waiting[0]):
            ended = waiting.pop(0)
            seconds, self._landed = time.monotonic() - self._landed, time.monotonic()
            share = seconds / max(1, sum(p.spent_flops for p in ended))
            made = {p.id: self._evaluation(job, p, share * p.spent_flops) for p in ended if p.error is None}
            self._keep(job, list(made.values()))
            for pending in ended:
                job.pending.remove(pending)
                if pending.error is None:
                    yield made[pending.id]
                else:
                    yield Failed(pending.id, job.split, job.method.name, pending.name, pending.error)

    def _keep(self, job: Job, finished: Sequence[Evaluation]) -> None:
        if self.store is not None and finished:
            self.store.put_evaluations(finished, {part.task.name: part.groups for part in job.parts})

    def _ratio(self, job: Job, pending: Pending) -> float:
        parts = zip(job.parts, pending.counts, strict=True)
        return float(
            np.mean([float(self._cost(job.split, part, counts, job.method)[1].mean()) for part, counts in parts])
        )

    def _stopped(self, job: Job, pending: Pending, seconds: float) -> Stopped:
        accuracies, flops, full = [], 0, 0
        for part, counts, right in zip(job.parts, pending.counts, pending.scores, strict=True):
            seen = part.place < pending.stopped_at
            pruned, _ = self._cost(job.split, part, counts, job.method)
            flops, full = flops + int(pruned[seen].sum()), full + int(pruned.sum())
            if seen.any():
                accuracies.append(float(right[seen].astype(np.float64).mean()))
        return Stopped(
            id=pending.id,
            split=job.split,
            method=job.method.name,
            schedule=pending.name,
            keep_ratio=self._kept(job, pending),
            accuracy=float(np.mean(accuracies)),
            flops_ratio=self._ratio(job, pending),
            flops=flops,
            full_flops=full,
            spent_flops=pending.spent_flops,
            samples=pending.stopped_at,
            seconds=seconds,
        )

    def _kept(self, job: Job, pending: Pending) -> tuple[float, ...]:
        """Realised keep ratios [L], mean over samples with a picture."""
        seen = [
            counts[part.n_visual > 0] / part.n_visual[part.n_visual > 0, None]
            for part, counts in zip(job.parts, pending.counts, strict=True)
        ]
        kept = np.concatenate(seen)
        return tuple(float(ratio) for ratio in kept.mean(axis=0)) if len(kept) else (1.0,) * self.problem.shape.layers

    def _evaluation(self, job: Job, pending: Pending, seconds: float) -> Evaluation:
        shape, scores, tasks = self.problem.shape, {}, {}
        flops, kv_bytes = 0, []
        for part, counts, right in zip(job.parts, pending.counts, pending.scores, strict=True):
            pruned, ratio = self._cost(job.split, part, counts, job.method)
            scores[part.task.name] = right.astype(np.float64)
            tasks[part.task.name] = {
                "accuracy": self._number(part, scores[part.task.name]),
                "flops_ratio": float(ratio.mean()),
            }
            flops += int(pruned.sum())
            cached = self._cost_setting
            kv_bytes.append(kv_cache_bytes(shape, counts, part.n_text, cached.bytes_per_value, cached.windows))
        return Evaluation(
            id=pending.id,
            split=job.split,
            method=job.method.name,
            schedule=pending.name,
            keep_ratio=self._kept(job, pending),
            accuracy=float(np.mean([task["accuracy"] for task in tasks.values()])),
            flops_ratio=float(np.mean([task["flops_ratio"] for task in tasks.values()])),
            flops=flops,
            spent_flops=pending.spent_flops,
            kv_bytes=float(np.concatenate(kv_bytes).mean()),
            tasks=tasks,
            scores=scores,
            seconds=seconds,
        )

    def _number(self, part: PreparedSplit, scores: NDArray[np.float64]) -> float:
        """The benchmark's number; of scores that are not the benchmark's, their mean."""
        if self.problem.study.score != "task":
            return float(scores.mean())
        return part.task.aggregate(scores, part.groups)

    # --- what measuring needs, and searches may ask -------------------------------------------------

    def prepared(self, split: str) -> list[PreparedSplit]:
        """The tasks' samples of ``split``, ready to run.

        Raises:
            ConfigError: the model's generation settings cannot be followed.
        """
        if any(task.answer_by == "generate" for task in self.problem.tasks):
            check_decoding(self.problem.model.generation_config)
        if (score := self.problem.study.score) != "task" and needs_generate(self.problem.model.generation_config):
            raise ConfigError(
                f"score: {score} needs greedy decoding, and the model's generation settings change tokens "
                f"({', '.join(changed_logits(self.problem.model.generation_config)) or 'beams'}); reset them, or "
                "remove score"
            )
        return self.runner.prepared(split)

    def counts(self, policy: Policy, split: str, method: Method | None = None) -> list[Counts]:
        """Realised counts of each task's samples, int [S, L]. Schedules need lengths only, other policies prompts.

        Raises:
            ScheduleError: the policy does not fit the model or the method.
            ModelError: the model lacks what the method needs.
        """
        if (home := self.at(resolution_of(policy))) is not self:
            return home.counts(policy, split, method)
        method = method or self.problem.default_method
        check_needs(method, self.problem.adapter)
        layers = self.problem.shape.layers
        found = []
        for part in self.prepared(split):
            if isinstance(policy, Schedule):
                visual, _, which = part.lengths
                found.append(checked_counts(policy.counts(visual, layers), visual, layers, method)[which])
                continue
            counts = np.zeros((len(part.samples), layers), dtype=np.int64)
            for batch in part.batches:
                visual = part.n_visual[batch.rows]
                with torch.inference_mode():
                    prompt = batch.prompt(self.problem.adapter)
                counts[batch.rows] = checked_counts(policy.counts(visual, layers, prompt), visual, layers, method)
            found.append(counts)
        return found

    def flops_ratio(self, policy: Policy, split: str = "search", method: Method | None = None) -> float:
        """``flops_ratio`` without measuring: sample lengths are enough. Equals the evaluation's to the last bit."""
        if (home := self.at(resolution_of(policy))) is not self:
            return home.flops_ratio(policy, split, method)
        method = method or self.problem.default_method
        parts = zip(self.prepared(split), self.counts(policy, split, method), strict=True)
        return float(np.mean([float(self._cost(split, part, counts, method)[1].mean()) for part, counts in parts]))

    def price(self, policy: Policy, split: str = "search", method: Method | None = None) -> int:
        """FLOPs of measuring ``policy`` with nothing cached; equals the evaluation's ``flops``."""
        if (home := self.at(resolution_of(policy))) is not self:
            return home.price(policy, split, method)
        method = method or self.problem.default_method
        parts = zip(self.prepared(split), self.counts(policy, split, method), strict=True)
        return sum(int(self._cost(split, part, counts, method)[0].sum()) for part, counts in parts)

    def prices(
        self, policy: Policy, ends: Sequence[int], split: str = "search", method: Method | None = None
    ) -> list[int]:
        """:meth:`price` in parts: on the samples of the random order up to the first of ``ends``, and so on."""
        method, found = method or self.problem.default_method, np.zeros(len(ends), dtype=np.int64)
        for part, counts in zip(self.prepared(split), self.counts(policy, split, method), strict=True):
            stage = np.searchsorted(ends, part.place, side="right")
            np.add.at(found, stage, self._cost(split, part, counts, method)[0])
        return [int(price) for price in found]

    def shared_price(
        self,
        policies: Sequence[Policy],
        split: str = "search",
        method: Method | None = None,
        until: Sequence[int] | None = None,
    ) -> int:
        """FLOPs of measuring ``policies`` together with nothing cached; equals the sum of their ``spent_flops``.

        ``until``: samples of the random order after which each was stopped; 0: all.
        """
        method = method or self.problem.default_method
        by_home: dict[float, tuple[Evaluator, list[Pending]]] = {}
        for policy, stop in zip(policies, until or [0] * len(policies), strict=True):
            home = self.at(resolution_of(policy))
            waiting = Pending("", _text(policy), home.counts(policy, split, method), [], stopped_at=stop)
            by_home.setdefault(home.resolution, (home, []))[1].append(waiting)
        return sum(home._shared_price(pending, split, method) for home, pending in by_home.values())

    def _shared_price(self, pending: Sequence[Pending], split: str, method: Method) -> int:
        """Of policies at this evaluator's resolution."""
        job = Job(self.prepared(split), self.problem.shape, split, method, pending, self.resolution)
        price = 0
        for chunk in job.chunks():
            for task, part in enumerate(job.parts):
                for batch in part.batches:
                    first = int(part.place[batch.rows].min())
                    running = [waiting for waiting in chunk if first < (waiting.stopped_at or first + 1)]
                    counts = [waiting.counts[task][batch.rows] for waiting in running]
                    lengths = part.n_visual[batch.rows], part.n_text[batch.rows]
                    price += int(shared_flops(self.problem.shape, counts, *lengths, method).sum())
        return price

    def _cost(
        self, split: str, part: PreparedSplit, counts: Counts, method: Method
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """FLOPs and flops_ratio of each sample, [S]."""
        shape = self.problem.shape
        pruned = prefill_flops(shape, counts, part.n_visual, part.n_text, method)
        return pruned, pruned / unpruned_flops(shape, *self._whole_lengths(split, part))

    def _whole_lengths(self, split: str, part: PreparedSplit) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Visual and text tokens [S] of the samples of ``part`` with whole pictures."""
        if self.whole is not None:
            part = next(other for other in self.whole.prepared(split) if other.task.name == part.task.name)
        return part.n_visual, part.n_text

    def unpruned(self, split: str) -> Evaluation:
        """The plain model."""
        return self.evaluate([keep_all()], split)[0]

    def no_image(self, split: str) -> Evaluation:
        """The model without visual tokens: what the question alone is worth."""
        return self.evaluate([Ratios([0.0] * self.problem.shape.layers)], split)[0]

    @cached_property
    def _cost_setting(self) -> Setting:
        return Setting.of(self.problem.adapter)

    @cached_property
    def model_content(self) -> Content:
        """See :func:`vispco.evaluation.content.model_content`."""
        return model_content(self.problem)

    @cached_property
    def _model_identity(self) -> dict[str, Any]:
        model = self.problem.model
        limits = pixel_limits(self.problem.processor)
        return {
            "weights": weights_hash(model),
            "dtype": str(self.problem.adapter.dtype()),
            "attention": self.problem.adapter.attention(),
            **({"pixels": list(limits)} if limits else {}),
            "content": content_hash(self.model_content),
            **({"resolution": share} if (share := self.problem.study.model.resolution) != 1 else {}),
        }

    def _plugin_code(self, method: Method) -> dict[str, str]:
        """Of what comes from files of the user's."""
        rules = {task.name: getattr(task, "scorers", {}).get(task.scorer) for task in self.problem.tasks}
        tasks = {f"task {task.name}": task for task in self.problem.tasks}
        scorers = {f"scorer of {name}": rule for name, rule in rules.items() if rule is not None}
        return code_of(model=self.problem.adapter, method=method, **tasks, **scorers)

    def context(self, split: str, method: Method) -> dict[str, Any]:
        """Everything a result depends on, beside the counts."""
        changed = changed_logits(self.problem.model.generation_config)
        most = [task.max_new_tokens for task in self.problem.tasks if task.answer_by == "generate"]
        return {
            "model": self._model_identity,
            "method": {"name": method.name, **method.parameters()},
            "positions": "original",
            "tasks": [task.fingerprint() for task in self.problem.tasks],
            "split": {"name": split, "samples": [part.digest for part in self.prepared(split)]},
            "batch_size": self.problem.study.batch_size,
            "decoding": changed or "greedy",
            # Before, answers of one token were the most probable one whatever the settings.
            **({"first_token": "settings"} if changed and 1 in most else {}),
            "evaluator": EVALUATOR_VERSION,
            **({"score": self.problem.study.score} if self.problem.study.score != "task" else {}),
            # With the same pictures and counts, flops_ratio is another than in a study of small pictures alone.
            **({"relative_to": self.whole.resolution} if self.whole is not None else {}),
            # Before, methods rated tokens by products in the model's own precision.
            **({} if self.problem.adapter.dtype() == torch.float32 else {"products": "float32"}),
            **({"code": code} if (code := self._plugin_code(method)) else {}),
        }


def _text(policy: Policy) -> str:
    return policy.text() if isinstance(policy, Schedule) else repr(policy)
