"""LLaVA-PruMerge: keep the tokens that the vision tower attends to, and add their neighbours to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.pruning.methods.base import METHODS, ScoreContext
from vispco.pruning.methods.order import unit
from vispco.pruning.methods.tower import TowerMethod, towers

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape
    from vispco.models.vision import VisionExtras

NEIGHBOURS = 32
OUTLIERS = 0.25


@METHODS.register("prumerge")
@dataclass(frozen=True)
class PruMerge(TowerMethod):
    """All but one of the kept tokens get most attention in the tower's last layer, its heads taken as one.

    To the state of each are added those of the 32 other tokens with the most similar keys (cosine), each times its
    attention. One token more stands for all that were dropped: the sum of their states, each times its attention.
    ``plus`` (PruMerge+): only a quarter are such, and the others are spread evenly over the rest.

    Source: arXiv 2403.15388 and 42Shawn/LLaVA-PruMerge; ``prumerge:14.4x`` is its mean compression. Deviations: the
    count is the schedule's, not the number of outliers in the attention (with ``plus`` the official stride makes about
    three spread tokens to each outlier, hence the quarter); states are merged where they enter the boundary, after
    the projector, not before it; prompt order and positions, not attention order; the token that stands for the
    dropped ones has the place of the first of them by attention; where only one token is kept it is a plain one; in a
    tower without a CLS token, attention received from all patches. Newline tokens, which its models do not have, go
    first and are merged into nothing.
    """

    plus: bool = False
    name: ClassVar[str] = "prumerge"

    def __post_init__(self) -> None:
        if not isinstance(self.plus, bool):
            raise ConfigError(f"method 'prumerge' got plus: {self.plus!r}; it is true or false")

    def attention(self, extras: VisionExtras) -> Tensor:
        return extras.pseudo_attention

    def _own(self, order: Tensor, count: int, cell: Tensor) -> Tensor:
        """``count`` of the numbers ``order`` [m], best first, that keep their place; ``cell`` [m]: no newlines."""
        import torch

        outliers = int(count * OUTLIERS + 0.5) if self.plus else count
        rest = order[outliers:].sort().values
        rest = rest[cell[rest]] if int(cell.sum()) >= count else rest
        spread = count - outliers
        middles = ((torch.arange(spread, device=order.device) + 0.5) * len(rest) / max(1, spread)).long()
        return torch.cat([order[:outliers], rest[middles]])

    def reduce(self, context: ScoreContext, scores: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        chosen, merged = torch.zeros_like(context.visual), hidden.clone()
        for row, at, extras, numbers in towers(context):
            count, n = int(keep[row]), len(at)
            if count >= n or count == 0:
                chosen[row, at] = count >= n
                continue
            order = scores[row, at].argsort(descending=True, stable=True)
            cell = (extras.among[numbers] > 0).to(order.device)
            own = self._own(order, max(1, count - 1), cell)
            dropped = torch.ones(n, dtype=torch.bool, device=own.device)
            dropped[own] = False
            keys = unit(extras.last_keys[numbers]).to(hidden.device)
            places, mine = at.to(hidden.device), own.to(hidden.device)
            states = hidden[row, places].float()
            states, given = states * self.attention(extras)[numbers].to(states)[:, None], hidden[row]
            for block in torch.split(mine, states.shape[1]):
                cosine = torch.matmul(keys[block], keys.T).scatter_(1, block[:, None], -torch.inf)
                cosine[:, ~cell.to(cosine.device)] = -torch.inf
                near = cosine.topk(min(NEIGHBOURS, n - 1), dim=1).indices
                neighbours = torch.zeros_like(cosine).scatter_(1, near, 1.0)
                merged[row, places[block]] = given[places[block]] + torch.matmul(neighbours, states).to(given.dtype)
            if count > 1:
                extra = order[dropped[order]][:1]
                total = torch.matmul(dropped[None].to(states), states)
                merged[row, places[extra.to(places.device)]] = total.to(given.dtype)
                own = torch.cat([own, extra])
            chosen[row, at[own]] = True
        return chosen, merged

    def choosing_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], keep: NDArray[np.int64]
    ) -> Any:
        """Of n tokens k stay: k - 1 rows of cosines and k weighted sums of states, ``2 n (C (k - 1) + H k)``."""
        own = np.where(keep > 1, keep - 1, keep)
        return 2 * visual * (shape.vision_width * own + shape.hidden * keep) + 0 * text
