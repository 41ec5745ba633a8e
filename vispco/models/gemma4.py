"""Gemma 4 (26B-A4B, 31B): pictures of any shape scaled to a number of tokens, heads of two sizes, experts.

Full-attention layers have wider heads than sliding ones, fewer keys and values, and may use keys as values. Picture
tokens see each other in both directions in sliding layers only. The small models (E2B, E4B) are refused: their last
layers read keys and values of earlier ones and run on the last token only, and every layer has an input of its own for
each token, which would have to be cut with the states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.errors import ModelError
from vispco.models.families import ADAPTERS
from vispco.models.grids import Grid
from vispco.models.shapes import LayerShape, ModelShape
from vispco.models.video import KINDS, VideoAdapter

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.hooks import Hooks
    from vispco.models.vision import VisionWatch

PLACES = {"image": "image_position_ids", "video": "video_position_ids"}


@ADAPTERS.register("gemma4")
class Gemma4Adapter(VideoAdapter):
    model_types: ClassVar[tuple[str, ...]] = ("gemma4",)
    examples: ClassVar[tuple[str, ...]] = ("google/gemma-4-26B-A4B-it", "google/gemma-4-31B-it")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        text = model.config.get_text_config()
        beside = []
        if text.num_kv_shared_layers:
            last = f"its last {text.num_kv_shared_layers} of {text.num_hidden_layers} layers"
            beside.append(f"{last} reuse keys and values and run on the last token only")
        if text.hidden_size_per_layer_input:
            beside.append(
                f"every layer has an input of its own for each token ({text.hidden_size_per_layer_input} wide)"
            )
        if beside:
            raise ModelError(
                f"this Gemma 4 is not served: {' and '.join(beside)}, which pruning does not follow; use "
                "gemma-4-26B-A4B or gemma-4-31B"
            )

    def head(self, hidden: Tensor) -> Tensor:
        import torch

        logits, cap = super().head(hidden), self.model.config.get_text_config().final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def layer_config(self, number: int) -> Any:
        return self.model.config.get_text_config().per_layer_config[number]

    def layer_shape(self, number: int, shape: ModelShape) -> LayerShape:
        own = self.layer_config(number)
        return LayerShape(shape.heads, own.num_key_value_heads, own.head_dim, self._layer_weights[number])

    @cached_property
    def _readable(self) -> bool:
        return True

    def note_pictures(self, noted: Callable[[], dict[str, Any]], hooks: Hooks) -> None:
        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            noted()["places"] = kwargs["pixel_position_ids"]

        hooks.before(self.model.model.vision_tower, note)

    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[Grid]:
        """Every frame of a video is a run by itself, with text between them, and counts as a picture of its own."""
        kinds = self.kinds(inputs, runs)
        given = {kind: _sizes(inputs.get(PLACES[kind]), self._side) for kind in KINDS}
        if not any(given.values()):
            noted = _sizes(inputs.get("places"), self._side)
            given = {kind: noted if kind in kinds else [] for kind in KINDS}
        known = {kind: list(sizes) if len(sizes) == kinds.count(kind) else [] for kind, sizes in given.items()}
        shapes = {size for sizes in given.values() for size in sizes}
        found: list[Grid] = []
        for run, kind in zip(runs, kinds, strict=True):
            # generate keeps no sizes, and beams repeat pictures: what the tower saw then tells them by their tokens.
            fits = [known[kind].pop(0)] if known[kind] else [size for size in shapes if size[0] * size[1] == run]
            if shapes and len(fits) != 1:
                raise ModelError(
                    f"a picture of {run} tokens may have any of {sorted(fits) or sorted(shapes)} rows and columns, and "
                    "generate does not say which; give pictures of one shape and kind, or use greedy decoding"
                )
            found.append(Grid(1, *(fits[0] if fits else (1, run))))
        return found

    @property
    def _side(self) -> int:
        side: int = self.model.config.vision_config.pooling_kernel_size
        return side

    def seen(self, inputs: dict[str, Any]) -> None:
        return None

    def encode(self, kind: str, inputs: dict[str, Any]) -> Tensor:
        import torch

        if kind == "image":
            outputs = self.model.get_image_features(inputs["pixel_values"], inputs[PLACES[kind]])
        else:
            outputs = self.model.model.get_video_features(
                inputs["pixel_values_videos"], inputs[PLACES[kind]], inputs["num_frames_per_video"]
            )
        return torch.cat(list(outputs.pooler_output))

    def watch_vision(self) -> VisionWatch | None:
        from vispco.models.vision import PlacedWatch

        tower = self.model.model.vision_tower
        return PlacedWatch(tower, self.model.model.embed_vision, self._side)


def _sizes(places: Tensor | None, side: int) -> list[tuple[int, int]]:
    """Rows and columns of cells of each picture from the (x, y) of its patches [P, n, 2], -1 where there is none."""
    if places is None:
        return []
    most = places.amax(dim=1) + 1
    return [(int(rows) // side, int(columns) // side) for columns, rows in most.tolist()]
