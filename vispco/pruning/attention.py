"""Chosen rows of a layer's attention, computed beside the model's own attention kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from vispco.models.base import ModelAdapter


def attention_rows(
    adapter: ModelAdapter,
    layer: int,
    *,
    queries: Tensor,
    keys: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    valid: Tensor,
    query_index: Tensor,
    key_log_weight: Tensor | None = None,
) -> Tensor:
    """Attention probabilities of ``layer`` for the queries at ``query_index`` [B, R]: float32 [B, h, R, n].

    Args:
        queries, keys: outputs of the layer's projections, [B, n, h*d] and [B, n, g*d].
        position_embeddings: cosine and sine, [B or 1, n, d].
        valid: bool [B, n]; other keys get no attention.
        key_log_weight: [B, n], added to every logit of a key (soft masks of the relaxed model).

    Costs ``2 h d n R`` FLOPs per sample; the full map is never formed.
    """
    shape = adapter.shape()
    batch, n = valid.shape
    rows = query_index.shape[1]
    cos, sin = (part.expand(batch, -1, -1) for part in position_embeddings)
    at = query_index[..., None]
    q = queries.gather(1, at.expand(-1, -1, queries.shape[-1])).view(batch, rows, shape.heads, shape.head_dim)
    q_position = (cos.gather(1, at.expand(-1, -1, cos.shape[-1])), sin.gather(1, at.expand(-1, -1, sin.shape[-1])))
    q = adapter.rotate(q.transpose(1, 2), q_position)
    k = adapter.rotate(keys.view(batch, n, shape.kv_heads, shape.head_dim).transpose(1, 2), (cos, sin))
    group = shape.heads // shape.kv_heads
    q = q.reshape(batch, shape.kv_heads, group * rows, shape.head_dim)
    logits = torch.matmul(q, k.transpose(2, 3)).view(batch, shape.heads, rows, n).float()
    logits = logits * adapter.attention_scale(layer)
    if key_log_weight is not None:
        logits = logits + key_log_weight[:, None, None, :]
    allowed = valid[:, None, :] & (torch.arange(n, device=valid.device) <= at)
    return logits.masked_fill(~allowed[:, None], -torch.inf).softmax(dim=-1)
