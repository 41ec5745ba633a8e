"""What the demo VLMs are trained on: mosaics drawn fresh from the ``train`` pictures."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.train.demo.build import vocabulary
from vispco.tasks.mosaic import TASK_MIX, Scene, sample_scene, split_pictures

if TYPE_CHECKING:
    from torch import Tensor


def jitter(pixels: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Mirror and shift a picture by up to 6 pixels, so that the 3,187 pictures are not learned by heart."""
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    dy, dx = rng.randint(-6, 6), rng.randint(-6, 6)
    height, width, _ = pixels.shape
    moved = np.empty_like(pixels)
    moved[:] = pixels[0, 0]
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = pixels[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return moved


def draw_scenes(batch: int, rng: random.Random) -> list[Scene]:
    pictures = split_pictures("train")
    return [
        Scene(tuple(replace(p, pixels=jitter(p.pixels, rng)) for p in sample_scene(pictures, rng).pictures))
        for _ in range(batch)
    ]


def pixel_values(scenes: list[Scene]) -> Tensor:
    """float32 [B, 3, 128, 128], as LLaVA's processor would give (a test compares them)."""
    import torch

    pixels = np.stack([scene.pixels() for scene in scenes])
    return 1.0 - torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0


def data_hash() -> str:
    """Identity of the training pictures and of the question kinds."""
    digest = hashlib.sha256(json.dumps([TASK_MIX, sorted(vocabulary())]).encode())
    for picture in split_pictures("train"):
        digest.update(f"{picture.key} {picture.color} {picture.shape}".encode())
        digest.update(picture.pixels.tobytes())
    return digest.hexdigest()
