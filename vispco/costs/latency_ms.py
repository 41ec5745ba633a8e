"""``latency_ms``: time of a whole answer, from a hardware profile."""

from __future__ import annotations

from typing import Any, ClassVar

from vispco.costs.base import COSTS, Setting
from vispco.costs.kv_bytes import held
from vispco.costs.prefill_ms import PrefillMs, timed
from vispco.pruning.schedules import Counts


@COSTS.register("latency_ms")
class LatencyMs(PrefillMs):
    """``prefill_ms`` and the decode steps; each step is taken to read the cache of the middle one."""

    name: ClassVar[str] = "latency_ms"
    about: ClassVar[str] = "time to the last token of an answer: prefill_ms and the decode steps; needs a profile"

    def layer(self, setting: Setting, layer: int, tokens: Any) -> Any:
        profile, times = timed(setting)
        steps = setting.answer_tokens - 1
        prefill = super().layer(setting, layer, tokens)
        if not steps:
            return prefill
        cached = held(setting, layer, tokens + steps // 2)
        return prefill + steps * times.decode.layers[profile.kinds[layer]](cached)

    def pruning(self, setting: Setting, visual: Counts, text: Counts, counts: Counts) -> Any:
        added = super().pruning(setting, visual, text, counts)
        if setting.method is None:
            return added
        pruned = (counts < visual[:, None]).any(axis=1)
        if not pruned.any():
            return added
        profile, times = timed(setting)
        hooks = times.decode.hooks + profile.scoring(setting.batch, setting.method).step
        return added + pruned * (setting.answer_tokens - 1) * hooks

    def constant(self, setting: Setting, visual: Any, text: Any) -> Any:
        steps, decode = setting.answer_tokens - 1, timed(setting)[1].decode
        return super().constant(setting, visual, text) + decode.start + steps * decode.rest
