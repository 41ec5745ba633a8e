"""Measure a hardware profile on the model itself, and check its predictions.

Layers are timed inside forwards of the whole decoder, one forward for each number of tokens, in random order; medians
over repetitions. Where the time jumps between two near numbers of tokens, the edge is searched by bisection.
"""

from __future__ import annotations

import itertools
import platform
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vispco.costs.base import Setting, make_cost
from vispco.costs.profile import Curve, Decode, Profile, Scoring, Timings
from vispco.costs.stamps import Stamps, is_cuda, stamped, timed_call
from vispco.errors import ConfigError
from vispco.models.base import ModelAdapter, adapter_for
from vispco.pruning.methods.base import make_method
from vispco.pruning.prune import prune
from vispco.pruning.schedules import MultiStep, Schedule, Step

SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp")
JUMP, NEAR, MOST_EDGES = 0.15, 1.6, 12  # a rise that may be an edge; between such near numbers; edges that are searched
WARM_UP, STEPS = 2, 8
Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """``repeats``: of each measurement; ``max_tokens``: the longest prompt that the profile is for."""

    repeats: int = 15
    max_tokens: int = 1024
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Prompted:
    """A batch as the model takes it: ``inputs`` with pixels, and the tokens of one of its rows."""

    inputs: dict[str, Any]
    visual: int
    text: int


class Prompter:
    """Prompts of equal rows, of noise pictures and so many words."""

    def __init__(self, model: Any, processor: Any, size: int = 336) -> None:
        self.model, self.processor, self.adapter = model, processor, adapter_for(model)
        self._size = size

    def make(self, pictures: int, words: int, batch: int) -> Prompted:
        from PIL import Image

        from vispco.tasks.base import Sample
        from vispco.tasks.rendering import render_prompt

        noise = np.random.default_rng(0).integers(0, 255, (pictures, self._size, self._size, 3), dtype=np.uint8)
        images = [Image.fromarray(one) for one in noise]
        text = render_prompt(self.processor, Sample("s", "g", images, " ".join(["the"] * words), ("a",)))
        shown = [images] * batch if images else None
        made = self.processor(images=shown, text=[text] * batch, return_tensors="pt", padding=True)
        inputs = dict(made.to(self.model.device))
        for key, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                inputs[key] = value.to(self.adapter.dtype())
        visual = int(self.adapter.visual_mask(inputs["input_ids"], None)[0].sum())
        return Prompted(inputs, visual, int(inputs["input_ids"].shape[1]) - visual)


def measure_profile(
    model: Any,
    processor: Any,
    name: str,
    *,
    methods: Sequence[str] = ("fastv",),
    batches: Sequence[int] = (1,),
    effort: Effort | None = None,
    say: Say = lambda text: None,
) -> Profile:
    """Time the model's parts.

    Args:
        name: of the model, for messages.
        methods: whose scoring is timed.
        batches: prompts that run together.

    Raises:
        ConfigError: unknown method, or a prompt of one picture is longer than ``effort.max_tokens``.
        ModelError: the model lacks what a method needs.
    """
    effort, adapter = effort or Effort(), adapter_for(model)
    shape, device = adapter.shape(), next(model.parameters()).device
    kinds = [("sliding" if adapter.sliding_window(n) else "full") for n in range(shape.layers)]
    if shape.each:
        alike = list(dict.fromkeys(shape.each))
        kinds = [f"{kind}-{alike.index(own)}" for kind, own in zip(kinds, shape.each, strict=True)]
    found = {}
    with torch.inference_mode():
        for batch in batches:
            say(f"batch {batch}")
            found[batch] = Measuring(model, processor, kinds, batch, effort, say).timings(methods)
    return Profile(
        model=name,
        shape={key: getattr(shape, key) for key in SIZES},
        kinds=kinds,
        device=device.type,
        device_name=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        dtype=str(adapter.dtype()).removeprefix("torch."),
        attention=adapter.attention(),
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        batches=found,
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"torch": torch.__version__, "transformers": version("transformers"), "vispco": version("vispco")}


class Measuring:
    """All measurements at one batch size."""

    def __init__(self, model: Any, processor: Any, kinds: list[str], batch: int, effort: Effort, say: Say) -> None:
        self.model, self.kinds, self.batch, self.effort, self.say = model, kinds, batch, effort, say
        self.adapter: ModelAdapter = adapter_for(model)
        self.prompter = Prompter(model, processor)
        self.cuda, self.layers = is_cuda(model), list(self.adapter.layers())
        self.rng = random.Random(effort.seed)
        self.one = self.prompter.make(1, 4, batch)
        length = self.one.visual + self.one.text
        if length > effort.max_tokens:
            raise ConfigError(
                f"a prompt of one picture has {length} tokens, more than --max-tokens {effort.max_tokens}; give a "
                "larger number"
            )

    def timings(self, methods: Sequence[str]) -> Timings:
        self.say("layers")
        layers, rest = self._layers()
        plain = self._repeated(self._forward_of(self.one))
        gap = float(np.interp(self.one.visual + self.one.text, rest.tokens, rest.ms))
        tower = self._tower()
        features = float(np.interp(self.one.visual, tower.tokens, tower.ms))
        # Embedding, merging of features, head: what the decoder alone does not do.
        outside = max(0.0, median(s.outside + s.gaps.sum() for s in plain) - gap - features)
        rest = Curve(tokens=rest.tokens, ms=[ms + outside for ms in rest.ms], monotone=rest.monotone)
        self.say("decode steps")
        decode = self._decode()
        scored = {}
        for name in methods:
            self.say(f"method {name}")
            scored[name] = self._scoring(name)
        return Timings(layers=layers, rest=rest, tower=tower, methods=scored, decode=decode)

    # --- forwards --------------------------------------------------------------------------------

    def _repeated(self, forward: Callable[[], Any]) -> list[Stamps]:
        with stamped(self.layers, self.cuda) as run:
            for _ in range(WARM_UP):
                run(forward)
            return [run(forward) for _ in range(self.effort.repeats)]

    def _forward_of(self, prompted: Prompted) -> Callable[[], Any]:
        return lambda: self.model(**prompted.inputs, logits_to_keep=1)

    def _states(self, tokens: int) -> Tensor:
        generator = torch.Generator().manual_seed(tokens)
        states = torch.randn(self.batch, tokens, self.adapter.shape().hidden, generator=generator)
        return states.to(self.model.device, self.adapter.dtype())

    def _by_kind(self, runs: Iterable[Stamps]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {kind: [] for kind in self.kinds}
        for run in runs:
            for kind, ms in zip(self.kinds, run.layers, strict=True):
                found[kind].append(float(ms))
        return found

    # --- parts -----------------------------------------------------------------------------------

    def _layers(self) -> tuple[dict[str, Curve], Curve]:
        """Each kind of layer, and what else the decoder does, over tokens."""
        points: dict[int, tuple[dict[str, list[float]], list[float]]] = {}

        def at(tokens: int) -> float:
            states = self._states(tokens)
            runs = self._repeated(lambda: self.adapter.decoder()(inputs_embeds=states, use_cache=True))
            points[tokens] = self._by_kind(runs), [run.outside + float(run.gaps.sum()) for run in runs]
            return median(points[tokens][0][self.kinds[0]])

        grid = token_grid(self.effort.max_tokens)
        self.rng.shuffle(grid)
        for tokens in grid:
            at(tokens)
        times = {tokens: median(found[0][self.kinds[0]]) for tokens, found in points.items()}
        search_edges(times, at)
        order = sorted(points)
        curves = {kind: curve_of(order, [points[n][0][kind] for n in order]) for kind in dict.fromkeys(self.kinds)}
        return curves, curve_of(order, [points[n][1] for n in order])

    def _tower(self) -> Curve:
        """Vision tower and projector over visual tokens; a straight line behind the most pictures that were timed."""
        points: dict[int, list[float]] = {}
        for pictures in (1, 2, 4):
            prompted = self.prompter.make(pictures, 1, self.batch)
            if pictures > 1 and prompted.visual > self.effort.max_tokens:
                break
            points[prompted.visual] = self._calls(lambda one=prompted: self.adapter.encode_images(one.inputs))  # type: ignore[misc]
        tokens = sorted(points)
        made = curve_of(tokens, [points[n] for n in tokens])
        if tokens[-1] >= self.effort.max_tokens:
            return made
        end = made.ms[-1] * self.effort.max_tokens / tokens[-1]
        return Curve(tokens=[*made.tokens, self.effort.max_tokens], ms=[*made.ms, end], monotone=made.monotone)

    def _calls(self, call: Callable[[], Any]) -> list[float]:
        for _ in range(WARM_UP):
            call()
        return [timed_call(call, self.cuda) for _ in range(self.effort.repeats)]

    def _decode(self) -> Decode:
        points = {}
        lengths = [n for n in token_grid(self.effort.max_tokens) if n < self.effort.max_tokens]
        lengths = sorted({lengths[0], *lengths[:: max(1, len(lengths) // 6)], lengths[-1]})
        for length in lengths:
            states, one = self._states(length), self._states(1)
            cache = self.adapter.decoder()(inputs_embeds=states, use_cache=True).past_key_values
            step = lambda: self.adapter.decoder()(inputs_embeds=one, past_key_values=cache, use_cache=True)  # noqa: B023, E731
            points[length] = self._by_kind(self._repeated(step))
        tokens = [*points, self.effort.max_tokens + STEPS]
        curves = {}
        for kind in dict.fromkeys(self.kinds):
            values = [points[n][kind] for n in points]
            curves[kind] = curve_of(tokens, [*values, values[-1]])
        inside = sum(float(curves[k](np.array([self.one.visual + self.one.text]))[0]) for k in self.kinds)
        plain, pruned = self._step(None), self._step(Step(self._boundary(), 0.5))
        kept = self.adapter.shape().layers - self._boundary()
        # Pruned layers read shorter caches; what is left of the difference is what hooks do.
        shorter = self.one.text + self.one.visual // 2
        saved = sum(float(curves[k](np.array([self.one.visual + self.one.text]))[0]) for k in self.kinds[-kept:])
        saved -= sum(float(curves[k](np.array([shorter]))[0]) for k in self.kinds[-kept:])
        return Decode(layers=curves, rest=max(0.0, plain - inside), hooks=max(0.0, pruned - plain + saved))

    def _step(self, schedule: Schedule | None) -> float:
        """One step of ``generate``: the difference of a long and a short answer."""

        def answer(tokens: int) -> Callable[[], Any]:
            settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            return lambda: self.model.generate(**self.one.inputs, **settings)

        with prune(self.model, method="random", schedule=schedule) if schedule else nullcontext():
            short, long = self._calls(answer(1)), self._calls(answer(1 + STEPS))
        return max(0.0, (median(long) - median(short)) / STEPS)

    def _boundary(self) -> int:
        return max(1, self.adapter.shape().layers // 2)

    def _scoring(self, name: str) -> Scoring:
        """What one boundary costs with so many tokens before it, and hooks, against the plain forward of the prompt."""
        boundary, points, starts, hooks = self._boundary(), {}, [], []
        schedule, length = Step(boundary, 0.5), self.one.visual + self.one.text
        for words in dict.fromkeys(
            [4, *(n - length for n in token_grid(self.effort.max_tokens)[::3] if n > length + 8)]
        ):
            prompted = self.prompter.make(1, words, self.batch)
            if prompted.visual + prompted.text > self.effort.max_tokens:
                continue
            plain = self._repeated(self._forward_of(prompted))
            with prune(self.model, method=make_method(name), schedule=schedule):
                pruned = self._repeated(self._forward_of(prompted))
            usual = median(s.gaps[boundary - 1] + s.layers[boundary - 1] for s in plain)
            each = [max(0.0, float(s.gaps[boundary - 1] + s.layers[boundary - 1] - usual)) for s in pruned]
            points[prompted.visual + prompted.text] = each
            other = np.arange(len(self.layers) - 1) != boundary - 1
            if other.any():
                before = median(float(s.gaps[other].mean()) for s in plain)
                hooks.append(median(float(s.gaps[other].mean()) for s in pruned) - before)
            starts.append(median(s.outside for s in pruned) - median(s.outside for s in plain))
        tokens = sorted(points)
        made = curve_of(tokens, [points[n] for n in tokens])
        if tokens[-1] < self.effort.max_tokens:
            end = made.ms[-1] * self.effort.max_tokens / tokens[-1]
            made = Curve(tokens=[*made.tokens, self.effort.max_tokens], ms=[*made.ms, end], monotone=made.monotone)
        return Scoring(
            boundary=made,
            start=max(0.0, median(starts)),
            layer=max(0.0, median(hooks)) if hooks else 0.0,
        )


def median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def token_grid(most: int) -> list[int]:
    """Numbers of tokens, both sides of where kernels often step: multiples of 64 up to 1024, then of 512."""
    steps = [*range(64, 1025, 64), *range(1536, 8193, 512), *range(10240, most + 1, 2048)]
    coarse = [n for n in steps if n <= 256 or n % 128 == 0 or n == most]
    grid = {1, 8, 16, 32, 48, *(m for n in coarse for m in (n, n + 1)), most}
    return sorted(n for n in grid if n <= most)


def search_edges(times: dict[int, float], at: Callable[[int], float]) -> None:
    """Measure, by bisection, where the time jumps between near numbers of tokens; ``times`` gets the new points."""
    for _ in range(MOST_EDGES):
        known = sorted(times)
        gaps = [
            (times[b] - times[a], a, b)
            for a, b in itertools.pairwise(known)
            if b > a + 1 and b <= NEAR * a and times[b] > (1 + JUMP) * times[a]
        ]
        if not gaps:
            return
        _, low, high = max(gaps)
        while high > low + 1:
            middle = (low + high) // 2
            times[middle] = at(middle)
            low, high = (middle, high) if times[middle] - times[low] < times[high] - times[middle] else (low, middle)


def curve_of(tokens: Sequence[int], repetitions: Sequence[Sequence[float]]) -> Curve:
    """A curve of medians. Falls within the spread are noise, and the curve is then made to rise; others are kept."""
    middle = [median(values) for values in repetitions]
    spread = [float(np.subtract(*np.percentile(list(values), [75, 25]))) for values in repetitions]
    falls = [
        (a - b, max(first, second, 0.05 * a))
        for a, b, first, second in zip(middle, middle[1:], spread, spread[1:], strict=False)
    ]
    monotone = all(fall <= noise for fall, noise in falls)
    if monotone:
        up, down = np.maximum.accumulate(middle), np.minimum.accumulate(middle[::-1])[::-1]
        middle = ((up + down) / 2).tolist()
    return Curve(tokens=list(tokens), ms=middle, spread=spread, monotone=monotone)


# --- checking ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A schedule that was not measured for the profile: milliseconds predicted and measured, and its FLOPs."""

    schedule: str
    cost: str
    visual: int
    text: int
    predicted: float
    measured: float
    flops: float


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
) -> list[Check]:
    """Predict random schedules and measure them, in turn and in random order: ``prefill_ms`` and ``latency_ms``.

    Raises:
        ConfigError: the profile is of another model, or lacks the method or the batch.
    """
    effort, adapter = effort or Effort(), adapter_for(model)
    profile.check_model(profile.model, adapter.shape())
    chosen, cuda = make_method(method), is_cuda(model)
    profile.method(batch, method)
    setting = replace(Setting.of(adapter), method=chosen, profile=profile, batch=batch, answer_tokens=answer_tokens)
    rng, layers = random.Random(effort.seed + 1), adapter.shape().layers
    prompter = Prompter(model, processor)
    prompts = [prompter.make(1, words, batch) for words in (2, 12, 24)]
    drawn = [(random_schedule(rng, layers), rng.choice(prompts)) for _ in range(schedules)]
    spent: dict[tuple[int, str], list[float]] = {}
    with torch.inference_mode():
        for round_number in range(WARM_UP + effort.repeats):
            for number in rng.sample(range(schedules), schedules):
                schedule, prompted = drawn[number]
                answer = {"max_new_tokens": answer_tokens, "min_new_tokens": answer_tokens, "do_sample": False}
                calls: dict[str, Callable[[], Any]] = {
                    "prefill_ms": lambda p=prompted: model(**p.inputs, logits_to_keep=1),  # type: ignore[misc]
                    "latency_ms": lambda p=prompted, a=answer: model.generate(**p.inputs, **a),  # type: ignore[misc]
                }
                with prune(model, method=chosen, schedule=schedule):
                    for cost, call in calls.items():
                        ms = timed_call(call, cuda)
                        if round_number >= WARM_UP:
                            spent.setdefault((number, cost), []).append(ms)
    found = []
    for (number, cost), times in sorted(spent.items()):
        schedule, prompted = drawn[number]
        visual, text = np.array([prompted.visual]), np.array([prompted.text])
        counts = schedule.counts(visual, layers)
        predicted = float(make_cost(cost).of(setting, counts, visual, text)[0])
        flops = float(make_cost("flops").of(setting, counts, visual, text)[0])
        found.append(Check(schedule.text(), cost, prompted.visual, prompted.text, predicted, median(times), flops))
    return found


def random_schedule(rng: random.Random, layers: int) -> Schedule:
    """One to three steps."""
    steps = sorted(rng.sample(range(1, layers), min(rng.randint(1, 3), layers - 1)))
    keeps = sorted((round(rng.uniform(0.02, 0.95), 3) for _ in steps), reverse=True)
    return MultiStep(steps, keeps) if len(steps) > 1 else Step(steps[0], keeps[0])


def summary(checks: Sequence[Check]) -> dict[str, float]:
    """``median_error``, ``worst_error``, ``rank_correlation`` (Spearman's), and the median error of the ratio of two
    schedules' times, as the profile predicts it and as FLOPs would."""
    from scipy.stats import spearmanr

    predicted, measured = np.array([c.predicted for c in checks]), np.array([c.measured for c in checks])
    flops = np.array([c.flops for c in checks])
    error = np.abs(predicted / measured - 1)
    pairs = np.triu_indices(len(checks), 1)

    def ratio_error(values: Any) -> float:
        ratio = (values[:, None] / values[None, :])[pairs]
        return float(np.median(np.abs(ratio / (measured[:, None] / measured[None, :])[pairs] - 1)))

    return {
        "median_error": float(np.median(error)),
        "worst_error": float(error.max()),
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
        "ratio_error": ratio_error(predicted),
        "ratio_error_of_flops": ratio_error(flops),
    }
