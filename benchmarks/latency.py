"""Realised against predicted against FLOPs: ``python -m benchmarks.latency [--models NAME ...] [--device cuda]``.

Profiles each model, predicts 30 schedules that were not measured, measures them, and prints the error of the predicted
times and how well the ratio of two schedules' times is predicted by the profile and by FLOPs. Answers are compared
first. Run it on an idle machine; it says how busy this one is. Exits 1 if a claim does not hold. ``wide`` is a random
LLaVA (wide.py). With ``--profiles DIR`` profiles are kept there and not measured again, so that a check may be
repeated, with more repetitions where ``rank_repeated`` says that these are what limits it.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import vispco
from benchmarks.wide import NAME as WIDE
from benchmarks.wide import load_wide
from vispco.costs.checking import check_profile, summary
from vispco.costs.measuring import Effort, measure_profile
from vispco.costs.profile import read_profile
from vispco.costs.prompter import Prompter
from vispco.models.families import adapter_for
from vispco.models.loading import load_model
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Ratios

CLAIMS = {"median_error": 0.05, "worst_error": 0.15}
RANK = 0.98


def same_answers(model: Any, processor: Any, method: str) -> bool:
    """A schedule that keeps all tokens gives the plain model's logits."""
    prompted = Prompter(model, processor).make(1, 4, 1)
    whole = Ratios([1.0] * adapter_for(model).shape().layers)
    with torch.inference_mode():
        plain = model(**prompted.inputs, logits_to_keep=1).logits
        with vispco.prune(model, method=make_method(method), schedule=whole):
            kept = model(**prompted.inputs, logits_to_keep=1).logits
    return torch.equal(plain, kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["demo", "demo-qwen", "demo-deep"])
    parser.add_argument("--methods", nargs="+", default=["fastv", "divprune", "random"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--check-repeats", type=int, help="of the check's measurements; as --repeats")
    parser.add_argument("--profiles", type=Path)
    parser.add_argument("--schedules", type=int, default=30)
    parser.add_argument("--ragged", action="store_true", help="prompts of a batch differ in length")
    asked = parser.parse_args()
    effort = Effort(repeats=asked.repeats, max_tokens=asked.max_tokens)
    print(f"load of this machine: {os.getloadavg()[0]:.1f} of {os.cpu_count()} processors")
    checking = replace(effort, repeats=asked.check_repeats or asked.repeats)
    held = True
    for name in asked.models:
        model, processor = load_wide(asked.device) if name == WIDE else load_model(name, device=asked.device)
        for method in asked.methods:
            if not same_answers(model, processor, method):
                print(f"{name}, {method}: keeping all tokens changes the logits")
                return 1
        kept = asked.profiles and asked.profiles / f"{name}.json"
        if kept and kept.exists():
            profile = read_profile(kept)
        else:
            profile = measure_profile(model, processor, name, methods=asked.methods, batches=asked.batch, effort=effort)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(profile.to_json(), encoding="utf-8")
        for method in asked.methods:
            for batch in asked.batch:
                checks = check_profile(
                    model,
                    processor,
                    profile,
                    method=method,
                    batch=batch,
                    schedules=asked.schedules,
                    effort=checking,
                    ragged=asked.ragged,
                )
                for cost in ("prefill_ms", "latency_ms"):
                    found = summary([check for check in checks if check.cost == cost])
                    good = all(found[key] <= most for key, most in CLAIMS.items())
                    good = good and found["rank_correlation"] >= RANK
                    good = good and found["ratio_error"] <= found["ratio_error_of_flops"]
                    held = held and good
                    told = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
                    print(f"{'holds' if good else 'FAILS'}: {name}, {method}, batch {batch}, {cost}: {told}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
