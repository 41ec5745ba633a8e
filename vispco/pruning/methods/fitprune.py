"""FitPrune: keep the visual tokens that both the text and the other visual tokens attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.pruning.methods.base import METHODS, Method, ScoreContext

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape


@METHODS.register("fitprune")
@dataclass(frozen=True)
class FitPrune(Method):
    """Attention received from the text times attention received from visual tokens, each the max over heads.

    ``self_i`` is the mean over visual queries and ``cross_i`` the sum over text queries after the last visual
    token of ``max_h A[h, q, i]`` in the layer before; the score is ``cross_i * self_i``, or ``self_i`` alone
    where no text follows.

    Source: arXiv 2409.10197; the online rule of the official code (ywh187/FitPrune). Deviations: tokens are cut
    at the boundary after a layer, not between its attention and its output projection; the count comes from
    the schedule (the published recipes are schedules: ``fitprune:50``, ...); rows are streamed in blocks, the
    full map is never formed.
    """

    name: ClassVar[str] = "fitprune"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    differentiable: ClassVar[bool] = True

    def score(self, context: ScoreContext) -> Tensor:
        import torch

        cross, own, text = received(context)
        return torch.where(text[:, None] > 0, cross * own, own)

    def scoring_flops(self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64]) -> Any:
        """Every row once: ``2 h d n^2``."""
        return 2 * shape.heads * shape.head_dim * (visual + text) ** 2


def received(context: ScoreContext) -> tuple[Tensor, Tensor, Tensor]:
    """Attention that tokens receive in the layer before, the max over heads of each query.

    Returns:
        float32 [B, n], the sum over text queries after the last visual token; float32 [B, n], the mean over visual
        queries; the number of those text queries, [B].
    """
    import torch

    visual = context.visual
    text = context.of_prompt(context.prompt.after_last_visual()) & context.valid & ~visual
    queries = torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
    from_visual = torch.zeros(visual.shape, device=visual.device)
    from_text = torch.zeros_like(from_visual)
    for block in context.blocks(queries):
        strongest = context.attention_rows(block).amax(dim=1)
        from_visual += (strongest * visual.gather(1, block)[..., None]).sum(dim=1)
        from_text += (strongest * text.gather(1, block)[..., None]).sum(dim=1)
    return from_text, from_visual / visual.sum(dim=1, keepdim=True).clamp(min=1), text.sum(dim=1)
