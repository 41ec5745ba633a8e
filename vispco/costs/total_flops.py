"""``total_flops``: everything from the picture to the last token of an answer."""

from __future__ import annotations

from typing import Any, ClassVar

from vispco.costs.base import COSTS, Setting
from vispco.costs.flops import Flops, decode_flops


def _read(setting: Setting, layer: int, tokens: Any) -> Any:
    """Keys that all decode steps of an answer read after ``tokens`` of a prompt: the sum over j of n + j, at most a
    window's width."""
    steps = setting.answer_tokens - 1
    window = setting.windows[layer] if setting.windows else None
    if window is None:
        return steps * tokens + steps * (steps + 1) // 2
    growing = (window - tokens).clip(0, steps)
    growing = growing - growing % 1  # whole steps, of real tokens too
    return growing * tokens + growing * (growing + 1) / 2 + (steps - growing) * window


@COSTS.register("total_flops")
class TotalFlops(Flops):
    """Decode step j reads a cache of the prompt's n tokens and j more, at most those of a sliding window:
    ``2(2Hhd + 2Hgd + 3HI) + 4hd(n + j)`` per layer.

    A layer of linear attention takes one step of its recurrence, in which torch counts the convolution alone. The head
    is counted once per token of the answer, which is what generation computes. What a method reads off the tower is not
    in it: without a CLS token, two products of queries and keys of all patches, or four (hiprune).
    """

    name: ClassVar[str] = "total_flops"
    about: ClassVar[str] = "vision tower, projector, prefill with scoring, decode steps of the answer, and head"

    def layer(self, setting: Setting, layer: int, tokens: Any) -> Any:
        own, steps = setting.shape.at(layer), setting.answer_tokens - 1
        width = own.heads * own.head_dim
        per_token = decode_flops(setting.shape, layer)
        return super().layer(setting, layer, tokens) + steps * per_token + 4 * width * _read(setting, layer, tokens)

    def constant(self, setting: Setting, visual: Any, text: Any) -> Any:
        head = 2 * setting.shape.hidden * setting.vocabulary * setting.answer_tokens
        return setting.vision_flops * visual + head
