"""DivPrune: keep visual tokens that are far from one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.pruning.methods.base import METHODS
from vispco.pruning.methods.order import StaticOrder, unit

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape
    from vispco.pruning.forward.tokens import Prompt


@METHODS.register("divprune")
@dataclass(frozen=True)
class DivPrune(StaticOrder):
    """Greedy max-min: first the token whose nearest neighbour is farthest, then each time the token that is farthest
    from the nearest one picked. Distance is 1 - cosine of the embeddings that enter the decoder.

    Source: arXiv 2503.02175 and vbdi/divprune; its default ratio is ``divprune:0.098``. Deviations: original positions;
    distances in float32; a token once picked cannot be picked again, also among copies; a count that ends in one half
    is rounded up, where Python's ``round`` takes the even neighbour. At the published ratio the two differ
    at 250, 1250, 2250, ... tokens alone, and not at 576.
    """

    name: ClassVar[str] = "divprune"

    def order(self, prompt: Prompt, row: int, tokens: Tensor, most: int) -> Tensor:
        return farthest_first(unit(prompt.embeddings[row, tokens.to(prompt.embeddings.device)]), most)

    def order_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], picks: NDArray[np.int64]
    ) -> Any:
        """Every pair once for the first pick, then one row per pick: ``2 H N (N + most - 1)``."""
        return 2 * shape.hidden * visual * np.maximum(visual + picks - 1, 0)


def farthest_first(vectors: Tensor, most: int) -> Tensor:
    """The first ``most`` numbers of the greedy max-min order of unit ``vectors`` [n, H]; of equals the earlier."""
    import torch

    n, width = vectors.shape
    if most == 0:
        return torch.zeros(0, dtype=torch.long, device=vectors.device)
    nearest, start = [], 0
    for block in torch.split(vectors, width):
        cosine = torch.matmul(block, vectors.T)
        cosine.diagonal(start).fill_(-torch.inf)
        nearest.append(1 - cosine.amax(dim=1))
        start += len(block)
    picks = [torch.cat(nearest).argmax()]
    least = torch.full((n,), torch.inf, device=vectors.device)
    for _ in range(1, most):
        last = picks[-1].view(1)
        distance = 1 - torch.matmul(vectors, vectors[last].T)[:, 0]
        least = torch.minimum(least, distance).index_fill_(0, last, -torch.inf)
        picks.append(least.argmax())
    return torch.stack(picks)
