"""Fewer visual tokens at the source: what ``resolution``, a share of a model's own tokens, means for each processor.

Families differ in what a size does. Qwen's, GLM's and Mistral's processors make as many tokens as a picture is large
and only cap it, and LLaVA-NeXT and LLaVA-OneVision choose tiles by its size: there the picture itself is made smaller,
from what the processor would have used of it. Gemma 4 scales every picture to a number of tokens, InternVL cuts at most
so many tiles, Idefics3 scales the longest edge to so many tiles: there that number is made smaller. LLaVA scales every
picture to one size: there it is scaled to a smaller one, and the tower's position embeddings are interpolated
(``ModelAdapter.encode_images``). Others make every picture into the same number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vispco.errors import ConfigError

Scaled = tuple[list[Any], dict[str, Any]]


def rescaled(processor: Any, images: Sequence[Any], share: float) -> Scaled:
    """``images`` (PIL) and arguments of the processor's call with which each has about ``share`` of its visual tokens.

    How many they are is rounded to what the family can do: see ``n_visual`` of what was measured.

    Raises:
        ConfigError: the family makes every picture into the same number of tokens, or cannot go that low.
    """
    if share == 1:
        return list(images), {}
    pictures = processor.image_processor
    size = dict(getattr(pictures, "size", None) or {})
    if hasattr(pictures, "merge_size") and {"shortest_edge", "longest_edge"} <= set(size):
        return _by_area(pictures, size, images, share)
    if hasattr(pictures, "max_soft_tokens"):
        return list(images), {"images_kwargs": {"max_soft_tokens": _soft_tokens(pictures, share)}}
    if hasattr(pictures, "max_patches"):
        most = int(share * (pictures.max_patches + 1)) - 1  # a thumbnail comes on top
        return list(images), {"images_kwargs": {"max_patches": max(1, most)}}
    if getattr(pictures, "do_image_splitting", False):
        tile = dict(pictures.max_image_size)["longest_edge"]
        tiles = max(1, round(size["longest_edge"] / tile * math.sqrt(share)))
        return list(images), {"images_kwargs": {"size": {"longest_edge": tiles * tile}}}
    if getattr(pictures, "image_grid_pinpoints", None):
        largest = max(height * width for height, width in pictures.image_grid_pinpoints)
        return [smaller(image, share * min(image.width * image.height, largest)) for image in images], {}
    if set(size) == {"longest_edge"}:
        edge = size["longest_edge"]
        areas = (image.width * image.height * min(1, edge / max(image.size)) ** 2 for image in images)
        return [smaller(image, share * area) for image, area in zip(images, areas, strict=True)], {}
    if type(processor).__name__ == "LlavaProcessor" and getattr(pictures, "do_resize", True):
        return list(images), {"images_kwargs": _one_size(pictures, size, processor.patch_size, share)}
    raise ConfigError(
        f"resolution {share:g}: this model makes every picture into the same number of visual tokens; leave resolution "
        "at 1, or use a family with pictures of any size, such as Qwen2.5-VL"
    )


def _by_area(pictures: Any, size: dict[str, int], images: Sequence[Any], share: float) -> Scaled:
    """GLM's limits are for the two equal frames of a picture."""
    frames = pictures.temporal_patch_size if "glm" in type(pictures).__module__ else 1
    low, high = size["shortest_edge"] / frames, size["longest_edge"] / frames
    cell = (pictures.patch_size * pictures.merge_size) ** 2
    areas = (min(max(image.width * image.height, low), high) for image in images)
    least = {"shortest_edge": min(size["shortest_edge"], cell * frames), "longest_edge": size["longest_edge"]}
    scaled = [smaller(image, max(cell, share * area)) for image, area in zip(images, areas, strict=True)]
    return scaled, {"images_kwargs": {"size": least}}


def _one_size(pictures: Any, size: dict[str, int], patch: int, share: float) -> dict[str, dict[str, int]]:
    """Whole patches along each side; what is cut off around the picture stays the same share of it."""
    cut = {name: edge for name, edge in dict(getattr(pictures, "crop_size", None) or {}).items() if edge}
    whole = min((cut if cut and getattr(pictures, "do_center_crop", False) else size).values())
    edge = max(1, round(whole / patch * math.sqrt(share))) * patch
    return {
        key: {name: round(value * edge / whole) for name, value in given.items()}
        for key, given in (("size", size), ("crop_size", cut))
        if given
    }


def _soft_tokens(pictures: Any, share: float) -> int:
    from transformers.models.gemma4 import image_processing_pil_gemma4

    known: Sequence[int] = image_processing_pil_gemma4._SUPPORTED_SOFT_TOKENS
    able = [count for count in known if count <= share * pictures.max_soft_tokens * 1.001]
    if not able:
        raise ConfigError(
            f"resolution {share:g}: this model makes {pictures.max_soft_tokens} visual tokens of a picture and can do "
            f"with {', '.join(map(str, known))}; give at least {min(known) / pictures.max_soft_tokens:g}"
        )
    return max(able)


def smaller(image: Any, area: float) -> Any:
    """``image`` at about ``area`` pixels, its shape kept; as it is if it is that size already."""
    scale = math.sqrt(area / (image.width * image.height))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.convert("RGB").resize(size, resample=3)  # bicubic, antialiased
