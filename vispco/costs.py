"""Exact cost of a pruned prefill: FLOPs (a multiply-add counts 2) and KV-cache bytes.

Counts equal ``torch.utils.flop_counter.FlopCounterMode`` on the physically pruned forward under
``sdpa_kernel(SDPBackend.MATH)``, batch 1, no padding. Decoder layers and the method's scoring only;
embeddings, vision tower and LM head are not in them. Pure functions of integer arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vispco.models.base import ModelShape
from vispco.pruning.schedules import Counts

if TYPE_CHECKING:
    from vispco.pruning.methods.base import Method


def layer_flops(shape: ModelShape, tokens: Any) -> Any:
    """FLOPs of one decoder layer with ``tokens`` tokens: ``2n(2Hhd + 2Hgd + 3HI) + 4n^2 hd``.

    ``tokens``: an integer, an integer array, or a real tensor (the relaxed model differentiates through it).
    Attention is the full product, without halving for causality.

    >>> layer_flops(ModelShape(layers=1, hidden=4, heads=2, kv_heads=1, head_dim=2, mlp=8), 3)
    1008
    """
    hidden, width = shape.hidden, shape.heads * shape.head_dim
    linear = 2 * hidden * width + 2 * hidden * shape.kv_heads * shape.head_dim + 3 * hidden * shape.mlp
    return 2 * tokens * linear + 4 * tokens * tokens * width


def prefill_flops(
    shape: ModelShape, counts: Counts, n_visual: Counts, n_text: Counts, method: Method | None = None
) -> NDArray[np.int64]:
    """FLOPs of each sample's prefill, int64 [B].

    Args:
        counts: visual tokens entering each layer, [B, L].
        n_visual, n_text: visual and other tokens of the prompt, [B].
        method: adds what its scoring costs at the boundaries where tokens are dropped but not all.
    """
    counts = np.asarray(counts, dtype=np.int64)
    n_text = np.asarray(n_text, dtype=np.int64)
    tokens = counts + n_text[:, None]
    total: NDArray[np.int64] = layer_flops(shape, tokens).sum(axis=1)
    if method is not None:
        n_visual = np.asarray(n_visual, dtype=np.int64)
        before = np.concatenate([n_visual[:, None], counts[:, :-1]], axis=1)
        scored = (counts < before) & (counts > 0)
        total = total + np.where(scored, method.scoring_flops(shape, before, n_text[:, None]), 0).sum(axis=1)
        total = total + np.where(scored.any(axis=1), method.begin_flops(shape, n_visual, n_text), 0)
    return total


def unpruned_flops(shape: ModelShape, n_visual: Counts, n_text: Counts) -> NDArray[np.int64]:
    """FLOPs of each sample's plain prefill, int64 [B]."""
    everything = np.repeat(np.asarray(n_visual, dtype=np.int64)[:, None], shape.layers, axis=1)
    return prefill_flops(shape, everything, n_visual, n_text)


def flops_ratio(
    shape: ModelShape, counts: Counts, n_visual: Counts, n_text: Counts, method: Method | None = None
) -> float:
    """Pruned over unpruned FLOPs, per sample, mean over samples; 1.0 means no pruning."""
    pruned = prefill_flops(shape, counts, n_visual, n_text, method)
    return float(np.mean(pruned / unpruned_flops(shape, n_visual, n_text)))


def kv_cache_bytes(shape: ModelShape, counts: Counts, n_text: Counts, bytes_per_value: int) -> NDArray[np.int64]:
    """Bytes of keys and values that each sample's prefill leaves in the cache, int64 [B]."""
    tokens = np.asarray(counts, dtype=np.int64) + np.asarray(n_text, dtype=np.int64)[:, None]
    total: NDArray[np.int64] = 2 * shape.kv_heads * shape.head_dim * bytes_per_value * tokens.sum(axis=1)
    return total
