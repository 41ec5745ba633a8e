"""What the pruning runtime and the cost model need to know of a transformers model family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.errors import ModelError
from vispco.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ADAPTERS = Registry("family")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in the letters of the FLOPs formula (``vispco.costs``)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int


class ModelAdapter(ABC):
    """Everything that differs between model families; methods and searches never look at the class.

    Subclasses set ``model_types`` (the values of ``config.model_type`` they serve) and register with
    ``@ADAPTERS.register(name)``. Nothing here may leave an attribute or a hook on the model.
    """

    model_types: ClassVar[tuple[str, ...]]

    def __init__(self, model: Any) -> None:
        self.model = model

    @abstractmethod
    def shape(self) -> ModelShape:
        """Sizes of the decoder."""

    @abstractmethod
    def entry(self) -> nn.Module:
        """The module that receives ``input_ids`` by keyword and calls the decoder."""

    @abstractmethod
    def decoder(self) -> nn.Module:
        """The module that owns the decoder layers and receives ``inputs_embeds`` and the mask."""

    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers, in order."""

    @abstractmethod
    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """The modules whose outputs are queries [B, n, h*d] and keys [B, n, g*d] before rotation."""

    @abstractmethod
    def rotate(self, heads: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the family's position rotation to queries or keys [B, heads, n, d]."""

    @abstractmethod
    def visual_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """bool [B, T], True where the position came from pixels."""

    @abstractmethod
    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        """Visual features of a batch, [total visual tokens, H], as the decoder will see them."""

    @abstractmethod
    def with_features(self, inputs: dict[str, Any], features: Tensor) -> dict[str, Any]:
        """``inputs`` with pixels replaced by ``features`` from :meth:`encode_images`."""

    def attention_scale(self, layer: int) -> float:
        """What logits are multiplied with before the softmax."""
        return 1.0 / math.sqrt(self.shape().head_dim)

    def attention(self) -> str:
        """Name of the decoder's attention backend: ``sdpa``, ``eager``, ..."""
        config: Any = self.decoder().config
        return config._attn_implementation or "eager"

    def dtype(self) -> torch.dtype:
        return next(self.decoder().parameters()).dtype


def adapter_for(model: Any) -> ModelAdapter:
    """The adapter of a loaded transformers model.

    Raises:
        ModelError: no adapter serves the model's family.
    """
    import vispco.models.llava  # noqa: F401  (registers)

    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    served: dict[str, type[ModelAdapter]] = {t: ADAPTERS[n] for n in ADAPTERS for t in ADAPTERS[n].model_types}
    if model_type not in served:
        raise ModelError(
            f"no adapter for model family {model_type!r}; known families: {', '.join(sorted(served))}. "
            "To add one, subclass vispco.models.base.ModelAdapter (one file, see vispco/models/llava.py)"
        )
    return served[model_type](model)
