"""Which tokens of a prompt are left, and what is known of the prompt before the first layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vispco.errors import ModelError
from vispco.models.vision import VisionExtras


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts as the decoder receives them.

    ``embeddings``: [B, T, H], visual features in place; ``visual``, ``valid``: bool [B, T], valid is False at
    padding. ``read_coordinates``, ``read_keys`` and ``read_vision`` are called when first asked for. ``most``: the
    most visual tokens that any sample is left with where it loses some but not all, None if that is not known; a
    method need not put more than these in order.
    """

    embeddings: Tensor
    visual: Tensor
    valid: Tensor
    read_coordinates: Callable[[], Tensor]
    read_keys: Callable[[], list[int]]
    read_vision: Callable[[], list[VisionExtras]] | None = None
    most: int | None = None

    @cached_property
    def coordinates(self) -> Tensor:
        """int [B, T, 4]: (picture, frame, row, column) of visual tokens, 0 elsewhere."""
        return self.read_coordinates()

    @cached_property
    def sample_keys(self) -> list[int]:
        """An integer per sample that does not depend on the batch."""
        return self.read_keys()

    @cached_property
    def vision(self) -> list[VisionExtras]:
        """What the vision tower knows of each sample's visual tokens, in their order.

        Raises:
            ModelError: nothing was read off the tower.
        """
        if self.read_vision is None:
            raise ModelError("nothing was read off the vision tower for this prompt; give the prompt its read_vision")
        return self.read_vision()

    def after_last_visual(self) -> Tensor:
        """bool [B, T]: valid text after the last visual token (all valid text where there is none)."""
        visual_later = self.visual.flip(1).cumsum(dim=1).flip(1)
        return self.valid & (visual_later == 0)


@dataclass(frozen=True)
class Tokens:
    """The tokens left at some layer, ``n`` of the ``T`` in the prompt; every tensor is [B, n].

    ``index``: place in the prompt; ``valid``: False where a row is filled up to the longest row;
    ``visual``: came from pixels; ``rank``: place among the sample's visual tokens.
    """

    index: Tensor
    valid: Tensor
    visual: Tensor
    rank: Tensor

    @staticmethod
    def of(visual: Tensor, valid: Tensor) -> Tokens:
        """All tokens of prompts with these masks, bool [B, T]."""
        index = torch.arange(visual.shape[1], device=visual.device).expand(len(visual), -1)
        return Tokens(index, valid, visual & valid, visual.long().cumsum(dim=1).sub(1).clamp(min=0))

    @property
    def filler(self) -> Tensor:
        """bool [B, n]: places that hold no token."""
        return ~self.valid

    def last(self) -> Tensor:
        """[B], place of the last valid token among the n."""
        places = torch.arange(self.valid.shape[1], device=self.valid.device)
        return (self.valid * places).amax(dim=1)

    def take(self, keep: Tensor) -> tuple[Tokens, Tensor]:
        """The tokens where ``keep`` [B, n], in order, and their places among the n.

        Shorter rows are filled on the left, so that the newest entries of every row's cache are real ones:
        a sliding cache drops the oldest.
        """
        length = max(int(keep.sum(dim=1).amax()), 1)
        places = keep.int().argsort(dim=1, stable=True)[:, -length:]
        valid = keep.gather(1, places)
        left = Tokens(
            self.index.gather(1, places),
            valid,
            self.visual.gather(1, places) & valid,
            self.rank.gather(1, places),
        )
        return left, places


def rows_at(values: Tensor, places: Tensor) -> Tensor:
    """``values`` [B or 1, n, H] at ``places`` [B, m] of each row: [B, m, H], on the values' device.

    Copies whole rows, several times faster than ``Tensor.gather`` with an index per value.
    """
    places = places.to(values.device)
    if len(values) == len(places):
        start = torch.arange(len(places), device=values.device)[:, None] * values.shape[1]
        places = places + start
    flat = values.reshape(-1, values.shape[-1]).index_select(0, places.reshape(-1))
    return flat.view(*places.shape, values.shape[-1])
