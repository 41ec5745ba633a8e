"""Calibration samples for searches that look at the frozen model without learning from a teacher's answers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.evaluation.prepared import Batch, make_batch
from vispco.problem import Problem
from vispco.tasks.rendering import render_prompt


@dataclass(frozen=True)
class Observed:
    """A batch of samples of one task; ``n_visual``, ``n_text`` int [B] count the prompt's tokens.

    ``weight``: of each of its samples in a mean over all batches, in which tasks weigh the same.
    """

    batch: Batch
    n_visual: NDArray[np.int64]
    n_text: NDArray[np.int64]
    weight: float


def observe(problem: Problem, samples: int, seed: int) -> list[Observed]:
    """At most ``samples`` random samples of each task's calibration split, in batches.

    Raises:
        ConfigError: a task has no calibration samples.
    """
    observed, tasks = [], problem.calibration_tasks
    for task in tasks:
        pool = task.samples("calibration")
        if not pool:
            raise ConfigError(f"task {task.name!r} has no calibration samples; give its split calibration a size")
        chosen = random.Random(f"calibration/{seed}").sample(pool, min(samples, len(pool)))
        prompts = [render_prompt(problem.processor, sample) for sample in chosen]
        size = problem.study.batch_size
        for start in range(0, len(chosen), size):
            rows = range(start, min(start + size, len(chosen)))
            batch = make_batch(problem, task, chosen, prompts, rows)
            visual = problem.adapter.visual_mask(batch.inputs["input_ids"], None)
            text = batch.inputs["attention_mask"].bool() & ~visual
            weight = 1 / (len(tasks) * len(chosen))
            n_visual, n_text = (mask.sum(dim=1).cpu().numpy() for mask in (visual, text))
            observed.append(Observed(batch, n_visual, n_text, weight))
    return observed
