"""What methods may need of a model, and whether it has it."""

from __future__ import annotations

from vispco.errors import ModelError
from vispco.models.base import ModelAdapter
from vispco.pruning.methods.base import METHODS, Method, make_method

NEEDS = {
    "attention": "attention of the layer before",
    "keys": "keys of the layer before",
    "look_ahead": "attention of the layer that tokens are about to enter",
    "vision": "attention and keys of the vision tower",
    "middle": "attention in a middle layer of the vision tower",
    "text_tower": "a text tower that was trained with the vision tower",
    "pixels": "pixels of the visual tokens",
}
LAYER_BEFORE = frozenset({"attention", "keys"})


def missing(method: Method, adapter: ModelAdapter) -> list[str]:
    """What ``method`` needs and the model does not give; nothing: it can run."""
    return sorted(method.needs - adapter.provides())


def check_needs(method: Method, adapter: ModelAdapter) -> None:
    """Refuse a method that the model cannot serve.

    Raises:
        ModelError: names the method, what it needs, the model's family, and the methods that run there.
    """
    lacking = missing(method, adapter)
    if lacking:
        what = " and ".join(NEEDS.get(need, repr(need)) for need in lacking)
        able = [name for name in METHODS if not missing(make_method(name), adapter)]
        raise ModelError(
            f"method {method.name!r} needs {what}, which the adapter of model family "
            f"{adapter.model.config.model_type!r} does not give; "
            + (f"{method.otherwise}, or choose a method that runs on it: " if method.otherwise else "")
            + ("" if method.otherwise else "methods that run on it: ")
            + ", ".join(able)
        )
