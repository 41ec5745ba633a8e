"""Random search, and drawing up to a number of trials or an amount of charged compute.

The samplers of Optuna that learn from earlier trials are in :mod:`vispco.search.samplers`.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from pydantic import Field, field_validator, model_validator

from vispco.errors import ScheduleError
from vispco.evaluation.records import Outcome
from vispco.pruning.methods.base import Method
from vispco.pruning.published import PUBLISHED, named_schedule
from vispco.pruning.schedules import Schedule, parse_schedule
from vispco.search.base import SEARCHES, Options, Proposal, Search
from vispco.search.racing import RacingOptions

METHOD = "method"  # parameter and attribute of trials where an entry lists several

Drawn = tuple[Schedule, Method | None]


class SamplingOptions(Options):
    """``trials``: how many, or ``compute``: what may be charged for them, or ``spent``: what may be paid. One of them.

    ``compute``: an entry, for as much as that was charged, or a share of the dense grid's naive cost. Drawing ends at
    the first schedule that would exceed it, so that a smaller share gives the first trials of a larger one.

    ``spent``: the same after sharing: as much as an entry's trials cost, or a share of what the dense grid costs when
    it is measured together. On both sides what is asked together is priced together, with nothing cached.

    ``enqueue``: schedules that are proposed first: ``published``, those that papers publish for any method, or a list
    of their names and of schedules as text. Of the entry's method only the schedule counts; what the family cannot
    express is left out.

    ``batch``: proposals asked together; part of the search's definition, so that parallel and resumed runs
    propose the same.
    """

    trials: int | None = Field(None, ge=1)
    compute: str | float | None = None
    spent: str | float | None = None
    batch: int = Field(1, ge=1)
    enqueue: Literal["published"] | tuple[str, ...] = ()

    @field_validator("compute", "spent", mode="before")
    @classmethod
    def _entry_or_share(cls, value: Any) -> Any:
        share = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if not share and value is not None and not isinstance(value, str):
            raise ValueError("name an entry, or give a share of the dense grid's cost such as 0.1")
        return value

    @model_validator(mode="after")
    def _one_limit(self) -> SamplingOptions:
        if [self.trials, self.compute, self.spent].count(None) != 2:
            raise ValueError(
                "give either trials: N or compute: ENTRY (or a share of the grid's cost), or spent: likewise"
            )
        return self


class RandomOptions(SamplingOptions):
    """``race``, with ``trials``: stop what is shown not to matter before it has seen all samples."""

    race: RacingOptions | None = None

    @model_validator(mode="after")
    def _trials_race(self) -> RandomOptions:
        if self.race is not None and self.trials is None:
            raise ValueError("a race needs trials: N; what it will be charged is not known before")
        return self


class SamplingSearch(Search):
    """Draws parameters of the family until the limit is reached.

    Each trial notes the number of its proposal, so that a run that was stopped anywhere, or a proposal that could
    not be measured, changes nothing for the others.
    """

    Options: ClassVar[type[Options]] = SamplingOptions
    before_decoder: ClassVar[bool] = True
    resolutions: ClassVar[bool] = True
    among_methods: ClassVar[bool] = True
    any_cost: ClassVar[bool] = True
    several_costs: ClassVar[bool] = True

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What is drawn: the family's parameters, and the method where the entry lists several."""
        given: dict[str, BaseDistribution] = dict(self.context.family.distributions())
        keys = [method.key() for method in self.context.methods]
        return {**given, METHOD: CategoricalDistribution(keys)} if keys else given

    def drawn_schedule(self, parameters: Mapping[str, Any]) -> Schedule:
        """What drawn parameters stand for."""
        schedule: Schedule = self.context.family.schedule({k: v for k, v in parameters.items() if k != METHOD})
        return schedule

    def schedule_of(self, parameters: Mapping[str, Any]) -> Schedule:
        """What is measured for drawn parameters; on the edge of its step where measured times are a staircase."""
        context = self.context
        method = self.method_of(parameters) or context.method
        return context.cost.on_edge(self.drawn_schedule(parameters), context.family, method)

    def method_of(self, drawn: Mapping[str, Any]) -> Method | None:
        """Which of several methods a draw, or a trial's attributes, name; None where there is one."""
        return next((method for method in self.context.methods if method.key() == drawn.get(METHOD)), None)

    @abstractmethod
    def propose(self, start: int, count: int) -> list[dict[str, Any]]:
        """Parameters of proposals ``start`` to ``start + count - 1``, from the seed and those before ``start``."""

    def notes(self, start: int) -> Mapping[str, Any]:
        """Attributes for the trials of the proposals from ``start`` on, from those before ``start``."""
        return {}

    @property
    def together(self) -> int:
        """How many proposals are asked together."""
        size: int = self.options.batch
        return size

    def settled(self) -> dict[int, FrozenTrial]:
        """Trials by the number of their proposal, without failures that are still to be tried again."""
        trials = self.context.log.settled()
        return {trial.user_attrs.get("proposal", place): trial for place, trial in enumerate(trials)}

    def run(self) -> None:
        options, context = self.options, self.context
        limited = False
        while not limited:
            settled = self.settled()
            start = next(
                n for n in itertools.count(0, self.together) if not settled.keys() >= {*range(n, n + self.together)}
            )
            count = self.together if options.trials is None else min(self.together, options.trials - start)
            if count <= 0:
                break
            started = time.monotonic()
            notes, drawn = self.notes(start), self.drawn(start, count)
            seconds = (time.monotonic() - started) / len(drawn)
            schedules = [(self.schedule_of(parameters), self.method_of(parameters)) for parameters in drawn]
            most = self._affordable(start, schedules, settled)
            limited = most < self.together
            wanted = [
                Proposal(
                    schedule,
                    self._parameters(schedule, parameters),
                    seconds=seconds,
                    attributes={"proposal": number, "batch": start, **notes},
                    distributions=self.distributions,
                    method=method,
                )
                for number, (parameters, (schedule, method)) in enumerate(
                    zip(drawn[:most], schedules[:most], strict=True), start=start
                )
                if number not in settled
            ]
            if not most and not settled:
                context.say("not one schedule was measured: the first one alone exceeds the compute")
            known = self.outcomes(start, wanted) if wanted else None
            self.measure(wanted, partial(self._advance, len(settled), wanted), known)

    def _parameters(self, schedule: Schedule, drawn: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of what is measured for a draw: where it was moved, the family's of where it is now."""
        if schedule == self.drawn_schedule(drawn):
            return drawn
        return {**drawn, **self.context.family.parameters(schedule)}

    def _affordable(self, start: int, drawn: Sequence[Drawn], settled: Mapping[int, FrozenTrial]) -> int:
        """How many of the proposals from ``start`` on may be charged and paid, after those before."""
        context, most = self.context, len(drawn)
        if context.allowance is not None:
            left = context.allowance - sum(self._charge(trial) for n, trial in settled.items() if n < start)
            prices = (context.evaluator.price(one, "search", method or context.method) for one, method in drawn)
            most = bisect.bisect_right(list(itertools.accumulate(prices)), left)
        if context.paid_allowance is not None:
            left = context.paid_allowance - self._paid_before(start, settled)
            most = bisect.bisect_right(range(1, most + 1), left, key=lambda count: self._price(drawn[:count]))
        return most

    def _paid_before(self, start: int, settled: Mapping[int, FrozenTrial]) -> int:
        """What the batches of proposals before ``start`` cost after sharing, with nothing cached."""
        for first in range(0, start, self.together):
            if first not in self._paid:
                batch = [settled[n].user_attrs for n in range(first, first + self.together)]
                until = [int(a.get("samples", 0)) for a in batch]
                self._paid[first] = self._price(
                    [(parse_schedule(a["schedule"]), self.method_of(a)) for a in batch], until
                )
        return sum(price for first, price in self._paid.items() if first < start)

    def _price(self, drawn: Sequence[Drawn], until: Sequence[int] = ()) -> int:
        """Of measuring these together, method by method; ``until``: see :meth:`Evaluator.shared_price`."""
        by_method: dict[str, tuple[Method, list[int]]] = {}
        for number, (_, method) in enumerate(drawn):
            chosen = method or self.context.method
            by_method.setdefault(chosen.key(), (chosen, []))[1].append(number)
        price = 0
        for method, numbers in by_method.values():
            seen = [until[n] for n in numbers] if until else None
            price += self.context.evaluator.shared_price([drawn[n][0] for n in numbers], "search", method, seen)
        return price

    @cached_property
    def _paid(self) -> dict[int, int]:
        """Price of each batch of proposals that is settled, by the number of its first."""
        return {}

    def drawn(self, start: int, count: int) -> list[dict[str, Any]]:
        """:meth:`propose`, with what is enqueued in the place of the first."""
        given = self._enqueued[start : start + count]
        return [*given, *self.propose(start, count)[len(given) :]]

    @cached_property
    def _enqueued(self) -> list[dict[str, Any]]:
        """Parameters of what is proposed first."""
        family, names = self.context.family, self.options.enqueue
        found: dict[str, dict[str, Any]] = {}
        for name in PUBLISHED if names == "published" else names:
            try:
                named, theirs = named_schedule(name, family.layers)
                own = family.like(named)
            except ScheduleError:
                if names != "published":
                    raise
                continue  # for deeper models
            if own is not None:
                keys = [method.key() for method in self.context.methods]
                method = theirs.key() if theirs is not None and theirs.key() in keys else keys[0] if keys else None
                parameters = {**family.parameters(own), **({METHOD: method} if method else {})}
                found.setdefault(f"{method}|{own.text()}", parameters)
            elif names != "published":
                self.context.say(f"{name} is no schedule of family {family.name!r} and is not enqueued")
        return list(found.values())

    def outcomes(self, start: int, wanted: list[Proposal]) -> dict[str, Outcome] | None:
        """Outcomes of the wanted proposals, if they are not simply measured."""
        return None

    def _charge(self, trial: FrozenTrial) -> int:
        """What a proposal took of the allowance; one that failed as much as one that did not."""
        charged = trial.user_attrs.get("charged_flops")
        if charged is not None:
            return int(charged)
        schedule, method = parse_schedule(trial.user_attrs["schedule"]), self.method_of(trial.user_attrs)
        return self.context.evaluator.price(schedule, "search", method or self.context.method)

    def _advance(self, before: int, wanted: list[Proposal], landed: int) -> None:
        context = self.context
        note = wanted[landed - 1].schedule.text()
        if context.allowance is not None:
            note += f", {context.log.charged_flops() / context.allowance:.0%} of the compute"
        if context.paid_allowance is not None:
            note += f", {context.log.spent_flops() / context.paid_allowance:.0%} of the compute"
        context.advance(before + landed, self.options.trials, note)


@SEARCHES.register("random")
class RandomSearch(SamplingSearch):
    """Independent uniform draws: the baseline at equal compute."""

    kind: ClassVar[str] = "random"

    Options: ClassVar[type[Options]] = RandomOptions

    @property
    def together(self) -> int:
        """Draws do not depend on each other: many at once share the most."""
        return 256 if self.options.race is None else int(self.options.trials)

    def outcomes(self, start: int, wanted: list[Proposal]) -> dict[str, Outcome] | None:
        if self.options.race is None:
            return None
        drawn = [self.schedule_of(parameters) for parameters in self.drawn(start, self.together)]
        return self.race(drawn, self.options.race)

    def propose(self, start: int, count: int) -> list[dict[str, Any]]:
        spaces = self.distributions
        return [dict(new_study(self._sampler(start + i)).ask(spaces).params) for i in range(count)]

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=(self.context.seed * 1_000_003 + number) % 2**32)


def new_study(
    sampler: optuna.samplers.BaseSampler, history: Sequence[FrozenTrial] = (), costs: int = 1
) -> optuna.Study:
    """A study in memory of an accuracy and so many costs, with copies of ``history``, numbered from 0."""
    name = f"proposals-{uuid.uuid4().hex}"
    with _unannounced(name):
        directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * costs]
        study = optuna.create_study(study_name=name, directions=directions, sampler=sampler)
    study.add_trials(history)
    return study


@contextmanager
def _unannounced(name: str) -> Iterator[None]:
    """Keep Optuna from announcing study ``name``: its user sees it nowhere. What others announce stays."""

    def keep(record: logging.LogRecord) -> bool:
        return name not in record.getMessage()

    logger = logging.getLogger("optuna.storages._in_memory")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
