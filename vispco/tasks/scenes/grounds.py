"""Textured grounds, and distractors: patches as colourful as the things, which no question asks about."""

from __future__ import annotations

import colorsys
import random
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.scenes.vocabulary import COLORS

GROUNDS = {"train": 96, "calibration": 24, "search": 24, "held_out": 24}
DISTRACTORS = {"train": 160, "calibration": 40, "search": 40, "held_out": 40}
GROUND_PIXELS = 320


def _muted(rng: random.Random) -> NDArray[np.float32]:
    color = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.4), rng.uniform(0.25, 0.85))
    return np.asarray(color, dtype=np.float32) * 255


def _noise(cells: int, pixels: int, values: np.random.Generator) -> NDArray[np.float32]:
    from PIL import Image

    coarse = Image.fromarray(values.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((pixels, pixels), Image.Resampling.BICUBIC))


@cache
def ground(split: str, number: int) -> NDArray[np.uint8]:
    """A texture, uint8 [320, 320, 3]: noise at several scales over stripes, checks, or scattered pieces."""
    from PIL import Image, ImageDraw

    rng = random.Random(f"ground/{split}/{number}")
    values = np.random.default_rng([GROUNDS[split], number, len(split)])
    side = GROUND_PIXELS
    first, second = _muted(rng), _muted(rng)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 40)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    pattern = rng.choice(("plain", "stripes", "checks", "pieces", "pieces"))
    if pattern == "stripes":
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    elif pattern == "checks":
        mix = ((along // period + across // period) % 2).astype(np.float32)
    else:
        mix = np.clip(0.5 + 0.5 * _noise(5, side, values), 0, 1)
    pixels = first + (second - first) * mix[..., None]
    if pattern == "pieces":
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(rng.randint(40, 140)):
            color = tuple(int(part) for part in _muted(rng))
            left, top, size = rng.uniform(-20, side), rng.uniform(-20, side), rng.uniform(6, 40)
            corners = [(left + rng.uniform(0, size), top + rng.uniform(0, size)) for _ in range(rng.randint(3, 5))]
            if rng.random() < 0.4:
                draw.line(corners, fill=color, width=rng.randint(1, 4))
            else:
                draw.polygon(corners, fill=color)
        pixels = np.asarray(image, dtype=np.float32)
    for cells, strength in ((8, 12), (40, 10)):
        pixels = pixels + strength * rng.uniform(0.3, 1.3) * _noise(cells, side, values)[..., None]
    pixels = pixels + rng.uniform(3, 12) * values.standard_normal((side, side, 1)).astype(np.float32)
    found: NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return found


@cache
def distractor(split: str, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A colourful patch of no nameable shape: colours [h, w, 3] in 0..255 and its mask [h, w] in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFilter

    rng = random.Random(f"distractor/{split}/{number}")
    height, width = rng.randint(14, 40), rng.randint(14, 40)
    colors = [COLORS[name] for name in rng.sample(list(COLORS), 3)]
    image = Image.new("RGB", (width * 2, height * 2), colors[0])
    mask = Image.new("L", image.size, 0)
    draw, shown = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    kind = rng.choice(("checks", "stripes", "confetti", "scribble"))
    if kind in ("checks", "stripes"):
        step = rng.randint(6, 14)
        for row in range(0, image.height, step):
            for column in range(0, image.width, step if kind == "checks" else image.width):
                draw.rectangle((column, row, column + image.width, row + step), colors[(row + column) // step % 3])
        corners = [(rng.uniform(0, 0.3), rng.uniform(0, 1)), (rng.uniform(0, 1), rng.uniform(0, 0.3))]
        corners += [(rng.uniform(0.7, 1), rng.uniform(0, 1)), (rng.uniform(0, 1), rng.uniform(0.7, 1))]
        shown.polygon([(x * image.width, y * image.height) for x, y in corners], fill=255)
    elif kind == "confetti":
        for _ in range(rng.randint(8, 20)):
            left, top, size = rng.uniform(0, image.width), rng.uniform(0, image.height), rng.uniform(4, 10)
            box = (left, top, left + size, top + size)
            draw.rectangle(box, rng.choice(colors))
            shown.rectangle(box, 255)
    else:
        for color in colors[: rng.randint(1, 3)]:
            line = [(rng.uniform(0, image.width), rng.uniform(0, image.height)) for _ in range(rng.randint(4, 8))]
            thick = rng.randint(3, 6)
            draw.line(line, fill=color, width=thick)
            shown.line(line, fill=255, width=thick)
    alpha = mask.reduce(2).filter(ImageFilter.GaussianBlur(0.5))
    return np.asarray(image.reduce(2), dtype=np.float32), np.asarray(alpha, dtype=np.float32) / 255.0
