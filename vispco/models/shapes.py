"""Sizes of a decoder and of its layers, which the cost model counts with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vispco.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

GUIDE = "docs/extending.md"


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer of a model whose layers are not all alike, or not what the formula assumes.

    Attributes:
        heads: of attention; linear attention has none of the usual kind.
        weights: multiply-adds per token outside attention: projections, MLP, router, the experts that a token is
            sent to.
        chunk: FLOPs of linear attention for every 64 tokens started.
        spread: FLOPs of its convolution for every token, and ``beyond`` times as many at the ends.
        recent: values of its last tokens that the cache keeps for the convolution, as wide as hidden states.
        state: values of its recurrent state, which the cache keeps in float32.
    """

    heads: int
    kv_heads: int
    head_dim: int
    weights: int
    chunk: int = 0
    spread: int = 0
    beyond: int = 0
    recent: int = 0
    state: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in the letters of the FLOPs formula (``vispco.costs``).

    Attributes:
        vision_width, vision_heads: of the vision tower, where methods can read it; else 0.
        each: the layers one by one, where the formula with the sizes above does not hold for all of them (experts,
            several kinds of attention).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vision_width: int = 0
    vision_heads: int = 0
    each: tuple[LayerShape, ...] = ()

    @property
    def weights(self) -> int:
        """Multiply-adds per token and layer outside attention, by the formula: ``2Hhd + 2Hgd + 3HI``."""
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim + 3 * self.hidden * self.mlp

    def at(self, layer: int) -> ModelShape:
        """The same decoder with the attention sizes of ``layer``."""
        if not self.each:
            return self
        own = self.each[layer]
        return replace(self, heads=own.heads, kv_heads=own.kv_heads, head_dim=own.head_dim)


def weights_of(layer: nn.Module, config: Any) -> int:
    """Multiply-adds per token of a layer's matrices, those of attention's two products apart.

    Linear modules and routers take every token. Experts lie in tensors with their number in front, and a token is sent
    to ``num_experts_per_tok`` of them. Low-rank updates, which can be merged, do not count.
    """
    total = 0
    for module in _without_updates(layer):
        own = dict(module.named_parameters(recurse=False))
        stacked = [weight for weight in own.values() if weight.ndim == 3 and not hasattr(module, "kernel_size")]
        if hasattr(module, "in_features"):
            total += int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
        elif stacked:
            total += sum(weight[0].numel() for weight in stacked) * _experts_per_token(config)
        elif "weight" in own and own["weight"].ndim == 2:
            total += own["weight"].numel()
    return total


def _without_updates(module: nn.Module) -> Iterator[nn.Module]:
    """All modules below, of PEFT's wrappers only what they wrap."""
    inner: Any = getattr(module, "base_layer", getattr(module, "original_module", None))
    if inner is not None:
        yield from _without_updates(inner)
        return
    yield module
    for child in module.children():
        yield from _without_updates(child)


def _experts_per_token(config: Any) -> int:
    for name in ("num_experts_per_tok", "top_k_experts"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ModelError(
        f"the configuration of {config.model_type!r} does not say how many experts a token is sent to, so its FLOPs "
        f"cannot be counted; its adapter must override layer_shape: see {GUIDE}"
    )
