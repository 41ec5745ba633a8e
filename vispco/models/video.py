"""What families with one placeholder token for pictures and another one for videos have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vispco.models.base import ModelAdapter

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionExtras

KINDS = ("image", "video")
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class VideoAdapter(ModelAdapter):
    """Subclasses say how pictures and videos are encoded; here they are put in the order of their tokens."""

    @abstractmethod
    def encode(self, kind: str, inputs: dict[str, Any]) -> Tensor:
        """Features of all pictures or of all videos of a batch, [their tokens, H]."""

    def visual_token_ids(self) -> tuple[int, ...]:
        return (self.model.config.image_token_id, self.model.config.video_token_id)

    def of_videos(self, inputs: dict[str, Any]) -> Tensor:
        """bool [total visual tokens], True where one belongs to a video."""
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        video = self.places_of((self.model.config.video_token_id,), ids, embeds)
        return video[self.visual_mask(ids, embeds)]

    def kinds(self, inputs: dict[str, Any], runs: Sequence[int]) -> list[str]:
        """For every run of visual tokens, in reading order, what it belongs to."""
        if inputs.get("input_ids") is None and inputs.get("inputs_embeds") is None:
            return ["image"] * len(runs)
        video = self.of_videos(inputs).cpu()
        return [KINDS[bool(video[sum(runs[:number])])] for number in range(len(runs))]

    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        import torch

        parts = {kind: self.encode(kind, inputs) for kind in KINDS if inputs.get(PIXELS[kind]) is not None}
        if len(parts) == 1:
            return next(iter(parts.values()))
        video = self.of_videos(inputs)
        joined = torch.empty(len(video), parts["image"].shape[-1], dtype=parts["image"].dtype, device=video.device)
        joined[video], joined[~video] = parts["video"], parts["image"]
        return joined

    def join_extras(self, inputs: dict[str, Any], calls: Sequence[VisionExtras]) -> VisionExtras:
        """Pictures are encoded before videos, wherever they stand in the prompt."""
        joined = super().join_extras(inputs, calls)
        if len(calls) == 1:
            return joined
        return joined.take(self.of_videos(inputs).long().argsort(stable=True).argsort())

    def with_features(self, inputs: dict[str, Any], features: Tensor) -> dict[str, Any]:
        rest = {key: value for key, value in inputs.items() if key not in PIXELS.values()}
        if not len(features):
            return rest
        video = self.of_videos(inputs)
        rest["mm_encoder_outputs"] = {
            kind: self.encoder_output(kind, features[where])
            for kind, where in (("image", ~video), ("video", video))
            if bool(where.any())
        }
        return rest
