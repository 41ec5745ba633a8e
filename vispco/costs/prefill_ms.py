"""``prefill_ms``: time to the first token, from a hardware profile."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from vispco.costs.base import COSTS, CostModel, Setting
from vispco.costs.profile import Profile, Timings
from vispco.pruning.forward.counts import first_kept
from vispco.pruning.schedules import Counts


def timed(setting: Setting) -> tuple[Profile, Timings]:
    """The setting's profile, and its times at the setting's batch."""
    assert setting.profile is not None
    return setting.profile, setting.profile.at(setting.batch)


@COSTS.register("prefill_ms")
class PrefillMs(CostModel):
    """Milliseconds for a whole batch; prompts of a batch are taken to be equally long (others:
    :func:`vispco.costs.ragged.padded`)."""

    name: ClassVar[str] = "prefill_ms"
    unit: ClassVar[str] = "ms"
    about: ClassVar[str] = "time to the first token: vision tower, prefill, scoring and hooks; needs a profile"
    needs_profile: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = True

    def layer(self, setting: Setting, layer: int, tokens: Any) -> Any:
        profile, times = timed(setting)
        return times.layers[profile.kinds[layer]](tokens)

    def boundary(self, setting: Setting, visual: Counts, text: Counts, keep: Counts) -> Any:
        if setting.method is None:
            return super().boundary(setting, visual, text, keep)
        profile, _ = timed(setting)
        return profile.scoring(setting.batch, setting.method).boundary(visual + text)

    def pruning(self, setting: Setting, visual: Counts, text: Counts, counts: Counts) -> Any:
        if setting.method is None:
            return super().pruning(setting, visual, text, counts)
        profile, _ = timed(setting)
        pruned = (counts < visual[:, None]).any(axis=1)
        if not pruned.any():
            return np.zeros(len(visual))
        added, first = profile.scoring(setting.batch, setting.method), first_kept(counts, visual)
        once = added.start + added.layer * counts.shape[1] + (added.pick + added.pair * visual) * first
        return np.where(pruned, once, 0.0)

    def constant(self, setting: Setting, visual: Any, text: Any) -> Any:
        _, times = timed(setting)
        tower = times.tower(visual) * (visual > 0)
        return tower + times.rest(visual + text)
