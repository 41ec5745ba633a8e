"""GLM-4.1V, GLM-4.6V and GLM-4.5V."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vispco.testing.tiny.base import IMAGE, TEXT, VIDEO
from vispco.testing.tiny.qwen import VISION, TinyQwen25VL

TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1]}


class TinyGlm4v(TinyQwen25VL):
    """Positions turn half of each head; pictures and videos have one placeholder, so a batch has either."""

    name = "glm4v"
    video_times = {}

    def build(self) -> Any:
        from transformers import Glm4vConfig, Glm4vForConditionalGeneration

        return self._build(Glm4vConfig, Glm4vForConditionalGeneration)

    def _build(self, config: Any, model: Any, **more: Any) -> Any:
        torch.manual_seed(0)
        vision = {
            "model_type": "glm4v_moe_vision" if more else "glm4v_vision",
            **VISION,
            "depth": 1,
            "image_size": 16,
        }
        text = {"model_type": "glm4v_moe_text" if more else "glm4v_text", **TEXT, "rope_parameters": HALF, **more}
        return model(config(vision_config=vision, text_config=text, **TOKENS)).eval()

    def types(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (input_ids == IMAGE).int()}

    def video_batch(self, side: str = "left") -> dict[str, Tensor]:
        """A video of three frames with timestamps between them, a text-only row beside it."""
        generator = torch.Generator().manual_seed(1)
        text = torch.randint(10, 60, (20,), generator=generator)
        frame = torch.cat([torch.tensor([6]), torch.full((6,), IMAGE), torch.tensor([7, 8])])
        batch = self.pad([torch.cat([text[:2], frame.repeat(3), text[2:7]]), text[9:]], side)
        return {
            **batch,
            "mm_token_type_ids": 2 * batch["mm_token_type_ids"],
            "pixel_values_videos": torch.randn(72, self.patch, generator=generator),
            "video_grid_thw": torch.tensor([[3, 4, 6]]),
        }


class TinyGlm46V(TinyGlm4v):
    name = "glm46v"

    def build(self) -> Any:
        from transformers import Glm46VConfig, Glm46VForConditionalGeneration

        return self._build(Glm46VConfig, Glm46VForConditionalGeneration)


class TinyGlm4vMoe(TinyGlm4v):
    """A dense first layer, then four experts of which a token is sent to two, and one that it always meets."""

    name = "glm4v_moe"

    def build(self) -> Any:
        from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

        experts = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 8}
        return self._build(Glm4vMoeConfig, Glm4vMoeForConditionalGeneration, **experts, **groups)
