"""The decision: the cheapest schedule within a stated loss of accuracy, chosen on the search split, confirmed on the
held-out split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vispco.analysis.limits import excess_losses, own_bounds, own_drops
from vispco.analysis.noninferiority import NonInferiority, noninferiority
from vispco.analysis.pricing import Price, Pricing
from vispco.costs.bounds import SLACK, Bound, excess_loss, minimised
from vispco.errors import ConfigError, ScheduleError, StorageError
from vispco.pruning.schedules import parse_schedule
from vispco.registry import suggest

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison
    from vispco.analysis.study_result import StudyResult
    from vispco.evaluation.records import Evaluation
    from vispco.storage.reading import TrialRecord

EVERY = "*"
OVER, NO_FILE, NO_PRICE = "beyond a limit", "that no file can hold", "without a price"


def points_in_words(points: float) -> str:
    """
    >>> points_in_words(1), points_in_words(2.5)
    ('1 point', '2.5 points')
    """
    return f"{points:g} point{'' if points == 1 else 's'}"


def nothing_cheaper(decision: Mapping[str, Any]) -> str:
    """Why nothing is pruned, and which trials that does not count."""
    within = points_in_words(decision["max_drop"])
    text = f"no measured schedule within {within} costs less than the unpruned model"
    others = " and ".join(f"{count} {why}" for why, count in decision["left_out"].items())
    return f"{text}, not counting {others}" if others else text


@dataclass(frozen=True)
class Question:
    """What may be lost, and what is to be as small as possible.

    ``max_drop``: points of accuracy below the unpruned model, at most. ``limits``: on other costs. ``tasks``: points
    that single tasks may lose, by name; ``"*"`` stands for each of them. ``sure``: confidence of the confirmation.
    """

    max_drop: float = 1.0
    cost: str = "flops"
    limits: Sequence[Bound] = ()
    tasks: Mapping[str, float] = field(default_factory=dict)
    sure: float = 0.95

    def __post_init__(self) -> None:
        minimised(self.cost)
        for what, points in [("max_drop", self.max_drop), *((f"max_drop of {t}", p) for t, p in self.tasks.items())]:
            if not 0 <= points <= 100:
                raise ConfigError(f"{what} is {points:g}; it is a number of points of accuracy, from 0 to 100")
        if not 0.5 <= self.sure < 1:
            raise ConfigError(f"sure is {self.sure:g}; it is a confidence, at least 0.5 and below 1, such as 0.95")


@dataclass(frozen=True)
class Candidate:
    """A measured schedule with its cost; ``search`` and ``trial`` are None for the unpruned model."""

    accuracy: float
    price: Price
    order: tuple[int, int]
    search: StudyResult | None = None
    trial: TrialRecord | None = None

    def preference(self) -> tuple[float, float, tuple[int, int]]:
        """The cheapest, then the most accurate, then the first: never one that another dominates."""
        return (self.price.share, -self.accuracy, self.order)


def decide(comparison: Comparison, question: Question, pricing: Pricing | None = None) -> dict[str, Any]:
    """The answer to a question, from the database alone. The experiment's own limits are kept too, by ``pricing``,
    where the question has none on the same cost or task.

    ``chosen`` has ``search`` None where nothing may be pruned at all. ``confirmed`` is None where it cannot be known:
    the schedule is not measured on the held-out split, or a task's samples are one group; ``why`` says which.

    Raises:
        ConfigError: a cost that needs a profile and has none, a limit that the unpruned model and no schedule keeps,
            an unknown task.
        StorageError: the experiment lacks the unpruned model.
    """
    pricing = pricing or Pricing(comparison)
    asked_about = {bound.cost for bound in question.limits}
    own = [bound for bound in own_bounds(comparison) if bound.cost not in asked_about]
    question = replace(question, limits=(*question.limits, *own))
    unpruned = comparison.reference("unpruned", "search")
    if unpruned is None:
        raise StorageError(
            f"experiment {comparison.experiment!r} has no measurement of the unpruned model; "
            f"run it (vispco resume {comparison.experiment})"
        )
    tasks = _tasks(question, list(unpruned.tasks))
    left_out: Counter[str] = Counter()
    candidates = feasible(comparison, question, pricing, unpruned, {**own_drops(comparison), **tasks}, left_out)
    if not candidates:
        asked = "; ".join(f"{bound.cost} {bound.text()}" for bound in question.limits)
        raise ConfigError(
            f"no measured schedule of {comparison.experiment!r} is within {points_in_words(question.max_drop)} and the "
            f"limits ({asked}); allow a larger drop or looser limits"
        )
    best = min(candidates, key=Candidate.preference)
    return {
        "experiment": comparison.experiment,
        "cost": question.cost,
        "score": comparison.score,
        "max_drop": question.max_drop,
        "sure": question.sure,
        "batch": pricing.batch,
        "noise": pricing.noise(question.cost),
        "times_of": pricing.times_of(question.cost),
        "exact_lengths": pricing.exact,
        "unpruned": {
            "accuracy": unpruned.accuracy,
            "accuracy_held_out": _accuracy(comparison.reference("unpruned", "held_out")),
            "cost": pricing.unpruned(question.cost),
        },
        "chosen": _chosen(comparison, best, pricing),
        "limits": [
            {"cost": bound.cost, "bound": bound.value, "relative": bound.relative, **_limit(pricing, bound, best)}
            for bound in question.limits
        ],
        "candidates": _schedules(candidates),
        "left_out": dict(left_out),
        **_confirmation(comparison, question, best, tasks),
    }


def _schedules(candidates: Sequence[Candidate]) -> int:
    """How many different schedules are pruned among them: searches often measure the same one."""
    return len({c.trial.user_attrs.get("evaluation") or c.order for c in candidates if c.trial is not None})


def feasible(
    comparison: Comparison,
    question: Question,
    pricing: Pricing,
    unpruned: Evaluation,
    tasks: Mapping[str, float],
    left_out: Counter[str],
) -> list[Candidate]:
    """All measured schedules that a file can hold within the asked loss and limits on the search split; ``left_out``
    counts the others within the loss, by why they are no candidates."""
    candidates = []
    for candidate in _candidates(comparison, question, pricing, unpruned, left_out):
        prices = [(bound, _price(pricing, bound.cost, candidate)) for bound in question.limits]
        if all(price is not None and bound.allows(price.absolute, price.share) for bound, price in prices):
            candidates.append(candidate)
        else:
            left_out[OVER if all(price for _, price in prices) else NO_PRICE] += 1
    if not tasks:
        return candidates
    kept = _within_tasks(comparison, candidates, unpruned, tasks)
    if len(kept) < len(candidates):
        left_out[OVER] += len(candidates) - len(kept)
    return kept


def _candidates(
    comparison: Comparison,
    question: Question,
    pricing: Pricing,
    unpruned: Evaluation,
    left_out: Counter[str],
) -> Iterator[Candidate]:
    whole = Price(pricing.unpruned(question.cost), 1.0)
    yield Candidate(unpruned.accuracy, whole, (-1, 0))
    for number, search in enumerate(comparison.searches):
        for trial in search.trials:
            if excess_loss(unpruned.accuracy, trial.accuracy, question.max_drop) > SLACK:
                continue
            if not holds(comparison, search, trial):
                left_out[NO_FILE] += 1
            elif (price := pricing.of(question.cost, search, trial)) is None:
                left_out[NO_PRICE] += 1
            else:
                yield Candidate(trial.accuracy, price, (number, trial.number), search, trial)


def holds(comparison: Comparison, search: StudyResult, trial: TrialRecord) -> bool:
    """Whether a schedule file can hold what a trial measured: its method is known, and it is one for all prompts."""
    try:
        parse_schedule(str(trial.user_attrs.get("schedule")))
    except ScheduleError:
        return False
    return comparison.origin(search, trial) is not None


def _price(pricing: Pricing, cost: str, candidate: Candidate) -> Price | None:
    if candidate.search is None or candidate.trial is None:
        return Price(pricing.unpruned(cost), 1.0)
    return pricing.of(cost, candidate.search, candidate.trial)


def _limit(pricing: Pricing, bound: Bound, candidate: Candidate) -> dict[str, Any]:
    price = _price(pricing, bound.cost, candidate)
    return {"absolute": price.absolute if price else None, "share": price.share if price else None}


def _tasks(question: Question, known: Sequence[str]) -> dict[str, float]:
    for name in question.tasks:
        if name != EVERY and name not in known:
            raise ConfigError(f"no task {name!r} in this experiment; {suggest(name, list(known))}")
    every = dict.fromkeys(known, question.tasks[EVERY]) if EVERY in question.tasks else {}
    return {**every, **{name: points for name, points in question.tasks.items() if name != EVERY}}


def _within_tasks(
    comparison: Comparison, candidates: Sequence[Candidate], unpruned: Evaluation, tasks: Mapping[str, float]
) -> list[Candidate]:
    ids = [str(c.trial.user_attrs.get("evaluation")) for c in candidates if c.trial is not None]
    measured = comparison.store.get_evaluations(ids)
    kept = []
    for candidate in candidates:
        if candidate.trial is None:
            kept.append(candidate)
            continue
        evaluation = measured.get(str(candidate.trial.user_attrs.get("evaluation")))
        if evaluation is not None and max(excess_losses(unpruned, evaluation, tasks).values()) <= SLACK:
            kept.append(candidate)
    return kept


def _accuracy(evaluation: Evaluation | None) -> float | None:
    return evaluation.accuracy if evaluation else None


def _chosen(comparison: Comparison, best: Candidate, pricing: Pricing) -> dict[str, Any]:
    row: dict[str, Any] = {
        "search": None,
        "trial": None,
        "schedule": None,
        "method": None,
        "keep_ratio": None,
        "accuracy": best.accuracy,
        "accuracy_held_out": _accuracy(comparison.reference("unpruned", "held_out")),
        "cost": best.price.absolute,
        "cost_ratio": best.price.share,
        "flops_ratio": 1.0,
    }
    if best.search is not None and best.trial is not None:
        origin = comparison.origin(best.search, best.trial)
        compute = pricing.of("flops", best.search, best.trial)
        row.update(
            search=best.search.name,
            trial=best.trial.number,
            schedule=best.trial.user_attrs.get("schedule"),
            method=origin.method if origin else None,
            keep_ratio=comparison.kept(best.search, best.trial),
            accuracy_held_out=_accuracy(comparison.held_out(best.search, best.trial)),
            flops_ratio=compute.share if compute else None,
        )
    return row


def _confirmation(
    comparison: Comparison, question: Question, best: Candidate, tasks: Mapping[str, float]
) -> dict[str, Any]:
    """Each loss that was asked about, tested on the held-out split; all of them must pass for ``confirmed``."""
    told: dict[str, Any] = {"confirmed": None, "why": "", "held_out": None, "tasks": {}}
    if best.search is None or best.trial is None:
        return {**told, "confirmed": True, "why": "nothing is pruned, so nothing can be lost"}
    unpruned = comparison.reference("unpruned", "held_out")
    mine = comparison.held_out(best.search, best.trial)
    if unpruned is None or mine is None:
        return {**told, "why": "the schedule is not measured on the held-out split, or not yet; --measure does it"}
    first, second = comparison.parts.of(mine), comparison.parts.of(unpruned)
    tests: dict[str, NonInferiority | None] = {}
    asked = {"": question.max_drop, **tasks}
    for name, points in asked.items():
        chosen = {name: first[name]} if name else first
        tests[name] = noninferiority(chosen, second, comparison.parts.groups, points / 100, question.sure)
    rows = {name: _test_row(test, asked[name]) for name, test in tests.items()}
    told.update(held_out=rows.pop(""), tasks=rows)
    if None in tests.values():
        why = "a task's number follows no known rule, or its samples are one group, which says nothing of others"
        return {**told, "why": why}
    failed = [(name, test) for name, test in tests.items() if test is not None and not test.confirmed]
    return {**told, "confirmed": not failed, "why": "; ".join(_why(*one, asked[one[0]]) for one in failed)}


def _test_row(test: NonInferiority | None, points: float) -> dict[str, Any] | None:
    if test is None:
        return None
    return {
        "max_drop": points,
        "difference": test.difference,
        "low": test.low,
        "confirmed": test.confirmed,
        "samples": test.samples,
        "samples_needed": None if test.confirmed else test.needed,
    }


def _rounded(samples: int) -> str:
    """Up to two digits: nobody knows it better."""
    scale = 10 ** max(0, len(str(samples)) - 2)
    return f"{-(-samples // scale) * scale:,}"


def _why(name: str, test: NonInferiority, points: float) -> str:
    where = f"on {name}" if name else "on the held-out split"
    if test.needed is None:
        lost = f"{-100 * test.difference:.1f} points"
        return f"{where} it loses {lost}; if that is its true loss, more samples will not help"
    return (
        f"{where} {test.samples} samples are too few to rule out a loss of more than {points_in_words(points)}; "
        f"if the true loss is the one seen, about {_rounded(test.needed)} would do in 4 of 5 cases"
    )
