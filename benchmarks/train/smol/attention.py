"""Attention over packed questions: the picture's own rows read the picture alone, and nothing changes precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "packed_questions"


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    prefix: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """``attention_mask`` is additive, [B, heads, T, T]; the first ``prefix`` rows see no later position."""
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1).flatten(0, 1) for part in (key, value))
    query = query.flatten(0, 1)
    mask = attention_mask.flatten(0, 1)

    def rows(start: int, end: int, seen: int) -> Tensor:
        scores = torch.baddbmm(
            mask[:, start:end, :seen], query[:, start:end], key[:, :seen].transpose(1, 2), alpha=scaling
        )
        return scores.softmax(-1) @ value[:, :seen]

    parts = [rows(0, prefix, prefix)] if prefix else []
    found = torch.cat([*parts, rows(prefix, length, length)], dim=1)
    return found.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
