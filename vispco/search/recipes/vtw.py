"""VTW: drop all visual tokens at the first layer where the model hardly notices."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from vispco.costs import prefill_flops, shared_flops, unpruned_flops
from vispco.errors import ConfigError, MeasurementError
from vispco.pruning.forward.shared import SharedPrefill
from vispco.pruning.schedules import Step
from vispco.search.base import SEARCHES, Options, Proposal, Search
from vispco.search.recipes.calibration import Observed, observe


class VTWOptions(Options):
    """``eta``: the most divergence that may go unnoticed, one number or a list: a schedule for each.

    ``samples``: calibration samples per task; ``first``: the first layer that may be chosen.
    """

    eta: list[Annotated[float, Field(ge=0)]] = Field([0.003], min_length=1)
    samples: int = Field(20, ge=1)
    first: int = Field(1, ge=1)

    @field_validator("eta", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("eta")
    @classmethod
    def _distinct(cls, value: list[float]) -> list[float]:
        if len(set(value)) != len(value):
            raise ValueError("values repeat")
        return value


@dataclass(frozen=True)
class Withdrawals:
    """What dropping all visual tokens at a layer does and costs.

    ``divergence``: layer -> mean ``KL(withdrawn || plain)`` of the next token's distribution; ``flops``: layer ->
    FLOPs of the samples' prefills that showed it; ``plain_flops`` of the plain ones; ``spent_flops`` of all together.
    """

    divergence: Mapping[int, float]
    flops: Mapping[int, int]
    plain_flops: int
    spent_flops: int

    def first(self, eta: float) -> int | None:
        """The first layer with a divergence of at most ``eta``; None if there is none."""
        return next((layer for layer, kl in sorted(self.divergence.items()) if kl <= eta), None)

    def tried(self, eta: float) -> set[int]:
        """The layers that have to be looked at to find :meth:`first`."""
        chosen = self.first(eta)
        return {layer for layer in self.divergence if chosen is None or layer <= chosen}


def _withdrawn(candidates: range) -> list[Step]:
    """The plain model, and all visual tokens withdrawn at each candidate layer."""
    return [Step(0, 1.0), *(Step(layer, 0.0) for layer in candidates)]


def divergence(withdrawn: Tensor, plain: Tensor) -> Tensor:
    """``KL(softmax(withdrawn) || softmax(plain))`` [B] of logits [B, V], in this order as in the official code."""
    p, q = withdrawn.double().log_softmax(dim=-1), plain.double().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)


@SEARCHES.register("vtw")
class VTWSearch(Search):
    """VTW's rule: withdraw all visual tokens at the first layer where the next token's distribution hardly changes.

    For every candidate layer K, from the first on: ``KL(withdrawn || plain)`` at the last prompt token, mean over
    calibration samples; the first K where it is at most ``eta`` gives ``step(layer=K, keep=0)``. Where there is none,
    nothing is dropped. Charged are the plain prefills and those of the layers that the rule looks at, each once.

    Source: arXiv 2405.05803 and lzhxmu/VTW, which gives eta 0.003 for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for
    LLaVA-1.6-7B. Deviations: candidates begin at layer 1 (``first``), 5 there; several eta in one entry.
    """

    kind: ClassVar[str] = "vtw"
    Options: ClassVar[type[Options]] = VTWOptions
    reads_calibration: ClassVar[bool] = True
    fixed_family: ClassVar[str | None] = "step"

    def run(self) -> None:
        context, etas = self.context, self.options.eta
        done = {trial.user_attrs["eta"] for trial in context.log.settled()}
        context.advance(len(done), len(etas), "")
        if done.issuperset(etas):
            return
        started = time.monotonic()
        found = self.withdrawals()
        seconds = (time.monotonic() - started) / len(etas)
        wanted: list[Proposal] = []
        looked: set[int] = set()
        for number, eta in enumerate(etas):
            new = found.tried(eta) - looked
            looked |= new
            flops = sum(found.flops[layer] for layer in new) + (found.plain_flops if number == 0 else 0)
            if eta in done:
                continue
            layer = found.first(eta)
            if layer is None:
                context.say(f"no layer has a divergence of at most {eta}, so nothing is dropped")
            schedule = Step(1, 1.0) if layer is None else Step(layer, 0.0)
            attributes = {
                "eta": eta,
                "divergence": None if layer is None else found.divergence[layer],
                "divergences": {str(at): found.divergence[at] for at in sorted(found.tried(eta))},
            }
            paid = 0 if wanted else found.spent_flops  # all layers were looked at together, once
            wanted.append(Proposal(schedule, None, flops, seconds, attributes, propose_spent=paid))
        self.measure(wanted, lambda landed: context.advance(len(done) + landed, len(etas), ""))

    def withdrawals(self) -> Withdrawals:
        """Look at all candidate layers at once; they share the layers before."""
        problem, options = self.context.evaluator.problem, self.options
        shape = problem.shape
        if options.first >= shape.layers:
            raise ConfigError(f"first is layer {options.first}, but the model has layers 0 to {shape.layers - 1}")
        candidates = range(options.first, shape.layers)
        divergences, flops, plain = dict.fromkeys(candidates, 0.0), dict.fromkeys(candidates, 0), 0
        spent = 0
        for part in observe(problem, options.samples, self.context.seed):
            plain += int(unpruned_flops(shape, part.n_visual, part.n_text).sum())
            for layer in candidates:
                counts = Step(layer, 0.0).counts(part.n_visual, shape.layers)
                flops[layer] += int(prefill_flops(shape, counts, part.n_visual, part.n_text).sum())
            together = [schedule.counts(part.n_visual, shape.layers) for schedule in _withdrawn(candidates)]
            spent += int(shared_flops(shape, together, part.n_visual, part.n_text).sum())
            for layer, found in self._divergences(part, candidates):
                divergences[layer] += part.weight * float(found.sum())
        for layer, value in divergences.items():
            if not math.isfinite(value):
                raise MeasurementError(
                    f"the divergence at layer {layer} is {value}; check the model's weights and dtype"
                )
        return Withdrawals(divergences, flops, plain, spent)

    def _divergences(self, part: Observed, candidates: range) -> Iterator[tuple[int, Tensor]]:
        """Each candidate layer with the samples' divergence [B] if all visual tokens are withdrawn there."""
        problem = self.context.evaluator.problem
        counts = np.stack([one.counts(part.n_visual, problem.shape.layers) for one in _withdrawn(candidates)])
        prefill = SharedPrefill(problem.adapter, self.context.method, counts, problem.study.memory_limit)
        inputs = problem.adapter.with_features(part.batch.inputs, part.batch.features)
        plain: Tensor | None = None
        for members, logits in prefill.logits(inputs, part.batch.keys):
            plain = logits if plain is None else plain  # the first of the policies comes first
            for number in members:
                if number > 0:
                    yield candidates[number - 1], divergence(logits, plain)
