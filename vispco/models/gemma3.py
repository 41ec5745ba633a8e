"""Gemma 3: SigLIP tower pooled to 256 tokens, norms on queries and keys, sliding-window layers between full ones.

Two kinds of layer get two rotary tables and two masks, and picture tokens see each other in both directions;
the runtime cuts whatever mask and table a layer receives, so none of this needs a special case here. In
decoding, the window is measured in places of the prompt, not in entries of the (shorter) cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.base import ModelAdapter
from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid, fixed_grids

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vispco.models.vision import VisionWatch


@ADAPTERS.register("gemma3")
class Gemma3Adapter(ModelAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    examples: ClassVar[tuple[str, ...]] = ("google/gemma-3-4b-it",)

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        attention: Any = self.layers()[layer].self_attn
        return attention.q_norm, attention.k_norm

    def to_heads(self, projected: Tensor, heads: int) -> Tensor:
        """The norms' outputs are [B, heads, n, d] already."""
        return projected

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        return fixed_grids(runs, self.model.config.mm_tokens_per_image)

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        features: Tensor = self.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        return features.flatten(0, 1)

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import EncoderWatch

        tower, projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        layers = getattr(tower, "vision_model", tower).encoder.layers
        heads = self.model.config.vision_config.num_attention_heads
        return EncoderWatch(layers, len(layers) - 1, heads, projector, cls=False, cell=projector.kernel_size)

    def encoder_output(self, kind: str, features: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=features[None])
