"""Gemma 3, Gemma 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispco.testing.tiny.base import IMAGE, TEXT, TOWER, VIDEO, TinyFamily


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
        vision = SiglipVisionConfig(**TOWER, image_size=32, patch_size=4)
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
        return {"pixel_values": torch.randn(count, 3, 32, 32, generator=generator)}


class TinyGemma4(TinyFamily):
    """Sliding layers with a window of 12, full ones with wider heads and keys as values; experts beside the MLP.

    Pictures of 2 x 4 cells, filled up to ten.
    """

    name = "gemma4"
    picture_inputs = ("pixel_values", "image_position_ids")
    picture_tokens = 8

    def build(self) -> Any:
        from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4TextConfig, Gemma4VisionConfig

        torch.manual_seed(0)
        text = Gemma4TextConfig(
            **TEXT,
            head_dim=8,
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            hidden_size_per_layer_input=0,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            enable_moe_block=True,
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=24,
            use_bidirectional_attention="vision",
            final_logit_softcapping=30.0,
            tie_word_embeddings=False,
        )
        vision = Gemma4VisionConfig(
            **TOWER,
            num_key_value_heads=2,
            head_dim=8,
            pooling_kernel_size=2,
            patch_size=4,
            position_embedding_size=16,
            initializer_range=0.3,
        )
        tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": 3}
        config = Gemma4Config(
            text_config=text, vision_config=vision, audio_config=None, initializer_range=0.3, **tokens
        )
        return Gemma4ForConditionalGeneration(config).eval()

    def types(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (input_ids == IMAGE).long() + 2 * (input_ids == VIDEO).long()}

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        places = torch.full((count, 40, 2), -1)
        places[:, :32, 0], places[:, :32, 1] = torch.arange(8).repeat(4), torch.arange(4).repeat_interleave(8)
        pixels = torch.rand(count, 40, 3 * 4 * 4, generator=generator)
        return {"pixel_values": pixels, "image_position_ids": places}
