"""Qwen2.5-VL in vLLM, pruned before the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vispco.integrations.vllm.pruned import PicturesOnly, PrunedModel, PrunedProcessor
from vispco.models.grids import Grid
from vispco.models.vision import VisionExtras, attention_to, in_heads, rotated


class Info(PicturesOnly, Qwen2_5_VLProcessingInfo):  # type: ignore[misc]
    """Qwen2.5-VL's."""


class Processor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):  # type: ignore[misc]
    """Qwen2.5-VL's, with fewer placeholders."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder)
class VispcoQwen25VL(PrunedModel, Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """Positions have time, height and width."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.begin_pruning(vllm_config)
        self._read: dict[str, Any] = {}
        if "vision" in self.settings.method.needs:
            attention = self.visual.blocks[max(self.visual.fullatt_block_indexes)].attn
            attention.register_forward_pre_hook(self._on_attention, with_kwargs=True)
            attention.qkv.register_forward_hook(self._on_qkv)

    def _on_attention(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._read.update(kwargs)

    def _on_qkv(self, module: Any, args: Any, output: Any) -> None:
        self._read["qkv"] = output[0].detach()

    def _process_image_input(self, image_input: Any) -> Any:
        pictures = super()._process_image_input(image_input)
        merge, table = self.visual.spatial_merge_size, image_input["image_grid_thw"].tolist()
        grids = [Grid(frames, rows // merge, columns // merge) for frames, rows, columns in table]
        return self.pruned(pictures, grids, self._extras(table))

    def _extras(self, table: list[list[int]]) -> list[VisionExtras | None]:
        """Of the last block with full attention, in the order of the pictures' tokens."""
        read, self._read = self._read, {}
        if "qkv" not in read:
            return [None] * len(table)
        heads, qkv = self.visual.num_heads, read["qkv"][:, 0]
        q, k, _ = qkv.view(len(qkv), 3, heads, -1).unbind(dim=1)
        cosine, sine = (torch.cat([read[f"rotary_pos_emb_{name}"]] * 2, dim=-1) for name in ("cos", "sin"))
        q, k = rotated(q, (cosine, sine)), rotated(k, (cosine, sine))
        merge = self.visual.spatial_merge_size**2
        order = self.visual.prepare_encoder_metadata(table)["reverse_indices"].to(qkv.device)
        found: list[VisionExtras | None] = []
        sizes = [frames * rows * columns for frames, rows, columns in table]
        attention = torch.cat(
            [
                attention_to(in_heads(a.flatten(1), heads), in_heads(b.flatten(1), heads))
                for a, b in zip(torch.split(q, sizes), torch.split(k, sizes), strict=True)
            ]
        )
        merged = attention.view(-1, merge).mean(dim=1)[order]
        keys = k.flatten(1).view(len(merged), merge, -1).mean(dim=1)[order]
        counts = [size // merge for size in sizes]
        for size, given, own in zip(sizes, torch.split(merged, counts), torch.split(keys, counts), strict=True):
            among = torch.full_like(given, size)
            found.append(VisionExtras(given, given, among, own, own, own, heads, "received"))
        return found

    def places(self, grid: Grid) -> Tensor:
        return grid.places()

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        merge = self.visual.spatial_merge_size
        positions = torch.arange(len(input_tokens))
        following = len(input_tokens)
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            start, length = feature.mm_position.offset, feature.mm_position.length
            frames, rows, columns = feature.data["image_grid_thw"].data.tolist()
            taken = max(frames, rows // merge, columns // merge)
            positions[start : start + length] = positions[start].clone()
            positions[start + length :] += taken - length
            following += taken - length
        return positions[None].expand(3, -1).contiguous(), following - len(input_tokens)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        return super().forward(input_ids, self.moved(positions), intermediate_tensors, inputs_embeds, **kwargs)
