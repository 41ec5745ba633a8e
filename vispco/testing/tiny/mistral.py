"""Mistral 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispco.testing.tiny.base import IMAGE, TEXT, TOWER, TinyFamily


class TinyMistral3(TinyFamily):
    """Pictures of 3 x 4 cells, a token after each row."""

    name = "mistral3"
    picture_inputs = ("pixel_values", "image_sizes")
    picture_tokens = 12

    def build(self) -> Any:
        from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

        torch.manual_seed(0)
        vision = PixtralVisionConfig(**TOWER, image_size=64, patch_size=4, initializer_range=0.3)
        config = Mistral3Config(
            vision_config=vision,
            text_config=MistralConfig(**TEXT, head_dim=8, sliding_window=None),
            image_token_id=IMAGE,
            spatial_merge_size=2,
            tie_word_embeddings=False,
            initializer_range=0.3,
        )
        return Mistral3ForConditionalGeneration(config).eval()

    def picture(self) -> Tensor:
        row = torch.cat([torch.full((4,), IMAGE), torch.tensor([8])])
        return torch.cat([row.repeat(3)[:-1], torch.tensor([9])])

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = torch.randn(count, 3, 24, 32, generator=generator)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[24, 32]] * count)}
