"""What a study will take before it runs: trials, compute, time and memory of each entry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from vispco.costs import Setting, make_cost
from vispco.costs.held import held, told_apart
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.records import Evaluation
from vispco.experiment.entry_prices import EntryPrices, Price
from vispco.experiment.planning import plan
from vispco.experiment.speed import Speed, profiled_batch, speed_of
from vispco.problem import Problem
from vispco.search.gradient.options import GradientOptions
from vispco.search.progress import in_flops

KEPT, RECOMPUTED = 2.4, 6.0  # a gradient step's memory over that of one layer's forward: per layer, and in all


def estimate(
    problem: Problem,
    evaluator: Evaluator | None = None,
    only: Sequence[str] | None = None,
    measured: Evaluation | None = None,
) -> list[dict[str, Any]]:
    """One row per study, one of references (unless they are ``measured``) and of held_out, and a total. Trials, PFLOPs
    and minutes are None where the search decides them itself.

    PFLOPs are those of prefills, as if nothing were shared, cached or stopped early, so that a grid takes less;
    samplers are priced at the family's mean schedule, gradient searches by their steps, their check and what they
    measure. On held_out one schedule for each budget of each study is counted. Minutes, with those of generated
    answers, follow from the plain model's measurement, the problem's profile, or a probe of one batch. Memory is that
    of weights, ``peak_bytes`` of a batch of the longest prompts, and, of gradient searches, what a step keeps for its
    backward pass where that is more; of values as wide as the profile's machine has them.

    Raises:
        ConfigError: the profile is of another model, or has no times of such long prompts.
    """
    evaluator = evaluator or Evaluator(problem)
    speed, memory = speed_of(problem, evaluator, measured), PeakMemory(problem, evaluator)
    prices, items = EntryPrices(problem, evaluator), plan(problem.study, only)
    rows = [_row(item.study, prices.of(item), speed, memory.of(item.options)) for item in items]
    plain = memory.of(None)
    if measured is None:
        rows.append(_row("references", prices.references(), speed, plain))
    rows.append(_row("held_out", prices.held_out(items), speed, plain))
    total = {key: None if None in (told := [row[key] for row in rows]) else sum(told) for key in ("pflops", "minutes")}
    trials, most = sum(row["trials"] or 0 for row in rows), max(row["peak_mib"] for row in rows)
    return [*rows, {"study": "total", "trials": trials, **total, "peak_mib": most}]


def machine(problem: Problem) -> str:
    """In words, what minutes and memory are of, and what is not in them."""
    profile = problem.profile
    where = "this machine"
    if profile is not None:
        named = f"{profile.device_name} ({profile.device})" if profile.device_name else profile.device
        where = f"{named}, {profile.dtype}, batch {profiled_batch(problem, profile)}"
        if differ := told_apart(profile, held(problem.adapter)):
            where = f"{where} ({differ})"
    return (
        f"minutes and memory are of {where}; minutes without sharing and early stops, and without encoding pictures; "
        "held_out counts one schedule of a study for each budget, neither the rest of its front nor anytime:"
    )


def in_words(rows: Sequence[dict[str, Any]]) -> str:
    """The total in one line, and which studies it leaves out."""
    *studies, total = rows
    left_out = [row["study"].partition("/")[2] for row in studies if row["pflops"] is None]
    known = [row for row in studies if row["pflops"] is not None]
    pflops, minutes = sum(row["pflops"] for row in known), sum(row["minutes"] for row in known)
    told = f"{total['trials']} trials planned, {in_flops(pflops * 1e15)}, about {minutes:.2g} min without sharing, "
    told += f"{total['peak_mib']:.0f} MiB"
    return told + (f", without {', '.join(left_out)}" if left_out else "")


def _row(name: str, price: Price, speed: Speed, memory: float) -> dict[str, Any]:
    flops = price.flops
    return {
        "study": name,
        "trials": price.trials,
        "pflops": None if flops is None else flops / 1e15,
        "minutes": None if flops is None else speed.seconds(flops, price.answers) / 60,
        "peak_mib": memory / 2**20,
    }


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
