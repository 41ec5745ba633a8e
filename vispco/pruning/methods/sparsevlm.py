"""SparseVLM: keep the visual tokens that the words which speak of the picture attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.pruning.methods.base import METHODS, Method, ScoreContext

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape
    from vispco.pruning.forward.tokens import Prompt

RELEASES = ("2.0", "1.5")
KERNEL_FLOOR = 0.01


@METHODS.register("sparsevlm")
@dataclass(frozen=True)
class SparseVLM(Method):
    """Attention of the *raters*, text after the picture that matches it, in the layer before.

    Raters, chosen once from the input embeddings: text tokens whose mean (over visual tokens) of
    ``softmax_text(E_v E_t^T)`` is above the average of all candidates.

    ``release="2.0"`` (SparseVLM+): probabilities are divided by what rotary positions alone would give, then
    the ``heads`` heads with the most rater-to-visual mass are averaged. ``release="1.5"``: plain mean over heads.
    ``recycle`` (1.5 only): of what is dropped, the best 30 % are clustered (density peaks on the hidden states
    that enter the boundary) and each cluster's mean is kept in place of its centre, inside the same count.

    Source: arXiv 2410.04417 and Gumpest/SparseVLMs; release 2.0 is its ``USE_VERSION=2_0``. The counts are the
    schedule's (the published ones are schedules: ``sparsevlm:192``, ...). Deviations: original positions also in
    1.5; a cluster stands at its centre's place, not after all kept tokens; no noise breaks ties of density;
    the position kernel is not let below 1 % of its value at distance 0 (the official one divides by any number);
    if no text follows the picture, or none stands out, all text (or else the last token) rates.
    """

    release: str = "2.0"
    heads: int = 14
    recycle: bool = False
    name: ClassVar[str] = "sparsevlm"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    def __post_init__(self) -> None:
        if self.release not in RELEASES:
            raise ConfigError(f"method 'sparsevlm' has no release {self.release!r}; choose {' or '.join(RELEASES)}")
        if self.recycle and self.release != "1.5":
            raise ConfigError("method 'sparsevlm' recycles in release 1.5 only; add release: '1.5', or drop recycle")
        if self.heads < 1:
            raise ConfigError(f"method 'sparsevlm' averages heads: {self.heads}; it needs at least 1")

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Recycling puts tokens into one another, which a mask cannot express."""
        return not self.recycle

    # --- raters ----------------------------------------------------------------------------------

    def begin(self, prompt: Prompt) -> Tensor:
        """bool [B, T], the raters. Costs ``2 H N_v N_t`` FLOPs per sample."""
        import torch

        text = prompt.valid & ~prompt.visual
        candidates = prompt.after_last_visual() & text
        raters = torch.zeros_like(text)
        for row in range(len(text)):
            visual, words = prompt.visual[row].nonzero()[:, 0], text[row].nonzero()[:, 0]
            among = candidates[row, words]
            if not len(visual) or not bool(among.any()):
                raters[row] = candidates[row] if bool(candidates[row].any()) else text[row]
                continue
            embeddings = prompt.embeddings[row].float()  # products of half precision may not be finite
            match = torch.matmul(embeddings[visual], embeddings[words].T)
            share = match.masked_fill(~among, -torch.inf).softmax(dim=1).mean(dim=0)
            rated = among & (share > share[among].mean())
            raters[row, words] = rated if bool(rated.any()) else among
        return raters

    # --- scores ----------------------------------------------------------------------------------

    def score(self, context: ScoreContext) -> Tensor:
        import torch

        raters = context.of_prompt(context.begun) & context.valid
        text = context.valid & ~context.visual
        queries = text.int().argsort(dim=1, descending=True, stable=True)[:, : int(text.sum(dim=1).amax())]
        weight = (raters.gather(1, queries)).float()
        total = torch.zeros(len(raters), context.shape.heads, raters.shape[1], device=raters.device)
        done = 0
        for block in context.blocks(queries):
            rows = context.attention_rows(block)
            if self.release == "2.0":
                floor = KERNEL_FLOOR * context.shape.head_dim**0.5
                rows = rows / context.position_kernel(block).clamp(min=floor)[:, None]
            part = weight[:, done : done + block.shape[1]]
            total += (rows * part[:, None, :, None]).sum(dim=2)
            done += block.shape[1]
        total = total / weight.sum(dim=1).clamp(min=1)[:, None, None]
        if self.release == "1.5" or self.heads >= context.shape.heads:
            return total.mean(dim=1)
        mass = (total * context.visual[:, None]).sum(dim=2)
        chosen = mass.topk(self.heads, dim=1).indices
        return total.gather(1, chosen[..., None].expand(-1, -1, total.shape[2])).mean(dim=1)

    def begin_flops(
        self,
        shape: ModelShape,
        visual: NDArray[np.int64],
        text: NDArray[np.int64],
        most: NDArray[np.int64] | None = None,
    ) -> Any:
        return 2 * shape.hidden * visual * text

    def scoring_flops(self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64]) -> Any:
        """A row per text token, raters or not, and in release 2.0 the position kernel of the same rows."""
        width = shape.heads * shape.head_dim + (shape.head_dim if self.release == "2.0" else 0)
        return 2 * width * (visual + text) * text

    # --- recycling -------------------------------------------------------------------------------

    def reduce(self, context: ScoreContext, scores: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        if not self.recycle:
            return self.select(context, scores, keep), hidden
        chosen, merged = torch.zeros_like(context.visual), hidden.clone()
        for row, count in enumerate(keep.tolist()):
            at = context.visual[row].nonzero()[:, 0]
            kept, clusters = recycled_counts(len(at), count)
            order = at[scores[row, at].argsort(descending=True, stable=True)]
            chosen[row, order[:kept]] = True
            if clusters:
                pool = order[kept : kept + recycled(len(at) - kept)]
                centres, nearest = density_peaks(hidden[row, pool.to(hidden.device)].float(), clusters)
                for number, centre in enumerate(centres.tolist()):
                    members = pool.to(hidden.device)[nearest == number]
                    chosen[row, pool[centre]] = True
                    merged[row, pool[centre]] = hidden[row, members].mean(dim=0)
        return chosen, merged


def recycled(dropped: int) -> int:
    """How many of the dropped tokens are clustered: the best 30 %, and one."""
    return int(0.3 * dropped) + 1


def clusters_of(dropped: int) -> int:
    """Number of clusters made of ``dropped`` tokens.

    >>> [clusters_of(dropped) for dropped in (276, 109)]
    [9, 4]
    """
    return recycled(dropped) // 10 + 1


def recycled_counts(n: int, keep: int) -> tuple[int, int]:
    """(tokens kept as they are, clusters) that together are ``keep`` of ``n``; no clusters if not even they fit.

    >>> recycled_counts(576, 309), recycled_counts(309, 204), recycled_counts(576, 5)
    ((300, 9), (200, 4), (5, 0))
    """
    if keep >= n:
        return n, 0
    for kept in range(keep, -1, -1):
        if kept + clusters_of(n - kept) <= keep:
            return kept, keep - kept
    return keep, 0


def density_peaks(states: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Centres [c] among ``states`` [m, H], and for each state its nearest centre's number [m].

    Density is ``exp(-mean squared distance to the c nearest)``, itself included; centres have the largest
    product of density and distance to the nearest denser state. Distances are over ``sqrt(H)``.
    """
    import torch

    count = len(states)
    # Without matrix products the distances are exact for equal states.
    distance = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[1] ** 0.5
    density = (-distance.topk(clusters, largest=False).values.square().mean(dim=1)).exp()
    earlier = torch.arange(count, device=states.device)
    denser = (density[None] > density[:, None]) | (
        (density[None] == density[:, None]) & (earlier[None] < earlier[:, None])
    )
    apart = distance.masked_fill(~denser, torch.inf).amin(dim=1)
    apart = torch.where(apart.isinf(), distance.max(), apart)
    centres = (density * apart).argsort(descending=True, stable=True)[:clusters]
    nearest = distance[:, centres].argmin(dim=1)
    nearest[centres] = torch.arange(len(centres), device=states.device)
    return centres, nearest
