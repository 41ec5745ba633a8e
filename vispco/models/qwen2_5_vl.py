"""Qwen2.5-VL: pictures and videos of any size, positions with three axes (M-RoPE).

The decoder turns the three rows of position ids into one rotary table before its first layer; the runtime
cuts that table, so kept tokens keep their time, height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.base import ADAPTERS, ModelAdapter

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionExtras, VisionWatch

KINDS = (("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw"))


@ADAPTERS.register("qwen2_5_vl")
class Qwen25VLAdapter(ModelAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def decoding_inputs(self, attention_mask: Tensor, new: int) -> dict[str, Tensor]:
        """Positions [3, B, new]: a picture takes fewer places than tokens; the prefill noted by how much."""
        ids = (attention_mask.long().cumsum(dim=1) - 1)[:, -new:]
        deltas = self.model.model.rope_deltas
        if deltas is not None:
            ids = ids + deltas.to(ids.device)
        return {"position_ids": ids.expand(3, -1, -1)}

    def visual_token_ids(self) -> tuple[int, ...]:
        return (self.model.config.image_token_id, self.model.config.video_token_id)

    def _sizes(self, inputs: dict[str, Any], grid: str) -> list[tuple[int, int, int]]:
        merge = self.model.config.vision_config.spatial_merge_size
        table = inputs.get(grid)
        return [] if table is None else [(t, h // merge, w // merge) for t, h, w in table.tolist()]

    def _is_video(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[bool]:
        """For every run of visual tokens, in reading order, whether it is a video's."""
        ids = inputs.get("input_ids")
        if ids is None:
            return [inputs.get("video_grid_thw") is not None] * len(runs)
        flat = ids.flatten()
        tokens = flat[self.visual_mask(ids, None).flatten()]
        starts = [sum(runs[:number]) for number in range(len(runs))]
        return [bool(tokens[start] == self.model.config.video_token_id) for start in starts]

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[tuple[int, int, int]]:
        left = {False: self._sizes(inputs, "image_grid_thw"), True: self._sizes(inputs, "video_grid_thw")}
        found = []
        for run, video in zip(runs, self._is_video(inputs, runs), strict=True):
            while run > 0:
                # A caller may give features without their grids; then only the order of tokens is known.
                grid = left[video].pop(0) if left[video] else (1, 1, run)
                found.append(grid)
                run -= grid[0] * grid[1] * grid[2]
        return found

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        import torch

        parts: dict[str, Tensor] = {}
        for kind, pixels, grid in KINDS:
            if inputs.get(pixels) is not None:
                encode = self.model.get_image_features if kind == "image" else self.model.get_video_features
                parts[kind] = torch.cat(list(encode(inputs[pixels], inputs[grid]).pooler_output))
        if len(parts) == 1:
            return next(iter(parts.values()))
        video = self._of_videos(inputs)
        joined = torch.empty(len(video), parts["image"].shape[-1], dtype=parts["image"].dtype, device=video.device)
        joined[video], joined[~video] = parts["video"], parts["image"]
        return joined

    def _of_videos(self, inputs: dict[str, Any]) -> Tensor:
        """bool [N]: whether a visual token is a video's."""
        ids = inputs["input_ids"]
        return ids[self.visual_mask(ids, None)] == self.model.config.video_token_id  # type: ignore[no-any-return]

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import PackedWatch

        return PackedWatch(self.model.model.visual)

    def join_extras(self, inputs: dict[str, Any], calls: Sequence[VisionExtras]) -> VisionExtras:
        """Pictures are encoded before videos, wherever they stand in the prompt."""
        joined = super().join_extras(inputs, calls)
        if len(calls) == 1:
            return joined
        return joined.take(self._of_videos(inputs).long().argsort(stable=True).argsort())

    def with_features(self, inputs: dict[str, Any], features: Tensor) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        rest = {key: value for key, value in inputs.items() if not key.startswith("pixel_values")}
        if not len(features):
            return rest
        video = self._of_videos(inputs)
        rest["mm_encoder_outputs"] = {
            kind: BaseModelOutputWithPooling(pooler_output=[features[where]])
            for kind, where in (("image", ~video), ("video", video))
            if bool(where.any())
        }
        return rest
