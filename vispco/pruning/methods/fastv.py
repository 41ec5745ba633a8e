"""FastV: keep the visual tokens that the last prompt token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.pruning.methods.base import METHODS, Method, ScoreContext

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape


@METHODS.register("fastv")
@dataclass(frozen=True)
class FastV(Method):
    """Attention of the last prompt token in the layer before, mean over heads.

    Source: arXiv 2403.06764; the rule of the official code (pkunlp-icler/FastV), which reads one query row
    although the paper speaks of attention from all tokens. Deviations: scores come from one row computed
    beside the fast attention kernel; under a schedule with several boundaries tokens are scored again at
    each; the last *valid* token is the query, not index -1; a count that ends in one half is rounded up, where
    Python's ``round`` takes the even neighbour. The published settings, quarters of 576 tokens, have no halves.
    """

    name: ClassVar[str] = "fastv"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    differentiable: ClassVar[bool] = True

    def score(self, context: ScoreContext) -> Tensor:
        return context.attention_rows(context.last[:, None])[:, :, 0].mean(dim=1)

    def scoring_flops(self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64]) -> Any:
        return 2 * shape.heads * shape.head_dim * (visual + text)
