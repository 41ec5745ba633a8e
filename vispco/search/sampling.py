"""Random search and Optuna's TPE, at a number of trials or at the compute that another entry was charged."""

from __future__ import annotations

import itertools
import warnings
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import optuna
from pydantic import Field, model_validator

from vispco.pruning.schedules import parse_schedule
from vispco.search.base import SEARCHES, Options, Proposal, Search


class SamplingOptions(Options):
    """``trials``: how many, or ``compute``: the entry whose charged compute may be spent. One of the two.

    ``batch``: proposals asked together; part of the search's definition, so that parallel and resumed runs
    propose the same.
    """

    trials: int | None = Field(None, ge=1)
    compute: str | None = None
    batch: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> SamplingOptions:
        if (self.trials is None) == (self.compute is None):
            raise ValueError("give either trials: N or compute: ENTRY")
        return self


class SamplingSearch(Search):
    """Draws parameters of the family until the limit is reached.

    Each trial notes the number of its proposal, so that a run that was stopped anywhere, or a proposal that could
    not be measured, changes nothing for the others.
    """

    Options: ClassVar[type[Options]] = SamplingOptions

    @abstractmethod
    def propose(self, start: int, count: int) -> list[dict[str, Any]]:
        """Parameters of proposals ``start`` to ``start + count - 1``, from the seed and those before ``start``."""

    @property
    def together(self) -> int:
        """How many proposals are asked together."""
        size: int = self.options.batch
        return size

    def settled(self) -> dict[int, optuna.trial.FrozenTrial]:
        """Trials by the number of their proposal, without failures that are still to be tried again."""
        trials = self.context.log.settled()
        return {trial.user_attrs.get("proposal", place): trial for place, trial in enumerate(trials)}

    def run(self) -> None:
        options, context = self.options, self.context
        charged = sum(self._charge(trial) for trial in self.settled().values())
        limited = False
        while not limited:
            settled = self.settled()
            start = next(
                n for n in itertools.count(0, self.together) if not settled.keys() >= {*range(n, n + self.together)}
            )
            drawn = enumerate(self.propose(start, self.together), start=start)
            wanted: list[Proposal] = []
            for number, parameters in drawn:
                if options.trials is not None and number >= options.trials:
                    limited = True
                    break
                if number in settled:
                    continue
                schedule = context.family.schedule(parameters)
                price = context.evaluator.price(schedule, "search", context.method)
                if context.allowance is not None and charged + price > context.allowance:
                    limited = True
                    break
                charged += price
                wanted.append(Proposal(schedule, parameters, attributes={"proposal": number}))
            self.measure(wanted, partial(self._advance, len(settled), wanted))

    def _charge(self, trial: optuna.trial.FrozenTrial) -> int:
        """What a proposal took of the allowance; one that failed as much as one that did not."""
        charged = trial.user_attrs.get("charged_flops")
        if charged is not None:
            return int(charged)
        schedule = parse_schedule(trial.user_attrs["schedule"])
        return self.context.evaluator.price(schedule, "search", self.context.method)

    def _advance(self, before: int, wanted: list[Proposal], landed: int) -> None:
        context = self.context
        note = wanted[landed - 1].schedule.text()
        if context.allowance is not None:
            note += f", {context.log.charged_flops() / context.allowance:.0%} of the compute"
        context.advance(before + landed, self.options.trials, note)


@SEARCHES.register("random")
class RandomSearch(SamplingSearch):
    """Independent uniform draws: the baseline at equal compute."""

    kind: ClassVar[str] = "random"

    @property
    def together(self) -> int:
        """Draws do not depend on each other: many at once share the most."""
        return 64

    def propose(self, start: int, count: int) -> list[dict[str, Any]]:
        return [_draw(self._sampler(start + i), self.context.family.distributions(), 1)[0] for i in range(count)]

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=(self.context.seed * 1_000_003 + number) % 2**32)


@SEARCHES.register("tpe")
class TPESearch(SamplingSearch):
    """Optuna's multi-objective TPE, multivariate.

    Each batch is asked of a fresh sampler, seeded by (seed, trials so far), over a copy in memory of those
    trials: stored state of a sampler is not needed to resume.
    """

    kind: ClassVar[str] = "tpe"

    def propose(self, start: int, count: int) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                multivariate=True, seed=(self.context.seed * 1_000_003 + start) % 2**32
            )
        settled = self.settled()
        return _draw(sampler, self.context.family.distributions(), count, [settled[n] for n in range(start)])


def _draw(
    sampler: optuna.samplers.BaseSampler,
    distributions: dict[str, Any],
    count: int,
    history: list[optuna.trial.FrozenTrial] | None = None,
) -> list[dict[str, Any]]:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.add_trials(history or [])
    return [dict(study.ask(fixed_distributions=distributions).params) for _ in range(count)]
