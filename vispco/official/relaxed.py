"""The relaxed model of the official VisPCO code, step by step as that code computes it.

Every layer has a policy: a weight per token, the product of the keep masks of all boundaries so far. That of layer 0 is
the attention mask. Scores, K, tau and masks are in the model's dtype, the softmax in float32.

    score      u = min-max over the row of (mean over heads of the layer before's attention, query row -1)
    s          log(u v + 1000 (1 - v) + 1e-8),  v = 1 for visual tokens
    threshold  K = r N_v + (N - N_v);  w_j = exp(-(j - K)^2 / 5);  tau = sum_j w_j s_(j) / (sum_j w_j + 1e-8),
               s_(j) the j-th largest s, j = 0..N-1
    mask       m = soft + stopgrad([s >= tau] - soft),  soft = sigmoid((s - tau) / T)
    attention  P = m_k + (1 - m_k) I;  e = exp(a - max_k a) P;  (e + eps/N) / (sum_k e + eps),  eps = 1e-6

N is the padded length, pads included, which are at position 1. Source: JHW5981/VisPCO (arXiv 2604.15188), as described
in README.md with its oddities, among them: the query row is the last of the padded batch, whatever stands there;
at r = 1 the threshold still drops the last of the ranking; every masked key, future ones too, keeps eps/N of weight.
For a relaxed model that equals the pruned one see :mod:`vispco.pruning.forward.relaxed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vispco.errors import ModelError
from vispco.models.base import ModelAdapter
from vispco.pruning.forward.masks import as_bool_mask, causal_mask

BACKEND = "vispco_official"
SLOPE = 10.0
EPSILON = 1e-6


def step_kernel(centre: Tensor, keep: Tensor, layers: int) -> Tensor:
    """Keep ratios [B, L] from ``centre`` and ``keep`` [B]: ``1 + (keep - 1) sigmoid(10 (i - centre))``, i = 0..L-1."""
    at = torch.arange(layers, dtype=centre.dtype, device=centre.device)
    return 1 + (keep[:, None] - 1) * torch.sigmoid(SLOPE * (at - centre[:, None]))


def log_scores(row: Tensor, visual: Tensor) -> Tensor:
    """``s`` [B, N] from attention ``row`` [B, N], scaled to [0, 1] over the whole row, and ``visual`` bool [B, N]."""
    # Not amin and amax: among equal values the official code sends the gradient to one of them, these to all.
    low, high = row.min(dim=1, keepdim=True).values, row.max(dim=1, keepdim=True).values
    scaled = (row - low) / (high - low + 1e-8)
    seen = visual.to(row.dtype)
    return torch.log(scaled * seen + 1000 * (1 - seen) + 1e-8)


def soft_threshold(scores: Tensor, kept: Tensor) -> Tensor:
    """``tau`` [B, 1] of ``scores`` [B, N] for ``kept`` [B] tokens, differentiable in both."""
    falling = scores.sort(dim=1, descending=True).values
    places = torch.arange(scores.shape[1], dtype=torch.float32, device=scores.device)
    weights = torch.exp(-((places - kept[:, None]) ** 2) / 5).to(kept.dtype)
    return (weights * falling).sum(dim=1, keepdim=True) / (weights.sum(dim=1, keepdim=True) + 1e-8)


def keep_mask(scores: Tensor, visual: Tensor, ratio: Tensor, temperature: float = 0.1) -> Tensor:
    """Straight-through mask [B, N] of ``scores`` [B, N] at keep ``ratio`` [B]; ``visual`` bool [B, N]."""
    n_visual = visual.sum(dim=1)
    tau = soft_threshold(scores, ratio * n_visual + (scores.shape[1] - n_visual))
    soft = torch.sigmoid((scores - tau) / temperature)
    return soft + ((scores >= tau).to(soft.dtype) - soft).detach()


def masked_softmax(logits: Tensor, weights: Tensor) -> Tensor:
    """Attention [B, h, N, N] of ``logits`` [B, h, N, N], causal mask added, under key ``weights`` [B, N]; float32."""
    keys, size = weights[:, None, None, :], logits.shape[-1]
    policy = keys + (1 - keys) * torch.eye(size, dtype=keys.dtype, device=logits.device)
    e = torch.exp((logits - logits.max(dim=-1, keepdim=True).values).float()) * policy.float()
    return (e + EPSILON / size) / (e.sum(dim=-1, keepdim=True) + EPSILON)


class OfficialForward:
    """State of one :func:`official_relaxed` block. ``masks``: the policy of each layer from 1 on, [B, N]."""

    def __init__(
        self, adapter: ModelAdapter, ratios: Tensor, visual: Tensor, valid: Tensor, temperature: float
    ) -> None:
        self.layers = len(adapter.layers())
        self.ratios, self.visual, self.valid, self.temperature = ratios, visual, valid, temperature
        self.masks: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Output [B, N, h, d] and attention [B, h, N, N] of ``layer``; chooses the policy of the next one."""
        if layer == 0:
            self.masks = []
        if len(self.masks) != layer or query.shape[2] != key.shape[2]:
            raise ModelError("the official relaxed model runs whole prompts, layer by layer; use_cache must be off")
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        logits = torch.matmul(query, key.transpose(2, 3)) * scaling
        seen = causal_mask(self.valid, query.shape[2]) if mask is None else as_bool_mask(mask)
        logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
        before = self.masks[-1] if self.masks else self.valid.to(query.dtype)
        attention = masked_softmax(logits, before).to(query.dtype)
        if layer + 1 < self.layers:
            scores = log_scores(attention.mean(dim=1)[:, -1], self.visual)
            ratio = self.ratios[:, layer + 1].to(scores.dtype)
            self.masks.append(before * keep_mask(scores, self.visual, ratio, self.temperature))
        return torch.matmul(attention, value).transpose(1, 2).contiguous(), attention


_running: WeakKeyDictionary[nn.Module, tuple[OfficialForward, int]] = WeakKeyDictionary()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The attention function that transformers calls inside a block."""
    forward, layer = _running[module]
    return forward.attend(layer, query, key, value, attention_mask, scaling or query.shape[-1] ** -0.5)


def _place_pads(valid: Tensor, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The official collator has pads at position 1: a pad that asks, as the last one does, asks from there."""
    given = kwargs.get("position_ids")
    if given is None:
        places = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
        return args, {**kwargs, "position_ids": places.masked_fill(~valid, 1)}
    placed = given.expand(*given.shape[:-2], *valid.shape).masked_fill(~valid, 1)
    if given.dim() == 3 and len(given) == 4:  # the first of Qwen's four rows only tells sequences apart
        placed = torch.cat([given[:1].expand(1, *valid.shape), placed[1:]])
    return args, {**kwargs, "position_ids": placed}


@contextmanager
def official_relaxed(
    adapter: ModelAdapter, ratios: Tensor, visual: Tensor, valid: Tensor, *, temperature: float = 0.1
) -> Iterator[OfficialForward]:
    """Inside the block the model's forward (``use_cache=False``) is differentiable in ``ratios`` [B, L].

    The decoder's attention function is swapped by its name in transformers' registry, where one entry of ours stays;
    the model itself is as it was afterwards.

    Args:
        visual, valid: bool [B, N], tokens from pixels and tokens that are no padding.
        temperature: T of the mask.

    Raises:
        ModelError: the model is inside another block, or a forward pass uses a cache.
    """
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(BACKEND, _attention)
    AttentionMaskInterface.register(BACKEND, eager_mask)
    if not all(hasattr(layer, "self_attn") for layer in adapter.layers()):
        raise ModelError(
            "the official relaxed model rewrites the attention of every layer, and this model has layers of another "
            "kind; use kind: lagrangian"
        )
    config: Any = adapter.decoder().config
    before = config._attn_implementation
    if before == BACKEND:
        raise ModelError("this model is already inside an official_relaxed block; leave it before entering another one")
    session = OfficialForward(adapter, ratios, visual & valid, valid, temperature)
    modules: list[Any] = [layer.self_attn for layer in adapter.layers()]
    config._attn_implementation = BACKEND
    hook = adapter.decoder().register_forward_pre_hook(partial(_place_pads, valid), with_kwargs=True)
    try:
        _running.update({module: (session, number) for number, module in enumerate(modules)})
        yield session
    finally:
        hook.remove()
        config._attn_implementation = before
        for module in modules:
            _running.pop(module, None)
