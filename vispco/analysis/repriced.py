"""A finished experiment under another cost: fronts, budgets and choices anew, nothing measured again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.limits import excesses
from vispco.analysis.pricing import Pricing
from vispco.analysis.study_result import StudyResult
from vispco.costs import Profile
from vispco.costs.bounds import minimised
from vispco.errors import ConfigError
from vispco.storage.reading import TrialRecord
from vispco.storage.store import Store


class Repriced(Comparison):
    """Trials whose second value is the share of the unpruned model's ``cost``.

    There are as many budgets as the experiment has, spread evenly from the cheapest schedule to 1. Schedules that were
    not on a front under the experiment's own cost may be chosen, and are then not measured on the held-out split. In
    :meth:`to_dict`, ``budget`` and ``floor`` are shares of this cost, and so is ``cost_ratio`` beside ``flops_ratio``.

    Trials without a price are left out: imported ones whose schedule is not known, and policies that read the prompt.
    ``unpriced`` says how many, by search; ``times_of`` what times were measured on.

    Raises:
        ConfigError: a rate, a cost that needs a profile, or one of another model.
    """

    def __init__(
        self,
        store: Store,
        experiment: str,
        cost: str,
        profile: Profile | None = None,
        *,
        answer_tokens: int | None = None,
        batch: int | None = None,
    ) -> None:
        super().__init__(store, experiment)
        minimised(cost)
        pricing = self.pricing = Pricing(self, profile, answer_tokens=answer_tokens, batch=batch)
        self._flops = {
            (s.study, t.number): super(Repriced, self).flops_ratio(s, t) for s in self.searches for t in s.trials
        }
        self.unpriced: dict[str, int] = {}
        priced = [self._repriced(pricing, cost, search) for search in self.searches]
        self.cost, self.unpruned_cost, self.further = cost, pricing.unpruned(cost), {}
        shares = [trial.cost for search in priced for trial in search.trials]
        if not shares:
            raise ConfigError(f"no trial of {experiment!r} has a schedule, so none has a cost in {cost}")
        floor, count = min(1.0, *shares), len(self.budgets)
        self._choose(priced, [floor + (1 - floor) * (n + 0.5) / count for n in range(count)])
        self.facts = {**self.facts, "floor": floor, "budgets": self.budgets}
        self.load_held_out((search, trial) for search in self.searches for trial in self.shown(search))

    def _repriced(self, pricing: Pricing, cost: str, search: StudyResult) -> StudyResult:
        priced = [(trial, pricing.of(cost, search, trial)) for trial in self._judged(pricing, search)]
        trials = [replace(t, values=(t.accuracy, price.share)) for t, price in priced if price is not None]
        without = [trial for trial, price in priced if price is None]
        if without:
            self.unpriced[search.name] = len(without)
        # They cost what they cost.
        return replace(search, trials=trials, stopped=[*search.stopped, *without])

    def _judged(self, pricing: Pricing, search: StudyResult) -> list[TrialRecord]:
        """Trials whose ``limit_excess`` is by ``pricing``; what that cannot say stays as it was stored."""
        if pricing.own or "limits" not in self.facts:
            return list(search.trials)
        over = excesses(self, pricing, search)
        return [
            t if over[t.number] is None else replace(t, user_attrs={**t.user_attrs, "limit_excess": over[t.number]})
            for t in search.trials
        ]

    def to_dict(self, reference_point: tuple[float, float] | None = None) -> dict[str, Any]:
        more = {"unpriced": self.unpriced, "times_of": self.pricing.times_of(self.cost)}
        return {**super().to_dict(reference_point), **{key: value for key, value in more.items() if value}}

    def flops_ratio(self, search: StudyResult, trial: TrialRecord) -> float | None:
        return self._flops.get((search.study, trial.number))

    def default_share(self, name: str) -> float | None:
        """As trials have it here."""
        price = self.pricing.of_published(self.cost, name)
        return None if price is None else price.share

    def held_out_hypervolume(self, search: StudyResult) -> tuple[float | None, list[float] | None]:
        """Left out: held-out measurements have their own FLOPs, not this cost."""
        return None, None
