"""Random tokens: the baseline every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vispco.pruning.methods.base import METHODS, Method, ScoreContext

if TYPE_CHECKING:
    from torch import Tensor


@METHODS.register("random")
@dataclass(frozen=True)
class RandomTokens(Method):
    """One uniform permutation per sample, from ``seed`` and the sample; kept sets are nested over layers.

    The evaluator tells samples apart by their ids. ``vispco.prune`` knows a prompt's tokens alone, so that one question
    about two pictures gets one permutation; give the session ``sample_keys`` where that matters.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    static_order: ClassVar[bool] = True

    def score(self, context: ScoreContext) -> Tensor:
        import torch

        rank = context.rank.cpu()
        scores = torch.zeros(rank.shape)
        for row, key in enumerate(context.sample_keys):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + key) % 2**63)
            size = int(rank[row].max()) + 1
            scores[row] = torch.rand(size, generator=generator)[rank[row]]
        return scores.to(context.rank.device)
