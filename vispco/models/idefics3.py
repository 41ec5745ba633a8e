"""Idefics3 and SmolVLM: tiles of the picture and a thumbnail after them, with text between them; pixel shuffle.

Every tile is a run of visual tokens by itself (marks such as ``<row_1_col_2>`` stand between them, and are text),
and counts as a picture of its own. The frames of a video reach the model as pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.base import ModelAdapter
from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid, fixed_grids

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vispco.models.vision import VisionWatch


@ADAPTERS.register("idefics3")
class Idefics3Adapter(ModelAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    examples: ClassVar[tuple[str, ...]] = ("HuggingFaceM4/Idefics3-8B-Llama3", "HuggingFaceTB/SmolVLM2-2.2B-Instruct")

    def decoder(self) -> nn.Module:
        module: nn.Module = self.model.model.text_model
        return module

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        return fixed_grids(runs, self.model.model.image_seq_len)

    def seen(self, inputs: dict[str, Any]) -> Tensor | None:
        tiles: Tensor = inputs["pixel_values"].flatten(0, 1)
        return tiles[tiles.flatten(1).any(dim=1)]  # a sample with fewer tiles than another is filled up with zeros

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        import torch

        pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
        outputs = self.model.get_image_features(pixel_values=pixels, pixel_attention_mask=mask)
        return torch.cat(list(outputs.pooler_output))

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import EncoderWatch

        layers, heads = (
            self.model.model.vision_model.encoder.layers,
            self.model.config.vision_config.num_attention_heads,
        )
        cell = self.model.config.scale_factor
        return EncoderWatch(layers, len(layers) - 1, heads, self.model.model.connector, cls=False, cell=cell)
