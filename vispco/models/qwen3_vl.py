"""Qwen3-VL: visual features of earlier vision layers are added after the decoder's first layers (deepstack).

The decoder would add them by a mask over the whole prompt; here the runtime takes them over and adds the rows of
the tokens that are left. Features are [tokens, H] for the prompt with those of the layers after them, [tokens,
(1 + layers) H]. Queries and keys are normalised head by head. The frames of a video are separated by timestamps,
which are text; they are still one picture of several frames. ``qwen3_vl_moe`` has experts in place of most MLPs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.decoder import Deepstack
from vispco.models.families import ADAPTERS
from vispco.models.qwen2_5_vl import TABLES, Qwen25VLAdapter
from vispco.models.video import PIXELS

if TYPE_CHECKING:
    from torch import Tensor


@ADAPTERS.register("qwen3_vl")
class Qwen3VLAdapter(Qwen25VLAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    examples: ClassVar[tuple[str, ...]] = (
        "Qwen/Qwen3-VL-4B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
    )

    def deepstack_layers(self) -> int:
        return len(self.model.config.vision_config.deepstack_visual_indexes)

    def take_deepstack(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Deepstack | None]:
        features = kwargs.get("deepstack_visual_embeds")
        if features is None:
            return kwargs, None
        left = {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}
        return left, Deepstack(kwargs["visual_pos_masks"], features)

    def encode(self, kind: str, inputs: dict[str, Any]) -> Tensor:
        import torch

        encode = self.model.get_image_features if kind == "image" else self.model.get_video_features
        outputs = encode(inputs[PIXELS[kind]], inputs[TABLES[kind]])
        parts = [outputs.pooler_output, *outputs.deepstack_features]
        return torch.cat([torch.cat(list(part)) for part in parts], dim=1)

    def encoder_output(self, kind: str, features: Tensor) -> Any:
        import torch
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        first, *others = torch.split(features, self.shape().hidden, dim=1)
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=[first], deepstack_features=[[part] for part in others]
        )
