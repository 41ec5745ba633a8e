"""What only a GPU can show, as one command: ``python benchmarks/gpu.py``. Without a GPU it says so in one line.

Runs, in this order, and stops at none: pruning that keeps all tokens changes no logit in bfloat16, with sdpa and, where
it is installed, flash attention, whose answers are also compared; prefills at LLaVA-7B's shape with random weights
(:mod:`prefill`); a profile of the demo models and of a wide one against schedules that it has not seen
(:mod:`latency`). Exits 1 if something does not hold. Nothing here has run on a GPU yet.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import vispco
from vispco.costs.prompter import Prompter
from vispco.models.families import adapter_for
from vispco.models.loading import load_model
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Ratios, Step

ROOT = Path(__file__).parent.parent
BENCHMARKS = (
    ["benchmarks.prefill", "--device", "cuda"],
    ["benchmarks.latency", "--device", "cuda", "--models", "demo", "demo-qwen", "wide", "--batch", "1", "8"],
)
CLOSE = 0.05  # of the largest logit, between two attention kernels in bfloat16


def logits(model: Any, inputs: Any, schedule: Any) -> Any:
    with torch.inference_mode(), vispco.prune(model, method=make_method("fastv"), schedule=schedule):
        return model(**inputs, logits_to_keep=1).logits.float()


def attention_holds(device: str) -> bool:
    """Identity in bfloat16 with each attention, and flash attention equal to sdpa on a pruned prefill."""
    kernels = ["sdpa", *(["flash_attention_2"] if find_spec("flash_attn") else [])]
    found, held = {}, True
    for kernel in kernels:
        model, processor = load_model("demo", device=device, dtype="bfloat16", attn_implementation=kernel)
        inputs = Prompter(model, processor).make(1, 8, 2).inputs
        layers = adapter_for(model).shape().layers
        with torch.inference_mode():
            plain = model(**inputs, logits_to_keep=1).logits.float()
        same = torch.equal(plain, logits(model, inputs, Ratios([1.0] * layers)))
        found[kernel] = logits(model, inputs, Step(2, 0.5))
        held &= same
        print(f"{'holds' if same else 'FAILS'}: bfloat16, {kernel}: keeping all tokens changes no logit")
    if len(found) == 1:
        print("skipped: flash attention is not installed (pip install flash-attn)")
        return held
    gap = float((found["sdpa"] - found["flash_attention_2"]).abs().max() / found["sdpa"].abs().max())
    print(
        f"{'holds' if gap <= CLOSE else 'FAILS'}: flash attention differs from sdpa by {gap:.4f} of the largest logit"
    )
    return held and gap <= CLOSE


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU here: nothing was run")
        return 0
    print(f"on {torch.cuda.get_device_name(0)}")
    held = attention_holds("cuda")
    for command in BENCHMARKS:
        print(f"\n{' '.join(command)}", flush=True)
        held &= subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode == 0
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
