"""What a study will take before it runs: trials, compute, time and memory of each entry on the search split."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from vispco.config import SearchConfig
from vispco.costs import Profile, Prompts, Setting, make_cost, plain_flops, relaxed_backward_flops, unpruned_flops
from vispco.costs.held import held, told_apart
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.records import Evaluation
from vispco.experiment.planning import plan
from vispco.problem import Problem
from vispco.pruning.schedules import keep_all
from vispco.search import SEARCHES
from vispco.search.gradient.options import GradientOptions
from vispco.search.progress import in_flops

DRAWN = 32  # points of a family's grid that stand for what a sampler will draw
PROBES = 3
KEPT, RECOMPUTED = 2.4, 6.0  # a gradient step's memory over that of one layer's forward: per layer, and in all


def estimate(
    problem: Problem,
    evaluator: Evaluator | None = None,
    only: Sequence[str] | None = None,
    measured: Evaluation | None = None,
) -> list[dict[str, Any]]:
    """One row per study and a total. Trials, PFLOPs and minutes are None where the search decides them itself.

    PFLOPs are those of the prefills on the search split, as if nothing were shared or cached, so that a grid takes
    less; samplers are priced at the family's mean schedule, gradient searches by their steps, their check and what they
    measure. Minutes follow from the problem's profile, or else from a probe of one batch. Memory is that of weights,
    ``peak_bytes`` of a batch of the longest prompts, and, of gradient searches, what a step keeps for its backward pass
    where that is more; of values as wide as the profile's machine has them.

    Raises:
        ConfigError: the profile is of another model, or has no times of such long prompts.
    """
    evaluator = evaluator or Evaluator(problem)
    rate, memory = _seconds_per_flop(problem, evaluator, measured), PeakMemory(problem, evaluator)
    grid = _priced_grid(problem, evaluator, None)
    known: dict[str, float | None] = {}
    rows = []
    for item in plan(problem.study, only):
        trials, flops = _entry(problem, evaluator, item.config, item.options, known, grid)
        known[item.entry] = flops
        rows.append(_row(item.study, trials, flops, rate, memory.of(item.options)))
    told = [row["pflops"] for row in rows]
    total = None if None in told else sum(told) * 1e15
    most = max((memory.of(item.options) for item in plan(problem.study, only)), default=memory.of(None))
    return [*rows, _row("total", sum(row["trials"] or 0 for row in rows), total, rate, most)]


def machine(problem: Problem) -> str | None:
    """In words, what minutes and memory are of; None where that is this machine."""
    profile = problem.profile
    if profile is None:
        return None
    named = f"{profile.device_name} ({profile.device})" if profile.device_name else profile.device
    told = f"minutes and memory are of {named}, {profile.dtype}, batch {_batch(problem, profile)}"
    return f"{told}; {differ}" if (differ := told_apart(profile, held(problem.adapter))) else told


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
    if SEARCHES[entry.kind].is_reference:
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


def _batch(problem: Problem, profile: Profile) -> int:
    """The profile's batch that is nearest to what a run measures together, from below if there is one."""
    return max((size for size in profile.batches if size <= problem.study.batch_size), default=min(profile.batches))


def _seconds_per_flop(problem: Problem, evaluator: Evaluator, measured: Evaluation | None) -> float:
    """By a measurement that was just made, by the study's profile, or else by a few plain prefills of one batch."""
    if measured is not None and measured.spent_flops and measured.seconds:
        return measured.seconds / measured.spent_flops
    profile = problem.profile
    if profile is not None:
        profile.check_model(problem.study.model.name, problem.shape, held(problem.adapter))
        parts = [(part.n_visual, part.n_text) for part in evaluator.prepared("search")]
        prompts, cost = Prompts.of(parts), make_cost("prefill_ms")
        setting = Setting.of(problem.adapter, profile=profile, batch=_batch(problem, profile))
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


class PeakMemory:
    """Bytes that an entry takes at once: weights, and its largest batch of prompts as long as the search split's."""

    def __init__(self, problem: Problem, evaluator: Evaluator) -> None:
        parts = evaluator.prepared("search")
        longest = max(((int(v), int(t)) for p in parts for v, t in zip(p.n_visual, p.n_text, strict=True)), key=sum)
        self._visual, self._text = np.array([longest[0]]), np.array([longest[1]])
        self._setting = Setting.of(problem.adapter, batch=problem.study.batch_size).on(problem.profile)
        wide = self._setting.bytes_per_value
        # Weights that are no floating-point numbers are quantised, and stay so.
        sizes = ((one.numel(), wide if one.is_floating_point() else one.element_size()) for one in _weights(problem))
        self._weights = sum(count * size for count, size in sizes)

    def of(self, options: Any) -> float:
        """With an entry's options; None of a grid's or a sampler's matter."""
        peak = float(make_cost("peak_bytes").unpruned(self._setting, self._visual, self._text)[0])
        if isinstance(options, GradientOptions):
            peak = max(peak, self._backward(options.settled()))
        return peak + self._weights

    def _backward(self, options: GradientOptions) -> float:
        """Of a step, for the samples whose gradients are held at once: so many times what a layer of a plain forward
        pass holds (tests/test_memory.py)."""
        layers, rows = self._setting.shape.layers, options.micro_batch or options.batch
        one = max(make_cost("peak_bytes").layer(self._setting, n, self._visual + self._text)[0] for n in range(layers))
        return float(rows * one * (RECOMPUTED if options.recompute else KEPT * layers))


def _weights(problem: Problem) -> Iterator[torch.nn.Parameter]:
    weights: Iterator[torch.nn.Parameter] = problem.model.parameters()
    return weights
