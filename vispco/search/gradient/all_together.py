"""One network for all budgets, whose schedules are checked together and measured in groups."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from vispco.errors import ConfigError
from vispco.fronts import choose, is_measured
from vispco.pruning.schedules import keep_all, parse_schedule
from vispco.search.base import Proposal
from vispco.search.gradient.descent import Descent
from vispco.search.gradient.predicted import (
    PredictedPolicy,
    budgets_of,
    save_predictor,
    saved_predictor,
    says_budgets,
    snapped_policy,
)

if TYPE_CHECKING:
    from vispco.search.gradient.search import GradientSearch

TIE = 1e-12


class AllTogether:
    """The network reads the budget, or the budget and the prompt (``predictor: budget`` and ``input``)."""

    def __init__(self, search: GradientSearch) -> None:
        self.search, self.context, self.options = search, search.context, search.options

    def run(self, budgets: list[float]) -> None:
        context, options = self.context, self.options
        reads, started = options.predictor == "input", time.monotonic()
        done = self.search.done()
        missing = [(number, budget) for number, budget in enumerate(budgets) if budget not in done]
        if not missing:
            self._measure_together([], done)
            return
        study = context.log.name
        descent = self.search.network(budgets, save=lambda text: save_predictor(context.store, study, text))
        descent.calibration = self.search.calibration
        kept = saved_predictor(context.store, study)
        if kept is not None and (known := budgets_of(kept)) != len(budgets):
            if reads:
                raise ConfigError(
                    f"its network was trained for {known} budgets and is needed by its trials; the study has "
                    f"{len(budgets)} now: give the entry another name"
                )
            kept = None  # trained again, for all; schedules that are there keep theirs
        if kept is not None:
            descent.restore(kept)
        elif reads:
            descent.standardise()
        descent.run()
        descent.save(descent.text())
        own = {budget for budget, trials in done.items() if kept is not None and _trained(trials, kept)}
        if own:  # its trials have paid for it
            self.search.forget_costs()
        elif self._enough is not None and not done:  # alone, it would have to measure the plain model
            self.search.calibration.charged += context.evaluator.price(keep_all(), "search")
        seen: list[float] = []
        for batch, group in enumerate(self.groups(budgets)):
            before = {budget: done[budget] for _, budget in group if budget in done}
            proposals = self._proposed([one for one in group if one[1] not in before], descent, batch)
            if own.intersection(before):
                self.search.forget_costs()
            self._measure_together(self.search.billed(proposals, started), before)
            started, seen = time.monotonic(), [*seen, *(budget for _, budget in group)]
            if (best := self._good_enough(seen)) is not None:
                rest = [one for one in enumerate(budgets) if one[1] > max(seen) and one[1] not in done]
                self._take_over(best, rest, descent)
                return

    @property
    def _enough(self) -> float | None:
        """Loss of accuracy with which larger budgets need no schedule of their own."""
        options = self.options
        all_together = options.race is not None or options.predictor != "budget"
        return None if options.enough == "never" or all_together else options.enough

    def groups(self, budgets: list[float]) -> list[list[tuple[int, float]]]:
        """Numbers and budgets that are measured together, from the least up; in a group the largest first.

        The lower half, of which most are needed, then one, two, three, ...
        """
        numbered = list(enumerate(budgets))
        if self._enough is None:
            return [numbered]
        end = len(numbered) // 2
        groups = [numbered[end:]]
        while end > 0:
            start = max(0, end - len(groups))
            groups.append(numbered[start:end])
            end = start
        return groups

    def _proposed(self, wanted: Sequence[tuple[int, float]], descent: Descent, batch: int) -> list[Proposal]:
        """Schedules or policies to be measured for budgets, from a finished training."""
        if self.options.predictor == "input":
            return [self._policy_proposal(number, budget, descent) for number, budget in wanted]
        proposals = []
        frees = descent.free().detach()
        snapped = [(budget, self.search.snapped(frees[number], budget)) for number, budget in wanted]
        for (number, budget), ranked in zip(wanted, self.search.ranking.nearest_each(snapped), strict=True):
            proposals += self.search.proposals(number, budget, frees[number], ranked, descent, batch)[1]
        return proposals

    def _good_enough(self, seen: Sequence[float]) -> FrozenTrial | None:
        """The trial of the budgets ``seen`` that serves all larger ones too, if there is one."""
        context, enough = self.context, self._enough
        if enough is None:
            return None
        trials = [t for t in context.log.complete() if t.user_attrs["budget"] in seen and is_measured(t)]
        best: FrozenTrial | None = choose(trials, max(seen))
        plain = context.evaluator.unpruned("search").accuracy
        return best if best is not None and best.values[0] >= plain - enough - TIE else None

    def _take_over(self, best: FrozenTrial, wanted: Sequence[tuple[int, float]], descent: Descent) -> None:
        """Trials of larger budgets with the schedule of ``best``, which is not paid again."""
        schedule, proposals = parse_schedule(best.user_attrs["schedule"]), []
        for number, budget in wanted:
            attributes = {
                **self.search.attributes(number, budget, descent),
                "violation": self.search.violation(schedule, budget),
                "taken_over": best.number,
                "charged_flops": 0,
            }
            proposals.append(Proposal(schedule, attributes=attributes))
        self.search.measure(proposals)

    def _measure_together(self, proposals: list[Proposal], done: Mapping[float, list[FrozenTrial]]) -> None:
        """Measure the budgets' proposals, and what an earlier run left to measure of the budgets that are ``done``."""
        context, race = self.context, self.options.race
        wanted = [*proposals, *(one for trials in done.values() for one in self.search.runners_up(trials))]
        known = None
        if race is not None and wanted:
            texts = [trial.user_attrs["schedule"] for trials in done.values() for trial in trials]
            texts += [proposal.schedule.text() for proposal in wanted]
            known = self.search.race([parse_schedule(text) for text in dict.fromkeys(texts)], race)
        total = len(context.budgets) + self.options.between
        before = len(self.search.done())

        def advance(landed: int) -> None:
            context.advance(min(total, before + landed), total, f"budget {wanted[landed - 1].attributes['budget']:.3f}")

        self.search.measure(wanted, advance, known)

    def _policy_proposal(self, number: int, budget: float, descent: Descent) -> Proposal:
        """An input-conditioned policy, moved so that its mean flops_ratio fits."""
        context = self.context
        policy = PredictedPolicy.of(descent, context.log.name, budget)
        policy = snapped_policy(policy, context.evaluator, context.method, budget + TIE, context.cost)
        attributes = self.search.attributes(number, budget, descent)
        attributes["violation"] = self.search.violation(policy, budget)
        return Proposal(policy, {}, attributes=attributes)


def _trained(trials: Sequence[FrozenTrial], kept: str) -> bool:
    """Whether a budget's trials are of the network that is ``kept``, and not of one for fewer budgets before it.

    Trials and networks of an older vispco do not say for how many budgets they were trained.
    """
    return not says_budgets(kept) or any(t.user_attrs.get("trained_for") == budgets_of(kept) for t in trials)
