"""HiPrune: what a middle layer of the vision tower attends to, with neighbours, and what its deep layer attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vispco.errors import ConfigError
from vispco.pruning.methods.base import METHODS, ScoreContext
from vispco.pruning.methods.tower import TowerMethod, towers

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionExtras


@METHODS.register("hiprune")
@dataclass(frozen=True)
class HiPrune(TowerMethod):
    """Of k tokens, ``round(k * alpha / 5)`` are anchors: those with most attention in a middle layer. Their neighbours
    left, right, above and below are kept with them; the others have most attention in the layer that makes the
    features. Attention is what a token gets from all rows, the CLS token's too, mean over heads.

    A neighbour is the token 1 or a row's length before or after in reading order, at the ends the last one there is,
    so that the one right of a row's last token begins the next row. The middle layer is the 9th of 24 in CLIP and
    SigLIP, the 16th of 32 in towers of Qwen's and Pixtral's kind, of others as far up; with windows, the nearest layer
    without them.

    Source: arXiv 2508.00553 and Danielement321/HiPrune; its defaults are ``hiprune:192``, ``:128`` and ``:64``.
    Deviations: original positions also in LLaVA; views of one picture are ranked together, not with the same number
    each, and all tiles of LLaVA-NeXT are one view, with newline tokens that go first and are nobody's neighbours (its
    LLaVA-NeXT has none); where anchors and neighbours are more than k (k < 5, or alpha above 1 / 2), the first of them
    are kept; at later boundaries the rule is applied to what is left.
    """

    alpha: float = 0.1
    name: ClassVar[str] = "hiprune"
    needs: ClassVar[frozenset[str]] = frozenset({"vision", "middle"})

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"method 'hiprune' got alpha: {self.alpha}; it is a share, from 0 to 1")

    def attention(self, extras: VisionExtras) -> Tensor:
        assert extras.received is not None
        return extras.received

    def select(self, context: ScoreContext, scores: Tensor, keep: Tensor) -> Tensor:
        import torch

        chosen = torch.zeros_like(context.visual)
        for row, at, extras, numbers in towers(context):
            assert extras.middle is not None
            count, everything = min(int(keep[row]), len(at)), len(extras)
            middle = extras.beside(extras.middle)[numbers]
            anchors = numbers[middle.argsort(descending=True, stable=True)[: round(count * self.alpha / 5)]]
            # Where the token with each number stands among those left; -1: it has gone.
            place = torch.full((everything,), -1, device=numbers.device)
            place[numbers] = torch.arange(len(numbers), device=numbers.device)
            around = neighbourhood(anchors, row_lengths(context, row).to(numbers.device))
            around = place[around[extras.among[around] > 0]]
            first = _in_order(around[around >= 0])[:count].to(at.device)
            chosen[row, at[first]] = True
            order = scores[row, at].argsort(descending=True, stable=True)
            rest = order[~chosen[row, at[order]]][: count - len(first)]
            chosen[row, at[rest]] = True
        return chosen


def row_lengths(context: ScoreContext, row: int) -> Tensor:
    """[N]: tokens in a row of the view that each of a sample's visual tokens belongs to."""
    import torch

    prompt = context.prompt
    places = prompt.coordinates[row].to(prompt.visual.device)[prompt.visual[row]]
    view, column = places[:, 0].long(), places[:, 3].long()
    longest = torch.zeros(int(view.max()) + 1, dtype=torch.long, device=view.device)
    return longest.scatter_reduce(0, view, column + 1, "amax")[view]


def neighbourhood(anchors: Tensor, lengths: Tensor) -> Tensor:
    """Numbers of ``anchors`` [m], then of what stands beside them; ``lengths`` [N] of the rows they stand in."""
    import torch

    own = lengths[anchors]
    around = torch.cat([anchors, anchors - 1, anchors + 1, anchors - own, anchors + own])
    return around.clamp(0, len(lengths) - 1)


def _in_order(values: Tensor) -> Tensor:
    """Distinct values in the order in which they come first."""
    import torch

    return torch.tensor(list(dict.fromkeys(values.tolist())), dtype=torch.long, device=values.device)
