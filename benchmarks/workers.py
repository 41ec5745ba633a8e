"""Ray workers against one another and against this process: throughput, after the answers were compared.

    python benchmarks/workers.py

One thread per process. Models are loaded and splits prepared before the clock starts; each round measures the same
schedules in the process, on one worker and on two, in shuffled turns, and the medians of the rounds' ratios count.
Two workers must reach 1.6 times the throughput of one; a machine that is busy with other things cannot show that,
so the load is printed, too.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import random
import statistics
import sys
import time

import numpy as np
import torch

from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.ray_workers import RayWorkers
from vispco.evaluation.records import Evaluation
from vispco.problem import Problem
from vispco.pruning.families import FAMILIES
from vispco.pruning.schedules import Schedule

NEEDED = 1.6
STUDY = """
experiment: workers
model: demo
tasks:
  - {{name: mosaic-vqa, splits: {{calibration: 8, search: {samples}, held_out: 8}}}}
batch_size: 16
searches:
  grid: {{kind: grid}}
"""


def measured(evaluator: Evaluator, schedules: list[Schedule]) -> tuple[float, list[Evaluation]]:
    """Seconds, and what was found; nothing is remembered from before."""
    evaluator._memory.clear()
    started = time.perf_counter()
    found = evaluator.evaluate(schedules)
    return time.perf_counter() - started, found


def check_equal(found: list[Evaluation], expected: list[Evaluation]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.id, ours.accuracy, ours.flops, ours.spent_flops) == (
            theirs.id,
            theirs.accuracy,
            theirs.flops,
            theirs.spent_flops,
        )
        for task, scores in theirs.scores.items():
            np.testing.assert_array_equal(ours.scores[task], scores)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--every", type=int, default=4, help="measure every so-many-th schedule of the dense grid")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem.from_text(STUDY.format(samples=options.samples))
    schedules = list(FAMILIES["step"](problem.shape.layers).dense_grid())[:: options.every]
    workers = RayWorkers(problem, 2)
    workers.wait()
    members = list(workers.members)
    here, there = Evaluator(problem), Evaluator(problem, executor=workers)

    def one_round(kind: str) -> tuple[float, list[Evaluation]]:
        if kind == "process":
            return measured(here, schedules)
        workers.members = members[: int(kind)]
        return measured(there, schedules)

    try:
        _, expected = one_round("process")
        for kind in ("1", "2", "2"):
            check_equal(one_round(kind)[1], expected)
        seconds: dict[str, list[float]] = {"process": [], "1": [], "2": []}
        order = random.Random(0)
        for number in range(options.rounds):
            for kind in order.sample(list(seconds), len(seconds)):
                taken, found = one_round(kind)
                check_equal(found, expected)
                seconds[kind].append(taken)
            shown = ", ".join(f"{kind}: {values[-1]:.2f} s" for kind, values in seconds.items())
            print(f"round {number + 1}: {shown}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs", flush=True)
    finally:
        workers.members = members
        workers.close()
    two = statistics.median(one / two for one, two in zip(seconds["1"], seconds["2"], strict=True))
    best = min(seconds["1"]) / min(seconds["2"])
    overhead = statistics.median(one / here for one, here in zip(seconds["1"], seconds["process"], strict=True))
    print(f"{len(schedules)} schedules on {options.samples} samples, answers equal to the bit in every round")
    print(f"two workers against one: {two:.2f}x (needed: {NEEDED}); fastest rounds {best:.2f}x")
    print(f"one worker against the process itself: {overhead:.2f}x its time")
    return 0 if two >= NEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
