"""``peak_bytes``: memory of the prefill beside the weights."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from vispco.costs.base import COSTS, CostModel, Floats, Setting
from vispco.costs.kv_bytes import cached
from vispco.pruning.schedules import Counts


@COSTS.register("peak_bytes")
class PeakBytes(CostModel):
    """The largest over layers of the cache so far and what the layer holds at once, for a whole batch.

    A layer with n tokens holds its input and residual (2nH) and the larger of attention's (query, key, value and
    output: n(2hd + 2gd)) and the MLP's (gate, up and their product: 3nI). Attention matrices are not in it: kernels
    that are used for serving do not build them. An estimate, not exact; weights and the tower are left out.
    """

    name: ClassVar[str] = "peak_bytes"
    unit: ClassVar[str] = "bytes"
    about: ClassVar[str] = "largest sum of cache and one layer's states in the prefill, weights left out; an estimate"
    additive: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True

    def layer(self, setting: Setting, layer: int, tokens: Any) -> Any:
        shape = setting.shape.at(layer)
        attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
        return tokens * (2 * shape.hidden + max(attention, 3 * shape.mlp)) * setting.bytes_per_value

    def of(self, setting: Setting, counts: Counts, visual: Counts, text: Counts) -> Floats:
        tokens = np.asarray(counts, dtype=np.int64) + np.asarray(text, dtype=np.int64)[:, None]
        layers = range(tokens.shape[1])
        before = np.stack([cached(setting, n, tokens[:, n]) for n in layers], axis=1)
        held_now = np.stack([self.layer(setting, n, tokens[:, n]) for n in layers], axis=1)
        peak = (before.cumsum(axis=1) + held_now).max(axis=1)
        return np.asarray(setting.batch * peak, dtype=np.float64)

    def relaxed(self, setting: Setting, kept: Any, visual: Any, text: Any) -> Any:
        import torch

        tokens = kept + text[..., None]
        layers = range(setting.shape.layers)
        before = torch.stack([cached(setting, n, tokens[..., n]) for n in layers], dim=-1)
        held_now = torch.stack([self.layer(setting, n, tokens[..., n]) for n in layers], dim=-1)
        return setting.batch * (before.cumsum(dim=-1) + held_now).amax(dim=-1)
