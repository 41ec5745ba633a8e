"""Scenes as pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.scenes.grounds import distractor, ground
from vispco.tasks.scenes.layout import Scene


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The picture, uint8 [side, side, 3]."""
    side = scene.canvas.pixels
    number, y, x, turn = scene.ground
    pixels = ground(scene.split, number)[y : y + side, x : x + side]
    pixels = np.rot90(pixels, turn % 4)
    if turn >= 4:
        pixels = pixels[:, ::-1]
    canvas = pixels.astype(np.float32)
    for blot in scene.blots:
        colors, mask = distractor(scene.split, blot.number)
        _blend(canvas, blot.y, blot.x, mask, colors)
    label = np.full(3, 15.0 if scene.dark_labels else 245.0, dtype=np.float32)
    for thing in scene.things:
        body = np.asarray(thing.rgb, dtype=np.float32)
        for part, sprite, top, left in scene.parts(thing):
            color = body if part == "thing" else label
            contour = np.full(3, 245.0 if _luma(color) < 128 else 15.0, dtype=np.float32)
            _blend(canvas, top, left, sprite.halo, contour)
            _blend(canvas, top, left, sprite.ink, color)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _luma(color: NDArray[np.float32]) -> float:
    return float(color @ np.asarray((0.299, 0.587, 0.114), dtype=np.float32))


def _blend(
    canvas: NDArray[np.float32], top: int, left: int, mask: NDArray[np.float32], color: NDArray[np.float32]
) -> None:
    """Paint ``color`` ([3] or [h, w, 3]) through ``mask`` [h, w]; what lies outside the canvas is cut off."""
    side = len(canvas)
    height, width = mask.shape
    up, before = max(0, -top), max(0, -left)
    down, after = min(height, side - top), min(width, side - left)
    if up >= down or before >= after:
        return
    region = canvas[top + up : top + down, left + before : left + after]
    alpha = mask[up:down, before:after, None]
    shade = color if color.ndim == 1 else color[up:down, before:after]
    region += alpha * (shade - region)
