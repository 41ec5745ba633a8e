"""Average pooling: compact cells of the picture become one token each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.pruning.methods.base import METHODS, Method, ScoreContext

if TYPE_CHECKING:
    from torch import Tensor

Places = NDArray[np.float64]


@METHODS.register("pool")
@dataclass(frozen=True)
class Pool(Method):
    """Splits the visual tokens that are left into ``keep`` cells and replaces each cell by its mean.

    Cells come from halving the token set, again and again, across its longest side (picture, then frame, row or
    column) in proportion to the cells each half still has to give: any number of cells, any grid, several
    pictures, video. A cell's token stands at the place and position of the member nearest to its middle.
    """

    name: ClassVar[str] = "pool"

    def score(self, context: ScoreContext) -> Tensor:
        return -context.rank.float()

    def _cells(self, context: ScoreContext, row: int, count: int) -> list[NDArray[np.int64]]:
        """Places among the n of every cell's members."""
        at = context.visual[row].nonzero()[:, 0]
        where = context.prompt.coordinates[row, context.index[row, at]].cpu().numpy().astype(float)
        # A picture is never mixed with another one while there are cells enough to keep them apart.
        where[:, 0] *= 1e6
        return [at.cpu().numpy()[part] for part in split(where, np.arange(len(at)), count)]

    def reduce(self, context: ScoreContext, scores: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        chosen, pooled = torch.zeros_like(context.visual), hidden.clone()
        for row, count in enumerate(keep.tolist()):
            for cell in self._cells(context, row, count) if count else []:
                middle = self._middle(context, row, cell)
                chosen[row, middle] = True
                pooled[row, middle] = hidden[row, cell].mean(dim=0)
        return chosen, pooled

    def _middle(self, context: ScoreContext, row: int, cell: NDArray[np.int64]) -> int:
        places = context.prompt.coordinates[row, context.index[row, cell]].double()
        return int(cell[int((places - places.mean(dim=0)).square().sum(dim=1).argmin())])


def split(where: Places, members: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Cut ``members`` (rows of ``where`` [n, axes]) into ``count`` compact parts of nearly equal size."""
    if count == 1:
        return [members]
    axis = int(np.ptp(where[members], axis=0).argmax())
    order = members[np.argsort(where[members, axis], kind="stable")]
    first = count // 2
    cut = min(max(round(len(order) * first / count), first), len(order) - (count - first))
    return split(where, np.sort(order[:cut]), first) + split(where, np.sort(order[cut:]), count - first)
