"""Why schedules per sample lose to one schedule for all: ``python benchmarks/conditioned.py [--search N] [--seed S]``.

Trains both predictors of the demo, without and with the prompt, and measures for 12 budgets, on the same samples of the
search split, what each of the steps between a trained network and a measured policy does to it. Each row changes one
thing of the row above it.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from statistics import fmean

import torch

from vispco.cli.output import print_rows
from vispco.config import parse_study
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.pruning.schedules import Ratios, Schedule, TextPolicy
from vispco.search.base import SearchContext
from vispco.search.gradient.all_together import TIE
from vispco.search.gradient.descent import Descent
from vispco.search.gradient.lagrangian import LagrangianSearch
from vispco.search.gradient.options import GradientOptions
from vispco.search.gradient.predicted import PredictedPolicy, snapped_policy
from vispco.storage.store import Store

STUDY = """
experiment: conditioned
model: demo
tasks:
  - {{name: mosaic-vqa, splits: {{calibration: 256, search: {samples}, held_out: 8}}}}
method: fastv
family: multistep
budgets: 12
searches:
  lagrangian: {{kind: lagrangian}}
"""


class Why:
    """Both networks, trained, and what may be done with them."""

    def __init__(self, samples: int, seed: int, store: Store) -> None:
        text = STUDY.format(samples=samples)
        problem = Problem(parse_study(text), text)
        run = Run(problem, store)
        run.store.save_experiment(
            "conditioned", spec_text=text, spec_hash=problem.study.spec_hash(), identity={}, provenance={}
        )
        entry = problem.study.searches["lagrangian"]
        family, method = problem.family(entry), problem.methods(entry)[0]
        floor = run.cost.floor(family, method)
        self.budgets = sorted(run.cost.budgets(floor), reverse=True)
        self.context = SearchContext(
            evaluator=run.evaluator,
            method=method,
            family=family,
            budgets=self.budgets,
            seed=seed,
            log=store.trial_log("conditioned/lagrangian"),
            store=store,
            cost=run.cost,
        )
        self.static, self.static_descent = self._trained("budget")
        self.input, self.input_descent = self._trained("input")

    def _trained(self, predictor: str) -> tuple[LagrangianSearch, Descent]:
        options = GradientOptions.model_validate({"predictor": predictor, "dual_steps": 12, "check": 32})
        search = LagrangianSearch(self.context, options)
        descent = search.network(self.budgets)
        descent.calibration = search.calibration
        if predictor == "input":
            descent.standardise()
        descent.run()
        return search, descent

    def rows(self) -> list[dict[str, object]]:
        frees = self.static_descent.free().detach()
        snapped = [(budget, self.static.snapped(frees[n], budget)) for n, budget in enumerate(self.budgets)]
        features = self.input_descent._features_of(len(self.input.calibration.batches))
        own = self.input_descent.free(features).detach()
        mean = own.mean(dim=0)
        of_mean = [(budget, self.input.snapped(mean[n], budget)) for n, budget in enumerate(self.budgets)]
        checked = [ranked[0] for ranked in self.static.ranking.nearest_each(snapped)]
        rows = [
            self._row("one for all: snapped, then checked against its neighbours", checked),
            self._row("one for all: snapped, not checked", [schedule for _, schedule in snapped]),
            self._row("one for all: the relaxed ratios, shifted to the budget", self._relaxed(self.static_descent)),
            self._row("per sample, of the mean parameters: snapped and checked", self._checked(of_mean)),
            self._row("per sample, of the mean parameters: snapped, not checked", [one for _, one in of_mean]),
            self._row("per sample, of the mean ratios, shifted to the budget", self._mean_ratios(own)),
            self._row("per sample, shifted to the budget, as measured by predictor: input", self._policies()),
        ]
        spread = self.context.family.relaxed(own, self.input_descent.sharpness).std(dim=0).mean(dim=(1,))
        print("spread of keep ratios between samples, mean over layers, by falling budget:")
        print("  ".join(f"{float(value):.3f}" for value in spread))
        return rows

    def _checked(self, snapped: list[tuple[float, Schedule]]) -> list[Schedule]:
        return [ranked[0] for ranked in self.static.ranking.nearest_each(snapped)]

    def _shifted(self, number: int, ratios: torch.Tensor) -> TextPolicy:
        budget = self.budgets[number]
        fixed = PredictedPolicy("fixed", budget, lambda features: ratios.expand(len(features), -1))
        policy = snapped_policy(fixed, self.context.evaluator, self.context.method, budget + TIE)
        inner = ratios.double().clamp(1e-4, 1 - 1e-4)
        moved = torch.sigmoid(torch.logit(inner) + policy.shift)
        moved[0] = 1.0
        kept = torch.where(moved < 1e-3, torch.zeros_like(moved), moved).cummin(dim=0).values
        return Ratios([float(ratio) for ratio in kept])

    def _relaxed(self, descent: Descent) -> list[TextPolicy]:
        ratios = self.context.family.relaxed(descent.free().detach(), descent.sharpness)
        return [self._shifted(number, ratios[number]) for number in range(len(self.budgets))]

    def _mean_ratios(self, own: torch.Tensor) -> list[TextPolicy]:
        ratios = self.context.family.relaxed(own, self.input_descent.sharpness).mean(dim=0)
        return [self._shifted(number, ratios[number]) for number in range(len(self.budgets))]

    def _policies(self) -> list[TextPolicy]:
        found = []
        for budget in self.budgets:
            policy = replace(PredictedPolicy.of(self.input_descent, "conditioned", budget))
            found.append(snapped_policy(policy, self.context.evaluator, self.context.method, budget + TIE))
        return found

    def _row(self, what: str, policies: list[Schedule] | list[TextPolicy]) -> dict[str, object]:
        found = self.context.evaluator.evaluate(policies, "search", self.context.method)
        accuracies = [one.accuracy for one in found]
        half = len(accuracies) // 2
        row: dict[str, object] = {"": what, "accuracy": round(fmean(accuracies), 4)}
        row["larger budgets"], row["smaller budgets"] = (
            round(fmean(accuracies[:half]), 4),
            round(fmean(accuracies[half:]), 4),
        )
        print(row, [round(one, 3) for one in accuracies], [round(one.flops_ratio, 3) for one in found], flush=True)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/a.db")
        print_rows(Why(options.search, options.seed, store).rows())
        store.engine.dispose()


if __name__ == "__main__":
    main()
