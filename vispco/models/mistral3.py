"""Mistral 3 (Small 3.1, Ministral 3): pictures of any size by a Pixtral tower, 2 x 2 patches to a token.

A token that ends a row stands after each row of a picture. It is text, so that every row is a run of visual tokens by
itself; the rows of one picture are one grid all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.base import ModelAdapter
from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionWatch


@ADAPTERS.register("mistral3")
class Mistral3Adapter(ModelAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    examples: ClassVar[tuple[str, ...]] = (
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "mistralai/Ministral-3-8B-Instruct-2512",
    )

    @cached_property
    def _readable(self) -> bool:
        """Ministral 3 scales queries far after the start by their position, which attention rows do not follow."""
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        return super()._readable and "llama_4_scaling_beta" not in rope

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        sizes, found, rows, left = self._tokens(inputs), [], 0, 0
        for run in runs:
            left = left or (sizes.pop(0) if sizes else run)
            rows, left = rows + 1, left - run
            if left <= 0:
                found.append(Grid(1, rows, run))
                rows = left = 0
        return found

    def _tokens(self, inputs: dict[str, Any]) -> list[int]:
        """Tokens of each picture; none if nothing tells them."""
        encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
        if inputs.get("image_sizes") is not None:
            side = self.model.config.vision_config.patch_size * self.model.config.spatial_merge_size
            return [int(height) // side * (int(width) // side) for height, width in inputs["image_sizes"]]
        return [] if encoded is None else [len(features) for features in encoded.pooler_output]

    def seen(self, inputs: dict[str, Any]) -> None:
        return None

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        import torch

        outputs = self.model.get_image_features(pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"])
        return torch.cat(list(outputs.pooler_output))

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import PixtralWatch

        tower, layer = (
            getattr(self.model.model.vision_tower, "transformer", None),
            self.model.config.vision_feature_layer,
        )
        last = layer if isinstance(layer, int) else layer[-1]
        if tower is None or last in (0, -len(tower.layers) - 1):
            return None
        number = last - 1 if last > 0 else len(tower.layers) + last
        merge = self.model.config.spatial_merge_size
        return PixtralWatch(tower.layers, number, self.model.model.multi_modal_projector, merge)
