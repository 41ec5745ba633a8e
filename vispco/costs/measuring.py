"""Measure a hardware profile on the model itself.

Layers are timed inside forwards of the whole decoder, one forward for each number of tokens. Where the time jumps
between two near numbers of tokens, the edge is searched by bisection. Everything is then measured in turn, and what the
parts leave unexplained of whole pruned prefills and answers is what scoring and hooks add.
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vispco.costs.base import Setting, make_cost
from vispco.costs.edges import search_edges, token_grid
from vispco.costs.held import held
from vispco.costs.profile import Curve, Decode, Profile, Scoring, Timings
from vispco.costs.prompter import Prompted, Prompter
from vispco.costs.rounds import in_turn
from vispco.costs.scoring import Draw, explain
from vispco.costs.stamps import is_cuda, stamped, timed_call
from vispco.errors import ConfigError
from vispco.models.base import ModelAdapter
from vispco.models.families import adapter_for
from vispco.pruning.methods.base import make_method
from vispco.pruning.prune import prune
from vispco.pruning.schedules import MultiStep, Schedule, Step

SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp")
STEPS, HOT = 8, 4  # decode steps of a long answer; of a timed run, the first of which warms up
DRAWS, ANSWERS = 24, 8  # schedules that a method's times are fitted to; how many of them also answer
QUICK = 3  # repetitions while edges are searched
Say = Callable[[str], None]
Floats = NDArray[np.float64]
Probe = Callable[[], Any]


@dataclass(frozen=True)
class Effort:
    """``repeats``: of each measurement, fewer where its median is settled; ``max_tokens``: the longest prompt that the
    profile is for; ``edge_seconds``: how long edges of the staircase are searched."""

    repeats: int = 15
    max_tokens: int = 1024
    seed: int = 0
    edge_seconds: float = 60.0


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
    made = Profile(
        model=name,
        shape={key: getattr(shape, key) for key in SIZES},
        kinds=kinds,
        device=device.type,
        device_name=device_name(device),
        threads=torch.get_num_threads(),
        dtype=str(adapter.dtype()).removeprefix("torch."),
        attention=adapter.attention(),
        held={key: value for key, value in held(adapter).items() if key not in Profile.model_fields},
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        batches={batch: nothing_known(kinds) for batch in batches},
    )
    found = {}
    with torch.inference_mode():
        for batch in batches:
            say(f"batch {batch}")
            found[batch] = Measuring(model, processor, made, batch, effort, say).timings(methods)
    return made.model_copy(update={"batches": found})


def nothing_known(kinds: Sequence[str]) -> Timings:
    """Times of 0, to be filled in."""
    zero = Curve(tokens=[1], ms=[0.0])
    each = dict.fromkeys(kinds, zero)
    return Timings(layers=each, rest=zero, tower=zero, decode=Decode(layers=each))


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"torch": torch.__version__, "transformers": version("transformers"), "vispco": version("vispco")}


class Measuring:
    """All measurements at one batch size."""

    def __init__(self, model: Any, processor: Any, profile: Profile, batch: int, effort: Effort, say: Say) -> None:
        self.model, self.profile, self.batch, self.effort, self.say = model, profile, batch, effort, say
        self.adapter: ModelAdapter = adapter_for(model)
        self.prompter = Prompter(model, processor)
        self.kinds = list(dict.fromkeys(profile.kinds))
        self.cuda, self.layers = is_cuda(model), list(self.adapter.layers())
        self.rng = random.Random(effort.seed)
        self.setting = replace(Setting.of(self.adapter), batch=batch)
        self.reference = reference_of(model, self.prompter, batch)
        self.one = self.prompter.make(1, 4, batch)
        if self.one.length > effort.max_tokens:
            raise ConfigError(
                f"a prompt of one picture has {self.one.length} tokens, more than --max-tokens {effort.max_tokens}; "
                "give a larger number"
            )

    def timings(self, methods: Sequence[str]) -> Timings:
        self.say("edges of the staircase")
        grid = self._grid()
        pictures = self.prompter.pictured(self.effort.max_tokens, self.batch)
        if (end := pictures[-1].visual) < self.effort.max_tokens:
            self.say(f"the tower was timed up to {end} tokens; beyond, time is a straight line through 0")
        prompts = self._prompts(pictures)
        draws = {name: self._draws(prompts) for name in methods}
        probes: dict[Any, Probe] = {("layers", n): self._decoder(n) for n in grid}
        towers = {one.visual: one for one in (*self.prompter.smaller(self.batch), *pictures)}
        probes |= {("tower", visual): self._tower(one) for visual, one in sorted(towers.items())}
        probes |= {("decode", n): self._decode_steps(n) for n in self._cached()}
        probes |= {("plain", n): self._prefill(one) for n, one in enumerate(prompts)}
        probes |= {("answer", n, m): self._answer(one, m) for n, one in enumerate(prompts) for m in (1, 1 + STEPS)}
        for name, drawn in draws.items():
            within = self._within(name)
            probes |= {(name, n): within(draw.schedule, self._prefill(draw.prompted)) for n, draw in enumerate(drawn)}
            probes |= {
                (name, "answer", n): within(draw.schedule, self._answer(draw.prompted, 1 + STEPS))
                for n, draw in enumerate(drawn[:ANSWERS])
            }
        self.say(f"{len(probes)} measurements, in turn")
        turns = in_turn(probes, self.reference, self.effort.repeats, self.rng, say=self.say)
        return self._assembled(turns.times, prompts, draws).model_copy(update={"reference": turns.reference})

    def _assembled(
        self, found: dict[Any, Floats], prompts: Sequence[Prompted], draws: dict[str, list[Draw]]
    ) -> Timings:
        """Parts first; each whole is then compared with what is known so far."""

        def points(what: str) -> dict[int, Floats]:
            return {key[1]: found[key] for key in sorted(k for k in found if k[0] == what)}

        decoder, steps = points("layers"), points("decode")
        known = Timings(
            layers={kind: curve_over({n: times[:, at] for n, times in decoder.items()}) for at, kind in self._at()},
            rest=curve_over({n: times[:, -1] for n, times in decoder.items()}),
            tower=self._to_the_end(curve_over(points("tower"))),
            decode=Decode(
                layers={
                    kind: self._to_the_end(curve_over({n: times[:, at] for n, times in steps.items()}), flat=True)
                    for at, kind in self._at()
                }
            ),
        )
        plain = [Draw(None, one) for one in prompts]
        wholes = [median(found["plain", n]) for n in range(len(plain))]
        outside = median(np.subtract(wholes, self._predicted("prefill_ms", plain, known)))
        outside = max(outside, -min(known.rest.ms))  # embedding, merging of features, head: outside the decoder
        rest = known.rest.model_copy(update={"ms": [ms + outside for ms in known.rest.ms]})
        known = known.model_copy(update={"rest": rest})
        short = np.array([median(found["answer", n, 1]) for n in range(len(plain))])
        long = np.array([median(found["answer", n, 1 + STEPS]) for n in range(len(plain))])
        started = max(0.0, median(short - np.array(wholes)))
        inside = np.subtract(*(self._predicted(cost, plain, known) for cost in ("latency_ms", "prefill_ms")))
        step = max(0.0, median((long - short - inside) / STEPS))
        decode = known.decode.model_copy(update={"start": started, "rest": step})
        known = known.model_copy(update={"decode": decode})
        for name, drawn in draws.items():
            known = self._with_method(known, name, drawn, found)
        return known

    def _with_method(self, known: Timings, name: str, drawn: Sequence[Draw], found: dict[Any, Floats]) -> Timings:
        """With what a method's prefills and answers take beyond the parts."""
        none = Scoring(boundary=Curve(tokens=[1, self.effort.max_tokens], ms=[0.0, 0.0]))
        free = known.model_copy(update={"methods": {name: none}})
        wholes = np.array([median(found[name, n]) for n in range(len(drawn))])
        added = wholes - self._predicted("prefill_ms", drawn, free, name)
        scoring = explain(drawn, added, wholes, len(self.layers), self.effort.max_tokens)
        known = known.model_copy(update={"methods": {**known.methods, name: scoring}})
        answered = drawn[:ANSWERS]
        answers = np.array([median(found[name, "answer", n]) for n in range(len(answered))])
        steps = answers - wholes[: len(answered)]
        steps -= np.subtract(*(self._predicted(cost, answered, known, name) for cost in ("latency_ms", "prefill_ms")))
        scoring = scoring.model_copy(update={"step": max(0.0, median(steps / STEPS))})
        return known.model_copy(update={"methods": {**known.methods, name: scoring}})

    def _predicted(self, cost: str, drawn: Sequence[Draw], known: Timings, method: str | None = None) -> Floats:
        profile = self.profile.model_copy(update={"batches": {self.batch: known}})
        more = {"method": make_method(method) if method else None, "answer_tokens": 1 + STEPS, "profile": profile}
        setting = replace(self.setting, **more)  # type: ignore[arg-type]
        counts = np.concatenate([draw.counts(len(self.layers)) for draw in drawn])
        lengths = (np.array([getattr(draw.prompted, what) for draw in drawn]) for what in ("visual", "text"))
        return make_cost(cost).of(setting, counts, *lengths)

    # --- what is measured ------------------------------------------------------------------------

    def _grid(self) -> list[int]:
        """Numbers of tokens, with both sides of each edge."""
        main, effort, noise = self.kinds.index(self.profile.kinds[0]), self.effort, dict[int, float]()
        ends = time.monotonic() + effort.edge_seconds

        def left() -> float:
            return ends - time.monotonic()

        def quick(tokens: Sequence[int], say: Say = lambda text: None) -> dict[int, float]:
            probes, repeats = {n: self._decoder(n) for n in tokens}, min(QUICK, effort.repeats)
            found = in_turn(probes, self.reference, repeats, self.rng, seconds=left(), say=say).times
            noise.update({n: spread_of(times[:, main]) for n, times in found.items()})
            return {n: median(times[:, main]) for n, times in found.items()}

        times = quick(token_grid(effort.max_tokens), self.say)
        if missed := search_edges(times, quick, noise, lambda: left() <= 0):
            told = ", ".join(f"{low} to {high}" for low, high in sorted(missed))
            why = f"in {effort.edge_seconds:g} s (--edge-seconds)" if left() <= 0 else "as there are too many"
            self.say(f"not all edges were found {why}: time is a straight line from {told} tokens, where it jumps")
        return sorted(times)

    def _prompts(self, pictures: Sequence[Prompted]) -> list[Prompted]:
        """From short to long ones; of one usual picture, and of what has twice its tokens and more where there is
        room."""
        one, most = self.one, self.effort.max_tokens
        words = sorted({4, *(4 + int((most - one.length) * share) for share in (0.1, 0.4, 0.8))})
        larger = [more for more in pictures if 2 * one.visual <= more.visual and more.length + 8 <= most]
        made = [self.prompter.make(1, some, self.batch) for some in words]
        for more in larger[:: max(1, len(larger) - 1)]:
            made.append(self.prompter.make(more.pictures, 8, self.batch, more.size))
        return [one for one in made if one.length <= most]

    def _cached(self) -> list[int]:
        lengths = [n for n in token_grid(self.effort.max_tokens) if n < self.effort.max_tokens]
        return sorted({lengths[0], *lengths[:: max(1, len(lengths) // 6)], lengths[-1]})

    def _draws(self, prompts: Sequence[Prompted]) -> list[Draw]:
        rng = random.Random(f"{self.effort.seed} draws")
        layers = len(self.layers)
        first = [Draw(Step(max(1, layers // 2), 0.5), prompts[0])]
        return first + [Draw(random_schedule(rng, layers), rng.choice(prompts)) for _ in range(DRAWS - 1)]

    # --- how -------------------------------------------------------------------------------------

    def _at(self) -> list[tuple[int, str]]:
        return list(enumerate(self.kinds))

    def _parts(self, layers: Floats, rest: float) -> Floats:
        """[kinds + 1]: the mean layer of each kind, and what is no layer."""
        kinds = np.array(self.profile.kinds)
        return np.array([*(layers[kinds == kind].mean() for kind in self.kinds), rest])

    def _decoder(self, tokens: int) -> Probe:
        def call() -> Floats:
            states = states_of(self.model, self.batch, tokens)
            with stamped(self.layers, self.cuda) as run:
                times = run(lambda: self.adapter.decoder()(inputs_embeds=states, use_cache=True))
            return self._parts(times.layers, times.outside + float(times.gaps.sum()))

        return call

    def _decode_steps(self, length: int) -> Probe:
        def call() -> Floats:
            states, one = states_of(self.model, self.batch, length), states_of(self.model, self.batch, 1)
            cache = self.adapter.decoder()(inputs_embeds=states, use_cache=True).past_key_values
            step = lambda: self.adapter.decoder()(inputs_embeds=one, past_key_values=cache, use_cache=True)  # noqa: E731
            with stamped(self.layers, self.cuda) as run:
                times = [run(step) for _ in range(HOT)][1:]
            return np.median([self._parts(one.layers, one.outside + float(one.gaps.sum())) for one in times], axis=0)

        return call

    def _tower(self, prompted: Prompted) -> Probe:
        return lambda: timed_call(lambda: self.adapter.encode_images(prompted.inputs), self.cuda)

    def _prefill(self, prompted: Prompted) -> Probe:
        return lambda: timed_call(lambda: self.model(**prompted.inputs, logits_to_keep=1), self.cuda)

    def _answer(self, prompted: Prompted, tokens: int) -> Probe:
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        return lambda: timed_call(lambda: self.model.generate(**prompted.inputs, **settings), self.cuda)

    def _within(self, name: str) -> Callable[[Schedule | None, Probe], Probe]:
        method = make_method(name)

        def within(schedule: Schedule | None, probe: Probe) -> Probe:
            def call() -> Any:
                block: AbstractContextManager[Any] = nullcontext()
                if schedule is not None:
                    block = prune(self.model, method=method, schedule=schedule)
                with block:
                    return probe()

            return call

        return within

    def _to_the_end(self, curve: Curve, flat: bool = False) -> Curve:
        """Up to the most tokens: level for a decode step, a straight line through 0 for the tower."""
        most = self.effort.max_tokens + (STEPS if flat else 0)
        if curve.tokens[-1] >= most:
            return curve
        end = curve.ms[-1] * (1 if flat else most / curve.tokens[-1])
        return Curve(tokens=[*curve.tokens, most], ms=[*curve.ms, end], monotone=curve.monotone)


def states_of(model: Any, batch: int, tokens: int) -> Tensor:
    """Hidden states [batch, tokens, H] of noise."""
    adapter, generator = adapter_for(model), torch.Generator().manual_seed(tokens)
    states = torch.randn(batch, tokens, adapter.shape().hidden, generator=generator)
    return states.to(model.device, adapter.dtype())


def reference_of(model: Any, prompter: Prompter, batch: int) -> Callable[[], float]:
    """Milliseconds of the work that stands for the machine's speed: the plain prefill of a short prompt.

    What is timed beside it is like it, so that whatever slows the machine slows both alike.
    """
    inputs, cuda = prompter.make(1, 1, batch).inputs, is_cuda(model)
    return lambda: timed_call(lambda: model(**inputs, logits_to_keep=1), cuda)


def random_schedule(rng: random.Random, layers: int) -> Schedule:
    """One to three steps."""
    steps = sorted(rng.sample(range(1, layers), min(rng.randint(1, 3), layers - 1)))
    keeps = sorted((round(rng.uniform(0.02, 0.95), 3) for _ in steps), reverse=True)
    return MultiStep(steps, keeps) if len(steps) > 1 else Step(steps[0], keeps[0])


def spread_of(values: Iterable[float] | Floats) -> float:
    """Interquartile range."""
    low, high = np.percentile(np.asarray(values), [25, 75])
    return float(high - low)


def median(values: Iterable[float] | Floats) -> float:
    return float(np.median(np.asarray(values)))


def curve_over(points: dict[int, Floats]) -> Curve:
    """A curve from repetitions [R] at each number of tokens."""
    tokens = sorted(points)
    return curve_of(tokens, [points[n].tolist() for n in tokens])


def curve_of(tokens: Sequence[int], repetitions: Sequence[Sequence[float]]) -> Curve:
    """A curve of medians. Falls within the spread are noise, and the curve is then made to rise; others are kept."""
    middle = [median(values) for values in repetitions]
    spread = [spread_of(list(values)) for values in repetitions]
    falls = [
        (a - b, max(first, second, 0.05 * a))
        for a, b, first, second in zip(middle, middle[1:], spread, spread[1:], strict=False)
    ]
    monotone = all(fall <= noise for fall, noise in falls)
    if monotone:
        up, down = np.maximum.accumulate(middle), np.minimum.accumulate(middle[::-1])[::-1]
        middle = ((up + down) / 2).tolist()
    return Curve(tokens=list(tokens), ms=middle, spread=spread, monotone=monotone)
