"""LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispco.testing.tiny.base import IMAGE, TEXT, TOWER, VIDEO, TinyFamily


class TinyLlava(TinyFamily):
    name = "llava"

    def build(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

        torch.manual_seed(0)
        vision = CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
        config = LlavaConfig(
            vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, vision_feature_layer=-1
        )
        return LlavaForConditionalGeneration(config).eval()

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(count, 3, 32, 32, generator=generator)}


class TinyLlavaNext(TinyFamily):
    """A thumbnail of 2 x 2 cells and tiles of 2 x 4, of which two rows are padding; a newline after each row."""

    name = "llava_next"
    picture_inputs = ("pixel_values", "image_sizes")
    picture_tokens = 4 + 2 * (4 + 1)
    views = 2
    size = (20, 32)

    def build(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

        torch.manual_seed(0)
        vision = CLIPVisionConfig(**TOWER, image_size=16, patch_size=8)
        config = LlavaNextConfig(
            vision_config=vision,
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        )
        return LlavaNextForConditionalGeneration(config).eval()

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "pixel_values": torch.randn(count, 5, 3, 16, 16, generator=generator),
            "image_sizes": torch.tensor([self.size] * count),
        }


class TinyLlavaOnevision(TinyLlavaNext):
    """A thumbnail of 3 x 3 cells and tiles of 3 x 6, cut to 3 x 4; :meth:`video_batch` adds a video."""

    name = "llava_onevision"
    picture_tokens = 9 + 3 * (4 + 1)
    size = (24, 30)

    def build(self) -> Any:
        from transformers import (
            LlavaOnevisionConfig,
            LlavaOnevisionForConditionalGeneration,
            Qwen2Config,
            SiglipVisionConfig,
        )

        torch.manual_seed(0)
        vision = SiglipVisionConfig(**TOWER, image_size=24, patch_size=8, vision_use_head=False)
        config = LlavaOnevisionConfig(
            vision_config=vision,
            text_config=Qwen2Config(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[24, 24], [24, 48], [48, 24], [48, 48]],
        )
        return LlavaOnevisionForConditionalGeneration(config).eval()

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "pixel_values": torch.randn(count, 3, 3, 24, 24, generator=generator),
            "image_sizes": torch.tensor([self.size] * count),
        }

    def video_batch(self, side: str = "left") -> dict[str, Tensor]:
        """A video of three frames and a picture in one row, a text-only row beside it."""
        generator = torch.Generator().manual_seed(1)
        text = torch.randint(10, 60, (20,), generator=generator)
        rows = [torch.cat([text[:2], torch.full((3 * 4 + 1,), VIDEO), text[2:4], self.picture(), text[4:9]]), text[9:]]
        return {
            **self.pad(rows, side),
            **self.pictures(1, generator),
            "pixel_values_videos": torch.randn(1, 3, 3, 24, 24, generator=generator),
        }
