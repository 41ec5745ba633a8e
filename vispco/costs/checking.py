"""Check a profile: predict schedules that it has not seen, measure them, and say by how much it was wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vispco.costs.base import Setting, make_cost
from vispco.costs.held import held
from vispco.costs.measuring import Effort, device_name, median, random_schedule, reference_of
from vispco.costs.profile import Profile
from vispco.costs.prompter import GROWTH, SIZE, Prompted, Prompter
from vispco.costs.ragged import padded
from vispco.costs.rounds import in_turn
from vispco.costs.stamps import is_cuda, timed_call
from vispco.errors import ConfigError
from vispco.models.families import adapter_for
from vispco.pruning.methods.base import make_method
from vispco.pruning.prune import prune

COSTS = ("prefill_ms", "latency_ms")
WORDS = (2, 12, 24)  # of the prompts


@dataclass(frozen=True)
class Check:
    """A schedule that was not measured for the profile: milliseconds predicted and measured, and its FLOPs.

    ``speed``: of the machine now as a share of its speed while the profile was made; ``measured`` is multiplied by it.
    ``halves``: medians of every other repetition, from which it can be told how well measurements agree at all.
    """

    schedule: str
    cost: str
    visual: int
    text: int
    predicted: float
    measured: float
    flops: float
    speed: float = 1.0
    halves: tuple[float, float] = (math.nan, math.nan)


def check_profile(
    model: Any,
    processor: Any,
    profile: Profile,
    *,
    method: str = "fastv",
    batch: int = 1,
    schedules: int = 30,
    answer_tokens: int = 16,
    effort: Effort | None = None,
    ragged: bool = False,
) -> list[Check]:
    """Predict random schedules and measure them, in turn and in random order: ``prefill_ms`` and ``latency_ms``.

    Args:
        ragged: prompts of a batch differ in length.

    Raises:
        ConfigError: the profile is of another model, or lacks the method or the batch.
    """
    effort, adapter = effort or Effort(), adapter_for(model)
    profile.check_model(profile.model, adapter.shape(), held(adapter))
    _check_setting(model, profile)
    chosen, cuda = make_method(method), is_cuda(model)
    profile.method(batch, method)
    setting = replace(Setting.of(adapter), method=chosen, profile=profile, batch=batch, answer_tokens=answer_tokens)
    rng, layers = random.Random(effort.seed + 1), adapter.shape().layers
    prompter = Prompter(model, processor)
    prompts = _prompts(prompter, profile.longest(batch) - answer_tokens, batch, rng, ragged)
    drawn = [(random_schedule(rng, layers), rng.choice(prompts)) for _ in range(schedules)]
    answer = {"max_new_tokens": answer_tokens, "min_new_tokens": answer_tokens, "do_sample": False}

    def probe(number: int, cost: str) -> Callable[[], float]:
        schedule, prompted = drawn[number]

        def call() -> float:
            with prune(model, method=chosen, schedule=schedule):
                if cost == "prefill_ms":
                    return timed_call(lambda: model(**prompted.inputs, logits_to_keep=1), cuda)
                return timed_call(lambda: model.generate(**prompted.inputs, **answer), cuda)

        return call

    keys = [(number, cost) for number in range(schedules) for cost in COSTS]
    with torch.inference_mode():
        turns = in_turn({key: probe(*key) for key in keys}, reference_of(model, prompter, batch), effort.repeats, rng)
    known = profile.at(batch).reference
    speed = known / turns.reference if known else 1.0
    found = []
    for number, cost in keys:
        schedule, prompted = drawn[number]
        text = np.array(prompted.texts or [prompted.text])
        visual = np.full(len(text), prompted.visual)
        row = padded(schedule.counts(visual, layers), visual, text)
        predicted = float(make_cost(cost).of(setting, *row)[0])
        flops = float(make_cost("flops").of(setting, *row)[0])
        times = speed * turns.times[number, cost]
        halves = (median(times[::2]), median(times[1::2]))
        found.append(
            Check(
                *(schedule.text(), cost, prompted.visual, prompted.text, predicted, median(times), flops, speed, halves)
            )
        )
    return found


def _prompts(prompter: Prompter, most: int, batch: int, rng: random.Random, ragged: bool) -> list[Prompted]:
    """One of a usual picture, one of the largest or the most pictures that ``most`` tokens have room for, one between;
    sizes lie below those that were measured."""
    room = [one for one in prompter.pictured(most, 1) if one.length + max(WORDS) <= most]
    shown = [(1, SIZE)] * (1 if room else len(WORDS))
    for one in [rng.choice(room), room[-1]] if room else []:
        shown.append((one.pictures, round(one.size * rng.uniform(1 / GROWTH, 1))))
    each = [[rng.randint(min(WORDS), max(WORDS)) for _ in range(batch)] if ragged else words for words in WORDS]
    return [prompter.make(pictures, words, batch, size) for (pictures, size), words in zip(shown, each, strict=True)]


def _check_setting(model: Any, profile: Profile) -> None:
    """Refuse a model that is held otherwise than the one that was measured: its times say nothing of the profile."""
    adapter = adapter_for(model)
    now = {"device": next(adapter.model.parameters()).device.type, **held(adapter)}
    then = {**profile.held, **{key: getattr(profile, key) for key in ("device", "dtype", "attention")}}
    for name in ("device", "dtype", "attention", "quantization", "adapter"):
        if now[name] != then.get(name, now[name]):
            raise ConfigError(
                f"the profile was measured with {name} {then[name] or 'none'}, and the model now has "
                f"{now[name] or 'none'}; load it likewise, or measure it: vispco profile {profile.model}"
            )


def other_machine(model: Any, profile: Profile) -> str:
    """What is said where a profile is checked on another machine of its kind; "" where it is not."""
    device = next(adapter_for(model).model.parameters()).device
    name, threads = device_name(device), torch.get_num_threads()

    def named(name: str, threads: int) -> str:
        return f"{name or 'a processor'}, {threads} threads" if device.type == "cpu" else name

    then, now = named(profile.device_name or name, profile.threads or threads), named(name, threads)
    return f"the profile is of {then}, and this is {now}: its error here says little of it there" if now != then else ""


def summary(checks: Sequence[Check]) -> dict[str, float]:
    """``median_error``, ``worst_error``, ``rank_correlation`` (Spearman's, among schedules on the same pictures, mean
    over these), ``rank_repeated`` (the same between two halves of the measurements: where schedules take nearly the
    same time, no prediction can rank them better), the median error of the ratio of two such schedules' times, as the
    profile predicts it and as FLOPs would, and the machine's ``speed`` now over then."""
    from scipy.stats import spearmanr

    predicted, measured = np.array([c.predicted for c in checks]), np.array([c.measured for c in checks])
    flops, halves = np.array([c.flops for c in checks]), np.array([c.halves for c in checks])
    error, visual = np.abs(predicted / measured - 1), np.array([c.visual for c in checks])
    alike = [np.flatnonzero(visual == one) for one in np.unique(visual)]
    alike = [rows for rows in alike if len(rows) > 2] or [np.arange(len(checks))]
    first, second = np.concatenate([rows[np.stack(np.triu_indices(len(rows), 1))] for rows in alike], axis=1)

    def rank(a: Any, b: Any) -> float:
        return float(
            np.average([spearmanr(a[rows], b[rows]).statistic for rows in alike], weights=list(map(len, alike)))
        )

    def ratio_error(values: Any) -> float:
        return float(np.median(np.abs(values[first] / values[second] / (measured[first] / measured[second]) - 1)))

    return {
        "median_error": float(np.median(error)),
        "worst_error": float(error.max()),
        "rank_correlation": rank(predicted, measured),
        "rank_repeated": rank(*halves.T),
        "ratio_error": ratio_error(predicted),
        "ratio_error_of_flops": ratio_error(flops),
        "speed": checks[0].speed,
    }
