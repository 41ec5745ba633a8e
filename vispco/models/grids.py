"""Where visual tokens stand in their pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vispco.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


class Grid(NamedTuple):
    """Cells of one picture or video as the vision tower saw it, in the order of its tokens.

    ``row_end``: a token that is no cell stands after every row; ``end``: after the last cell. It has a place all
    the same, the column after its row's last one. ``view``: 0, or which further view (thumbnail, tile, crop) of
    the picture before it this is.
    """

    frames: int
    rows: int
    columns: int
    row_end: bool = False
    end: bool = False
    view: int = 0

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * (self.columns + self.row_end) + self.end

    def places(self) -> Tensor:
        """int [tokens, 3]: frame, row, column."""
        import torch

        axes = torch.arange(self.frames), torch.arange(self.rows), torch.arange(self.columns + self.row_end)
        cells = torch.cartesian_prod(*axes).view(-1, 3)
        last = torch.tensor([[self.frames - 1, self.rows - 1, self.columns + self.row_end]])
        return torch.cat([cells, last]) if self.end else cells


def run_lengths(visual: Tensor) -> list[int]:
    """Lengths of the runs of True in a bool [B, T] on the CPU, row by row."""
    lengths = []
    for row in visual:
        edges = row.int().diff(prepend=row.new_zeros(1).int(), append=row.new_zeros(1).int())
        lengths += ((edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]).tolist()
    return lengths


def fixed_grids(runs: Sequence[int], tokens: int) -> list[Grid]:
    """Square grids of ``tokens`` cells for runs of one or more such pictures, or of one smaller picture.

    Raises:
        ModelError: a run is neither.
    """
    grids: list[Grid] = []
    for run in runs:
        cells, pictures = (tokens, run // tokens) if run % tokens == 0 else (run, 1)
        side = math.isqrt(cells)
        if cells != tokens and (side * side != cells or cells > tokens):
            raise ModelError(
                f"{run} visual tokens stand side by side, which is no number of pictures of {tokens} tokens, nor one "
                "smaller square picture; put text between pictures"
            )
        grids += [Grid(1, side, side) if side * side == cells else Grid(1, 1, cells)] * pictures
    return grids
