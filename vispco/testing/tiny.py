"""Small random models of every family, made from the family's real configuration classes, and batches for them.

Weights are large, so that attention is far from flat and a wrong mask or position shows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

LAYERS = 4
IMAGE, VIDEO = 4, 5
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}


class TinyFamily(ABC):
    """A small random model of one family and its inputs.

    ``picture_tokens``: visual tokens of one picture in :meth:`batch`.
    """

    name: ClassVar[str]
    picture_tokens: ClassVar[int] = 16

    @abstractmethod
    def build(self) -> Any:
        """A new random model in evaluation mode."""

    @abstractmethod
    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Processor outputs for ``count`` pictures."""

    def types(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Further inputs per token. Default: none."""
        return {}

    @cache  # noqa: B019  (a handful of instances for the life of a test run)
    def model(self) -> Any:
        """One model, shared by all who ask."""
        return self.build()

    def batch(self, rows: Sequence[tuple[int, int, int]], side: str = "left", seed: int = 0) -> dict[str, Tensor]:
        """Rows of (text tokens before, pictures, text tokens after), padded on ``side``.

        Pictures of one row have a text token between them.
        """
        generator = torch.Generator().manual_seed(seed)
        ids = []
        for before, images, after in rows:
            text = torch.randint(10, 60, (before + after + max(images - 1, 0),), generator=generator)
            parts = [text[:before]]
            for number in range(images):
                parts += [torch.full((self.picture_tokens,), IMAGE)]
                parts += [text[before + number : before + number + 1]] if number + 1 < images else []
            ids.append(torch.cat([*parts, text[len(text) - after :]]))
        return {**self.pad(ids, side), **self.pictures(sum(images for _, images, _ in rows), generator)}

    def pad(self, ids: Sequence[Tensor], side: str) -> dict[str, Tensor]:
        length = max(len(row) for row in ids)
        input_ids = torch.zeros(len(ids), length, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for number, row in enumerate(ids):
            span = slice(length - len(row), None) if side == "left" else slice(0, len(row))
            input_ids[number, span], mask[number, span] = row, 1
        return {"input_ids": input_ids, "attention_mask": mask, **self.types(input_ids)}

    def extend(self, batch: dict[str, Tensor], new: Tensor) -> dict[str, Tensor]:
        """``batch`` with text tokens ``new`` [B, s] behind it."""
        longer = dict(batch)
        for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if key in batch:
                fill = {"input_ids": new, "attention_mask": torch.ones_like(new)}.get(key, torch.zeros_like(new))
                longer[key] = torch.cat([batch[key], fill], dim=1)
        return longer

    def row(self, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """One row of ``batch`` alone, without its padding."""
        where = batch["attention_mask"][number].bool()
        alone = self.pad([batch["input_ids"][number, where]], "left")
        counts = (batch["input_ids"] == IMAGE).sum(dim=1) // self.picture_tokens
        start, count = int(counts[:number].sum()), int(counts[number])
        return {**alone, **(self.take_pictures(batch, start, count) if count else {})}

    def take_pictures(self, batch: dict[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
        return {"pixel_values": batch["pixel_values"][start : start + count]}


class TinyLlava(TinyFamily):
    name = "llava"

    def build(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

        torch.manual_seed(0)
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
        config = LlavaConfig(
            vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, vision_feature_layer=-1
        )
        return LlavaForConditionalGeneration(config).eval()

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(count, 3, 32, 32, generator=generator)} if count else {}


class TinyQwen25VL(TinyFamily):
    """Pictures of 2 x 6 cells; :meth:`video_batch` adds a video."""

    name = "qwen2_5_vl"
    picture_tokens = 12
    patch = 3 * 2 * 4 * 4

    def build(self) -> Any:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        torch.manual_seed(0)
        vision = {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [0],
            "initializer_range": 0.3,
        }
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        config = Qwen2_5_VLConfig(
            vision_config=vision,
            text_config={**TEXT, "rope_parameters": rope},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=6,
            vision_end_token_id=7,
        )
        return Qwen2_5_VLForConditionalGeneration(config).eval()

    def types(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        if not count:
            return {}
        return {
            "pixel_values": torch.randn(count * 48, self.patch, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 12]] * count),
        }

    def take_pictures(self, batch: dict[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
        return {
            "pixel_values": batch["pixel_values"][start * 48 : (start + count) * 48],
            "image_grid_thw": batch["image_grid_thw"][start : start + count],
        }

    def video_batch(self, side: str = "left") -> dict[str, Tensor]:
        """A picture and a video of three frames in one row, a text-only row beside it."""
        generator = torch.Generator().manual_seed(1)
        text = torch.randint(10, 60, (20,), generator=generator)
        picture, video = torch.full((12,), IMAGE), torch.full((18,), VIDEO)
        rows = [torch.cat([text[:2], video, text[2:4], picture, text[4:9]]), text[9:]]
        return {
            **self.pad(rows, side),
            **self.pictures(1, generator),
            "pixel_values_videos": torch.randn(72, self.patch, generator=generator),
            "video_grid_thw": torch.tensor([[3, 4, 6]]),
            "second_per_grid_ts": torch.tensor([0.5]),
        }


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


TINY: dict[str, TinyFamily] = {family.name: family for family in (TinyLlava(), TinyQwen25VL(), TinyGemma3())}
