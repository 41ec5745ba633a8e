"""Methods that put a sample's visual tokens in order once, before the first layer."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.pruning.methods.base import Method, ScoreContext

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape
    from vispco.pruning.forward.tokens import Prompt


class StaticOrder(Method):
    """One order of each sample's visual tokens; any boundary keeps the first ones, whatever was dropped before."""

    static_order: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True

    @abstractmethod
    def order(self, prompt: Prompt, row: int, tokens: Tensor, most: int) -> Tensor:
        """Numbers of the ``tokens`` [n], best first, at least ``most`` of them.

        ``tokens`` are the prompt places of the visual tokens of sample ``row``; numbers count within them.
        """

    def order_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], picks: NDArray[np.int64]
    ) -> Any:
        """FLOPs of :meth:`order` of one sample's ``visual`` tokens of which ``picks`` are put in order."""
        return np.zeros_like(visual)

    def begin_flops(
        self,
        shape: ModelShape,
        visual: NDArray[np.int64],
        text: NDArray[np.int64],
        most: NDArray[np.int64] | None = None,
    ) -> Any:
        return self.order_flops(shape, visual, text, visual if most is None else np.minimum(most, visual)) + 0 * text

    def begin(self, prompt: Prompt) -> Tensor:
        """int [B, N]: each visual token's place in its sample's order; what is not ordered comes after, as it was."""
        import torch

        rows = [prompt.visual[row].nonzero()[:, 0] for row in range(len(prompt.visual))]
        places = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.long, device=prompt.visual.device)
        for row, tokens in enumerate(rows):
            n = len(tokens)
            if n:
                order = self.order(prompt, row, tokens, n if prompt.most is None else min(n, prompt.most))
                places[row, :n] = n + torch.arange(n, device=places.device)
                places[row, order.to(places.device)] = torch.arange(len(order), device=places.device)
        return places

    def score(self, context: ScoreContext) -> Tensor:
        places: Tensor = context.begun
        return -places.gather(1, context.rank).float()


def unit(vectors: Tensor) -> Tensor:
    """Rows of [n, H] at length 1, float32; zero stays zero."""
    vectors = vectors.float()
    length = vectors.norm(dim=-1, keepdim=True)
    return vectors.div(length.masked_fill(length == 0, 1.0))
