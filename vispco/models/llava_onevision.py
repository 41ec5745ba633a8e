"""LLaVA-OneVision: LLaVA-NeXT's views and newlines, fewer cells for large pictures, and video.

A picture that is alone in its prompt is cut into tiles; several pictures are a thumbnail each, with one newline
after it. So is a video, whose frames are pooled to a quarter of the cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid
from vispco.models.llava import encoder_watch
from vispco.models.llava_next import anyres_pictures, thumbnail, unpadded_grid
from vispco.models.video import VideoAdapter

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionWatch


@ADAPTERS.register("llava_onevision")
class LlavaOnevisionAdapter(VideoAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    examples: ClassVar[tuple[str, ...]] = ("llava-hf/llava-onevision-qwen2-7b-ov-hf",)

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        together = inputs.get("batch_num_images")
        tiled = None if together is None else [int(n) == 1 for n in together for _ in range(int(n))]
        pictures = iter(anyres_pictures(self.model, inputs, shrunk_grid, tiled))
        found: list[Grid] = []
        for run, kind in zip(runs, self.kinds(inputs, runs), strict=True):
            left = run
            while left > 0:
                views = [self._video(left)] if kind == "video" else next(pictures, [Grid(1, 1, left)])
                found += views
                left -= sum(grid.tokens for grid in views)
        return found

    def _video(self, run: int) -> Grid:
        side = math.ceil(thumbnail(self.model.config).rows / 2)
        return Grid((run - 1) // side**2, side, side, end=True)

    def seen(self, inputs: dict[str, Any]) -> None:
        return None

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.tiled import TiledWatch

        return encoder_watch(self.model, TiledWatch, owner=self.model.model)

    def encode(self, kind: str, inputs: dict[str, Any]) -> Tensor:
        import torch

        if kind == "video":
            features: Tensor = self.model.get_video_features(pixel_values_videos=inputs["pixel_values_videos"])[
                "pooler_output"
            ]
            return features.flatten(0, 1)
        outputs = self.model.get_image_features(
            pixel_values=inputs["pixel_values"],
            image_sizes=inputs["image_sizes"],
            batch_num_images=inputs.get("batch_num_images"),
        )
        return torch.cat(list(outputs.pooler_output))

    def encoder_output(self, kind: str, features: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=[features] if kind == "image" else features[None])


def shrunk_grid(config: Any, size: tuple[int, int]) -> Grid:
    """Cells of a picture of ``size`` (height, width): interpolated where tiles would give too many (anyres_max)."""
    grid, side = unpadded_grid(config, size), thumbnail(config).rows
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(grid.rows * grid.columns / (most * side**2))
    if ratio <= 1.1:
        return grid
    return grid._replace(rows=int(grid.rows // ratio), columns=int(grid.columns // ratio))
