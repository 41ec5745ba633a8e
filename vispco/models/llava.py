"""LLaVA-1.5: any vision tower, two-layer projector, Llama-like decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.base import ADAPTERS, ModelAdapter, ModelShape

if TYPE_CHECKING:
    from torch import Tensor, nn


@ADAPTERS.register("llava")
class LlavaAdapter(ModelAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def shape(self) -> ModelShape:
        config = self.model.config.get_text_config()
        return ModelShape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp=config.intermediate_size,
        )

    def entry(self) -> nn.Module:
        module: nn.Module = self.model.model
        return module

    def decoder(self) -> nn.Module:
        module: nn.Module = self.model.model.language_model
        return module

    def layers(self) -> Sequence[nn.Module]:
        layers: Sequence[nn.Module] = self.model.model.language_model.layers
        return layers

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module]:
        attention: Any = self.layers()[layer].self_attn
        return attention.q_proj, attention.k_proj

    def rotate(self, heads: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        return heads * cos + _half_turn(heads) * sin

    def visual_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        token = self.model.config.image_token_id
        found: Tensor
        if input_ids is not None:
            found = input_ids == token
        else:
            assert inputs_embeds is not None
            found = (inputs_embeds == self.model.get_input_embeddings().weight[token]).all(-1)
        return found

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        import torch

        outputs = self.model.get_image_features(pixel_values=inputs["pixel_values"])
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in outputs.pooler_output])

    def with_features(self, inputs: dict[str, Any], features: Tensor) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
        if len(features):
            # LLaVA joins a list of [images, tokens, H]; one long image of all tokens is the same join.
            rest["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=[features[None]])}
        return rest


def _half_turn(x: Tensor) -> Tensor:
    import torch

    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
