"""Drawing pictures by their areas, and resizing them as the official VisPCO code does.

What a file is called and where it stands in a list decide nothing: every draw is by a hash of the seed and of the
picture's key, and ties of equal area are broken by it.

Sources: arXiv 2604.15188 says that its calibration samples are "stratified by image area" and not how; the official
code (``dataset/uniform_image_area.py``) draws none, but resizes every picture so that areas are spread evenly. Its
bounds are the defaults here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

MIN_AREA, MAX_AREA = 400, 1024 * 1024


def shuffled(keys: Sequence[str], seed: int) -> list[int]:
    """Indices of the distinct ``keys`` in a random order that follows from the keys and the seed alone."""
    return sorted(range(len(keys)), key=lambda i: hashlib.sha256(f"{seed}/{keys[i]}".encode()).digest())


def draw_uniform(keys: Sequence[str], count: int, seed: int) -> list[int]:
    """``count`` indices, all pictures alike."""
    return shuffled(keys, seed)[:count]


def draw_by_quantile(keys: Sequence[str], areas: Sequence[int], count: int, seed: int) -> list[int]:
    """``count`` indices, one from each of so many equal parts of the pictures in the order of their areas.

    The areas drawn are distributed as those of all pictures, more evenly than :func:`draw_uniform` does it.
    """
    order = shuffled(keys, seed)
    rank = {index: place for place, index in enumerate(order)}
    by_area = sorted(order, key=lambda i: areas[i])
    strata = np.array_split(np.array(by_area, dtype=np.int64), count)
    return sorted((min(stratum.tolist(), key=lambda i: rank[i]) for stratum in strata), key=lambda i: rank[i])


def draw_by_area(
    keys: Sequence[str],
    areas: Sequence[int],
    count: int,
    seed: int,
    *,
    low: float = MIN_AREA,
    high: float = MAX_AREA,
    bins: int = 20,
) -> list[int]:
    """At most ``count`` indices with areas in [low, high], spread over that range as evenly as the pictures allow.

    The range is cut into ``bins`` of equal width. Bins are drawn from in turn, in a random order, until there are
    enough: of two bins that still have pictures neither is ahead of the other by more than one.
    """
    width = (high - low) / bins
    filled: dict[int, list[int]] = {}
    for index in shuffled(keys, seed):
        if low <= areas[index] <= high:
            place = min(bins - 1, int((areas[index] - low) / width)) if width else 0
            filled.setdefault(place, []).append(index)
    places = sorted(filled)
    turns = [filled[places[i]] for i in shuffled([f"bin {place}" for place in places], seed)]
    rounds = max(map(len, turns), default=0)
    return [part[number] for number in range(rounds) for part in turns if number < len(part)][:count]


def even_areas(
    keys: Sequence[str], areas: Sequence[int], seed: int, *, low: float = MIN_AREA, high: float = MAX_AREA
) -> list[float]:
    """Area that each picture is resized to: the i-th smallest of n gets the i-th of n evenly spaced ones.

    As the official code does it, but for ties: equal areas stand in a seeded random order there, not in that of the
    list. (LLaVA-Instruct has many: COCO's pictures of 640 by 480.)
    """
    target = [0.0] * len(areas)
    order = sorted(shuffled(keys, seed), key=lambda i: areas[i])
    for index, area in zip(order, np.linspace(low, high, len(areas)).tolist(), strict=True):
        target[index] = area
    return target


def official_size(width: int, height: int, area: float) -> tuple[int, int]:
    """(width, height) of about ``area`` in the picture's aspect ratio, rounded down as the official code does it.

    At least one pixel a side, where the official code fails.

    >>> official_size(640, 480, 1024 * 1024), official_size(480, 640, 400)
    ((1181, 886), (17, 22))
    """
    aspect = width / height
    if aspect >= 1:
        short = max(1, int(math.sqrt(area / aspect)))
        return max(1, int(short * aspect)), short
    short = max(1, int(math.sqrt(area * aspect)))
    return short, max(1, int(short / aspect))
