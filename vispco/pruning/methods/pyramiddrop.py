"""PyramidDrop: keep the visual tokens that the last prompt token will attend to in the layer ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from vispco.pruning.methods.base import METHODS, Method, ScoreContext

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vispco.models.shapes import ModelShape


@METHODS.register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(Method):
    """Attention of the last prompt token in the layer that the tokens are about to enter, mean over heads.

    That layer's norm, query and key projections and rotation act on its input before anything is dropped; the query
    is projected for one token, keys for all. So tokens can be dropped before layer 0 too.

    Source: arXiv 2410.17247 and Cooperx521/PyramidDrop, whose schedule is ``pyramiddrop:8-16-24``. Deviations:
    original positions (the official code counts anew at each stage); grouped key heads are expanded (there they are
    not, so that such models fail); the last *valid* token is the query; counts are rounded to the nearest, halves up,
    where the official code truncates, so that one token more may stay. Its 576 tokens are divided without a rest.
    """

    name: ClassVar[str] = "pyramiddrop"
    needs: ClassVar[frozenset[str]] = frozenset({"look_ahead"})
    differentiable: ClassVar[bool] = True

    def score(self, context: ScoreContext) -> Tensor:
        return context.look_ahead_rows(context.last[:, None])[:, :, 0].mean(dim=1)

    def scoring_flops(self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64]) -> Any:
        """One query, all keys, one row: ``2 d (h H + (g H + h) n)``."""
        tokens = visual + text
        return 2 * shape.head_dim * (shape.heads * (shape.hidden + tokens) + shape.kv_heads * shape.hidden * tokens)
