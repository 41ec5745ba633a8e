"""Which adapter serves a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vispco.errors import ModelError
from vispco.models.shapes import GUIDE
from vispco.models.wrappers import unwrapped
from vispco.registry import Registry

if TYPE_CHECKING:
    from vispco.models.base import ModelAdapter

ADAPTERS = Registry("model family", "models")
UNSERVED = {
    "gemma3n": "its hidden states are four streams side by side and half of its layers reuse keys and values, so "
    "tokens cannot be cut between layers; use Gemma 3 or Gemma 4",
    "nemotron_h_omni": "most of its layers are Mamba blocks or experts without attention, and its decoder is another "
    "causal model; use a model with attention in every layer",
}


def register_builtin() -> None:
    """Import the adapters of this package; each registers itself."""
    from vispco.models import (  # noqa: F401
        gemma3,
        gemma4,
        glm4v,
        idefics3,
        internvl,
        llava,
        llava_next,
        llava_onevision,
        mistral3,
        qwen2_5_vl,
        qwen2_vl,
        qwen3_5,
        qwen3_vl,
    )


def adapter_for(model: Any) -> ModelAdapter:
    """The adapter of a loaded transformers model.

    The model may be inside a wrapper of PEFT or torch (:func:`vispco.models.wrappers.unwrapped`).

    Raises:
        ModelError: no adapter serves the model's family, it is a part of a model, or its wrapper cannot be opened.
    """
    register_builtin()
    model = unwrapped(model)
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    served: dict[str, type[ModelAdapter]] = {t: ADAPTERS[n] for n in ADAPTERS for t in ADAPTERS[n].model_types}
    if model_type in UNSERVED:
        raise ModelError(f"model family {model_type!r} is not served: {UNSERVED[model_type]}")
    if model_type not in served:
        raise ModelError(
            f"no adapter for model family {model_type!r}; known families: {', '.join(sorted(served))}. "
            f"To add one, subclass vispco.models.base.ModelAdapter in one file: see {GUIDE}"
        )
    adapter = served[model_type](model)
    try:
        adapter.entry(), adapter.decoder(), adapter.layers()
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} is a part of a {model_type!r} model, without its decoder layers or its head; give "
            "the whole model, the one that has generate"
        ) from None
    return adapter
