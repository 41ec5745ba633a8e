"""What a study will take before it runs: trials, compute, time and memory of each entry on the search split."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vispco.config import SearchConfig
from vispco.costs import Prompts, Setting, make_cost, plain_flops, relaxed_backward_flops, unpruned_flops
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.records import Evaluation
from vispco.experiment.planning import plan
from vispco.problem import Problem
from vispco.pruning.schedules import keep_all
from vispco.search.gradient.options import GradientOptions
from vispco.search.progress import in_flops

DRAWN = 32  # points of a family's grid that stand for what a sampler will draw
PROBES = 3


def estimate(
    problem: Problem,
    evaluator: Evaluator | None = None,
    only: Sequence[str] | None = None,
    measured: Evaluation | None = None,
) -> list[dict[str, Any]]:
    """One row per study and a total. Trials, PFLOPs and minutes are None where the search decides them itself.

    PFLOPs are those of the prefills on the search split, as if nothing were shared or cached, so that a grid takes
    less; samplers are priced at the family's mean schedule, gradient searches by their steps, their check and what they
    measure. Minutes follow from the study's profile, or else from a
    probe of one batch. Memory is that of weights and ``peak_bytes`` of a batch of the longest prompts.
    """
    evaluator = evaluator or Evaluator(problem)
    rate, memory = _seconds_per_flop(problem, evaluator, measured), _memory(problem, evaluator)
    grid = _priced_grid(problem, evaluator, None)
    known: dict[str, float | None] = {}
    rows = []
    for item in plan(problem.study, only):
        trials, flops = _entry(problem, evaluator, item.config, item.options, known, grid)
        known[item.entry] = flops
        rows.append(_row(item.study, trials, flops, rate, memory))
    told = [row["pflops"] for row in rows]
    total = None if None in told else sum(told) * 1e15
    return [*rows, _row("total", sum(row["trials"] or 0 for row in rows), total, rate, memory)]


def in_words(rows: Sequence[dict[str, Any]]) -> str:
    """The total in one line, and which studies it leaves out; sharing makes it less."""
    *studies, total = rows
    left_out = [row["study"].partition("/")[2] for row in studies if row["pflops"] is None]
    known = [row for row in studies if row["pflops"] is not None]
    pflops, minutes = sum(row["pflops"] for row in known), sum(row["minutes"] for row in known)
    told = f"{total['trials']} trials planned, {in_flops(pflops * 1e15)}, at most {minutes:.2g} min, "
    told += f"{total['peak_mib']:.0f} MiB"
    return told + (f", without {', '.join(left_out)}" if left_out else "")


def _row(name: str, trials: int | None, flops: float | None, rate: float, memory: float) -> dict[str, Any]:
    return {
        "study": name,
        "trials": trials,
        "pflops": None if flops is None else flops / 1e15,
        "minutes": None if flops is None else flops * rate / 60,
        "peak_mib": memory / 2**20,
    }


def _entry(
    problem: Problem,
    evaluator: Evaluator,
    entry: SearchConfig,
    options: Any,
    known: dict[str, float | None],
    grid: list[int],
) -> tuple[int | None, float | None]:
    if entry.kind == "grid":
        prices = _priced_grid(problem, evaluator, entry)
        return len(prices), float(sum(prices))
    compute, trials = getattr(options, "compute", None), getattr(options, "trials", None)
    if isinstance(compute, str):
        return None, known.get(compute)
    if isinstance(compute, float):
        return None, compute * sum(grid)
    if isinstance(options, GradientOptions):
        return _gradients(problem, evaluator, entry, options.settled())
    if trials is None:
        return None, None
    prices = _priced_grid(problem, evaluator, entry, DRAWN)
    return trials, trials * float(np.mean(prices))


def _gradients(
    problem: Problem, evaluator: Evaluator, entry: SearchConfig, options: GradientOptions
) -> tuple[int, float]:
    """Trials and FLOPs of a gradient search: the teacher, the steps, the check of neighbouring shapes, and measuring.

    With ``enough`` it is the most: larger budgets may take a schedule over, which costs nothing.
    Prompts for gradients are taken to be as long as those of the search split.
    """
    parts, shape = evaluator.prepared("search"), problem.shape
    tokens = np.concatenate([part.n_visual + part.n_text for part in parts])
    plain = float(np.mean(plain_flops(shape, tokens)))
    step = plain + float(np.mean(relaxed_backward_flops(shape, tokens)))
    asked = problem.study.budgets
    budgets = asked if isinstance(asked, int) else len(asked)
    trials = budgets * options.measure + (options.between or 0)
    descents = budgets if options.predictor == "static" else 1
    samples = sum(task.sizes["calibration"] for task in problem.calibration_tasks)
    teacher = min(samples, options.samples or samples) * plain
    steps = descents * (options.dual_steps or 0) * options.primal_steps * options.batch * step
    pruned = float(np.mean(_priced_grid(problem, evaluator, entry, DRAWN)))
    family = problem.family(entry)
    shapes = 1 + len(family.neighbours(family.discrete(family.start())))
    check = (budgets + (options.between or 0)) * shapes * (options.check or 0) / 2 * pruned / len(tokens)
    return trials, teacher + steps + check + trials * pruned


def _priced_grid(
    problem: Problem, evaluator: Evaluator, entry: SearchConfig | None, most: int | None = None
) -> list[int]:
    """FLOPs of each schedule of the family's dense grid, or of ``most`` of them, spread evenly."""
    entry = entry or SearchConfig(kind="grid", family="step")
    family, method = problem.family(entry), problem.method(entry)
    try:
        points = list(family.dense_grid())
    except ConfigError:  # too many parameters for a grid: its two ends stand for it
        points = [family.cheapest(), keep_all()]
    step = 1 if most is None else max(1, len(points) // most)
    return [evaluator.price(schedule, "search", method) for schedule in itertools.islice(points, 0, None, step)]


def _seconds_per_flop(problem: Problem, evaluator: Evaluator, measured: Evaluation | None) -> float:
    """By a measurement that was just made, by the study's profile, or else by a few plain prefills of one batch."""
    if measured is not None and measured.spent_flops and measured.seconds:
        return measured.seconds / measured.spent_flops
    profile = problem.profile
    if profile is not None:
        profile.check_model(problem.study.model.name, problem.shape)
        parts = [(part.n_visual, part.n_text) for part in evaluator.prepared("search")]
        prompts, cost = Prompts.of(parts), make_cost("prefill_ms")
        setting = Setting.of(problem.adapter, profile=profile, batch=min(profile.batches))
        spent = prompts.mean(cost.unpruned(setting, prompts.visual, prompts.text)) / 1000 / setting.batch
        plain = prompts.mean(unpruned_flops(problem.shape, prompts.visual, prompts.text))
        return float(spent / plain)
    part = evaluator.prepared("search")[0]
    batch = part.batches[0]
    inputs = problem.adapter.with_features(batch.inputs, batch.features)
    flops = float(unpruned_flops(problem.shape, part.n_visual[batch.rows], part.n_text[batch.rows]).sum())
    times = []
    with torch.inference_mode():
        for _ in range(1 + PROBES):
            started = time.perf_counter()
            problem.model(**inputs, logits_to_keep=1).logits.sum().item()
            times.append(time.perf_counter() - started)
    return float(np.median(times[1:])) / flops


def _memory(problem: Problem, evaluator: Evaluator) -> float:
    parts = evaluator.prepared("search")
    longest = max(((int(v), int(t)) for p in parts for v, t in zip(p.n_visual, p.n_text, strict=True)), key=sum)
    setting = Setting.of(problem.adapter, batch=problem.study.batch_size)
    peak = make_cost("peak_bytes").unpruned(setting, np.array([longest[0]]), np.array([longest[1]]))
    weights = sum(one.numel() * one.element_size() for one in problem.model.parameters())
    return float(peak[0] + weights)
