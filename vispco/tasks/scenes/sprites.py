"""Shapes, words and digits as small masks, drawn once and kept; variants of one split serve no other."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispco.errors import DataError
from vispco.tasks.scenes.vocabulary import FONTS

VARIANTS = {"train": 160, "calibration": 16, "search": 16, "held_out": 16}
# Pixels: the side of a shape, the font size of a word, of a number and of a label under a shape.
SIZES = {"shape": (22, 34), "word": (18, 24), "number": (24, 34), "label": (16, 19)}
DETAIL = 4  # masks are drawn this much larger, then averaged


@dataclass(frozen=True)
class Sprite:
    """What is painted (``ink``) and the contour that sets it apart from the ground (``halo``); [h, w] in [0, 1]."""

    ink: NDArray[np.float32]
    halo: NDArray[np.float32]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width = self.ink.shape
        return height, width


@cache
def sprite(split: str, kind: str, name: str, variant: int) -> Sprite:
    """A variant of one thing: its size, slant, font or outline follow from the arguments alone.

    Args:
        kind: ``shape``, ``word``, ``number`` or ``label``.
    """
    from PIL import Image, ImageFilter

    rng = random.Random(f"sprite/{split}/{kind}/{name}/{variant}")
    size = rng.randint(*SIZES[kind])
    large = _shape(name, size * DETAIL, rng) if kind == "shape" else _text(name, size * DETAIL, split, rng)
    left, top, right, bottom = large.getbbox() or (0, 0, DETAIL, DETAIL)
    margin = 2 * DETAIL
    width, height = (-(-length // DETAIL) * DETAIL for length in (right - left, bottom - top))
    padded = Image.new("L", (width + 2 * margin, height + 2 * margin))
    padded.paste(large.crop((left, top, right, bottom)), (margin, margin))
    ink = padded.reduce(DETAIL)
    halo = ink.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.GaussianBlur(0.6))
    return Sprite(*(np.asarray(mask, dtype=np.float32) / 255.0 for mask in (ink, halo)))


def _shape(name: str, side: int, rng: random.Random) -> Any:
    from PIL import Image, ImageChops, ImageDraw
    from scipy.ndimage import minimum_filter

    canvas = side * 3 // 2
    mask = Image.new("L", (canvas, canvas))
    turn = math.radians(rng.uniform(-14, 14))
    if name == "arrow":
        turn += rng.randrange(4) * math.pi / 2
    elif name == "moon":
        turn += rng.randrange(2) * math.pi
    aspect = rng.uniform(0.88, 1.12)

    def points(outline: list[tuple[float, float]]) -> list[tuple[float, float]]:
        cos, sin, half = math.cos(turn), math.sin(turn), side / 2
        return [
            (canvas / 2 + half * (x * aspect * cos - y * sin), canvas / 2 + half * (x * aspect * sin + y * cos))
            for x, y in outline
        ]

    draw = ImageDraw.Draw(mask)
    draw.polygon(points(_outline(name, rng)), fill=255)
    if name != "moon" and rng.random() < 0.3:
        thick = max(3, round(side * rng.uniform(0.11, 0.15))) // 2 * 2 + 1
        inner = np.asarray(mask)
        for _ in range(2):
            inner = minimum_filter(inner, thick, mode="nearest")
        mask = ImageChops.subtract(mask, Image.fromarray(inner))
    return mask


def _outline(name: str, rng: random.Random) -> list[tuple[float, float]]:
    """Corners in [-1, 1]."""
    if name == "circle":
        return [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 48)]
    if name == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if name == "triangle":
        return [(rng.uniform(-0.25, 0.25), -1), (1, 0.85), (-1, 0.85)]
    if name == "star":
        inner = rng.uniform(0.36, 0.5)
        corners = ((math.pi * (k / 5 - 0.5), 1.1 if k % 2 == 0 else inner) for k in range(10))
        return [(r * math.cos(a), r * math.sin(a)) for a, r in corners]
    if name == "heart":
        dip = rng.uniform(0.85, 1.15)
        return [
            (
                math.sin(a) ** 3,
                -(13 * math.cos(a) - 5 * dip * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
            )
            for a in np.linspace(0, 2 * math.pi, 60)
        ]
    if name == "cross":
        arm = rng.uniform(0.24, 0.38)
        quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
        turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
        return [(x * c - y * s, x * s + y * c) for c, s in turns for x, y in quarter]
    if name == "moon":
        bite = rng.uniform(0.45, 0.65)
        edge = math.acos(bite / 2)
        outer = [(math.cos(a), math.sin(a)) for a in np.linspace(edge, 2 * math.pi - edge, 40)]
        inner_arc = [(bite + math.cos(a), math.sin(a)) for a in np.linspace(math.pi + edge, math.pi - edge, 40)]
        return [(x + 0.25, y) for x, y in outer + inner_arc]
    neck, wing = rng.uniform(0.18, 0.3), rng.uniform(0.65, 0.9)
    return [(-1, -neck), (0.1, -neck), (0.1, -wing), (1, 0), (0.1, wing), (0.1, neck), (-1, neck)]


def _text(text: str, size: int, split: str, rng: random.Random) -> Any:
    from PIL import Image, ImageDraw

    font = _font(rng.choice(FONTS[split]), size)
    left, top, right, bottom = font.getbbox(text)
    width, height = math.ceil(right - left), math.ceil(bottom - top)
    shear, stretch = rng.uniform(-0.12, 0.12), rng.uniform(0.92, 1.12)
    room = height // 4
    mask = Image.new("L", (width + 2 * room, height + 8))
    ImageDraw.Draw(mask).text((room - left, 4 - top), text, fill=255, font=font)
    slanted = (math.ceil(mask.width * stretch), mask.height)
    matrix = (1 / stretch, shear, -shear * mask.height / 2, 0, 1, 0)
    return mask.transform(slanted, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise DataError("scene-vqa needs the fonts of the package matplotlib: pip install 'vispco[smol]'") from error
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)
