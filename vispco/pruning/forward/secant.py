"""Slopes of a hard key mask by secants: what a key's leaving or coming back does to the attention's output.

A query attends to kept keys with weights ``e^s``, whose sum is Z. If a dropped key comes back its output moves by
``e^s / (Z + e^s)`` of the way to the key's value; if a kept one leaves, by ``e^s / (Z - e^s)`` of the way from it. The
derivative in a weight of 0, which is what autograd gives, is ``e^s / Z`` instead. In a trained model, whose logits are
18 apart, that is off by many orders of magnitude, and the few keys for which it is drown all others.

The forward pass is the model's own attention function. Only the slopes of the mask differ, so queries, keys and values
have the gradients that they always had.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vispco.errors import ModelError
from vispco.models.base import ModelAdapter

PREFIX = "vispco_secant_"


@dataclass(frozen=True, eq=False)
class HardKeys:
    """``mask`` [B, T]: 1 where a key counts, 0 where it was dropped, and what carries the slopes. ``seen`` bool
    [B, 1, T, T]: keys that a query sees if none is dropped; a query's own key is never dropped for it."""

    mask: Tensor
    seen: Tensor


class _Slopes(torch.autograd.Function):
    """Adds nothing to an output [B, T, h, d], and hands the mask its slopes in the backward pass."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Any:
        ctx.save_for_backward(mask, query, key, value, seen)
        ctx.scaling = scaling
        batch, heads, length, _ = query.shape
        return value.new_zeros(batch, length, heads, value.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        mask, query, key, value, seen = ctx.saved_tensors
        own = torch.eye(query.shape[2], dtype=torch.bool, device=query.device)
        others, kept = (seen & ~own)[:, 0], ((mask > 0.5)[:, None, None, :] & seen | own)[:, 0]
        groups = query.shape[1] // key.shape[1]
        total = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        for head in range(query.shape[1]):  # a map of one head at a time
            keys, values = key[:, head // groups].float(), value[:, head // groups].float()
            logits = torch.matmul(query[:, head].float(), keys.transpose(1, 2)) * ctx.scaling
            gains = torch.matmul(gradients[0][:, :, head].float(), values.transpose(1, 2))
            total += effects(logits, gains, kept).masked_fill(~others, 0.0).sum(dim=1)
        return total.to(mask.dtype), *[None] * 5


def effects(logits: Tensor, gains: Tensor, kept: Tensor) -> Tensor:
    """What each key does to ``sum_k share_k gains_k`` of its query by being there instead of gone, [..., T].

    ``logits``, ``gains`` [..., T]; ``kept`` bool, the keys that are there.
    """
    there = logits.masked_fill(~kept, -torch.inf)
    whole = there.logsumexp(dim=-1, keepdim=True)
    share = (there - whole).exp()
    moved = torch.where(kept, share / (1 - share), torch.sigmoid(logits - whole))
    found = moved * (gains - (share * gains).sum(dim=-1, keepdim=True))
    # The strongest may have all of the attention: what is left without it is worked out without it.
    top = there.argmax(dim=-1, keepdim=True)
    without = (there.scatter(-1, top, -torch.inf).softmax(dim=-1) * gains).sum(dim=-1, keepdim=True)
    return found.scatter(-1, top, share.gather(-1, top) * (gains.gather(-1, top) - without))


def _attention(own: str) -> Callable[..., tuple[Tensor, Any]]:
    """The attention function that transformers calls inside a block, around the model's ``own``."""

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        hard_keys: HardKeys | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        output, weights = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)(
            module, query, key, value, attention_mask, **kwargs
        )
        if hard_keys is not None and hard_keys.mask.requires_grad:
            scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
            fixed = (part.detach() for part in (query, key, value))
            output = output + _Slopes.apply(hard_keys.mask, *fixed, hard_keys.seen, scaling)  # type: ignore[no-untyped-call]
        return output, weights

    return attend


@contextmanager
def secant_attention(adapter: ModelAdapter) -> Iterator[None]:
    """Inside the block the decoder's attention takes ``hard_keys`` and hands their mask slopes by secants; blocks nest.

    It is swapped by its name in transformers' registry, where entries of ours stay; the model itself is as it was
    afterwards.

    Raises:
        ModelError: layers of the decoder have no attention module of that registry.
    """
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    own = adapter.attention()
    if own.startswith(PREFIX):
        yield
        return
    modules: list[Any] = [getattr(layer, "self_attn", None) for layer in adapter.layers()]
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    if None in modules or not configs:
        raise ModelError(
            "slopes: secant reads the attention of every layer, and layers of this model have one of another kind; "
            "set slopes: tangent"
        )
    AttentionInterface.register(PREFIX + own, _attention(own))
    AttentionMaskInterface.register(PREFIX + own, AttentionMaskInterface()[own])
    before = [(config, config._attn_implementation) for config in configs.values()]
    for config, _ in before:
        config._attn_implementation = {"": PREFIX + own}
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation = {"": name}
