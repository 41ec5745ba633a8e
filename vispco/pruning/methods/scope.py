"""SCOPE: keep visual tokens that the vision tower attends to and that cover what is not covered yet."""

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


@METHODS.register("scope")
@dataclass(frozen=True)
class Scope(StaticOrder):
    """Greedy: each time the token with the largest ``gain * attention ** alpha``. Its gain is by how much it raises
    coverage, summed over all tokens: how similar (cosine of the tower's features, at least 0) each is to the most
    similar one picked.

    Source: arXiv 2510.24214 and kinredon/SCOPE; a ninth of LLaVA-1.5's tokens is ``scope:64``. Deviations: tokens of
    several pictures are picked together; attention received from all patches where a tower has no CLS token. Newline
    tokens come last, as in its LLaVA-NeXT, where none is left.

    Memory: every pair of a prompt's ``N`` visual tokens is compared, and so picking takes ``8 N²`` bytes.
    """

    alpha: float = 1.0
    name: ClassVar[str] = "scope"
    needs: ClassVar[frozenset[str]] = frozenset({"vision"})

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ConfigError(f"method 'scope' got alpha: {self.alpha}; it is an exponent, 0 or more")

    def order(self, prompt: Prompt, row: int, tokens: Tensor, most: int) -> Tensor:
        extras = prompt.vision[row]
        return covering(unit(extras.features), extras.beside(extras.attention) ** self.alpha, most)

    def order_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], picks: NDArray[np.int64]
    ) -> Any:
        """The cosine of every pair, ``2 C N²``."""
        return 2 * shape.vision_width * visual * visual


def covering(vectors: Tensor, weight: Tensor, most: int) -> Tensor:
    """The first ``most`` numbers of the greedy order; unit ``vectors`` [n, C], ``weight`` [n]; ties to the earlier."""
    import torch

    similarity = torch.matmul(vectors, vectors.T)
    covered = torch.zeros(len(vectors), device=vectors.device)
    left = torch.zeros_like(covered)
    picks: list[Tensor] = []
    for _ in range(most):
        gain = (similarity - covered[:, None]).clamp_(min=0).sum(dim=0)
        pick = (gain * weight + left).argmax().view(1)
        picks.append(pick)
        left[pick] = -torch.inf
        covered = torch.maximum(covered, similarity[:, pick[0]])
    return torch.cat(picks) if picks else torch.zeros(0, dtype=torch.long, device=vectors.device)
