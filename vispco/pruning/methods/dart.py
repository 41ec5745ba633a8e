"""DART: keep a few pivots, and the visual tokens least like them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.pruning.methods.base import METHODS, Method, ScoreContext
from vispco.pruning.methods.order import unit

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape


@METHODS.register("dart")
@dataclass(frozen=True)
class DART(Method):
    """Pivots are the visual and the text tokens whose keys in the layer before have the largest L1 norm.

    The visual pivots stay. Then pivot by pivot, in the order of the prompt, the visual tokens with the lowest cosine
    to it are taken out of those that are left, until the count is full. Cosines are those of the states that enter
    the boundary, after the decoder's last norm; norms are over the keys of all heads.

    Source: arXiv 2502.11494 and ZichenWen1/DART. Its count is 8 m + 4 (so 132 under the name 128: ``dart:128``) and
    there this is the same choice. Deviations: keys before their rotation, since an L1 norm after it would depend on
    where the prompt stands, and so on padding; any count, spread as evenly over the pivots as it goes, the first
    ones taking one more; pivots in the order of the prompt, not of a set's hashes; where fewer text tokens follow the
    picture than pivots are asked for, they come from all text.
    """

    visual_pivots: int = 4
    text_pivots: int = 4
    name: ClassVar[str] = "dart"
    needs: ClassVar[frozenset[str]] = frozenset({"keys"})

    def __post_init__(self) -> None:
        if self.visual_pivots < 1 or self.text_pivots < 0:
            raise ConfigError(
                f"method 'dart' got {self.visual_pivots} visual and {self.text_pivots} text pivots; "
                "it needs at least 1 and 0"
            )

    def score(self, context: ScoreContext) -> Tensor:
        """L1 norms of the keys, of text tokens too."""
        return context.keys().float().abs().sum(dim=(1, 3))

    def reduce(self, context: ScoreContext, scores: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        chosen = context.visual.clone()
        text = context.valid & ~context.visual
        behind = context.of_prompt(context.prompt.after_last_visual()) & text
        for row, count in enumerate(keep.tolist()):
            at = context.visual[row].nonzero()[:, 0]
            if count >= len(at):
                continue
            chosen[row] = False
            if count == 0:
                continue
            enough = int(behind[row].sum()) >= min(self.text_pivots, int(text[row].sum()))
            guides = (behind if enough else text)[row].nonzero()[:, 0]
            pivots = at[_largest(scores[row, at], self.visual_pivots)]
            guides = guides[_largest(scores[row, guides], self.text_pivots)]
            asked, places = (part.to(hidden.device) for part in (torch.cat([pivots, guides]), at))
            seen = context.normed(hidden[row : row + 1])[0]
            cosine = torch.matmul(unit(seen[asked]), unit(seen[places]).T).to(at.device)
            stay = pivots[:count]
            used = torch.cat([torch.arange(len(stay)), torch.arange(len(pivots), len(asked))]).to(at.device)
            used = used[torch.cat([stay, guides]).argsort()]
            left = ~torch.isin(at, stay)
            shares = [(count - len(stay) + later) // len(used) for later in reversed(range(len(used)))]
            for pivot, share in zip(used.tolist(), shares, strict=True):
                order = cosine[pivot].masked_fill(~left, torch.inf).argsort(stable=True)
                left[order[:share]] = False
            chosen[row, at[~left]] = True
        return chosen, hidden

    def choosing_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], keep: NDArray[np.int64]
    ) -> Any:
        """A cosine per pivot and visual token."""
        pivots = np.minimum(self.visual_pivots, visual) + np.minimum(self.text_pivots, text)
        return 2 * shape.hidden * visual * pivots


def _largest(values: Tensor, count: int) -> Tensor:
    """Places of the ``count`` largest, the largest first; of equal ones the earlier."""
    return values.argsort(descending=True, stable=True)[:count]
