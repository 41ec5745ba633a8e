"""Attention masks cut to the tokens that are left: bool or additive, causal or not, any backend."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(valid: Tensor, queries: int) -> Tensor:
    """bool [B, 1, queries, keys]: the last ``queries`` of ``valid`` [B, keys], each seeing valid keys up to itself."""
    keys = valid.shape[1]
    at = torch.arange(keys, device=valid.device)
    allowed = (at[None, :] <= at[keys - queries :, None])[None] & valid[:, None, :]
    return allowed[:, None]


def with_diagonal(allowed: Tensor) -> Tensor:
    """A square bool mask in which everything sees at least itself, so that no softmax runs over nothing."""
    return allowed | torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)


def as_backend_mask(allowed: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """Turn a bool mask into what the attention backend takes: additive for eager, bool otherwise."""
    if attention != "eager":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def as_bool_mask(mask: Tensor) -> Tensor:
    """The bool form of a bool or additive mask. Additive masks hide with large negative numbers."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def gather_mask(mask: Tensor, rows: Tensor | None, columns: Tensor, filler: Tensor) -> Tensor:
    """Keep the given rows [B, q] (all if None) and columns [B, k] of a 4-D mask.

    ``filler`` bool [B, k] marks columns that are no token at all. They are hidden, except on the diagonal of
    a square mask, where they keep a softmax over nothing from giving NaN.
    """
    batch = columns.shape[0]
    mask = mask.expand(batch, *mask.shape[1:])
    if rows is not None:
        # Whole rows are copied: ten times faster than Tensor.gather with an index per value.
        mask = mask.transpose(1, 2)[torch.arange(batch, device=mask.device)[:, None], rows].transpose(1, 2)
    mask = mask.gather(3, columns[:, None, None, :].expand(-1, *mask.shape[1:3], -1))
    if not filler.any():
        return mask
    hidden = filler[:, None, None, :]
    if mask.dtype == torch.bool:
        mask &= ~hidden
    else:
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
    if rows is not None and rows.shape == columns.shape:
        mask.diagonal(dim1=2, dim2=3).masked_fill_(filler[:, None, :], True if mask.dtype == torch.bool else 0.0)
    return mask


def allowed_rows(mask: Tensor | None, valid: Tensor, query_index: Tensor) -> Tensor:
    """bool [B, R, n]: the keys that the queries at ``query_index`` [B, R] see under a layer's ``mask``.

    ``mask``: 4-D (bool or additive), 2-D or None; without a 4-D mask, attention is causal over ``valid`` [B, n].
    """
    batch, n = valid.shape
    if mask is not None and mask.ndim == 4:
        at = query_index[:, None, :, None].expand(-1, -1, -1, n)
        rows = mask[:, :1, :, :n].expand(batch, -1, -1, -1).gather(2, at)[:, 0]
        return as_bool_mask(rows) & valid[:, None, :]
    return valid[:, None, :] & (torch.arange(n, device=valid.device) <= query_index[..., None])
