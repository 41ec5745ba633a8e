"""``kv_bytes``: what a prefill leaves in the cache."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.costs.base import COSTS, CostModel, Setting
from vispco.models.shapes import ModelShape
from vispco.pruning.schedules import Counts


def kv_cache_bytes(
    shape: ModelShape,
    counts: Counts,
    n_text: Counts,
    bytes_per_value: int,
    windows: tuple[int | None, ...] = (),
) -> NDArray[np.int64]:
    """Bytes that each sample's prefill leaves in the cache, int64 [B]; ``windows`` as in
    :class:`Setting`."""
    counts, n_text = np.asarray(counts, dtype=np.int64), np.asarray(n_text, dtype=np.int64)
    setting = Setting(shape, windows, bytes_per_value)
    return KvBytes().of(setting, counts, counts[:, 0], n_text).astype(np.int64)


def token_bytes(setting: Setting, layer: int) -> int:
    """Bytes that one token's key and value take in a layer; grouped heads are stored once."""
    own = setting.shape.at(layer)
    return 2 * own.kv_heads * own.head_dim * setting.bytes_per_value


def held(setting: Setting, layer: int, tokens: Any) -> Any:
    """Tokens that the cache of ``layer`` holds once ``tokens`` went through: at most a sliding window's width less 1,
    as transformers' ``DynamicSlidingWindowLayer`` keeps them."""
    window = setting.windows[layer] if setting.windows else None
    return tokens if window is None else tokens.clip(max=window - 1)


def cached(setting: Setting, layer: int, tokens: Any) -> Any:
    """Bytes in the cache of ``layer`` once ``tokens`` went through: keys and values, or the states of linear attention,
    which have one size."""
    states = setting.shape.each[layer] if setting.shape.each else None
    fixed = 0 if states is None else states.recent * setting.bytes_per_value + 4 * states.state
    return token_bytes(setting, layer) * held(setting, layer, tokens) + fixed


@COSTS.register("kv_bytes")
class KvBytes(CostModel):
    """Exact: equals the bytes of the cache that the pruned prefill returns (a test)."""

    name: ClassVar[str] = "kv_bytes"
    unit: ClassVar[str] = "bytes"
    about: ClassVar[str] = (
        "cache after the prefill; grouped heads, sliding windows and states of linear attention counted"
    )

    def layer(self, setting: Setting, layer: int, tokens: Any) -> Any:
        return cached(setting, layer, tokens)
