"""InternVL 3, Idefics3, SmolVLM: tiles and a thumbnail, pooled by pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vispco.testing.tiny.base import IMAGE, TEXT, TOWER, TinyFamily


class TinyInternVL(TinyFamily):
    """Two tiles and a thumbnail of 2 x 2 cells each; a decoder with norms on queries and keys."""

    name = "internvl"
    picture_tokens = 3 * 4
    views = 3

    def build(self) -> Any:
        from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen3Config

        torch.manual_seed(0)
        vision = InternVLVisionConfig(**TOWER, image_size=16, patch_size=4, initializer_range=0.3)
        config = InternVLConfig(
            vision_config=vision,
            text_config=Qwen3Config(**TEXT, head_dim=8),
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
        return InternVLForConditionalGeneration(config).eval()

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(count * 3, 3, 16, 16, generator=generator)}

    def take_pictures(self, batch: dict[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
        return {"pixel_values": batch["pixel_values"][start * 3 : (start + count) * 3]}


class TinyIdefics3(TinyFamily):
    """Two tiles and a thumbnail of 2 x 2 cells each, with marks between them; pixels [B, most tiles, ...]."""

    name = "idefics3"
    picture_tokens = 3 * 4
    views = 3

    def build(self) -> Any:
        from transformers import Idefics3Config, Idefics3ForConditionalGeneration

        return self._build(Idefics3Config, Idefics3ForConditionalGeneration)

    def _build(self, config: Any, model: Any) -> Any:
        from transformers import LlamaConfig

        torch.manual_seed(0)
        vision = {**TOWER, "image_size": 16, "patch_size": 4, "initializer_range": 0.3}
        return model(
            config(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2)
        ).eval()

    def picture(self) -> Tensor:
        tile = torch.full((4,), IMAGE)
        marks = [torch.tensor(mark) for mark in ([6, 7], [6, 8], [6, 9], [6])]
        return torch.cat([marks[0], tile, marks[1], tile, marks[2], tile, marks[3]])

    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(count * 3, 3, 16, 16, generator=generator)}

    def batch(self, rows: Sequence[tuple[int, int, int]], side: str = "left", seed: int = 0) -> dict[str, Tensor]:
        flat = super().batch(rows, side, seed)
        counts = [3 * pictures for _, pictures, _ in rows]
        return {**flat, **(self._in_rows(flat["pixel_values"], counts) if any(counts) else {})}

    def _in_rows(self, tiles: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
        """What the processor gives for rows with ``counts`` tiles: filled up with zeros."""
        pixels = tiles.new_zeros(len(counts), max(counts), *tiles.shape[1:])
        for row, part in enumerate(torch.split(tiles, list(counts))):
            pixels[row, : len(part)] = part
        return {"pixel_values": pixels, "pixel_attention_mask": (pixels != 0).any(dim=2).long()}

    def take_pictures(self, batch: dict[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
        tiles = batch["pixel_values"].flatten(0, 1)
        tiles = tiles[tiles.flatten(1).any(dim=1)]
        return self._in_rows(tiles[start * 3 : (start + count) * 3], [count * 3])


class TinySmolVLM(TinyIdefics3):
    name = "smolvlm"

    def build(self) -> Any:
        from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

        return self._build(SmolVLMConfig, SmolVLMForConditionalGeneration)
