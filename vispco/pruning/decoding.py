"""Decoding after a pruned prefill: every layer's mask follows the entries of that layer's own cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vispco.models.base import ModelAdapter
from vispco.pruning.masks import as_backend_mask, as_bool_mask, causal_mask
from vispco.pruning.tokens import Tokens


@dataclass
class Cached:
    """What is known of a prefilled cache: prompt length, and per layer the tokens that it holds."""

    prompt_length: int
    layers: list[Tokens]
    first: int = 0  # number of the first layer that keeps keys and values

    @property
    def cut(self) -> bool:
        return any(tokens is not self.layers[0] for tokens in self.layers) or self.first_is_cut

    @property
    def first_is_cut(self) -> bool:
        return self.short_length != self.prompt_length

    @property
    def short_length(self) -> int:
        """Tokens of the prompt that the first layer with keys and values holds."""
        return self.layers[self.first].index.shape[1]


@dataclass
class DecodeStep:
    """One forward of ``steps`` new tokens on a pruned cache.

    Layers see what they would see in an unpruned model, less the dropped tokens: all valid places up to their
    own, and in a sliding layer only the places within its window, counted in the prompt, not in the cache.
    """

    adapter: ModelAdapter
    cached: Cached
    cache: Any
    steps: int
    mask: Tensor | None  # what the caller gave: 2-D over all places so far, 4-D, or nothing
    like: Tensor
    _masks: dict[tuple[int, int | None, int], Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen = self.cache.get_seq_length() - self.cached.short_length
        self.total = self.cached.prompt_length + seen + self.steps
        self.attention = self.adapter.attention()

    def for_decoder(self, kwargs: dict[str, Any], own_positions: bool) -> dict[str, Any]:
        """The decoder's arguments with the true length where it would read the short one from layer 0's cache."""
        if not self.cached.first_is_cut:
            return kwargs
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = torch.arange(self.total - self.steps, self.total, device=self.like.device)[None]
        elif own_positions:
            ids = ids + self.cached.prompt_length - self.cached.short_length
        changed = {**kwargs, "position_ids": ids}
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, dict) and "flash" not in self.attention:
            # Any 4-D mask keeps the decoder from building one; each layer gets its own.
            changed["attention_mask"] = self._allowed()
        return changed

    def for_layer(self, number: int) -> Tensor | None:
        """The mask of layer ``number``."""
        tokens, window = self.cached.layers[number], self.adapter.sliding_window(number)
        entries = int(self.cache.get_mask_sizes(self.steps, number)[0])
        key = (id(tokens), window, entries)
        if key not in self._masks:
            self._masks[key] = self._mask(tokens, window, entries)
        return self._masks[key]

    def _allowed(self) -> Tensor:
        """bool [B, 1, steps, total] over all places so far, dropped ones included."""
        if self.mask is not None and self.mask.ndim == 4:
            return as_bool_mask(self.mask)
        if self.mask is None:
            valid = self.like.new_ones(len(self.like), self.total, dtype=torch.bool)
        else:
            valid = self.mask.bool()
        return causal_mask(valid, self.steps)

    def _mask(self, tokens: Tokens, window: int | None, entries: int) -> Tensor | None:
        device, batch = self.like.device, len(tokens.index)
        new = torch.arange(self.cached.prompt_length, self.total, device=device).expand(batch, -1)
        columns = torch.cat([tokens.index.to(device), new], dim=1)[:, -entries:]
        real = torch.cat([tokens.valid.to(device), torch.ones_like(new, dtype=torch.bool)], dim=1)[:, -entries:]
        if "flash" in self.attention:
            if self.mask is not None and self.mask.ndim == 2:
                real = real & self.mask.bool().gather(1, columns)
            return None if bool(real.all()) else real.long()
        allowed = self._allowed().expand(batch, -1, -1, -1)
        allowed = allowed.gather(3, columns[:, None, None, :].expand(-1, allowed.shape[1], self.steps, -1))
        allowed = allowed & real[:, None, None, :]
        if window is not None:
            query = torch.arange(self.total - self.steps, self.total, device=device)
            allowed = allowed & (columns[:, None, None, :] > query[:, None] - window)
        if self.steps == 1 and bool(allowed.all()):
            return None
        return as_backend_mask(allowed, self.attention, self.like.dtype)
