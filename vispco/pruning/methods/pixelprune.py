"""PixelPrune: keep the cells of a picture that their neighbours do not predict, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vispco.pruning.methods.base import METHODS
from vispco.pruning.methods.order import StaticOrder

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.pruning.forward.tokens import Prompt


@METHODS.register("pixelprune")
@dataclass(frozen=True)
class PixelPrune(StaticOrder):
    """Cells by the largest difference of a pixel to the prediction: the cell above where the cell above on the left
    equals the one on the left but not the one above, else the one on the left; in the first row the one on the left, in
    the first column the one above. Exact copies come last, the corner of each picture or frame first.

    Source: arXiv 2604.00886 and OPPO-Mente-Lab/PixelPrune. Deviations: there cells that equal the prediction are left
    out before the vision tower runs, so that their number is the picture's; here they leave the decoder as the schedule
    says, and the tower sees all of them. So it saves the decoder only: ``total_flops`` and milliseconds have the whole
    tower in them. Features of the cells that stay are those of the whole picture, not of a tower that never saw the
    copies. The reason: features are computed once for all schedules of a study, and a tower on fewer patches needs its
    positions, windows and seams cut in every family's own way. To make the tower cheaper too, lower ``resolution``.
    With a threshold (``tau`` there) its prediction is from what was kept; here it is from the pixels themselves.
    """

    name: ClassVar[str] = "pixelprune"
    needs: ClassVar[frozenset[str]] = frozenset({"vision", "pixels"})

    def order(self, prompt: Prompt, row: int, tokens: Tensor, most: int) -> Tensor:
        novelty = prompt.vision[row].novelty
        assert novelty is not None
        return novelty.argsort(descending=True, stable=True)
