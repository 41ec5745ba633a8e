"""Methods that rank by what the vision tower said of the tokens, at whichever boundary tokens are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from vispco.pruning.methods.base import Method, ScoreContext

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionExtras


class TowerMethod(Method):
    """The score is the attention that a token gets in the tower; subclasses say which tokens that keeps.

    Papers and official codes prune picture by picture. Here a schedule says how many tokens of a sample stay, so those
    of several pictures are ranked together, by how much more each gets than the average token of its picture.

    Newline tokens of LLaVA-NeXT and LLaVA-OneVision get no attention there, so that they stay last. They count as all
    visual tokens do.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vision"})

    def attention(self, extras: VisionExtras) -> Tensor:
        """float32 [N] of a sample's visual tokens. Default: in the layer that makes the features."""
        return extras.attention

    def score(self, context: ScoreContext) -> Tensor:
        import torch

        scores = torch.zeros(context.visual.shape, device=context.visual.device)
        for row, at, extras, numbers in towers(context):
            scores[row, at] = extras.beside(self.attention(extras))[numbers].to(scores.device)
        return scores


def towers(context: ScoreContext) -> Iterator[tuple[int, Tensor, VisionExtras, Tensor]]:
    """Of each sample that has visual tokens left: its row, their places [m] among the n, what the tower said of all
    its visual tokens, and the numbers [m] among these of those that are left."""
    for row, visual in enumerate(context.visual):
        at = visual.nonzero()[:, 0]
        if len(at):
            extras = context.prompt.vision[row]
            yield row, at, extras, context.rank[row, at].to(extras.attention.device)
