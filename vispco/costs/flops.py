"""``flops``: of the decoder's layers and the method's scoring in one prefill (a multiply-add counts 2).

Counts equal ``torch.utils.flop_counter.FlopCounterMode`` on the physically pruned forward under
``sdpa_kernel(SDPBackend.MATH)``, batch 1, no padding. Decoder layers and the method's scoring only;
embeddings, vision tower and LM head are not in them. Pure functions of integer arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.costs.base import COSTS, CostModel, Setting
from vispco.models.shapes import LayerShape, ModelShape
from vispco.pruning.schedules import Counts

if TYPE_CHECKING:
    from vispco.pruning.methods.base import Method


CHUNK = 64  # tokens that transformers' gated delta rule takes at once


def layer_flops(shape: ModelShape, tokens: Any, layer: int | None = None) -> Any:
    """FLOPs of one decoder layer with ``tokens`` tokens: ``2n(2Hhd + 2Hgd + 3HI) + 4n^2 hd``.

    ``tokens``: an integer, an integer array, or a real tensor (the relaxed model differentiates through it).
    Attention is the full product, without halving for causality. ``layer``: which one, where layers differ; of
    experts, those that a token is sent to count, and the router.

    >>> layer_flops(ModelShape(layers=1, hidden=4, heads=2, kv_heads=1, head_dim=2, mlp=8), 3)
    1008
    """
    if shape.each:
        if layer is None:
            raise ValueError("the layers of this decoder differ: say which one, or use decoder_flops")
        own = shape.each[layer]
        flops = 2 * tokens * own.weights + 4 * tokens * tokens * own.heads * own.head_dim
        return flops + _linear_attention(own, tokens) if own.chunk else flops
    return 2 * tokens * shape.weights + 4 * tokens * tokens * shape.heads * shape.head_dim


def _linear_attention(own: LayerShape, tokens: Any) -> Any:
    """FLOPs of the convolution and of the chunked gated delta rule; real ``tokens`` count parts of a chunk."""
    whole = isinstance(tokens, int) or np.issubdtype(getattr(tokens, "dtype", None), np.integer)
    chunks = -(-tokens // CHUNK) if whole else tokens / CHUNK
    return own.chunk * chunks + own.spread * (tokens + own.beyond * (tokens > 0))


def decode_flops(shape: ModelShape, layer: int) -> int:
    """FLOPs of ``layer`` for one more token, without attention's two products with the cache."""
    if not shape.each:
        return 2 * shape.weights
    own = shape.each[layer]
    return 2 * own.weights + 2 * own.spread  # the convolution gives the place before it too


def decoder_flops(shape: ModelShape, tokens: Any) -> Any:
    """FLOPs of all decoder layers, [...], with ``tokens`` [..., L] entering each: an integer array or a real tensor."""
    if not shape.each:
        return layer_flops(shape, tokens).sum(-1)
    return sum(layer_flops(shape, tokens[..., layer], layer) for layer in range(shape.layers))


def plain_flops(shape: ModelShape, tokens: Any) -> Any:
    """FLOPs of all decoder layers with the same ``tokens`` [...] in each."""
    return sum(layer_flops(shape, tokens, layer) for layer in range(shape.layers))


def relaxed_backward_flops(shape: ModelShape, tokens: Any) -> Any:
    """FLOPs of the backward pass of a relaxed forward of ``tokens`` tokens: gradients of masks, none of weights.

    Nothing reaches layer 0. In layer 1 only the mask carries a gradient: one of attention's products, and the output
    projection and MLP after it. From layer 2 on every linear map has one product with the gradient of its output,
    and attention four. Equals torch's counter, as the forward does.
    """
    total = 0 * tokens
    for layer in range(1, shape.layers):
        own = shape.at(layer)
        into = 2 * tokens * shape.hidden * (own.heads + 2 * own.kv_heads) * own.head_dim
        attention = 4 * tokens * tokens * own.heads * own.head_dim
        whole = layer_flops(shape, tokens, layer)
        total = total + (whole + attention if layer > 1 else whole - into - attention // 2)
    return total


def official_layer_macs(shape: ModelShape, tokens: Any) -> Any:
    """One decoder layer by the official VisPCO code's count: ``4nH^2 + 2n^2 H + 2nHI`` multiply-adds.

    That code divides it by 1e12 and calls it TFLOPs (``accounting: vispco``). It counts two of the MLP's three
    products, and keys and values as if there were as many of their heads as of the queries'. For the official budget
    only; never in one table with :func:`layer_flops`.

    >>> official_layer_macs(ModelShape(layers=1, hidden=4, heads=2, kv_heads=1, head_dim=2, mlp=8), 3)
    456
    """
    return 4 * tokens * shape.hidden**2 + 2 * tokens * tokens * shape.hidden + 2 * tokens * shape.hidden * shape.mlp


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
    total: NDArray[np.int64] = decoder_flops(shape, tokens)
    if method is not None:
        n_visual = np.asarray(n_visual, dtype=np.int64)
        before = np.concatenate([n_visual[:, None], counts[:, :-1]], axis=1)
        scored = (counts < before) & (counts > 0)
        ranking = _scoring(shape, before, n_text[:, None], method)
        ranking = ranking + method.choosing_flops(shape, before, n_text[:, None], counts)
        most = np.where(scored, counts, 0).max(axis=1)
        total = total + np.where(scored, ranking, 0).sum(axis=1) + _begun(shape, n_visual, n_text, most, method)
    return total


def _scoring(shape: ModelShape, visual: Counts, text: Counts, method: Method) -> Any:
    """FLOPs of ranking at each boundary, [B, L], with ``visual`` [B, L] and ``text`` [B, 1] tokens before it."""
    if not shape.each:
        return method.scoring_flops(shape, visual, text)
    layers = range(shape.layers)
    each = [method.scoring_flops(read_at(shape, layer, method), visual[:, layer], text[:, 0]) for layer in layers]
    return np.stack(each, axis=1)


def read_at(shape: ModelShape, boundary: int, method: Method) -> ModelShape:
    """Sizes of the layer whose attention ``method`` reads to rank what enters layer ``boundary``."""
    return shape.at(boundary if "look_ahead" in method.needs else max(0, boundary - 1))


def _begun(shape: ModelShape, n_visual: Counts, n_text: Counts, most: Counts, method: Method) -> Any:
    """FLOPs of what ``method`` does before the first layer; nothing where it never ranks (``most`` 0)."""
    return np.where(most > 0, method.begin_flops(shape, n_visual, n_text, most), 0)


def shared_flops(
    shape: ModelShape,
    counts: Sequence[Counts],
    n_visual: Counts,
    n_text: Counts,
    method: Method | None = None,
) -> NDArray[np.int64]:
    """FLOPs that each policy adds when all are run on one batch as a tree over layers, int64 [P].

    Policies whose counts agree on every sample up to and including layer l share layers 0..l. A boundary is scored
    once for all policies that share the layers before it, and tokens are chosen once for those that share the layer
    after it; ``method.begin`` runs once, for the policy that keeps most. Entry p is what policy p adds to policies
    0..p-1: the sum does not depend on the order, a repeated policy adds 0, a single one costs what
    :func:`prefill_flops` says.

    Args:
        counts: of each policy, visual tokens entering each layer, P arrays [B, L].
        n_visual, n_text: visual and other tokens of the prompt, [B].
        method: adds its scoring, for each sample in which some policy of the node drops tokens, but not all.
    """
    added = np.zeros(len(counts), dtype=np.int64)
    if not len(counts):
        return added
    columns = np.ascontiguousarray(np.asarray(counts, dtype=np.int64).transpose(2, 0, 1))
    n_visual = np.asarray(n_visual, dtype=np.int64)
    n_text = np.asarray(n_text, dtype=np.int64)
    policies, samples = columns.shape[1:]
    before = np.broadcast_to(n_visual, (policies, samples))
    node = np.zeros(policies, dtype=np.int64)
    most = np.zeros((policies, samples), dtype=np.int64)
    for layer, column in enumerate(columns):
        parent, (node, first) = node, _children(node, column)
        entering = column[first]
        added[first] += layer_flops(shape, entering + n_text, layer).sum(axis=1)
        scored = (entering < before[first]) & (entering > 0)
        if method is not None and scored.any():
            most = np.maximum(most, np.where(scored, entering, 0)[node])
            choosing = method.choosing_flops(shape, before[first], n_text[None, :], entering)
            added[first] += np.where(scored, choosing, 0).sum(axis=1)
            who = np.where(scored, first[:, None], policies)
            # Of the children of one parent, the first that drops tokens of a sample pays for scoring it.
            order = np.argsort(parent[first], kind="stable")
            starts = np.flatnonzero(np.diff(parent[first][order], prepend=-1))
            payer = np.minimum.reduceat(who[order], starts, axis=0)
            read = read_at(shape, layer, method)
            price = method.scoring_flops(read, before[first[order[starts]]], n_text[None, :])
            price = np.broadcast_to(price, payer.shape)
            np.add.at(added, payer[payer < policies], price[payer < policies])
        before = column
    if method is not None:
        begun = _begun(shape, n_visual, n_text, np.maximum.accumulate(most, axis=0), method)
        added += np.diff(begun, axis=0, prepend=0).sum(axis=1)
    return added


def _children(parent: NDArray[np.int64], column: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Nodes of a layer: each policy's node [P], and of each node its first policy, rising.

    Args:
        parent: each policy's node in the layer before, [P].
        column: tokens entering this layer, [P, B].
    """
    names: dict[tuple[int, bytes], int] = {}
    first: list[int] = []
    nodes = []
    text, width = column.astype(np.int32).tobytes(), 4 * column.shape[1]
    for policy, above in enumerate(parent.tolist()):
        node = names.setdefault((above, text[policy * width : (policy + 1) * width]), len(first))
        if node == len(first):
            first.append(policy)
        nodes.append(node)
    return np.array(nodes), np.array(first)


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


@COSTS.register("flops")
class Flops(CostModel):
    """:func:`prefill_flops` as a cost."""

    name: ClassVar[str] = "flops"
    unit: ClassVar[str] = "FLOPs"
    about: ClassVar[str] = "decoder layers of one prefill and the method's scoring, exact"

    def layer(self, setting: Setting, layer: int, tokens: Any) -> Any:
        return layer_flops(setting.shape, tokens, layer)

    def boundary(self, setting: Setting, visual: Counts, text: Counts, keep: Counts) -> Any:
        if setting.method is None:
            return super().boundary(setting, visual, text, keep)
        scoring = _scoring(setting.shape, visual, text, setting.method)
        return scoring + setting.method.choosing_flops(setting.shape, visual, text, keep)

    def pruning(self, setting: Setting, visual: Counts, text: Counts, counts: Counts) -> Any:
        if setting.method is None:
            return super().pruning(setting, visual, text, counts)
        before = np.concatenate([visual[:, None], counts[:, :-1]], axis=1)
        most = np.where((counts < before) & (counts > 0), counts, 0).max(axis=1)
        return _begun(setting.shape, visual, text, most, setting.method)
