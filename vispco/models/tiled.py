"""What is read off a tower that sees tiles, put together as the model puts its features together.

LLaVA-NeXT and LLaVA-OneVision lay the tiles of a picture side by side, cut the padding away, shrink what is too large,
and put a learned newline after each row; frames of a video are pooled. All of it happens in two methods of the model.
What was read off the tower goes through the same methods, with zeros for the newline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vispco.models.hooks import Hooks
from vispco.models.vision import EncoderWatch


class TiledWatch(EncoderWatch):
    """As :class:`EncoderWatch`; ``owner``: the module with ``pack_image_features``."""

    def __init__(self, layers: Sequence[nn.Module], layer: int, *more: Any, owner: Any, **options: Any) -> None:
        super().__init__(layers, layer, *more, **options)
        self.owner = owner

    def install(self, hooks: Hooks) -> None:
        super().install(hooks)
        hooks.method(self.owner, "pack_image_features", self._on_pack)
        if hasattr(self.owner, "get_video_features"):
            hooks.method(self.owner, "get_video_features", self._on_video)

    def _on_pack(self, pack: Any, output: Any, image_features: Sequence[Tensor], *args: Any, **options: Any) -> None:
        """``image_features``: of each picture [its tiles, cells, H]."""
        counts = [len(tiles) for tiles in image_features]

        def packed(values: Tensor) -> Tensor:
            tiles = torch.split(values.view(sum(counts), -1, values.shape[-1]), counts)
            newline = values.new_zeros(values.shape[-1])
            return torch.cat(pack(tiles, *args, **{**options, "image_newline": newline})[0])

        self._put(packed)

    def _on_video(self, own: Any, output: Any, *args: Any, **options: Any) -> None:
        videos = len(output.pooler_output)

        def pooled(values: Tensor) -> Tensor:
            side = self.owner.config.vision_config.image_size // self.owner.config.vision_config.patch_size
            frames = self.owner.apply_pooling(values.view(-1, side * side, values.shape[-1]))
            cells = frames.reshape(videos, -1, values.shape[-1])
            return torch.cat([cells, cells.new_zeros(videos, 1, values.shape[-1])], dim=1).flatten(0, 1)

        self._put(pooled)

    def _put(self, change: Any) -> None:
        with torch.no_grad():
            self._calls[-1] = self._calls[-1].rearranged(change)
