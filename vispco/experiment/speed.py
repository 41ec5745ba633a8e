"""How fast schedules are measured: by a measurement, a profile, or a few batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vispco.costs import Profile, Prompts, Setting, make_cost, unpruned_flops
from vispco.costs.held import held
from vispco.evaluation.decoding import stop_tokens
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import PreparedSplit
from vispco.evaluation.records import Evaluation
from vispco.problem import Problem
from vispco.pruning.forward.shared import SharedPrefill

PROBES = 3
PROBED = 8  # tokens of a probe's answers


@dataclass(frozen=True)
class Speed:
    """Seconds of prefills ``per_flop``, and of all that follows the prefill in one schedule's ``answers`` to the search
    split."""

    per_flop: float
    answers: float

    def seconds(self, flops: float, answers: float) -> float:
        return flops * self.per_flop + answers * self.answers


def speed_of(problem: Problem, evaluator: Evaluator, measured: Evaluation | None = None) -> Speed:
    """As ``measured`` of the plain model was just now, else by the problem's profile, else by probes.

    By a profile, and by a probe whose answers did not end, answers are as long as their task lets them be.

    Raises:
        ConfigError: the profile is of another model, or has no times of such long prompts.
    """
    parts = evaluator.prepared("search")
    generating = [part for part in parts if generates(problem, part)]
    if measured is not None and measured.spent_flops and measured.seconds:
        speed = _probed(problem, parts[0], generating) if generating else Speed(1.0, 0.0)
        factor = measured.seconds / speed.seconds(measured.spent_flops, 1)
        return Speed(factor * speed.per_flop, factor * speed.answers)
    if problem.profile is not None:
        return _by_profile(problem, problem.profile, parts, generating)
    return _probed(problem, parts[0], generating)


def generates(problem: Problem, part: PreparedSplit) -> bool:
    """Whether the model goes on after its first token."""
    score = problem.study.score
    asked = score == "agreement" or (score == "task" and part.task.answer_by == "generate")
    return asked and part.task.max_new_tokens > 1


def profiled_batch(problem: Problem, profile: Profile) -> int:
    """The profile's batch that is nearest to what a run measures together, from below if there is one."""
    return max((size for size in profile.batches if size <= problem.study.batch_size), default=min(profile.batches))


def _by_profile(
    problem: Problem, profile: Profile, parts: Sequence[PreparedSplit], generating: Sequence[PreparedSplit]
) -> Speed:
    profile.check_model(problem.study.model.name, problem.shape, held(problem.adapter))
    prompts, prefill = Prompts.of([(part.n_visual, part.n_text) for part in parts]), make_cost("prefill_ms")
    setting = Setting.of(problem.adapter, profile=profile, batch=profiled_batch(problem, profile))
    spent = prompts.mean(prefill.unpruned(setting, prompts.visual, prompts.text)) / 1000 / setting.batch
    plain = prompts.mean(unpruned_flops(problem.shape, prompts.visual, prompts.text))
    further = 0.0
    for part in generating:
        whole = replace(setting, answer_tokens=part.task.max_new_tokens)
        ms = make_cost("latency_ms").unpruned(whole, part.n_visual, part.n_text)
        further += float((ms - prefill.unpruned(setting, part.n_visual, part.n_text)).sum()) / 1000 / setting.batch
    return Speed(float(spent / plain), further)


def _probed(problem: Problem, part: PreparedSplit, generating: Sequence[PreparedSplit]) -> Speed:
    """A few plain prefills of one batch, and a short answer to one of each task that generates."""
    batch = part.batches[0]
    inputs = problem.adapter.with_features(batch.inputs, batch.features)
    flops = float(unpruned_flops(problem.shape, part.n_visual[batch.rows], part.n_text[batch.rows]).sum())
    times = []
    with torch.inference_mode():
        for _ in range(1 + PROBES):
            started = time.perf_counter()
            problem.model(**inputs, logits_to_keep=1).logits.sum().item()
            times.append(time.perf_counter() - started)
    answers = sum(len(one.batches) * _decoding(problem, one) for one in generating)
    return Speed(float(np.median(times[1:])) / flops, answers)


def _decoding(problem: Problem, part: PreparedSplit) -> float:
    """Seconds of the plain model's answers to the first batch, beyond its prefill."""
    batch, most = part.batches[0], part.task.max_new_tokens
    everything = np.repeat(part.n_visual[batch.rows][:, None], problem.shape.layers, axis=1)[None]
    inputs = problem.adapter.with_features(batch.inputs, batch.features)
    stop, pad = stop_tokens(problem.model.generation_config)
    times, length = [], 0
    for _ in range(1 + PROBES):
        shared = SharedPrefill(problem.adapter, problem.default_method, everything)
        for _, logits in shared.logits(inputs, batch.keys, cached=True):
            logits.sum().item()  # the prefill is done
            started = time.perf_counter()
            length = shared.greedy(logits, min(most, PROBED), stop, pad).shape[1]
            times.append(time.perf_counter() - started)
    steps = most - 1 if length == PROBED else length - 1
    return float(np.median(times[1:])) * steps / max(1, length - 1)
