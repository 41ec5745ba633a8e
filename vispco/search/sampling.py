"""Random search and Optuna's TPE, at a number of trials or at the compute that another entry was charged."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import optuna
from pydantic import Field, model_validator

from vispco.search.base import SEARCHES, Options, Search


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
    """Draws parameters of the family until the limit is reached."""

    Options: ClassVar[type[Options]] = SamplingOptions

    @abstractmethod
    def propose(self, start: int, count: int) -> list[dict[str, Any]]:
        """Parameters of trials ``start`` to ``start + count - 1``, from the seed and the first ``start`` trials."""

    def run(self) -> None:
        context, options = self.context, self.options
        charged = context.log.charged_flops()
        while True:
            done = len(context.log.complete())
            if options.trials is not None and done >= options.trials:
                break
            start = done - done % options.batch
            for parameters in self.propose(start, options.batch)[done - start :]:
                schedule = context.family.schedule(parameters)
                price = context.evaluator.price(schedule, "search", context.method)
                if context.allowance is not None and charged + price > context.allowance:
                    return
                if options.trials is not None and done >= options.trials:
                    return
                self.measure(schedule, parameters=parameters)
                charged, done = charged + price, done + 1
                share = None if context.allowance is None else charged / context.allowance
                note = schedule.text() if share is None else f"{schedule.text()}, {share:.0%} of the compute"
                context.advance(done, options.trials, note)


@SEARCHES.register("random")
class RandomSearch(SamplingSearch):
    """Independent uniform draws: the baseline at equal compute."""

    kind: ClassVar[str] = "random"

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
        return _draw(sampler, self.context.family.distributions(), count, self.context.log.complete()[:start])


def _draw(
    sampler: optuna.samplers.BaseSampler,
    distributions: dict[str, Any],
    count: int,
    history: list[optuna.trial.FrozenTrial] | None = None,
) -> list[dict[str, Any]]:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.add_trials(history or [])
    return [dict(study.ask(fixed_distributions=distributions).params) for _ in range(count)]
