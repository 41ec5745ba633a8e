"""InternVL 3: tiles of the picture and a thumbnail after them, each pooled by pixel shuffle; any text decoder.

How the tiles lie is not among the model's inputs, so that every tile counts as a picture of its own. The frames of
a video reach the model as pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.base import ModelAdapter
from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionWatch


@ADAPTERS.register("internvl")
class InternVLAdapter(ModelAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    examples: ClassVar[tuple[str, ...]] = ("OpenGVLab/InternVL3-1B-hf",)

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        config = self.model.config
        sizes = zip(config.vision_config.image_size, config.vision_config.patch_size, strict=True)
        rows, columns = (int(size // patch * config.downsample_ratio) for size, patch in sizes)
        tiles = [max(1, run // (rows * columns)) for run in runs]
        return [Grid(1, rows, columns, view=tile) for count in tiles for tile in range(count)]

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        features: Tensor = self.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        return features.flatten(0, 1)

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import EncoderWatch

        config, layers = self.model.config, self.model.model.vision_tower.encoder.layer
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
            return None
        return EncoderWatch(
            layers,
            len(layers) - 1,
            config.vision_config.num_attention_heads,
            self.model.model.multi_modal_projector,
            cls=True,
            drop_cls=True,
            cell=round(1 / config.downsample_ratio),
            attention="attention",
            shuffled=True,
        )

    def encoder_output(self, kind: str, features: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=features[None])
