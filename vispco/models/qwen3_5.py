"""Qwen3.5 and Qwen3.6: three of four layers are linear attention; pictures, video and positions as in Qwen3-VL.

A layer of linear attention is a short convolution and a recurrence over its tokens. A token that is dropped before it
is no step of either: the neighbours of the convolution and the decay are those of the tokens that are left. Attention
of the layer before a boundary is mostly not there to be read, so methods that rank by it are refused. Without
deepstack; queries come with a gate.
"""

from __future__ import annotations

from typing import Any, ClassVar

from vispco.models.families import ADAPTERS
from vispco.models.qwen2_5_vl import Qwen25VLAdapter
from vispco.models.shapes import LayerShape, ModelShape

CHUNK = 64


@ADAPTERS.register("qwen3_5")
class Qwen35Adapter(Qwen25VLAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_5_moe")
    examples: ClassVar[tuple[str, ...]] = ("Qwen/Qwen3.5-27B", "Qwen/Qwen3.5-35B-A3B")

    def layer_shape(self, number: int, shape: ModelShape) -> LayerShape:
        """Of linear attention: what transformers' own chunked rule computes, 64 tokens at a time."""
        if not self.recurrent(number):
            return super().layer_shape(number, shape)
        mixer: Any = self.layers()[number].linear_attn
        heads, key, value = mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim
        chunk = heads * (4 * CHUNK**2 * key + 2 * CHUNK**2 * value + 6 * CHUNK * key * value)
        kernel = mixer.conv_kernel_size
        spread = 2 * mixer.conv_dim * kernel
        recent, state = mixer.conv_dim * kernel, heads * key * value
        return LayerShape(0, 0, 0, self._layer_weights[number], chunk, spread, kernel - 1, recent, state)
