"""AutoPrune: every sample has its own logistic curve of retention, by what its question and its picture share."""

from __future__ import annotations

import ast
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vispco.costs import prefill_flops
from vispco.errors import ConfigError, ScheduleError
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.families.base import bisected
from vispco.pruning.forward.shared import SharedPrefill
from vispco.pruning.methods.base import Method, ScoreContext
from vispco.pruning.schedules import Counts, Policy, Step
from vispco.search.base import SEARCHES, Options, Proposal, Search, SearchContext

if TYPE_CHECKING:
    from vispco.evaluation.evaluator import Evaluator
    from vispco.pruning.forward.tokens import Prompt

DEPTH = 32  # of the model that the published numbers are for
HEIGHT, FIRST = 0.75, 2.5  # of the curve; tokens that enter layer 1, in targets
SHARE, CLUSTERS = 0.3, 10  # of what is dropped, the share that is put into clusters; tokens of a cluster
EPSILON = 1e-6
HALVINGS, LARGEST = 50, 10_000.0


def mutual_information(attention: Tensor) -> Tensor:
    """Bits that text and picture share, [B], from attention rows [B, h, T, V] of text queries over visual keys.

    Summed over heads. Text rows are equally likely; a row is not divided by its sum over the picture.
    """
    joint = attention.double() / attention.shape[2]
    text, visual = 1 / attention.shape[2], joint.sum(dim=2, keepdim=True)
    bits = joint * (joint.clamp(min=1e-30) / (text * visual + EPSILON)).log2()
    return bits.sum(dim=(1, 2, 3))


def curve(k: float, layers: int, x0: float = 14.9) -> NDArray[np.float64]:
    """Retention after layers 1 to ``layers`` - 1, before it is scaled: a logistic curve of steepness ``k``.

    Depths are those of a model with 32 layers, over which the layers are spread.
    """
    depth = np.arange(1, layers) * (DEPTH - 1) / (layers - 1)
    heights: NDArray[np.float64] = HEIGHT / (1 + np.exp(k * (depth - (x0 + k))))
    return heights


def counts_after(
    k: float, entering: int, target: float, layers: int, x0: float = 14.9, *, clusters: bool = False
) -> list[int]:
    """Visual tokens after layers 1 to ``layers`` - 1, where ``entering`` tokens enter layer 1.

    The curve is scaled so that tokens, summed over layers, come as near to ``layers * target`` as they can without
    exceeding it. With ``clusters`` those made of dropped tokens and put back count too, as in the official code.
    """
    shape = curve(k, layers, x0)

    def walk(factor: float) -> tuple[list[int], int]:
        counts, before, total = [], entering, entering
        for share in np.minimum(1.0, factor * shape):
            kept = min(math.ceil((entering - 1) * share), before)
            merged = 0
            if clusters and (dropped := before - kept):
                grouped = int(SHARE * dropped) + 1
                merged = min(int(grouped / CLUSTERS) + 1, grouped)
            counts.append(kept)
            before = kept + merged
            total += before
        return counts, total

    return walk(bisected(lambda factor: walk(factor)[1] <= layers * target, 0.0, LARGEST, HALVINGS))[0]


@dataclass(frozen=True, eq=False, repr=False)
class AutoPrunePolicy:
    """Each sample's curve, scaled to ``target`` tokens per layer; ``steepness`` says k of a batch's samples, [B]."""

    study: str
    target: float
    steepness: Callable[[Prompt], Sequence[float]]
    x0: float = 14.9

    def counts(self, n_visual: Counts, layers: int, context: Prompt | None = None) -> Counts:
        """Visual tokens entering each layer, [B, L]: all enter layer 0, and layer 1 as many as published.

        Raises:
            ScheduleError: there are no prompts to read.
        """
        if context is None:
            raise ScheduleError(f"{self.text()} reads prompts, and only their lengths are known here")
        rows = [
            _row(round(float(k), 3), int(n), self.target, layers, self.x0)
            for k, n in zip(self.steepness(context), n_visual, strict=True)
        ]
        return np.array(rows, dtype=np.int64).reshape(len(rows), layers)

    def text(self) -> str:
        return f"autoprune(study={self.study!r}, target={self.target!r})"

    def __repr__(self) -> str:
        return self.text()


@lru_cache(maxsize=65536)
def _row(k: float, visual: int, target: float, layers: int, x0: float) -> tuple[int, ...]:
    first = min(math.ceil(FIRST * target), visual)
    after = counts_after(k, first, target, layers, x0)
    return visual, first, *(min(first, max(count, min(1, visual))) for count in after[: layers - 2])


class AutoPruneOptions(Options):
    """Of ``k = max(k0 - gamma * bits, 0)``, the steepness of a sample's curve, and ``x0``, its middle; as published."""

    k0: float = Field(0.4, ge=0)
    gamma: float = Field(0.2, ge=0)
    x0: float = 14.9


@SEARCHES.register("autoprune")
class AutoPruneSearch(Search):
    """For every budget AutoPrune's curves, scaled to it: an input-conditioned policy without a search.

    A sample's steepness follows from the mutual information of text and picture in the attention of layer 1; the
    method ranks tokens. The target of tokens per layer is the largest whose mean cost on the search split fits the
    budget.

    Source: arXiv 2509.23931 and AutoLab-SAI-SJTU/AutoPrune, whose x0 is for 32 layers. Deviations: the study's method
    ranks tokens; tokens are dropped before a layer, not after it, and the first of them before layer 1; dropped
    tokens are not clustered and put back; one token stays; reading the attention is charged to the search, once, and
    not to the policy.
    """

    kind: ClassVar[str] = "autoprune"
    deterministic: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = AutoPruneOptions
    fixed_family: ClassVar[str | None] = "layerwise"

    @classmethod
    def check(cls, options: Any, method: Method, family: ScheduleFamily) -> None:
        if family.layers < 3:
            raise ConfigError(f"kind 'autoprune' needs a decoder of 3 layers at least; this one has {family.layers}")

    def __init__(self, context: SearchContext, options: AutoPruneOptions) -> None:
        super().__init__(context, options)
        self._bits = Bits(context.evaluator)

    def run(self) -> None:
        context, started = self.context, time.monotonic()
        budgets = sorted(context.budgets, reverse=True)
        done = {trial.user_attrs["budget"] for trial in context.log.settled()}
        missing = [budget for budget in budgets if budget not in done]
        if not missing:
            return
        self._bits.read("search")
        wanted = []
        for budget in missing:
            policy = self._within(budget)
            if policy is None:
                context.say(f"budget {budget:.3f} is left out: no target of tokens fits it")
                continue
            attributes = {"budget": budget, "target": policy.target}
            wanted.append(Proposal(policy, {}, attributes=attributes))
        if wanted:
            paid = 0 if done else self._bits.flops
            wanted[0] = replace(wanted[0], propose_flops=paid, seconds=time.monotonic() - started)
        self.measure(wanted, lambda landed: context.advance(len(done) + landed, len(budgets), ""))

    def _within(self, budget: float) -> AutoPrunePolicy | None:
        """The largest target, in sixteenths of a token, whose mean cost on the search split fits."""
        most = max(int(part.n_visual.max()) for part in self.context.evaluator.prepared("search"))
        low, high = 0, 16 * most + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.context.ratio(self._policy(middle / 16)) <= budget
            low, high = (middle, high) if fits else (low, middle)
        return self._policy(low / 16) if low else None

    def _policy(self, target: float) -> AutoPrunePolicy:
        options = self.options

        def steepness(prompt: Prompt) -> list[float]:
            return [max(options.k0 - options.gamma * self._bits.of(key), 0.0) for key in prompt.sample_keys]

        return AutoPrunePolicy(self.context.log.name, target, steepness, options.x0)

    def policy(self, text: str) -> Policy:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        named: Mapping[str, Any] = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        return self._policy(float(named["target"]))


class Bits:
    """Mutual information of each sample, read split by split, and the ``flops`` of that."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, self._known = evaluator, dict[int, float]()
        self._read = set[str]()
        self.flops = 0

    def of(self, key: int) -> float:
        """Bits of the sample with this key, of whatever split."""
        for split in ("search", "held_out"):
            if key not in self._known:
                self.read(split)
        return self._known[key]

    def read(self, split: str) -> None:
        """Have the samples of a split known: their text is run to the end, their picture to layer 1."""
        if split in self._read:
            return
        self._read.add(split)
        problem, reader = self._evaluator.problem, _Reader()
        shape = problem.shape
        for part in self._evaluator.prepared(split):
            schedule = Step(2, 1 / max(1, int(part.n_visual.max())))
            for batch in part.batches:
                visual, text = part.n_visual[batch.rows], part.n_text[batch.rows]
                counts = schedule.counts(visual, shape.layers)
                shared = SharedPrefill(problem.adapter, reader, counts[None], problem.study.memory_limit)
                for _ in shared.logits(problem.adapter.with_features(batch.inputs, batch.features), batch.keys):
                    pass
                self.flops += int(prefill_flops(shape, counts, visual, text, reader).sum())
        self._known.update(reader.found)


@dataclass(frozen=True, eq=False)
class _Reader(Method):
    """Ranks nothing: notes the bits of every sample that it is asked to rank."""

    found: dict[int, float] = field(default_factory=dict)
    name: ClassVar[str] = "mutual information"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    def score(self, context: ScoreContext) -> Tensor:
        words = context.valid & ~context.visual
        text = context.of_prompt(context.prompt.after_last_visual()) & words
        text = torch.where(text.any(dim=1, keepdim=True), text, words)  # no text follows the picture: all of it
        number = text.sum(dim=1).tolist()
        queries = text.int().argsort(dim=1, descending=True, stable=True)[:, : max(number)]
        rows = context.attention_rows(queries)
        for row, key in enumerate(context.sample_keys):
            own = rows[row : row + 1, :, : number[row], context.visual[row]]
            self.found[key] = float(mutual_information(own))
        return torch.zeros(context.visual.shape, device=context.visual.device)

    def scoring_flops(self, shape: Any, visual: Any, text: Any) -> Any:
        return 2 * shape.heads * shape.head_dim * text * (visual + text)

    def parameters(self) -> dict[str, Any]:
        return {}
