"""FitPrune's offline fit: how many tokens each layer can do without, from attention alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vispco.costs import prefill_flops, unpruned_flops
from vispco.errors import ConfigError
from vispco.models.shapes import ModelShape
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.forward.prefill import Path, Prefill
from vispco.pruning.methods.base import Method, ScoreContext
from vispco.pruning.methods.fitprune import FitPrune, received
from vispco.pruning.schedules import Ratios, Schedule, keep_all
from vispco.pruning.session import PruningSession
from vispco.search.base import SEARCHES, Options
from vispco.search.recipes.calibration import Observed, observe
from vispco.search.recipes.fitting import TIE, Fit, FittingSearch

if TYPE_CHECKING:
    from vispco.models.base import ModelAdapter
    from vispco.pruning.forward.tokens import Prompt


class FitPruneOptions(Options):
    """``samples``: calibration samples per task."""

    samples: int = Field(64, ge=1)


@SEARCHES.register("fitprune_fit")
class FitPruneFit(FittingSearch):
    """FitPrune's fit: one scalar alpha, the share of attention that may be lost at each layer, by bisection per budget.

    Calibration samples walk through the layers and lose tokens on the way. After each layer, visual tokens are put in
    order by the attention that they receive from the text, and again by what they receive from visual tokens
    (:func:`received`). Of each order goes the longest beginning that leaves ``1 - alpha`` of what all visual tokens of
    the unpruned model receive there; a token is deleted if it is in both. Pruning ends at the first layer from which
    the rest at its count is within the budget. The least alpha that gets there, by bisection to below 0.01, gives the
    recipe: the mean share of tokens that enter each layer, snapped to the budget on the search split. Charged are the
    plain pass and every walk, with every row of attention that they read.

    Source: arXiv 2409.10197 and ywh187/FitPrune, llava/eval/statistical_analysis.py. Deviations: tokens go at the
    boundary after a layer, not between its attention and its MLP; exact FLOPs with the text tokens in them; the
    last layer deletes nothing. Mended: the recipe is that of the last alpha that reached the target, not of the last
    one tried; shares are averaged without rounding down; an order that may go whole does so; samples run in
    batches; text is what follows the last picture, without padding.
    """

    kind: ClassVar[str] = "fitprune_fit"
    Options: ClassVar[type[Options]] = FitPruneOptions
    steps: ClassVar[int] = 128
    _seen: list[tuple[Observed, Totals]] | None = None

    @classmethod
    def check(cls, options: Any, method: Method, family: ScheduleFamily) -> None:
        if method.name != FitPrune.name:
            raise ConfigError(
                f"kind 'fitprune_fit' fits schedules of method 'fitprune', not of {method.name!r}; "
                "write method: fitprune"
            )

    def fit(self, number: int) -> Fit:
        alpha, (seen, flops) = number / self.steps, self._ready()
        shape, kept = self.context.evaluator.problem.shape, []
        for part, totals in seen:
            walk = self._walk(part, Walk(alpha, totals))
            kept.append(walk.entering(part.n_visual))
            flops += walk_flops(shape, kept[-1], part.n_text)
        parts = [part for part, _ in seen]
        return {
            "alpha": alpha,
            "kept": _shares(parts, kept),
            "ratio": ratios_if_ended(shape, parts, kept, self.context.method),
            "flops": flops,
        }

    def reaches(self, fit: Fit, budget: float) -> bool:
        return ended(fit["kept"], fit["ratio"], budget) is not None

    def schedule(self, fit: Fit, budget: float) -> Schedule:
        found = ended(fit["kept"], fit["ratio"], budget)
        assert found is not None
        return Ratios(found)

    def _ready(self) -> tuple[list[tuple[Observed, Totals]], int]:
        """Calibration samples with what the unpruned model pays attention to, and the FLOPs to be charged for it."""
        if self._seen is not None:
            return self._seen, 0
        problem, self._seen, flops = self.context.evaluator.problem, [], 0
        for part in observe(problem, self.options.samples, self.context.seed):
            walk = self._walk(part, Walk(0.0, None))
            self._seen.append((part, walk.totals))
            flops += walk_flops(problem.shape, walk.entering(part.n_visual), part.n_text)
        return self._seen, 0 if self.fits() else flops

    def _walk(self, part: Observed, walk: Walk) -> Walk:
        problem = self.context.evaluator.problem
        inputs = problem.adapter.with_features(part.batch.inputs, part.batch.features)
        with torch.inference_mode(), _everywhere(problem.adapter, walk) as session:
            session.sample_keys = part.batch.keys
            problem.model(**inputs, use_cache=False, logits_to_keep=1)
        return walk


# --- the rule ----------------------------------------------------------------------------------------


def dispensable(values: Tensor, among: Tensor, least: Tensor) -> Tensor:
    """bool [B, n]: the longest run of the smallest ``values`` without which at least ``least`` [B] of the sum is left.

    Args:
        values: not negative, [B, n]; of equal ones the earlier comes first.
        among: bool [B, n], the others are not counted and not in the run.
    """
    values = values.double()
    ordered, places = values.masked_fill(~among, torch.inf).sort(dim=1, stable=True)
    ordered = ordered.masked_fill(ordered.isinf(), 0.0)
    from_here = ordered.flip(1).cumsum(dim=1).flip(1)
    left = torch.cat([from_here[:, 1:], torch.zeros_like(from_here[:, :1])], dim=1)
    run = torch.zeros_like(among).scatter(1, places, left >= least[:, None])
    return run & among


def deleted(cross: Tensor, own: Tensor, visual: Tensor, cross_total: Tensor, own_total: Tensor, alpha: float) -> Tensor:
    """Visual tokens that go at share ``alpha``, bool [B, n]: dispensable to the text and to the visual tokens.

    Args:
        cross, own: attention received from text and from visual tokens, [B, n].
        cross_total, own_total: sums over visual tokens of the same in the unpruned model, [B]. Where no text follows,
            ``cross`` and its total are 0 and ``own`` decides.
    """
    by_text = dispensable(cross, visual, (1 - alpha) * cross_total)
    return by_text & dispensable(own, visual, (1 - alpha) * own_total)


def ended(kept: Sequence[float], ratio: Sequence[float], budget: float) -> list[float] | None:
    """Keep ratios [L] of a walk that ends at the first layer from which the rest fits; None if it never does.

    Args:
        kept: share of tokens that enters each layer if the walk never ends.
        ratio: flops_ratio if it ends at a layer, whose count then holds to the end.
    """
    for layer, reached in enumerate(ratio):
        if reached <= budget + TIE:
            return [*kept[: layer + 1], *[kept[layer]] * (len(kept) - layer - 1)]
    return None


# --- walking -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Totals:
    """Attention that all visual tokens of a sample receive after each layer but the last: [L-1, B] each."""

    cross: Tensor
    own: Tensor


class Walk(Method):
    """Deletes tokens by the rule, at every boundary; without ``totals`` it deletes nothing and measures them."""

    name: ClassVar[str] = "fitprune_fit"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    def __init__(self, alpha: float, totals: Totals | None) -> None:
        self._alpha, self._known = alpha, totals
        self._kept: list[Tensor] = []
        self._cross: list[Tensor] = []
        self._own: list[Tensor] = []

    def score(self, context: ScoreContext) -> Tensor:
        cross, own, text = received(context)
        visual = context.visual
        cross, own = (part.double().masked_fill(~visual, 0.0) for part in (cross / text[:, None].clamp(min=1), own))
        stays = visual
        if self._known is not None:
            behind = context.boundary - 1
            totals = self._known.cross[behind], self._known.own[behind]
            stays = visual & ~deleted(cross, own, visual, *totals, self._alpha)
        self._cross.append(cross.sum(dim=1))
        self._own.append(own.sum(dim=1))
        self._kept.append(stays.sum(dim=1))
        return stays.float()

    def reduce(self, context: ScoreContext, scores: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return scores > 0, hidden

    @property
    def totals(self) -> Totals:
        return Totals(torch.stack(self._cross), torch.stack(self._own))

    def entering(self, n_visual: NDArray[np.int64]) -> NDArray[np.int64]:
        """Visual tokens that entered each layer, [B, L]."""
        return np.stack([n_visual, *(kept.cpu().numpy() for kept in self._kept)], axis=1)


class _Everywhere(PruningSession):
    """Has the method choose at every boundary, whatever the policy's counts."""

    def _start(self, prompt: Prompt, counts: Tensor, attention: str, drafts: int = 0) -> Prefill:
        chooses = [False] + [True] * (counts.shape[1] - 1)
        return Prefill(self.adapter, self.method, prompt, Path(counts, chooses, chooses, chooses), attention)


@contextmanager
def _everywhere(adapter: ModelAdapter, walk: Walk) -> Iterator[PruningSession]:
    session = _Everywhere(adapter, walk, keep_all(), gather_always=True)
    session.install()
    try:
        yield session
    finally:
        session.remove()


# --- what a walk comes to ----------------------------------------------------------------------------


def walk_flops(shape: ModelShape, entering: NDArray[np.int64], n_text: NDArray[np.int64]) -> int:
    """FLOPs of a walk in which ``entering`` [B, L] visual tokens entered each layer, attention that is read included.

    Every row is read after each layer but the last, where there are visual tokens to choose from.
    """
    before = entering[:, :-1]
    read = np.where(before > 0, FitPrune().scoring_flops(shape, before, n_text[:, None]), 0)
    return int(prefill_flops(shape, entering, entering[:, 0], n_text).sum() + read.sum())


def ratios_if_ended(
    shape: ModelShape, parts: Sequence[Observed], entering: Sequence[NDArray[np.int64]], method: Method
) -> list[float]:
    """Mean flops_ratio [L] if a walk ends at a layer, with the scoring of ``method``, which is to be measured."""
    ratios = [0.0] * shape.layers
    for part, counts in zip(parts, entering, strict=True):
        plain = unpruned_flops(shape, part.n_visual, part.n_text)
        for layer in range(shape.layers):
            held = np.maximum(counts, counts[:, layer : layer + 1])
            pruned = prefill_flops(shape, held, part.n_visual, part.n_text, method)
            ratios[layer] += part.weight * float((pruned / plain).sum())
    return ratios


def _shares(parts: Sequence[Observed], entering: Sequence[NDArray[np.int64]]) -> list[float]:
    """Mean share of visual tokens that enters each layer, [L], over samples with a picture."""
    weights = np.concatenate([np.where(part.n_visual > 0, part.weight, 0.0) for part in parts])
    counts, visual = np.concatenate(list(entering)), np.concatenate([part.n_visual for part in parts])
    if not weights.any():
        return [1.0] * counts.shape[1]
    shares = (weights[:, None] * counts / np.maximum(visual, 1)[:, None]).sum(axis=0) / weights.sum()
    return [float(share) for share in np.minimum.accumulate(np.minimum(shares, 1.0))]
