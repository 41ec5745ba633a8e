"""LLaVA-1.5 in vLLM, pruned before the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from vispco.integrations.vllm.pruned import PicturesOnly, PrunedModel, PrunedProcessor
from vispco.integrations.vllm.settings import Settings
from vispco.models.grids import fixed_grids
from vispco.models.vision import VisionExtras, attention_to, in_heads


class Info(PicturesOnly, LlavaProcessingInfo):  # type: ignore[misc]
    """LLaVA's."""


class Processor(PrunedProcessor, LlavaMultiModalProcessor):  # type: ignore[misc]
    """LLaVA's, with fewer placeholders."""


def most_positions(model_config: Any) -> int:
    """How far positions reach: a prompt of nothing but pictures, and an answer."""
    whole = tokens_of_picture(model_config.hf_config)
    pictures = model_config.max_model_len // Settings.of(model_config.hf_config).count(whole) + 1
    longest: int = model_config.max_model_len + pictures * whole
    return longest


def tokens_of_picture(config: Any) -> int:
    """Visual tokens before pruning; pictures have one size."""
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return side * side + (0 if config.vision_feature_select_strategy == "default" else 1)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=LlavaDummyInputsBuilder)
class VispcoLlava(PrunedModel, LlavaForConditionalGeneration, SupportsMRoPE):  # type: ignore[misc]
    """Positions have one axis; they travel as vLLM's three so that they may be set."""

    # Checkpoints that transformers 5.23 wrote name the tower's parts without a level between.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            **{
                f"{before}vision_tower.{part}.": f"vision_tower.vision_model.{part}."
                for before in ("model.", "")
                for part in ("embeddings", "encoder", "pre_layrnorm", "post_layernorm")
            },
            **LlavaForConditionalGeneration.hf_to_vllm_mapper.orig_to_new_prefix,
        }
    )

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        text = vllm_config.model_config.hf_config.get_text_config()
        trained = text.max_position_embeddings
        # The table of angles has to reach as far as the whole prompts, not as far as the pruned ones.
        text.max_position_embeddings = max(trained, most_positions(vllm_config.model_config))
        try:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        finally:
            text.max_position_embeddings = trained
        self.begin_pruning(vllm_config)
        self._read: Tensor | None = None
        if "vision" in self.settings.method.needs:
            attention = self.vision_tower.vision_model.encoder.layers[-1].self_attn
            attention.qkv_proj.register_forward_hook(self._on_qkv)

    def _on_qkv(self, module: Any, args: Any, output: Any) -> None:
        self._read = output[0].detach()

    def embed_multimodal(self, **kwargs: object) -> Any:
        pictures = super().embed_multimodal(**kwargs)
        if not len(pictures):
            return pictures
        grids = [fixed_grids([len(features)], len(features))[0] for features in pictures]
        return self.pruned(pictures, grids, self._extras(len(pictures)))

    def _extras(self, pictures: int) -> list[VisionExtras | None]:
        """What the last layer of the tower that is loaded said: the one that makes the features."""
        read, self._read = self._read, None
        if read is None:
            return [None] * pictures
        heads = self.config.vision_config.num_attention_heads
        first = 1 if self.config.vision_feature_select_strategy == "default" else 0
        found: list[VisionExtras | None] = []
        for row in read.view(pictures, -1, read.shape[-1]):
            queries, keys, _ = row.chunk(3, dim=-1)
            attention = attention_to(in_heads(queries, heads)[:, :1], in_heads(keys, heads))[first:]
            kept, among = keys[first:], torch.full_like(attention, len(keys))
            found.append(VisionExtras(attention, attention, among, kept, kept, kept, heads, "cls"))
        return found

    def places(self, grid: Any) -> Tensor:
        return torch.arange(grid.tokens)[:, None].expand(-1, 3)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        whole, positions = tokens_of_picture(self.config), torch.arange(len(input_tokens))
        following = len(input_tokens)
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            start, length = feature.mm_position.offset, feature.mm_position.length
            positions[start : start + length] = positions[start].clone()
            positions[start + length :] += whole - length
            following += whole - length
        return positions[None].expand(3, -1).contiguous(), following - len(input_tokens)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        return super().forward(input_ids, self.moved(positions)[0], intermediate_tensors, inputs_embeds, **kwargs)
