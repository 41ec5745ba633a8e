"""Smaller pictures or fewer tokens: ``python benchmarks/resolution.py [--samples N] [--model demo-qwen] [--method M]``.

Each resolution with each schedule on the search split of the embedded task. ``total`` is ``total_flops`` of vision
tower, prefill and answer, over that of the whole picture without pruning; ``tower`` is the tower's part of it. Rows by
total cost; ``*``: no row above is as right. Standard errors are over samples.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import vispco
from vispco.costs import COSTS, Setting
from vispco.evaluation.prepared import vision_flops
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Schedule, Step, keep_all

RESOLUTIONS = (1.0, 0.75, 0.5, 0.25)
SCHEDULES: tuple[Schedule, ...] = (keep_all(), *(Step(layer, keep) for layer in (1, 2, 4) for keep in (0.5, 0.25)))
STUDY = """
experiment: resolution
model: {{name: {model}, resolution: {share}}}
tasks: [{{name: mosaic-vqa, splits: {{calibration: 1, search: {samples}, held_out: 1}}}}]
batch_size: 64
searches: {{grid: {{kind: grid}}}}
"""


@dataclass(frozen=True)
class Row:
    resolution: float
    schedule: str
    tokens: float
    tower: float
    total: float
    accuracy: float


def rows(model: str, samples: int, method: str) -> list[Row]:
    found: list[Row] = []
    cost, chosen, given, whole = COSTS["total_flops"](), make_method(method), None, 0.0
    for share in RESOLUTIONS:
        text = STUDY.format(model=model, share=share, samples=samples)
        problem: Any = vispco.Problem.from_text(text, **(given or {}))
        given = {"model": problem.model, "processor": problem.processor}
        evaluator = vispco.Evaluator(problem)
        (part,) = evaluator.prepared("search")
        answer = problem.tasks[0].max_new_tokens
        setting = Setting.of(problem.adapter, vision_flops=vision_flops(problem), answer_tokens=answer, method=chosen)
        tower = setting.vision_flops * part.n_visual.mean()
        for schedule, measured in zip(SCHEDULES, evaluator.evaluate(SCHEDULES, "search", chosen), strict=True):
            counts = schedule.counts(part.n_visual, problem.shape.layers, None)
            total = float(cost.of(setting, counts, part.n_visual, part.n_text).mean())
            whole = whole or total
            tokens = float(part.n_visual.mean())
            found.append(Row(share, schedule.text(), tokens, tower / whole, total / whole, measured.accuracy))
    return sorted(found, key=lambda row: (row.total, -row.accuracy))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--model", default="demo-qwen")
    parser.add_argument("--method", default="fastv")
    options = parser.parse_args()
    print("resolution  tokens  schedule                   tower  total  accuracy")
    best = -1.0
    for row in rows(options.model, options.samples, options.method):
        error = (row.accuracy * (1 - row.accuracy) / options.samples) ** 0.5
        mark, best = ("*", row.accuracy) if row.accuracy > best else (" ", best)
        print(
            f"{row.resolution:10.2f} {row.tokens:7.1f}  {row.schedule:25s} {row.tower:6.2f} {row.total:6.2f}  "
            f"{row.accuracy:.3f} ± {error:.3f} {mark}"
        )


if __name__ == "__main__":
    main()
