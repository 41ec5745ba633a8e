"""Which method runs on which model family, found by asking the adapters themselves."""

from __future__ import annotations

from collections.abc import Iterator

from vispco.models.families import ADAPTERS, adapter_for, register_builtin
from vispco.pruning.methods import METHODS
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.needs import LAYER_BEFORE, NEEDS, missing
from vispco.testing.tiny import TINY

LACKS = {"text_tower": "no text tower", "vision": "tower is not read", "pixels": "pixels are not read"}
# Beside the defaults: parameters with which a method needs something else.
VARIANTS: dict[str, tuple[dict[str, str], ...]] = {"cdpruner": ({"relevance": "embeddings"},)}


def support_rows() -> list[dict[str, str]]:
    """A row per method: what it needs, the first layer that fewer tokens may enter, by family ``yes`` or what lacks.

    Families are asked through small random models of their own configuration classes; a family without one is left
    out. Takes seconds.
    """
    register_builtin()
    adapters = {name: adapter_for(tiny.model()) for name, tiny in TINY.items() if name in ADAPTERS}
    rows = []
    for label, method in _methods():
        row = {"method": label, "needs": needs_of(method), "first_layer": "1" if method.needs & LAYER_BEFORE else "0"}
        for name, adapter in adapters.items():
            lacking = missing(method, adapter)
            row[name] = ", ".join(LACKS.get(need, f"no {need}") for need in lacking) or "yes"
        rows.append(row)
    return rows


def needs_of(method: Method) -> str:
    """In words, or ``nothing``."""
    return "; ".join(NEEDS.get(need, need) for need in sorted(method.needs)) or "nothing"


def _methods() -> Iterator[tuple[str, Method]]:
    for name in METHODS:
        yield name, make_method(name)
        for parameters in VARIANTS.get(name, ()):
            yield (
                f"{name}, {', '.join(f'{key}: {value}' for key, value in parameters.items())}",
                make_method(name, parameters),
            )
