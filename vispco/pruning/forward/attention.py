"""Chosen rows of a layer's attention, computed beside the model's own attention kernel."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from vispco.models.base import ModelAdapter
from vispco.pruning.forward.masks import allowed_rows
from vispco.pruning.forward.tokens import rows_at

Rotary = tuple[Tensor, Tensor]


class LayerAttention:
    """Attention of one layer, row by row; the full map is never formed.

    Products of queries and keys are float32, as fused attention kernels add them up: with the large key biases of
    Qwen's decoders a product rounded to half precision ranks other tokens, or is not finite.

    Args:
        queries, keys: outputs of :meth:`ModelAdapter.projections`; without queries there are no rows.
        position_embeddings: cosine and sine, [B or 1, n, d].
        valid: bool [B, n]; other keys get no attention.
        mask: the layer's own mask, as in :func:`vispco.pruning.forward.masks.allowed_rows`.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        layer: int,
        *,
        queries: Tensor | None,
        keys: Tensor,
        position_embeddings: Rotary,
        valid: Tensor,
        mask: Tensor | None = None,
    ) -> None:
        self._adapter, self._scale = adapter, adapter.attention_scale(layer)
        self._shape = adapter.known_shape.at(layer)
        self._queries, self._keys = queries, keys
        self._valid, self._mask = valid, mask
        cos, sin = position_embeddings
        self._rotary = cos.expand(len(valid), -1, -1), sin.expand(len(valid), -1, -1)

    @cached_property
    def _rotated_keys(self) -> Tensor:
        """float32 [B, g, n, d]."""
        return self._adapter.rotate(self.keys(), self._rotary).float()

    def keys(self) -> Tensor:
        """Keys before rotation, [B, g, n, d]."""
        return self._adapter.to_heads(self._keys, self._shape.kv_heads)

    def _query_heads(self, places: Tensor) -> Tensor:
        """Queries at ``places`` [B, R] before rotation, [B, h, R, d]."""
        assert self._queries is not None
        q = self._adapter.to_heads(self._queries, self._shape.heads)
        return q.gather(2, places[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[-1]))

    def _rotary_at(self, places: Tensor) -> Rotary:
        """Cosine and sine at ``places`` [B, R]."""
        cos, sin = self._rotary
        return rows_at(cos, places), rows_at(sin, places)

    def rows(self, query_index: Tensor) -> Tensor:
        """Probabilities of the queries at ``query_index`` [B, R]: float32 [B, h, R, n].

        A query that sees nothing has a row of zeros. Costs ``2 h d n R`` FLOPs per sample.
        """
        shape, (batch, asked), asked_from = self._shape, query_index.shape, query_index.device
        query_index = query_index.to(self._keys.device)
        q = self._adapter.rotate(self._query_heads(query_index), self._rotary_at(query_index))
        q = q.reshape(batch, shape.kv_heads, -1, shape.head_dim).float()
        logits = torch.matmul(q, self._rotated_keys.transpose(2, 3))
        logits = logits.view(batch, shape.heads, asked, -1) * self._scale
        allowed = allowed_rows(self._mask, self._valid, query_index)[:, None]
        blind = ~allowed.any(dim=-1, keepdim=True)
        logits = logits.masked_fill_(~(allowed | blind), -torch.inf)
        return logits.softmax(dim=-1).masked_fill_(blind, 0.0).to(asked_from)

    def position_kernel(self, query_index: Tensor) -> Tensor:
        """What positions alone do to the logits of the queries at ``query_index`` [B, R]: float32 [B, R, n].

        Dot products of all-ones vectors, rotated at the query's and the key's position, over ``sqrt(d)``.
        Costs ``2 d n R`` FLOPs per sample.
        """
        cos, sin = (part.float() for part in self._rotary)
        ones = cos.new_ones(len(cos), 1, cos.shape[1], self._shape.head_dim)
        at = rows_at(cos, query_index), rows_at(sin, query_index)
        k = self._adapter.rotate(ones, (cos, sin))[:, 0]
        q = self._adapter.rotate(ones[:, :, : query_index.shape[1]], at)[:, 0]
        kernel = torch.matmul(q, k.transpose(1, 2)) / math.sqrt(self._shape.head_dim)
        return kernel.to(query_index.device)


class LookAhead(LayerAttention):
    """Attention that a layer would have if the tokens entered it; queries are projected only where rows are asked for.

    Args:
        hidden: the tokens' states before the layer, [B, n, H].
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        layer: int,
        *,
        hidden: Tensor,
        position_embeddings: Rotary,
        valid: Tensor,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(
            adapter,
            layer,
            queries=None,
            keys=hidden,
            position_embeddings=position_embeddings,
            valid=valid,
            mask=mask,
        )
        self._layer, self._hidden = layer, hidden

    def keys(self) -> Tensor:
        return self._adapter.project(self._layer, self._hidden, "keys")

    def _query_heads(self, places: Tensor) -> Tensor:
        return self._adapter.project(self._layer, rows_at(self._hidden, places), "queries")
