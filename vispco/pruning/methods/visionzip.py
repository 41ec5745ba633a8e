"""VisionZip: keep the tokens that the vision tower attends to, and merge the rest into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.pruning.methods.base import METHODS, ScoreContext, best
from vispco.pruning.methods.order import unit
from vispco.pruning.methods.tower import TowerMethod, towers

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape


@METHODS.register("visionzip")
@dataclass(frozen=True)
class VisionZip(TowerMethod):
    """Dominant tokens get most attention in the layer that makes the features: from the CLS token, or in a tower
    without one from all patches. The rest is merged: every so-many-th of it is a target, each other token joins the
    target with the most similar key (mean over heads, cosine), and a target's state becomes its own plus the mean of
    those that joined it. ``contextual``: the share of what is kept that are targets; at 0 nothing is merged.

    Source: arXiv 2412.04467 and dvlab-research/VisionZip; ``visionzip:64`` is its 54 + 10. Deviations: the CLS token
    itself is not among the visual tokens of these models, so all dominant ones are patches; states are merged where
    they enter the boundary, after the projector, not before it; targets stay in their places, with their positions,
    and do not stand after the dominant ones; at later boundaries the rule is applied to what is left; attention
    received from all patches, where there is no CLS token, is the ports' rule, not the paper's. Newline tokens go
    first, as in its LLaVA-NeXT, where none is left; they are neither targets nor merged.
    """

    contextual: float = 10 / 64
    name: ClassVar[str] = "visionzip"

    def __post_init__(self) -> None:
        if not 0 <= self.contextual <= 1:
            raise ConfigError(f"method 'visionzip' got contextual: {self.contextual}; it is a share, from 0 to 1")

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Merging puts tokens into one another, which a mask cannot express."""
        return self.contextual == 0

    @property
    def static_order(self) -> bool:  # type: ignore[override]
        return self.contextual == 0

    def _targets(self, keep: Any) -> Any:
        """How many of ``keep`` tokens are targets, an integer array."""
        return np.floor(np.asarray(keep) * self.contextual + 0.5).astype(np.int64)

    def reduce(self, context: ScoreContext, scores: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        targets = torch.from_numpy(self._targets(keep.cpu().numpy())).to(keep.device)
        chosen, merged = best(scores, context.visual, keep - targets), hidden.clone()
        for row, at, extras, numbers in towers(context):
            count, rest = int(targets[row]), (~chosen[row, at]).nonzero()[:, 0]
            cell = (extras.among[numbers] > 0).to(rest.device)[rest]
            rest, cells = torch.cat([rest[cell], rest[~cell]]), int(cell.sum())
            if not count or int(keep[row]) >= len(at):
                chosen[row, at[rest]] = int(keep[row]) >= len(at)
                continue
            is_target = torch.zeros(len(rest), dtype=torch.bool, device=rest.device)
            is_target[:: max(1, cells // count)][:count] = True
            heads = extras.keys[numbers[rest.to(numbers.device)]].float().view(len(rest), extras.heads, -1)
            keys = unit(heads.mean(dim=1)).to(hidden.device)
            own, other = (at[rest[where]].to(hidden.device) for where in (is_target, ~is_target))
            where = is_target.to(hidden.device)
            nearest = torch.matmul(keys[~where], keys[where].T).argmax(dim=1)
            joined = torch.nn.functional.one_hot(nearest, count).T.float()
            joined[:, int((~is_target[:cells]).sum()) :] = 0  # newlines join nothing
            mean = torch.matmul(joined, hidden[row, other].float()) / joined.sum(dim=1, keepdim=True).clamp(min=1)
            merged[row, own] = hidden[row, own] + mean.to(hidden.dtype)
            chosen[row, at[rest[is_target]]] = True
        return chosen, merged

    def choosing_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], keep: NDArray[np.int64]
    ) -> Any:
        """With C targets and M others: cosines in one head's width, and sums of states, ``2 C M (d + H)``."""
        width = shape.vision_width // max(1, shape.vision_heads)
        return 2 * self._targets(keep) * np.maximum(visual - keep, 0) * (width + shape.hidden) + 0 * text
