"""The contract of a search, and what a search is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from vispco.costs.bounds import Priced
from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import PreparedSplit, block_ends
from vispco.evaluation.records import Evaluation, Failed, Outcome
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Policy, Schedule, TextPolicy, parse_schedule
from vispco.registry import Registry
from vispco.search.gradient.team import Alone, Team
from vispco.search.racing import Race, RacingOptions, order_by
from vispco.search.study_cost import StudyCost
from vispco.storage.trials import ATTEMPTS, TrialLog
from vispco.tasks.aggregation import MEAN

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from vispco.storage.store import Store

SEARCHES = Registry("search", "searches", "kind")

MOST_STEPS = 1_000_000
NOTHING = 0, 0, 0.0  # owed

Advance = Callable[[int, "int | None", str], None]


@dataclass(frozen=True)
class Proposal:
    """A schedule to be measured, or another policy, and the attributes of its trial.

    ``parameters``, with their ``distributions``: default, those that the family reads off the schedule; a policy has
    none, ``{}``. ``seconds``, ``propose_flops``: what finding it took; ``propose_spent``: after sharing, if less.
    ``method``: which one it is meant for, where a search has several.
    """

    schedule: Schedule | TextPolicy
    parameters: Mapping[str, Any] | None = None
    propose_flops: int = 0
    seconds: float = 0.0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] | None = None
    propose_spent: int | None = None
    method: Method | None = None


class Options(BaseModel):
    """Options of one kind of search, as written in its entry."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_reason(cls, value: Any) -> Any:
        """Every whole number counts steps or samples, and a search that never ends helps nobody."""
        if isinstance(value, int) and abs(value) > MOST_STEPS:
            raise ValueError(f"a search does nothing so often; the most is {MOST_STEPS:,}")
        return value


@dataclass
class SearchContext:
    """Everything a search may use.

    ``methods``: those that the entry searches among, if it lists several; ``method`` is the first.
    ``allowance``: FLOPs that the entry may be charged, if its compute is limited; ``paid_allowance``: that it may
    spend, after sharing.
    ``advance(done, total, note)`` reports progress, ``watch(units)`` work within a measurement, ``say`` what a
    person should read. ``team``: the processes that share gradients. ``cost``: what ``budgets`` are shares of, and the
    study's limits.
    """

    evaluator: Evaluator
    method: Method
    family: ScheduleFamily
    budgets: list[float]
    seed: int
    log: TrialLog
    store: Store
    cost: StudyCost
    allowance: int | None = None
    paid_allowance: int | None = None
    methods: Sequence[Method] = ()
    advance: Advance = field(default=lambda done, total, note: None)
    watch: Callable[[int], None] = field(default=lambda units: None)
    say: Callable[[str], None] = field(default=lambda text: None)
    team: Team = field(default_factory=Alone)

    def ratio(self, policy: Policy) -> float:
        """Share of the unpruned model's cost on the search split, which budgets bound."""
        return self.cost.ratio(policy, self.method)


class Search(ABC):
    """Proposes schedules, has them measured by the shared evaluator, and stores every one as a trial.

    ``run`` continues from the COMPLETE trials in the log: what it proposes next is a function of the seed and
    of those trials, so that a resumed search proposes what an undisturbed one would have.

    Attributes:
        deterministic: the seed changes nothing, so that one run says all that there is to say of the search.
        reads_calibration: what it proposes depends on the split ``calibration``.
        among_methods: it can search among several methods.
        before_decoder: it can use families that drop tokens before layer 0.
        resolutions: it can search the pictures' resolution together with the schedule.
        any_cost: it can search under budgets in another cost than FLOPs, and under limits.
        several_costs: it can run where several costs are minimised.
        stops_early: it stops schedules before they saw all samples.
        is_reference: it measures the whole grid of its family, which other searches are compared with.
        fixed_family: the schedule family of every proposal, if the search has no choice; entries then name none.
        defaults: rises when defaults of its options change. An entry keeps those that it began with
            (:meth:`as_begun`), so that its trials are never mixed.
    """

    kind: ClassVar[str]
    deterministic: ClassVar[bool] = False
    Options: ClassVar[type[Options]] = Options
    fixed_family: ClassVar[str | None] = None
    reads_calibration: ClassVar[bool] = False
    before_decoder: ClassVar[bool] = False
    resolutions: ClassVar[bool] = False
    among_methods: ClassVar[bool] = False
    any_cost: ClassVar[bool] = False
    several_costs: ClassVar[bool] = False
    stops_early: ClassVar[bool] = False
    is_reference: ClassVar[bool] = False
    defaults: ClassVar[int] = 1

    @classmethod
    def as_begun(cls, options: Any, defaults: int) -> Any:
        """``options`` of an entry that began under earlier ``defaults``, with those filled in."""
        return options

    @classmethod  # noqa: B027  (most kinds refuse nothing)
    def check(cls, options: Any, method: Method, family: ScheduleFamily) -> None:
        """Refuse what cannot work, before anything is measured.

        Raises:
            ConfigError: options, method or family do not fit; without the name of the entry.
        """

    @classmethod
    def may_change_trials(cls, options: Any, before: int) -> bool:
        """Whether an entry that began with ``before`` trials may have another number: not where they would be judged
        beside new ones again, after some were stopped."""
        return getattr(options, "race", None) is None

    @classmethod
    def check_several(cls, options: Any) -> None:
        """Refuse what cannot work with several methods.

        Raises:
            ConfigError: the search takes one method, or an option does.
        """
        if not cls.among_methods:
            able = [name for name, known in SEARCHES.items() if known.among_methods]
            raise ConfigError(
                f"kind {cls.kind!r} searches with one method; write an entry for each, or use {', '.join(able)}"
            )
        if getattr(options, "race", None) is not None:
            raise ConfigError(
                "a race is between schedules of one method; remove race:, or write an entry for each method"
            )

    def __init__(self, context: SearchContext, options: Any) -> None:
        self.context = context
        self.options = options
        # FLOPs to propose what failed, those spent, and seconds; None until the log was asked what is owed.
        self._owed: tuple[int, int, float] | None = None
        self._billed: set[tuple[str | None, str]] = set()  # methods and schedules that an earlier process owes for

    @abstractmethod
    def run(self) -> None:
        """Search until done."""

    def policy(self, text: str) -> Policy:
        """The policy of a trial's ``schedule`` attribute."""
        return parse_schedule(text)

    def check_means(self, way_out: str) -> None:
        """Refuse tasks of which a part of the samples says nothing.

        Raises:
            ConfigError: a task whose number is no mean over samples.
        """
        for task in self.context.evaluator.problem.tasks:
            if task.rule != MEAN:
                raise ConfigError(
                    f"task {task.name!r} is no mean over samples, so its schedules cannot be raced; {way_out}"
                )

    def race(self, schedules: Sequence[Schedule], options: RacingOptions) -> dict[str, Outcome]:
        """Race schedules on the search split; outcome of each by its text.

        Raises:
            ConfigError: a task whose number is no mean over samples.
        """
        context = self.context
        self.check_means("remove race:")

        def make(costs: Sequence[float], parts: Sequence[PreparedSplit]) -> Race:
            places = [part.place for part in parts]
            *ends, samples = block_ends(sum(len(place) for place in places))
            stages = [*(end for end in ends if end >= options.first), samples]
            return Race(costs, order_by(places), options, context.budgets, stages)

        ratio = None
        if not context.cost.in_flops:
            ratio = partial(context.cost.ratio_of_counts, method=context.method)
        outcomes = context.evaluator.race(schedules, make, "search", context.method, context.watch, ratio)
        first: dict[str, Outcome] = {}
        for outcome in outcomes:
            first.setdefault(outcome.schedule, outcome)  # the first of several that are alike is the one that was paid
        return first

    def measure(
        self,
        proposals: Sequence[Proposal],
        advance: Callable[[int], None] = lambda landed: None,
        known: Mapping[str, Outcome] | None = None,
    ) -> None:
        """Measure proposals on the search split, together, and store each as a trial, in their order.

        ``known``: outcomes by schedule that are there already, for example from a race.

        What cannot be measured becomes a FAIL trial that says why, and is tried again, three times in all;
        ``advance`` gets how many have landed. Proposals for several methods are measured method by method.
        A search that measures in several batches numbers them in the attribute ``batch``, by which they are priced.
        """
        by_method: dict[str | None, list[Proposal]] = {}
        for proposal in proposals:
            by_method.setdefault(proposal.method.key() if proposal.method else None, []).append(proposal)
        landed = 0
        for group in by_method.values():
            landed = self._measure(group, advance, known, landed)

    def _measure(
        self,
        proposals: Sequence[Proposal],
        advance: Callable[[int], None],
        known: Mapping[str, Outcome] | None,
        landed: int,
    ) -> int:
        """:meth:`measure` of one method's proposals; ``landed`` so far, and then."""
        context = self.context
        method = next((proposal.method for proposal in proposals), None)
        named = {"method": method.key()} if method else {}
        self._recall_owed()
        proposals = [self._billed_once(proposal, named.get("method")) for proposal in proposals]
        while proposals:
            again: list[Proposal] = []
            schedules = [proposal.schedule for proposal in proposals]
            outcomes: Iterable[Outcome]
            if known is not None:
                outcomes, known = _paid_once([known[schedule.text()] for schedule in schedules]), None
            else:
                outcomes = context.evaluator.outcomes(schedules, "search", method or context.method, context.watch)
            for proposal, outcome in zip(proposals, outcomes, strict=True):
                parameters = proposal.parameters
                if parameters is None:
                    assert isinstance(proposal.schedule, Schedule)
                    parameters = context.family.parameters(proposal.schedule)
                settings: dict[str, Any] = {
                    "parameters": parameters,
                    "distributions": proposal.distributions or (context.family.distributions() if parameters else {}),
                    "attributes": {**proposal.attributes, **named},
                }
                if isinstance(outcome, Failed):
                    attempt = context.log.attempts(named.get("method")).get(outcome.schedule, 0) + 1
                    context.log.add_failure(
                        outcome.schedule,
                        error=outcome.error,
                        attempt=attempt,
                        seconds=proposal.seconds,
                        propose_flops=proposal.propose_flops,
                        propose_spent=proposal.propose_spent,
                        **settings,
                    )
                    proposal = self._handed_on(proposal)
                    if attempt < ATTEMPTS:
                        again.append(proposal)
                        continue
                    context.say(f"{outcome.schedule} failed {attempt} times and is left out: {outcome.error}")
                else:
                    proposal = self._taken_on(proposal)
                    seconds = proposal.seconds + outcome.seconds
                    settings["propose_flops"], settings["propose_spent"] = (
                        proposal.propose_flops,
                        proposal.propose_spent,
                    )
                    context.log.add(outcome, seconds=seconds, priced=self._priced(proposal, outcome), **settings)
                landed += 1
                advance(landed)
            proposals = again
        return landed

    def _recall_owed(self) -> None:
        """What an earlier process owed for what failed, when it ended or was taken over."""
        if self._owed is not None:
            return
        flops, paid, seconds = 0, 0, 0.0
        for trial in self.context.log.owed():
            said = trial.user_attrs
            flops, paid = flops + said["propose_flops"], paid + said["propose_spent"]
            seconds += trial.duration.total_seconds() if trial.duration is not None else 0.0
            self._billed.add((said.get("method"), said["schedule"]))
        self._owed = flops, paid, seconds

    def _billed_once(self, proposal: Proposal, method: str | None) -> Proposal:
        """Without what an earlier process was to pay for proposing just this: that is owed already."""
        named = method, proposal.schedule.text()
        if named not in self._billed:
            return proposal
        self._billed.remove(named)
        return replace(proposal, propose_flops=0, propose_spent=0)

    def _handed_on(self, failed: Proposal) -> Proposal:
        """What proposing cost is borne by the next schedule that lands, so that a failure does not make it free."""
        spent = failed.propose_flops if failed.propose_spent is None else failed.propose_spent
        flops, paid, seconds = self._owed or NOTHING
        self._owed = flops + failed.propose_flops, paid + spent, seconds + failed.seconds
        return replace(failed, propose_flops=0, propose_spent=0, seconds=0.0)

    def _taken_on(self, proposal: Proposal) -> Proposal:
        flops, paid, seconds = self._owed or NOTHING
        if not (flops or paid or seconds):
            return proposal
        self._owed = NOTHING
        own = proposal.propose_flops if proposal.propose_spent is None else proposal.propose_spent
        return replace(
            proposal,
            propose_flops=proposal.propose_flops + flops,
            propose_spent=own + paid,
            seconds=proposal.seconds + seconds,
        )

    def _priced(self, proposal: Proposal, outcome: Outcome) -> Priced | None:
        """None where the outcome's own ``flops_ratio`` says all that is asked."""
        cost = self.context.cost
        if cost.in_flops and not cost.limits and not cost.further:
            return None
        measured = outcome if isinstance(outcome, Evaluation) else None
        return cost.priced(proposal.schedule, proposal.method or self.context.method, measured)


def _paid_once(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes that come again have spent nothing then."""
    seen: set[str] = set()
    paid: list[Outcome] = []
    for outcome in outcomes:
        if outcome.id in seen and not isinstance(outcome, Failed):
            outcome = replace(outcome, spent_flops=0, seconds=0.0)
        paid.append(outcome)
        seen.add(outcome.id)
    return paid
