"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: pictures and videos of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispco.testing.tiny.base import IMAGE, TEXT, VIDEO, TinyFamily

TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 6, "vision_end_token_id": 7}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "initializer_range": 0.3,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


class TinyQwen25VL(TinyFamily):
    """Pictures of 2 x 6 cells; :meth:`video_batch` adds a video."""

    name = "qwen2_5_vl"
    picture_tokens = 12
    patch = 3 * 2 * 4 * 4
    video_times = {"second_per_grid_ts": torch.tensor([0.5])}

    def build(self) -> Any:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        torch.manual_seed(0)
        vision = {**VISION, "depth": 1, "window_size": 16, "fullatt_block_indexes": [0]}
        config = Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": MROPE}, **TOKENS)
        return Qwen2_5_VLForConditionalGeneration(config).eval()

    def types(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "pixel_values": torch.randn(count * 48, self.patch, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 12]] * count),
        }

    def take_pictures(self, batch: dict[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
        return {
            "pixel_values": batch["pixel_values"][start * 48 : (start + count) * 48],
            "image_grid_thw": batch["image_grid_thw"][start : start + count],
        }

    def video(self) -> Tensor:
        """Token ids of a video of 3 x 2 x 3 cells, with whatever text belongs to it."""
        return torch.full((18,), VIDEO)

    def video_batch(self, side: str = "left") -> dict[str, Tensor]:
        """A video of three frames and a picture in one row, a text-only row beside it."""
        generator = torch.Generator().manual_seed(1)
        text = torch.randint(10, 60, (20,), generator=generator)
        rows = [torch.cat([text[:2], self.video(), text[2:4], self.picture(), text[4:9]]), text[9:]]
        return {
            **self.pad(rows, side),
            **self.pictures(1, generator),
            "pixel_values_videos": torch.randn(72, self.patch, generator=generator),
            "video_grid_thw": torch.tensor([[3, 4, 6]]),
            **self.video_times,
        }


class TinyQwen2VL(TinyQwen25VL):
    name = "qwen2_vl"
    video_times = {}

    def build(self) -> Any:
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        torch.manual_seed(0)
        vision = {
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.3,
        }
        config = Qwen2VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": MROPE}, **TOKENS)
        return Qwen2VLForConditionalGeneration(config).eval()


class TinyQwen3VL(TinyQwen25VL):
    """Features of two vision layers are added after the decoder's first two; frames with timestamps between them."""

    name = "qwen3_vl"
    video_times = {}

    def build(self) -> Any:
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        return self._build(Qwen3VLConfig, Qwen3VLForConditionalGeneration)

    def _build(self, config: Any, model: Any, **more: Any) -> Any:
        torch.manual_seed(0)
        vision = {**VISION, "depth": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
        text = {**TEXT, "head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}, **more}
        return model(config(vision_config=vision, text_config=text, **TOKENS)).eval()

    def video(self) -> Tensor:
        frame = torch.cat([torch.tensor([8, 6]), torch.full((6,), VIDEO), torch.tensor([7])])
        return frame.repeat(3)


EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


class TinyQwen3VLMoe(TinyQwen3VL):
    """Six experts of which a token is sent to two, and one layer without experts."""

    name = "qwen3_vl_moe"

    def build(self) -> Any:
        from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

        return self._build(Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, **EXPERTS, mlp_only_layers=[1])


class TinyQwen35(TinyQwen3VL):
    """Three layers of linear attention and one of the usual kind; no deepstack."""

    name = "qwen3_5"

    def build(self) -> Any:
        from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

        return self._build(Qwen3_5Config, Qwen3_5ForConditionalGeneration)

    def _build(self, config: Any, model: Any, **more: Any) -> Any:
        torch.manual_seed(0)
        vision = {**VISION, "depth": 1, "num_position_embeddings": 16}
        text = {
            **TEXT,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
            "initializer_range": 0.2,  # the chunked rule is float32, whatever the model is
            "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.5},
            **more,
        }
        return model(config(vision_config=vision, text_config=text, **TOKENS)).eval()


class TinyQwen35Moe(TinyQwen35):
    """The same with six experts of which a token is sent to two, and one that it always meets."""

    name = "qwen3_5_moe"

    def build(self) -> Any:
        from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

        shared = {"shared_expert_intermediate_size": 40}
        return self._build(Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, **EXPERTS, **shared)
