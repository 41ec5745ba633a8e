"""Qwen2.5-VL: pictures and videos of any size, positions with three axes (M-RoPE).

The decoder turns the three rows of position ids into one rotary table before its first layer; the runtime
cuts that table, so kept tokens keep their time, height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid
from vispco.models.video import KINDS, PIXELS, VideoAdapter

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionWatch

TABLES = {"image": "image_grid_thw", "video": "video_grid_thw"}


@ADAPTERS.register("qwen2_5_vl")
class Qwen25VLAdapter(VideoAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    examples: ClassVar[tuple[str, ...]] = ("Qwen/Qwen2.5-VL-7B-Instruct",)

    def decoding_inputs(self, attention_mask: Tensor, new: int) -> dict[str, Tensor]:
        """Positions [3, B, new]: a picture takes fewer places than tokens; the prefill noted by how much."""
        ids = (attention_mask.long().cumsum(dim=1) - 1)[:, -new:]
        deltas = self.model.model.rope_deltas
        if deltas is not None:
            ids = ids + deltas.to(ids.device)
        return {"position_ids": ids.expand(3, -1, -1)}

    def encode(self, kind: str, inputs: dict[str, Any]) -> Tensor:
        import torch

        encode = self.model.get_image_features if kind == "image" else self.model.get_video_features
        return torch.cat(list(encode(inputs[PIXELS[kind]], inputs[TABLES[kind]]).pooler_output))

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        known = {kind: self._known(inputs, kind) for kind in KINDS}
        found: list[Grid] = []
        owed = done = 0  # tokens of the runs so far that no grid has yet, or that the last one still claims
        for run, kind in zip(runs, self.kinds(inputs, runs), strict=True):
            owed += run
            while owed > 0:
                grid = known[kind].pop(0) if known[kind] else owed
                if isinstance(grid, int):
                    grid = self._by_positions(inputs, done, owed, grid)
                found.append(grid)
                owed, done = owed - grid.tokens, done + grid.tokens
        return found

    def _known(self, inputs: dict[str, Any], kind: str) -> list[Any]:
        """Grids of pictures or videos, or at least their tokens, which is what ``generate`` leaves."""
        merge = self.model.config.vision_config.spatial_merge_size
        if inputs.get(TABLES[kind]) is not None:
            return [Grid(t, h // merge, w // merge) for t, h, w in inputs[TABLES[kind]].tolist()]
        encoded = (inputs.get("mm_encoder_outputs") or {}).get(kind)
        return [] if encoded is None else [len(features) for features in encoded.pooler_output]

    def _by_positions(self, inputs: dict[str, Any], start: int, run: int, tokens: int) -> Grid:
        """The grid of ``tokens`` from the rotary positions of the first ``run`` from visual token ``start`` on."""
        positions = inputs.get("position_ids")
        if positions is not None and positions.ndim == 3:
            visual = self.visual_mask(inputs.get("input_ids"), inputs.get("inputs_embeds"))
            rows, columns = positions[-2:][:, visual][:, start : start + min(run, tokens)]
            h, w = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
            if tokens % (h * w) == 0:
                return Grid(tokens // (h * w), h, w)
        # A caller may give features without anything else; then only the order of tokens is known.
        return Grid(1, 1, tokens)

    def seen(self, inputs: dict[str, Any]) -> None:
        return None

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import PackedWatch

        return PackedWatch(self.model.model.visual)
