from __future__ import annotations

import os

# Tests run in several processes; torch in one thread each is faster than all of them sharing all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_llava() -> Any:
    """A random LLaVA with grouped key/value heads, 4 layers; weights large enough that attention is not flat."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=4, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


IMAGE_TOKENS = 16


def installed_hooks(model: Any) -> set[tuple[str, int]]:
    """Every hook on every module. transformers puts its own on at the first forward and leaves them."""
    return {
        (name, id(hook))
        for name, module in model.named_modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
    }


def make_batch(
    rows: list[tuple[int, int, int]], side: str = "left", seed: int = 0, image_tokens: int = IMAGE_TOKENS
) -> dict[str, torch.Tensor]:
    """Rows of (text tokens before, pictures, text tokens after), padded on ``side``."""
    generator = torch.Generator().manual_seed(seed)
    ids = []
    for before, images, after in rows:
        text = torch.randint(5, 50, (before + after,), generator=generator)
        ids.append(torch.cat([text[:before], torch.full((images * image_tokens,), 4), text[before:]]))
    length = max(len(row) for row in ids)
    input_ids = torch.zeros(len(ids), length, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for number, row in enumerate(ids):
        span = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        input_ids[number, span] = row
        mask[number, span] = 1
    batch = {"input_ids": input_ids, "attention_mask": mask}
    pictures = sum(images for _, images, _ in rows)
    if pictures:
        batch["pixel_values"] = torch.randn(pictures, 3, 32, 32, generator=generator)
    return batch


SMALL = """
experiment: small
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 16, search: 12, held_out: 12}}
budgets: 3
batch_size: 8
searches:
  grid: {kind: grid}
  lagrangian: {kind: lagrangian, dual_steps: 2, primal_steps: 2, batch: 8, check: 8, measure: 2}
  random: {kind: random, compute: lagrangian}
  tpe: {kind: tpe, trials: 13, batch: 2}
"""


@pytest.fixture(scope="session")
def problem() -> Any:
    """The demo model on a dozen samples."""
    from vispco.problem import Problem

    return Problem.from_text(SMALL)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
