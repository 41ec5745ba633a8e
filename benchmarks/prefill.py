"""What pruning costs and saves in a prefill: ``python benchmarks/prefill.py [--quick] [--device cuda]``.

A random model of LLaVA's shape (hidden 1024, 16 layers, 576 visual and 64 text tokens, float32 on a CPU; on a GPU
LLaVA-7B's shape in bfloat16). Answers are compared before anything is timed. Every figure is a ratio of medians taken
in turn within one run. Prints each claim and whether it holds; exits 1 if one does not.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

import vispco
from vispco.costs import prefill_flops, unpruned_flops
from vispco.models.families import adapter_for
from vispco.pruning.methods import make_method
from vispco.pruning.methods.fastv import FastV
from vispco.pruning.schedules import MultiStep, Schedule, Step, keep_all

VISUAL, TEXT = 576, 64
SCHEDULES = {"step(layer=2, keep=0.5)": Step(2, 0.5), "three steps": MultiStep((2, 6, 11), (0.6, 0.3, 0.1))}


def build(device: str) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    large = device != "cpu"
    text = LlamaConfig(
        vocab_size=1000,
        hidden_size=4096 if large else 1024,
        intermediate_size=11008 if large else 2752,
        num_hidden_layers=32 if large else 16,
        num_attention_heads=32 if large else 16,
        num_key_value_heads=32 if large else 16,
        initializer_range=0.05,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=24, patch_size=1
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=999, vision_feature_layer=-1)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    return model.to(torch.bfloat16 if large else torch.float32).eval()


def inputs_of(model: Any, device: str) -> dict[str, Any]:
    """A prompt with its visual features in place of pixels, so that the decoder is what is timed."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, 999, (TEXT,), generator=generator)
    ids = torch.cat([words[:35], torch.full((VISUAL,), 999), words[35:]])[None].to(device)
    hidden = model.config.text_config.hidden_size
    features = torch.randn(VISUAL, hidden, generator=generator).to(device, model.dtype)
    return adapter_for(model).with_features({"input_ids": ids}, features)


class Timer:
    """Runs alternatives in turn, in an order shuffled every round: a slow moment of the machine hits all of them."""

    def __init__(self, model: Any, inputs: dict[str, Any], device: str, rounds: int) -> None:
        self.model, self.inputs, self.device, self.rounds = model, inputs, device, rounds

    def prefill(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.inference_mode():
            self.model(**self.inputs, logits_to_keep=1)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def seconds(self, alternatives: dict[str, Callable[[], AbstractContextManager[Any]]]) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {name: [] for name in alternatives}
        order, rng = list(alternatives), random.Random(0)
        for number in range(self.rounds + 1):
            rng.shuffle(order)
            for name in order:
                with alternatives[name]():
                    spent = self.prefill()
                if number:  # the first round warms up
                    times[name].append(spent)
        return times


class TimedFastV(FastV):
    """FastV that notes how long it takes to score; one entry per prefill with one boundary."""

    def __init__(self) -> None:
        object.__setattr__(self, "spent", [])

    def score(self, context: Any) -> torch.Tensor:
        if context.visual.is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        scores = super().score(context)
        if context.visual.is_cuda:
            torch.cuda.synchronize()
        self.spent.append(time.perf_counter() - started)
        return scores


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(times[over]) / statistics.median(times[under])


def check_answers(model: Any, inputs: dict[str, Any]) -> None:
    """Identity gathers give the plain logits; a pruned forward gives those of the model with hidden tokens."""
    from vispco.testing.checks import hidden_from

    tolerance = 1e-3 if model.dtype == torch.float32 else 0.25
    layers = model.config.text_config.num_hidden_layers
    with torch.inference_mode():
        plain = model(**inputs, logits_to_keep=1).logits
        with vispco.prune(model, schedule=keep_all(), gather_always=True):
            gathered = model(**inputs, logits_to_keep=1).logits
        assert (plain - gathered).abs().max() <= tolerance
        for schedule in SCHEDULES.values():
            with vispco.prune(model, method="fastv", schedule=schedule) as session:
                pruned = model(**inputs, logits_to_keep=1).logits
            kept = [session.kept(layer) for layer in range(layers)]
            batch = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])}
            if model.dtype == torch.float32 and model.device.type == "cpu":
                with hidden_from(model, batch, kept):
                    masked = model(**inputs, logits_to_keep=1).logits
                assert (pruned - masked).abs().max() <= tolerance, "dropping differs from hiding"
            assert (pruned - plain).abs().max() > tolerance, "nothing was pruned"


def saved_flops(model: Any, schedule: Schedule, method: str) -> float:
    shape = adapter_for(model).shape()
    visual, text = np.array([VISUAL]), np.array([TEXT])
    counts = schedule.counts(visual, shape.layers)
    pruned = prefill_flops(shape, counts, visual, text, make_method(method))
    return 1 - float(pruned[0] / unpruned_flops(shape, visual, text)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    model = build(options.device)
    inputs = inputs_of(model, options.device)
    check_answers(model, inputs)
    print("answers agree")
    timer = Timer(model, inputs, options.device, rounds)

    def pruned(schedule: Schedule, method: str = "fastv", **more: Any) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: vispco.prune(model, method=method, schedule=schedule, **more)

    timed = TimedFastV()
    times = timer.seconds(
        {
            "plain": nullcontext,
            "identity": pruned(keep_all(), "random", gather_always=True),
            **{name: pruned(schedule) for name, schedule in SCHEDULES.items()},
            "scored": lambda: vispco.prune(model, method=timed, schedule=Step(2, 0.5)),
        }
    )
    scoring = statistics.median(timed.spent[1:]) / statistics.median(times["plain"])
    claims = [
        (
            "identity gather at every layer, over plain, minus 1",
            ratio(times, "identity", "plain") - 1,
            0.03,
        ),
        ("FastV's scoring, over the plain prefill", scoring, 0.02),
    ]
    good = True
    for text, value, most in claims:
        good &= value <= most
        print(f"{'ok  ' if value <= most else 'FAIL'} {text}: {value:.4f} (asked: <= {most})")
    for name, schedule in SCHEDULES.items():
        time_saved, flops_saved = 1 - ratio(times, name, "plain"), saved_flops(model, schedule, "fastv")
        share = time_saved / flops_saved
        good &= share >= 0.85
        saved = f"saves {time_saved:.3f} of the time, {flops_saved:.3f} of the FLOPs"
        print(f"{'ok  ' if share >= 0.85 else 'FAIL'} {name}: {saved}: {share:.3f} (asked: >= 0.85)")
    print(f"     plain prefill: median {statistics.median(times['plain']):.4f} s over {rounds} rounds")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
