"""``tokens_per_second``: what a device delivers at a stated batch, from a hardware profile."""

from __future__ import annotations

from typing import Any, ClassVar

from vispco.costs.base import COSTS, CostModel, Floats, Setting
from vispco.costs.latency_ms import LatencyMs
from vispco.pruning.schedules import Counts


@COSTS.register("tokens_per_second")
class TokensPerSecond(CostModel):
    """Answer tokens of a batch over its ``latency_ms``. A rate: it can be a limit (at least), not what is minimised."""

    name: ClassVar[str] = "tokens_per_second"
    unit: ClassVar[str] = "tokens/s"
    about: ClassVar[str] = "answer tokens per second at a batch size, from latency_ms; needs a profile"
    needs_profile: ClassVar[bool] = True
    additive: ClassVar[bool] = False
    larger_is_better: ClassVar[bool] = True

    def layer(self, setting: Setting, layer: int, tokens: Any) -> Any:
        return LatencyMs().layer(setting, layer, tokens)

    def of(self, setting: Setting, counts: Counts, visual: Counts, text: Counts) -> Floats:
        self.check(setting)
        tokens: Floats = 1000.0 * setting.batch * setting.answer_tokens / LatencyMs().of(setting, counts, visual, text)
        return tokens

    def relaxed(self, setting: Setting, kept: Any, visual: Any, text: Any) -> Any:
        return 1000.0 * setting.batch * setting.answer_tokens / LatencyMs().relaxed(setting, kept, visual, text)
