"""Gemma 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispco.testing.tiny.base import IMAGE, TEXT, TinyFamily


class TinyGemma3(TinyFamily):
    """Sliding layers with a window of 12 between full ones; prompts with a picture are longer than that."""

    name = "gemma3"

    def build(self) -> Any:
        from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

        torch.manual_seed(0)
        text = Gemma3TextConfig(
            **TEXT,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            tie_word_embeddings=False,
        )
        vision = SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=4,
        )
        config = Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_id=IMAGE, initializer_range=0.3
        )
        model = Gemma3ForConditionalGeneration(config).eval()
        with torch.no_grad():
            # The class starts this matrix at zero, which would make all pictures the same.
            model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.5)
        return model

    def types(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (input_ids == IMAGE).long()}

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(count, 3, 32, 32, generator=generator)} if count else {}
