"""The contract of a search, and what a search is given."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from vispco.evaluation.evaluator import Evaluator
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Schedule
from vispco.registry import Registry
from vispco.storage.trials import TrialLog

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from vispco.storage.store import Store

SEARCHES = Registry("search", "searches")

Advance = Callable[[int, "int | None", str], None]


class Options(BaseModel):
    """Options of one kind of search, as written in its entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass
class SearchContext:
    """Everything a search may use.

    ``allowance``: FLOPs that the entry may be charged, if its compute is limited.
    ``advance(done, total, note)`` reports progress.
    """

    evaluator: Evaluator
    method: Method
    family: ScheduleFamily
    budgets: list[float]
    seed: int
    log: TrialLog
    store: Store
    allowance: int | None = None
    advance: Advance = field(default=lambda done, total, note: None)


class Search(ABC):
    """Proposes schedules, has them measured by the shared evaluator, and stores every one as a trial.

    ``run`` continues from the COMPLETE trials in the log: what it proposes next is a function of the seed and
    of those trials, so that a resumed search proposes what an undisturbed one would have.
    """

    kind: ClassVar[str]
    Options: ClassVar[type[Options]] = Options

    def __init__(self, context: SearchContext, options: Any) -> None:
        self.context = context
        self.options = options

    @abstractmethod
    def run(self) -> None:
        """Search until done."""

    def measure(
        self,
        schedule: Schedule,
        *,
        parameters: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
        propose_flops: int = 0,
        attributes: Mapping[str, Any] | None = None,
        started: float | None = None,
    ) -> None:
        """Measure ``schedule`` on the search split and store it as a COMPLETE trial."""
        context = self.context
        started = time.monotonic() if started is None else started
        evaluation = context.evaluator.evaluate([schedule], "search", context.method)[0]
        context.log.add(
            evaluation,
            parameters=parameters if parameters is not None else context.family.parameters(schedule),
            distributions=distributions if distributions is not None else context.family.distributions(),
            seconds=time.monotonic() - started,
            propose_flops=propose_flops,
            attributes=attributes,
        )
