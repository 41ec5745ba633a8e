"""What differs between the text decoders of model families: their modules, sizes and attention."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vispco.models.shapes import LayerShape, ModelShape, weights_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Deepstack:
    """Visual features that a decoder adds to hidden states after its layers 0, 1, ...

    ``places``: bool [B, T], the tokens that get them; ``features``: per layer [places.sum(), H], in reading order.
    """

    places: Tensor
    features: Sequence[Tensor]

    def add(self, layer: int, hidden: Tensor, index: Tensor) -> Tensor:
        """What leaves ``layer``, [B, n, H], of the tokens at ``index`` [B, n] of the prompt, with its features."""
        rows = self.places.flatten().cumsum(0).sub(1).view(self.places.shape).gather(1, index)
        here = self.places.gather(1, index)
        features = self.features[layer]
        chosen = features[rows[here].to(features.device)].to(hidden.device, hidden.dtype)
        here, hidden = here.to(hidden.device), hidden.clone()
        hidden[here] = hidden[here] + chosen
        return hidden


class DecoderAdapter:
    """The half of an adapter that has nothing to do with pictures.

    The defaults describe a model with ``model.language_model.layers`` and Llama-like attention.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    # --- modules ---------------------------------------------------------------------------------

    def entry(self) -> nn.Module:
        """The module that receives ``input_ids`` and the 2-D mask by keyword and calls the decoder."""
        module: nn.Module = self.model.model
        return module

    def decoder(self) -> nn.Module:
        """The module that owns the decoder layers and receives ``inputs_embeds``."""
        module: nn.Module = self.model.model.language_model
        return module

    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers, in order; called with ``attention_mask`` and ``position_embeddings`` by keyword."""
        layers: Sequence[nn.Module] = self.decoder().layers  # type: ignore[assignment]
        return layers

    def norm(self, hidden: Tensor) -> Tensor:
        """The norm after the last layer, of [B, n, H]."""
        normed: Tensor = self.decoder().norm(hidden)  # type: ignore[operator]
        return normed

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [B, n, V] of what leaves the last layer, [B, n, H]."""
        logits: Tensor = self.model.lm_head(self.norm(hidden))
        return logits

    def shape(self) -> ModelShape:
        """Sizes of the decoder."""
        config = self.layer_config(0)
        shape = ModelShape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp=config.intermediate_size,
        )
        each = tuple(self.layer_shape(number, shape) for number in range(shape.layers))
        alike = LayerShape(shape.heads, shape.kv_heads, shape.head_dim, shape.weights)
        return shape if set(each) == {alike} else replace(shape, each=each)

    @cached_property
    def known_shape(self) -> ModelShape:
        """:meth:`shape`, read once: for what is asked in every forward."""
        return self.shape()

    @cached_property
    def recurrent_layers(self) -> frozenset[int]:
        """Layers that are :meth:`recurrent`, read once."""
        return frozenset(filter(self.recurrent, range(len(self.layers()))))

    def layer_config(self, number: int) -> Any:
        """The configuration that says the sizes of layer ``number``. Default: that of the text decoder."""
        return self.model.config.get_text_config()

    def layer_shape(self, number: int, shape: ModelShape) -> LayerShape:
        """Sizes of layer ``number``; ``shape``: the decoder's. Default: its attention, and the weights it holds."""
        return LayerShape(shape.heads, shape.kv_heads, shape.head_dim, self._layer_weights[number])

    @cached_property
    def _layer_weights(self) -> list[int]:
        """Of each layer, the weights of its matrices; of experts, the share that a token is sent to."""
        return [weights_of(layer, self.model.config.get_text_config()) for layer in self.layers()]

    # --- attention -------------------------------------------------------------------------------

    @cached_property
    def _readable(self) -> bool:
        """Whether the decoder's queries and keys come from projections of their own and turn as :meth:`rotate` does.
        Families that take any text decoder may hold one where they do not (Phi-3, Cohere). Where some layers are
        linear attention, the layer before a boundary mostly has none to read."""
        import torch

        if any(self.recurrent(layer) for layer in range(len(self.layers()))):
            return False
        attention: Any = self.layers()[0].self_attn
        if not (hasattr(attention, "q_proj") and hasattr(attention, "k_proj")):
            return False
        rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
        if rotate is None:
            return True
        values = torch.arange(6.0 * self.shape().at(0).head_dim).sin().view(3, 1, 1, 2, -1)
        heads, cos, sin = values[0], values[1][0], values[2][0]
        try:
            turned = rotate(heads, heads, cos, sin)[0]
        except (RuntimeError, TypeError):
            return False
        return turned.shape == heads.shape and torch.allclose(turned, self.rotate(heads, (cos, sin)))

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """The modules whose outputs are queries and keys just before rotation; :meth:`to_heads` reads them.

        Default: the projections, or the norms after them where there are any (Qwen 3).
        """
        attention: Any = self.layers()[layer].self_attn
        if hasattr(attention, "q_norm"):
            return attention.q_norm, attention.k_norm
        return attention.q_proj, attention.k_proj

    def to_heads(self, projected: Tensor, heads: int) -> Tensor:
        """[B, heads, n, d] of such an output, here [B, n, heads * d] or [B, n, heads, d]."""
        return projected.view(*projected.shape[:2], heads, -1).transpose(1, 2)

    def rotate(self, heads: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the family's position rotation to [B, heads, n, d]; cosine and sine are [B, n, d], or narrower where
        it turns the first part of each head."""
        return rotate_part(heads, position_embeddings)

    def project(self, layer: int, hidden: Tensor, what: str) -> Tensor:
        """``"queries"`` or ``"keys"`` before rotation that ``layer`` makes of its input [B, n, H]: [B, heads, n, d]."""
        block: Any = self.layers()[layer]
        attention, letter = block.self_attn, what[0]
        projected = getattr(attention, f"{letter}_proj")(block.input_layernorm(hidden))
        shape = self.shape().at(layer)
        heads = shape.heads if what == "queries" else shape.kv_heads
        projected = projected.view(*hidden.shape[:2], heads, -1).transpose(1, 2)
        norm = getattr(attention, f"{letter}_norm", None)
        return projected if norm is None else norm(projected)  # type: ignore[no-any-return]

    def attention_scale(self, layer: int) -> float:
        """What logits are multiplied with before the softmax: the layer's own ``scaling``, or one over sqrt(d)."""
        scaling = getattr(self.layers()[layer].self_attn, "scaling", None)
        return float(scaling) if scaling is not None else 1.0 / math.sqrt(self.shape().head_dim)

    def recurrent(self, layer: int) -> bool:
        """Whether ``layer`` is linear attention: a convolution and a recurrence over its tokens, without a mask."""
        kinds = getattr(self.model.config.get_text_config(), "layer_types", None)
        return kinds is not None and kinds[layer] == "linear_attention"

    def sliding_window(self, layer: int) -> int | None:
        """How many places back a query of ``layer`` sees, itself included; None: all."""
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] != "sliding_attention":
            return None
        return getattr(config, "sliding_window", None)

    def attention(self) -> str:
        """Name of the decoder's attention backend: ``sdpa``, ``eager``, ..."""
        config: Any = self.decoder().config
        return config._attn_implementation or "eager"

    def dtype(self) -> torch.dtype:
        return next(self.decoder().parameters()).dtype

    def decoding_inputs(self, attention_mask: Tensor, new: int) -> dict[str, Tensor]:
        """What ``model(input_ids, attention_mask, past_key_values)`` needs besides for ``new`` tokens on its cache.

        ``attention_mask``: [B, T], new tokens included. Default: nothing; the model counts on from its cache.
        """
        return {}

    # --- visual features that the decoder adds between its layers ----------------------------------

    def deepstack_layers(self) -> int:
        """After how many of its first layers the decoder adds visual features. Default: none."""
        return 0

    def take_deepstack(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Deepstack | None]:
        """The decoder's arguments without such features, and the features: what is left adds none by itself."""
        return kwargs, None


def rotate_part(heads: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Position rotation of the first r of d values of ``heads`` [B, heads, n, d] by cosine and sine [B, n, r], half
    against half."""
    import torch

    cos, sin = (part.unsqueeze(1) for part in position_embeddings)
    turned, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
