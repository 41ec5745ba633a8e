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
    out before the vision tower runs, so that their number is the picture's; here the schedule says how many go, and
    the tower sees all of them, so that it saves the decoder only.
    """

    name: ClassVar[str] = "pixelprune"
    needs: ClassVar[frozenset[str]] = frozenset({"vision", "pixels"})

    def order(self, prompt: Prompt, row: int, tokens: Tensor, most: int) -> Tensor:
        novelty = prompt.vision[row].novelty
        assert novelty is not None
        return novelty.argsort(descending=True, stable=True)
