"""Efficient Video Sampling: keep the visual tokens that changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.errors import ConfigError
from vispco.pruning.methods.base import METHODS
from vispco.pruning.methods.order import StaticOrder, unit

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.pruning.forward.tokens import Prompt

NEW = 255.0  # more than any change: what has nothing before it


@METHODS.register("evs")
@dataclass(frozen=True)
class EVS(StaticOrder):
    """Tokens by 1 - cosine with the token of the same cell in the frame before, of the embeddings that enter the
    decoder. The whole first frame comes first, as does every token of a picture, in their order.

    Source: arXiv 2510.14624 and vllm/multimodal/evs.py; ``evs:0.25`` is the paper's fourfold reduction. Deviation:
    there at least one frame is kept whatever the ratio; here the schedule's count holds. ``frames: pictures`` takes
    the pictures of a prompt for the frames of one video, for models that read videos so.
    """

    frames: str = "video"
    name: ClassVar[str] = "evs"

    def __post_init__(self) -> None:
        if self.frames not in ("video", "pictures"):
            raise ConfigError(f"method 'evs' got frames: {self.frames!r}; it is video or pictures")

    def parameters(self) -> dict[str, Any]:
        """Results from before there was a choice keep their identity."""
        return {} if self.frames == "video" else super().parameters()

    def order(self, prompt: Prompt, row: int, tokens: Tensor, most: int) -> Tensor:
        embeddings = prompt.embeddings[row]
        places = prompt.coordinates[row, tokens.to(prompt.coordinates.device)]
        if self.frames == "pictures":
            places = places[:, [1, 0, 2, 3]]  # each picture is a frame of the only video
        vectors = unit(embeddings[tokens.to(embeddings.device)])
        return changes(vectors, places).argsort(descending=True, stable=True)


def changes(vectors: Tensor, places: Tensor) -> Tensor:
    """float32 [n]: what unit ``vectors`` [n, H] at ``places`` [n, 4] (picture, frame, row, column) changed by."""
    import torch

    listed = [tuple(place) for place in places.tolist()]
    number = {place: index for index, place in enumerate(listed)}
    before = [number.get((picture, frame - 1, *cell), -1) for picture, frame, *cell in listed]
    earlier = torch.tensor(before, device=vectors.device)
    changed = 1 - (vectors * vectors[earlier]).sum(dim=-1)
    return changed.masked_fill(earlier < 0, NEW)
