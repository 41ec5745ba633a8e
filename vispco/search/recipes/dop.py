"""DOP: schedules from a table of divergences that are added up, and a knapsack.

The table F [k, l] holds KL(unpruned || k of G groups of visual tokens gone from layer l on), measured on calibration
samples, all entries in one tree. Groups leave in the order of the method, the least wanted first, so that the k-th
group adds F[k, l] - F[k-1, l] if it leaves before layer l. The sum of these over groups is minimised under each budget
by dynamic programming over layers; in one step it is the table itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from vispco.errors import ConfigError, MeasurementError
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Schedule, Step
from vispco.search.base import SEARCHES, Options, Proposal, Search
from vispco.search.gradient.distillation import Calibration, whole_rounds
from vispco.search.gradient.refine import nearest_of_each
from vispco.search.gradient.relaxed_cost import RelaxedCost

TIE = 1e-12
BUCKETS = 1000  # of the unpruned compute: of partial solutions whose costs fall in one, the best goes on
TABLE = "dop"

Solution = tuple[float, float, tuple[int, ...]]  # cost, sum of divergences, groups gone from each layer on


class DOPOptions(Options):
    """``samples`` of the calibration split, in mini-batches of ``batch``, fill the table of ``groups`` by layers.

    The ``candidates`` with the least sums within a budget are compared by what they really lose on the same samples.
    """

    samples: int = Field(64, ge=1)
    batch: int = Field(16, ge=1)
    groups: int = Field(8, ge=1)
    candidates: int = Field(4, ge=1)


@SEARCHES.register("dop")
class DOP(Search):
    """Depth-wise operation pruning, for whole tokens; families ``step``, ``multistep`` and ``layerwise``.

    Source: arXiv 2507.02909v2 (no public code): one depth per group of tokens and module, divergences measured with
    one parameter varied at a time and added, then a knapsack. Deviations: a group leaves all modules at once; it is
    measured after the groups that leave before it, not alone, since a schedule keeps the best tokens; the best sums are
    measured again; all budgets are solved from one table.
    """

    kind: ClassVar[str] = "dop"
    reads_calibration: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = DOPOptions

    @classmethod
    def check(cls, options: Any, method: Method, family: ScheduleFamily) -> None:
        if family.from_ratios([1.0] * family.layers) is None:
            raise ConfigError(
                f"kind 'dop' has no schedules of family {family.name!r}; use step, multistep or layerwise"
            )

    def run(self) -> None:
        context, options, started = self.context, self.options, time.monotonic()
        budgets = sorted(context.budgets, reverse=True)
        settled = context.log.settled()
        done = {trial.user_attrs["budget"] for trial in settled}
        missing = [budget for budget in budgets if budget not in done]
        if not missing:
            return
        context.advance(len(done), len(budgets), "table")
        calibration = Calibration(
            context.evaluator, context.method, options.batch, context.seed, samples=options.samples, team=context.team
        )
        batches = whole_rounds(context.evaluator.problem, -(-options.samples // options.batch))
        batches = min(len(calibration.batches), batches)
        table = self._table(calibration, batches)
        if done:  # has paid the table
            calibration.charged = calibration.spent = 0
        solutions = solve(table, layer_costs(RelaxedCost(context.evaluator), options.groups), self._most_steps())
        groups = [self._candidates(solutions, budget) for budget in missing]
        ranked = nearest_of_each(calibration, groups, batches, batches)
        proposals = [Proposal(best[0], attributes={"budget": b}) for b, best in zip(missing, ranked, strict=True)]
        paid = {budget for trial in settled for budget in trial.user_attrs.get("ranked", [])}
        if not done or (paid and not paid.issuperset(missing)):  # older trials do not say what they paid for
            proposals[0] = replace(
                proposals[0],
                propose_flops=calibration.charged,
                propose_spent=calibration.spent,
                attributes={**proposals[0].attributes, "ranked": missing},
            )
        proposals[0] = replace(proposals[0], seconds=time.monotonic() - started)
        self.measure(proposals, lambda landed: context.advance(len(done) + landed, len(budgets), ""))

    def _table(self, calibration: Calibration, batches: int) -> list[list[float]]:
        """F [G + 1, L]; row 0, where nothing is gone, is 0. Kept in the database, to go on later."""
        context, groups, layers = self.context, self.options.groups, self.context.family.layers
        kept = context.store.trajectory(context.log.name).get(TABLE)
        if kept:
            calibration.charged, calibration.spent = kept[0]["charged"], kept[0]["spent"]
            return list(kept[0]["table"])
        steps = [Step(layer, 1 - gone / groups) for gone in range(1, groups + 1) for layer in range(1, layers)]
        values, weights = calibration.pruned_losses(steps, 0, batches)
        losses = (values * weights).sum(dim=1) / weights.sum()
        if not bool(torch.isfinite(losses).all()):
            raise MeasurementError("a divergence is not finite; check the model's weights and dtype")
        # Layer 0 is entered by all tokens: nothing is gone there.
        table = [[0.0] * layers, *([0.0, *row] for row in losses.view(groups, layers - 1).tolist())]
        row = {"table": table, "charged": calibration.charged, "spent": calibration.spent}
        context.store.save_steps(context.log.name, TABLE, [row])
        return table

    def _most_steps(self) -> int:
        groups: int = self.options.groups
        return {"step": 1, "multistep": 3}.get(self.context.family.name, groups)

    def _candidates(self, solutions: Sequence[Solution], budget: float) -> list[Schedule]:
        """Schedules with the least sums, snapped to the budget."""
        context, groups = self.context, self.options.groups

        def fits(schedule: Schedule) -> bool:
            return context.evaluator.flops_ratio(schedule, "search", context.method) <= budget + TIE

        found: dict[Schedule, None] = {}
        for _, _, gone in sorted((one for one in solutions if one[0] <= budget), key=lambda one: one[1]):
            schedule = context.family.from_ratios([1 - count / groups for count in gone])
            if schedule is not None:
                found.setdefault(context.family.snap(schedule, fits))
            if len(found) == self.options.candidates:
                break
        return list(found) or [context.family.cheapest()]


def layer_costs(cost: RelaxedCost, groups: int) -> list[list[float]]:
    """[L][G + 1]: share of the unpruned compute that a layer takes with so many groups gone."""
    layers = cost.shape.layers
    empty = float(cost(torch.zeros(layers, dtype=torch.float64)))
    costs = []
    for layer in range(layers):
        ratios = torch.zeros(groups + 1, layers, dtype=torch.float64)
        ratios[:, layer] = 1 - torch.arange(groups + 1, dtype=torch.float64) / groups
        costs.append((cost(ratios) - empty + empty / layers).tolist())
    return costs


def solve(table: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], most: int) -> list[Solution]:
    """Solutions of at most ``most`` steps that no cheaper one beats, but for costs less than 1/1000 apart.

    Exact dynamic programming, up to that, over layers; a state is how many groups are gone, after how many steps.

    Args:
        table: F [G + 1, L].
        costs: [L][G + 1], as :func:`layer_costs` gives them.
    """
    groups, layers = len(table) - 1, len(costs)
    states: dict[tuple[int, int], list[Solution]] = {(0, 0): [(costs[0][0], 0.0, (0,))]}
    for layer in range(1, layers):
        reached: dict[tuple[int, int], list[Solution]] = {}
        for (gone, steps), kept in states.items():
            for now in range(gone, groups + 1):
                if now > gone and steps == most:
                    break
                more = table[now][layer] - table[gone][layer]
                at = costs[layer][now]
                moved = [(cost + at, value + more, (*path, now)) for cost, value, path in kept]
                reached.setdefault((now, steps + (now > gone)), []).extend(moved)
        states = {state: _undominated(found) for state, found in reached.items()}
    return _undominated([one for found in states.values() for one in found])


def _undominated(solutions: list[Solution]) -> list[Solution]:
    """By cost, each better than all cheaper ones; the best of those in one bucket of cost."""
    kept: list[Solution] = []
    for one in sorted(solutions):
        if kept and one[1] >= kept[-1][1]:
            continue
        if kept and int(one[0] * BUCKETS) == int(kept[-1][0] * BUCKETS):
            kept.pop()
        kept.append(one)
    return kept
