"""LLaVA-NeXT (1.6): a thumbnail, and tiles of the picture at a higher resolution with its padding cut away.

A picture is two views: the thumbnail, then one grid of all tiles. After each row of that grid stands the learned
newline embedding: a visual token like any other (it is counted, ranked and dropped), but no cell of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid
from vispco.models.llava import LlavaAdapter, encoder_watch

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionWatch


@ADAPTERS.register("llava_next")
class LlavaNextAdapter(LlavaAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    examples: ClassVar[tuple[str, ...]] = ("llava-hf/llava-v1.6-mistral-7b-hf",)

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        pictures = anyres_pictures(self.model, inputs) or [[Grid(1, 1, run)] for run in runs]
        return [grid for views in pictures for grid in views]

    def seen(self, inputs: dict[str, Any]) -> None:
        return None

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.tiled import TiledWatch

        return encoder_watch(self.model, TiledWatch, owner=self.model.model)

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        import torch

        outputs = self.model.get_image_features(pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"])
        return torch.cat(list(outputs.pooler_output))


def thumbnail(config: Any) -> Grid:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return Grid(1, side, side)


def unpadded_grid(config: Any, size: tuple[int, int]) -> Grid:
    """Cells of the tiles that hold a picture of ``size`` (height, width), as the model's own functions cut them."""
    import torch
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    side = thumbnail(config).rows
    rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    cells = unpad_image(torch.empty(1, rows * side, columns * side, device="meta"), size)
    return Grid(1, cells.shape[1], cells.shape[2], row_end=True, view=1)


def anyres_pictures(
    model: Any,
    inputs: dict[str, Any],
    tiles: Callable[[Any, tuple[int, int]], Grid] = unpadded_grid,
    tiled: Sequence[bool] | None = None,
) -> list[list[Grid]]:
    """Views of every picture; none if nothing tells them.

    ``generate`` keeps features but not sizes; then the newlines among the features tell the rows.

    Args:
        tiles: the grid of a picture's tiles from the model's configuration and the size (height, width).
        tiled: which pictures have tiles; the others are a thumbnail with one newline. Default: all.
    """
    small = thumbnail(model.config)
    if inputs.get("image_sizes") is not None:
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        return [
            [small, tiles(model.config, size)] if cut else [small._replace(end=True)]
            for size, cut in zip(sizes, tiled or [True] * len(sizes), strict=True)
        ]
    encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is None:
        return []
    return [_views_of(features, model.model.image_newline, small) for features in encoded.pooler_output]


def _views_of(features: Tensor, newline: Tensor, small: Grid) -> list[Grid]:
    """Views of one picture from its features [n, H]."""
    rows = int((features == newline.to(features)).all(dim=-1).sum())
    more = len(features) - small.tokens
    if more == rows == 1:
        return [small._replace(end=True)]
    # Of a picture as narrow as a hair only newlines are left, of a flat one nothing.
    if more == 0 or (rows and more >= rows and more % rows == 0):
        return [small, Grid(1, rows, more // max(rows, 1) - 1, row_end=True, view=1)]
    return [Grid(1, 1, features[..., 0].numel())]
