"""IDPruner without its learned part: keep tokens that matter and are unlike those kept (maximal marginal relevance)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.pruning.methods.base import METHODS
from vispco.pruning.methods.order import StaticOrder, unit

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape
    from vispco.pruning.forward.tokens import Prompt


@METHODS.register("idpruner")
@dataclass(frozen=True)
class IDPruner(StaticOrder):
    """First the token with the largest importance, then each time the one with the largest ``weight * importance -
    (1 - weight) * s``, where s is its largest cosine (of the embeddings that enter the decoder) with one picked.

    Source: ``idpruner`` of Tencent/AngelSlim. Deviation: there importance comes from a trained selector; here it is the
    attention in the vision tower, scaled to [0, 1] over the sample. That of newline tokens is 0.
    """

    weight: float = 0.5
    name: ClassVar[str] = "idpruner"
    needs: ClassVar[frozenset[str]] = frozenset({"vision"})

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"method 'idpruner' got weight: {self.weight}; it is a share, from 0 to 1")

    def order(self, prompt: Prompt, row: int, tokens: Tensor, most: int) -> Tensor:
        embeddings, extras = prompt.embeddings[row], prompt.vision[row]
        importance = extras.beside(extras.attention).to(embeddings.device)
        return marginal(unit(embeddings[tokens.to(embeddings.device)]), importance, self.weight, most)

    def order_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], picks: NDArray[np.int64]
    ) -> Any:
        """With m picks a row of cosines for each but the last, ``2 H N (m - 1)``."""
        return 2 * shape.hidden * visual * np.maximum(picks - 1, 0)


def marginal(vectors: Tensor, importance: Tensor, weight: float, most: int) -> Tensor:
    """The first ``most`` numbers in that order; unit ``vectors`` [n, H], ``importance`` [n]; of equals the earlier."""
    import torch

    low, high = importance.min(), importance.max()
    scaled = (importance - low) / (high - low).clamp(min=1e-12)
    score, nearest = scaled, torch.full_like(scaled, -torch.inf)
    picks: list[Tensor] = []
    left = torch.zeros_like(scaled)
    for number in range(most):
        pick = (score + left).argmax().view(1)
        picks.append(pick)
        left[pick] = -torch.inf
        if number + 1 < most:
            nearest = torch.maximum(nearest, torch.matmul(vectors, vectors[pick].T)[:, 0])
            score = weight * scaled - (1 - weight) * nearest
    return torch.cat(picks) if picks else torch.zeros(0, dtype=torch.long, device=vectors.device)
