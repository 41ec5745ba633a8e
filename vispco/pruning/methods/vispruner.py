"""VisPruner: half of what is kept is what the vision tower attends to, half is what is unlike the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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

AT_ONCE = 8


@METHODS.register("vispruner")
@dataclass(frozen=True)
class VisPruner(TowerMethod):
    """``important`` of the kept tokens, rounded down, get most attention in the tower's layer that makes the features.

    The others, by falling attention, are thinned out until enough are left: every second of them is compared with
    those between, by the cosine of the tower's features, and the (at most) eight with the most similar partner go.

    Source: arXiv 2412.01818 and Theia-4869/VisPruner (formerly FasterVLM); its default is ``vispruner:128``.
    Deviations: original positions; an odd number of candidates is split with the longer part first (there the shapes
    clash); at later boundaries the rule is applied to what is left; in a tower without a CLS token, attention
    received from all patches. Newline tokens, of which its LLaVA-NeXT keeps all beyond the count, are within it here:
    as they are like no other token, they are mostly among those that are unlike the rest.
    """

    important: float = 0.5
    name: ClassVar[str] = "vispruner"

    def __post_init__(self) -> None:
        if not 0 <= self.important <= 1:
            raise ConfigError(f"method 'vispruner' got important: {self.important}; it is a share, from 0 to 1")

    def select(self, context: ScoreContext, scores: Tensor, keep: Tensor) -> Tensor:
        import torch

        chosen = torch.zeros_like(context.visual)
        for row, at, extras, numbers in towers(context):
            count = min(int(keep[row]), len(at))
            first = int(count * self.important)
            order = scores[row, at].argsort(descending=True, stable=True)
            left = order[first:].to(numbers.device)
            if 0 < count - first < len(left):
                # Vectors of the candidates only: they are compared many times.
                vectors = torch.zeros(len(at), extras.features.shape[-1], device=left.device)
                vectors[left] = unit(extras.features[numbers[left]])
                left = thinned(vectors, left, count - first)
            stay = torch.cat([order[:first], left[: count - first].to(order.device)])
            chosen[row, at[stay]] = True
        return chosen

    def choosing_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], keep: NDArray[np.int64]
    ) -> Any:
        """Two parts of the candidates against each other, again and again: ``2 C`` per pair."""
        visual, text, keep = np.broadcast_arrays(visual, text, keep)
        first = (keep * self.important).astype(np.int64)
        pairs = [_pairs(n, k) for n, k in zip((visual - first).flat, (keep - first).flat, strict=True)]
        return 2 * shape.vision_width * np.array(pairs, dtype=np.int64).reshape(visual.shape)


def thinned(vectors: Tensor, left: Tensor, count: int) -> Tensor:
    """``count`` of the numbers ``left`` [m] (best first) of unit ``vectors`` [n, C] that are unlike one another."""
    import torch

    while len(left) > count:
        one, other = left[::2], left[1::2]
        similarity = torch.matmul(vectors[one], vectors[other].T).amax(dim=1)
        distinct = similarity.argsort(descending=True, stable=True)[min(AT_ONCE, len(left) - count) :]
        left = torch.cat([one[distinct], other])
    return left


@cache
def _pairs(candidates: int, count: int) -> int:
    """Pairs that :func:`thinned` compares on its way from ``candidates`` to ``count``."""
    pairs = 0
    while candidates > count > 0:
        one = (candidates + 1) // 2
        pairs += one * (candidates - one)
        candidates -= min(AT_ONCE, candidates - count, one)
    return pairs
