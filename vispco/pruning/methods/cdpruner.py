"""CDPruner: keep visual tokens that are unlike one another and speak to the question."""

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

RELEVANCES = ("text_tower", "embeddings", "none")
LEAST = 1e-10


@METHODS.register("cdpruner")
@dataclass(frozen=True)
class CDPruner(StaticOrder):
    """Greedy MAP of a determinantal point process with the kernel ``r_i S_ij r_j``: ``S`` is the cosine of the
    embeddings that enter the decoder, ``r`` the relevance to the question, scaled to (0, 1].

    ``relevance="text_tower"``: minus the cosine of a token and the question under the text tower that the vision
    tower was trained with, as published. ``"embeddings"``: the cosine of a token's embedding and the mean embedding of
    the text after the picture, for models without such a tower. ``"none"``: 1 everywhere.

    Source: arXiv 2506.10967 and Theia-4869/CDPruner (``cdpruner:64``). Deviations: original positions; relevance is
    scaled per sample, not over the batch; where nothing new is left (a residual of at most 1e-10, so no more
    directions), tokens follow by residual; its weighting ``theta`` is left out. ``"embeddings"`` and ``"none"`` are
    not the paper's. Takes ``4 N * keep`` bytes while it picks.
    """

    relevance: str = "text_tower"
    name: ClassVar[str] = "cdpruner"
    otherwise: ClassVar[str] = "set relevance: embeddings (not the paper's) to do without"

    def __post_init__(self) -> None:
        if self.relevance not in RELEVANCES:
            raise ConfigError(
                f"method 'cdpruner' knows no relevance {self.relevance!r}; choose {', '.join(RELEVANCES[:-1])} or none"
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"vision", "text_tower"} if self.relevance == "text_tower" else ())

    def order(self, prompt: Prompt, row: int, tokens: Tensor, most: int) -> Tensor:
        embeddings = prompt.embeddings[row]
        vectors = unit(embeddings[tokens.to(embeddings.device)])
        return diverse(vectors, self._relevance(prompt, row, vectors), most)

    def _relevance(self, prompt: Prompt, row: int, vectors: Tensor) -> Tensor:
        """float32 [N], in (0, 1]."""
        import torch

        if self.relevance == "none":
            return torch.ones(len(vectors), device=vectors.device)
        if self.relevance == "text_tower":
            cosine = prompt.vision[row].relevance
            assert cosine is not None
            return scaled(-cosine.float().to(vectors.device))
        text = prompt.valid[row] & ~prompt.visual[row]
        behind = prompt.after_last_visual()[row] & text
        asked = behind if bool(behind.any()) else text
        if not bool(asked.any()):
            return torch.ones(len(vectors), device=vectors.device)
        mean = prompt.embeddings[row][asked.to(vectors.device)].float().mean(dim=0, keepdim=True)
        return scaled(torch.matmul(vectors, unit(mean).T)[:, 0])

    def order_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], picks: NDArray[np.int64]
    ) -> Any:
        """With m picks: a row of cosines for each but the last, the rows before it projected out, and the relevance:
        ``2 H N (m - 1) + N (m - 1) (m - 2) [+ 2 H N]``."""
        rows = np.maximum(picks - 1, 0)
        asked = 2 * shape.hidden * visual * (text > 0) if self.relevance == "embeddings" else 0
        return 2 * shape.hidden * visual * rows + visual * rows * np.maximum(picks - 2, 0) + asked


def scaled(values: Tensor) -> Tensor:
    """Between 0 and 1 by the least and the largest of ``values`` [n]; 1 everywhere where these are equal."""
    import torch

    low, high = values.min(), values.max()
    spread = high - low
    return torch.where(spread > 0, (values - low + 1e-6) / spread.clamp(min=1e-12), torch.ones_like(values))


def diverse(vectors: Tensor, relevance: Tensor, most: int) -> Tensor:
    """The first ``most`` numbers of the greedy MAP order; unit ``vectors`` [n, H], ``relevance`` [n]; of equals the
    earlier."""
    import torch

    residual = relevance.square()
    rows = torch.zeros(max(0, most - 1), len(vectors), device=vectors.device)
    picks: list[Tensor] = []
    open_ = torch.zeros_like(residual)
    for number in range(most):
        pick = (residual + open_).argmax().view(1)
        picks.append(pick)
        open_[pick] = -torch.inf
        if number + 1 == most:
            break
        row = relevance * relevance[pick] * torch.matmul(vectors, vectors[pick].T)[:, 0]
        if number:
            row = row - torch.matmul(rows[:number, pick].T, rows[:number])[0]
        left = residual[pick]
        rows[number] = torch.where(left > LEAST, row / left.clamp(min=LEAST).sqrt(), torch.zeros_like(row))
        residual = residual - rows[number].square()
    return torch.cat(picks) if picks else torch.zeros(0, dtype=torch.long, device=vectors.device)
