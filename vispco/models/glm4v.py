"""GLM-4.1V, GLM-4.5V and GLM-4.6V: pictures and videos of any size, positions with three axes on a part of each head.

One placeholder token stands for pictures and videos, so that a batch has either (the model refuses both together).
The frames of a video are separated by timestamps, which are text; they are still one picture of several frames.
GLM-4.5V (``glm4v_moe``) has experts after its first layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.decoder import rotate_part
from vispco.models.families import ADAPTERS
from vispco.models.qwen2_5_vl import TABLES, Qwen25VLAdapter
from vispco.models.video import PIXELS

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionWatch


@ADAPTERS.register("glm4v")
class Glm4vAdapter(Qwen25VLAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("glm4v", "glm46v")
    examples: ClassVar[tuple[str, ...]] = ("zai-org/GLM-4.1V-9B-Thinking", "zai-org/GLM-4.6V-Flash")

    def rotate(self, heads: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Turns pairs of neighbours in the first part of each head."""
        import torch

        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        turned, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
        across = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
        return torch.cat((turned * cos + across * sin, rest), dim=-1)

    def visual_token_ids(self) -> tuple[int, ...]:
        return (self.model.config.image_token_id,)

    def of_videos(self, inputs: dict[str, Any]) -> Tensor:
        visual = self.visual_mask(inputs.get("input_ids"), inputs.get("inputs_embeds"))
        encoded = inputs.get("mm_encoder_outputs") or {}
        given = (inputs.get(PIXELS["video"]), inputs.get(TABLES["video"]), encoded.get("video"))
        return visual[visual] & any(part is not None for part in given)

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import GlmWatch

        return GlmWatch(self.model.model.visual)


@ADAPTERS.register("glm4v_moe")
class Glm4vMoeAdapter(Glm4vAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("glm4v_moe",)
    examples: ClassVar[tuple[str, ...]] = ("zai-org/GLM-4.5V",)

    def rotate(self, heads: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Turns the two halves of the first part of each head."""
        return rotate_part(heads, position_embeddings)
