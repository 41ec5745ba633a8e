"""What schedules cost on prepared prompts: it follows from their lengths, so nothing is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vispco.costs import Setting, prefill_flops, shared_flops, unpruned_flops
from vispco.errors import ConfigError
from vispco.evaluation.decoding import changed_logits, check_decoding, needs_generate
from vispco.evaluation.job import Job, Pending
from vispco.evaluation.prepared import PreparedSplit
from vispco.evaluation.units import UnitRunner
from vispco.pruning.forward.counts import checked_counts
from vispco.pruning.methods.base import Method
from vispco.pruning.needs import check_needs
from vispco.pruning.schedules import Counts, Policy, Schedule, policy_text, resolution_of

if TYPE_CHECKING:
    from vispco.problem import Problem


@dataclass(frozen=True, eq=False)
class SampleCosts:
    """Of each sample of a task, [S]: FLOPs of its pruned prefill, and their share of the plain model's."""

    flops: NDArray[np.int64]
    ratio: NDArray[np.float64]


class PromptCosts(ABC):
    """A problem's prompts, ready to run, and what policies realise and cost on them.

    Args:
        whole: the same of whole pictures, where this one has smaller ones; ratios are shares of its costs.
    """

    def __init__(self, problem: Problem, runner: UnitRunner, whole: PromptCosts | None = None) -> None:
        self.problem, self.runner, self.whole = problem, runner, whole

    @property
    def resolution(self) -> float:
        return self.problem.study.model.resolution

    @abstractmethod
    def at(self, resolution: float | None) -> PromptCosts:
        """The same for pictures at ``resolution``; None, or the study's own: this one."""

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
        counted = []
        for part in self.prepared(split):
            if isinstance(policy, Schedule):
                visual, _, which = part.lengths
                counted.append(checked_counts(policy.counts(visual, layers), visual, layers, method)[which])
                continue
            counts = np.zeros((len(part.samples), layers), dtype=np.int64)
            for batch in part.batches:
                visual = part.n_visual[batch.rows]
                with torch.inference_mode():
                    prompt = batch.prompt(self.problem.adapter)
                counts[batch.rows] = checked_counts(policy.counts(visual, layers, prompt), visual, layers, method)
            counted.append(counts)
        return counted

    def flops_ratio(self, policy: Policy, split: str = "search", method: Method | None = None) -> float:
        """``flops_ratio`` without measuring: sample lengths are enough. Equals the evaluation's to the last bit."""
        home, method = self.at(resolution_of(policy)), method or self.problem.default_method
        return home.mean_ratio(split, home.prepared(split), home.counts(policy, split, method), method)

    def mean_ratio(self, split: str, parts: Sequence[PreparedSplit], counts: Sequence[Counts], method: Method) -> float:
        """Mean over tasks of the mean over samples; ``counts``: [S, L] of each of ``parts``."""
        pairs = zip(parts, counts, strict=True)
        return float(np.mean([float(self.of_samples(split, part, own, method).ratio.mean()) for part, own in pairs]))

    def price(self, policy: Policy, split: str = "search", method: Method | None = None) -> int:
        """FLOPs of measuring ``policy`` with nothing cached; equals the evaluation's ``flops``."""
        return sum(int(flops.sum()) for _, flops in self._flops(policy, split, method))

    def prices(
        self, policy: Policy, ends: Sequence[int], split: str = "search", method: Method | None = None
    ) -> list[int]:
        """:meth:`price` in parts: on the samples of the random order up to the first of ``ends``, and so on."""
        prices = np.zeros(len(ends), dtype=np.int64)
        for part, flops in self._flops(policy, split, method):
            np.add.at(prices, np.searchsorted(ends, part.place, side="right"), flops)
        return [int(price) for price in prices]

    def _flops(
        self, policy: Policy, split: str, method: Method | None
    ) -> Iterator[tuple[PreparedSplit, NDArray[np.int64]]]:
        """Each task with the FLOPs of its samples [S], at the policy's resolution."""
        home, method = self.at(resolution_of(policy)), method or self.problem.default_method
        for part, counts in zip(home.prepared(split), home.counts(policy, split, method), strict=True):
            yield part, home.of_samples(split, part, counts, method).flops

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
        by_home: dict[float, tuple[PromptCosts, list[Pending]]] = {}
        for policy, stop in zip(policies, until or [0] * len(policies), strict=True):
            home = self.at(resolution_of(policy))
            waiting = Pending("", policy_text(policy), home.counts(policy, split, method), [], stopped_at=stop)
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

    def of_samples(self, split: str, part: PreparedSplit, counts: Counts, method: Method) -> SampleCosts:
        """Costs of the samples of ``part`` with ``counts`` [S, L]."""
        shape = self.problem.shape
        flops = prefill_flops(shape, counts, part.n_visual, part.n_text, method)
        return SampleCosts(flops, flops / unpruned_flops(shape, *self._whole_lengths(split, part)))

    def _whole_lengths(self, split: str, part: PreparedSplit) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Visual and text tokens [S] of the samples of ``part`` with whole pictures."""
        if self.whole is not None:
            part = next(other for other in self.whole.prepared(split) if other.task.name == part.task.name)
        return part.n_visual, part.n_text

    @cached_property
    def setting(self) -> Setting:
        """What costs depend on beside counts and lengths, without a method."""
        return Setting.of(self.problem.adapter)
