"""What measuring a policy ended in, from its scores, as a record."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vispco.costs import kv_cache_bytes
from vispco.evaluation.job import Job, Pending
from vispco.evaluation.prepared import PreparedSplit
from vispco.evaluation.prompt_costs import PromptCosts
from vispco.evaluation.records import Evaluation, Failed, Stopped


def evaluation_of(costs: PromptCosts, job: Job, pending: Pending, seconds: float) -> Evaluation:
    """Of a policy whose samples are all measured; ``seconds``: its share of the time."""
    shape, scores, tasks = costs.problem.shape, {}, {}
    flops, kv_bytes, setting = 0, [], costs.setting
    for part, counts, right in zip(job.parts, pending.counts, pending.scores, strict=True):
        sample = costs.of_samples(job.split, part, counts, job.method)
        scores[part.task.name] = right.astype(np.float64)
        tasks[part.task.name] = {
            "accuracy": _number(costs, part, scores[part.task.name]),
            "flops_ratio": float(sample.ratio.mean()),
        }
        flops += int(sample.flops.sum())
        held = kv_cache_bytes(shape, counts, part.n_text, setting.bytes_per_value, setting.windows)
        kv_bytes.append(float(held.mean()))
    return Evaluation(
        id=pending.id,
        split=job.split,
        method=job.method.name,
        schedule=pending.name,
        keep_ratio=_kept(costs, job, pending),
        accuracy=float(np.mean([task["accuracy"] for task in tasks.values()])),
        flops_ratio=float(np.mean([task["flops_ratio"] for task in tasks.values()])),
        flops=flops,
        spent_flops=pending.spent_flops,
        kv_bytes=float(np.mean(kv_bytes)),
        tasks=tasks,
        scores=scores,
        seconds=seconds,
    )


def stopped_of(costs: PromptCosts, job: Job, pending: Pending, seconds: float) -> Stopped:
    """Of a policy that a race stopped: accuracy and FLOPs are those of the samples seen."""
    accuracies, flops, full = [], 0, 0
    for part, counts, right in zip(job.parts, pending.counts, pending.scores, strict=True):
        seen = part.place < pending.stopped_at
        pruned = costs.of_samples(job.split, part, counts, job.method).flops
        flops, full = flops + int(pruned[seen].sum()), full + int(pruned.sum())
        if seen.any():
            accuracies.append(float(right[seen].astype(np.float64).mean()))
    return Stopped(
        id=pending.id,
        split=job.split,
        method=job.method.name,
        schedule=pending.name,
        keep_ratio=_kept(costs, job, pending),
        accuracy=float(np.mean(accuracies)),
        flops_ratio=flops_ratio_of(costs, job, pending),
        flops=flops,
        full_flops=full,
        spent_flops=pending.spent_flops,
        samples=pending.stopped_at,
        seconds=seconds,
    )


def failure_of(job: Job, pending: Pending) -> Failed:
    """Of a policy whose measurement ended in an error."""
    assert pending.error is not None
    return Failed(pending.id, job.split, job.method.name, pending.name, pending.error)


def flops_ratio_of(costs: PromptCosts, job: Job, pending: Pending) -> float:
    """Exact before anything is measured."""
    return costs.mean_ratio(job.split, job.parts, pending.counts, job.method)


def _kept(costs: PromptCosts, job: Job, pending: Pending) -> tuple[float, ...]:
    """Realised keep ratios [L], mean over samples with a picture."""
    seen = [
        counts[part.n_visual > 0] / part.n_visual[part.n_visual > 0, None]
        for part, counts in zip(job.parts, pending.counts, strict=True)
    ]
    kept = np.concatenate(seen)
    return tuple(float(ratio) for ratio in kept.mean(axis=0)) if len(kept) else (1.0,) * costs.problem.shape.layers


def _number(costs: PromptCosts, part: PreparedSplit, scores: NDArray[np.float64]) -> float:
    """The benchmark's number; of scores that are not the benchmark's, their mean."""
    if costs.problem.study.score != "task":
        return float(scores.mean())
    return part.task.aggregate(scores, part.groups)
