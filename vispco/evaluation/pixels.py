"""Limits on the area of pictures, of processors that make as many visual tokens as a picture is large."""

from __future__ import annotations

from typing import Any

from vispco.errors import ConfigError


def pixel_limits(processor: Any) -> tuple[int, int] | None:
    """Least and most pixels of a picture; None if the processor has no such limits."""
    pictures = getattr(processor, "image_processor", None)
    known = getattr(getattr(pictures, "valid_kwargs", None), "__annotations__", {})
    size = dict(getattr(pictures, "size", None) or {})
    # The two are kept under these names, though they are areas.
    if not {"min_pixels", "max_pixels"} <= set(known) or not {"shortest_edge", "longest_edge"} <= set(size):
        return None
    return int(size["shortest_edge"]), int(size["longest_edge"])


def limited(processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
    """Arguments of a processor's call that set its limits.

    Raises:
        ConfigError: it has none, or the two contradict each other.
    """
    if least is None and most is None:
        return {}
    own = pixel_limits(processor)
    if own is None:
        raise ConfigError("min_pixels and max_pixels: this model makes pictures of any size equal; remove the option")
    low, high = own[0] if least is None else least, own[1] if most is None else most
    if low > high:
        raise ConfigError(f"min_pixels {low} exceeds max_pixels {high}, one of which is the processor's; give both")
    return {"images_kwargs": {"size": {"shortest_edge": low, "longest_edge": high}}}
