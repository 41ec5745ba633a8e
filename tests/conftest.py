from __future__ import annotations

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
