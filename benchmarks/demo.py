"""What the demo shows, from a finished run of studies/quickstart.yaml: ``python benchmarks/demo.py [STORAGE]``.

Prints each claim with its figure and whether it holds; exits 1 if one does not.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np

from vispco.analysis.comparison import Comparison
from vispco.fronts import choose, front
from vispco.pruning.schedules import parse_schedule
from vispco.storage.store import Store, default_url

BELOW = 0.1


def schedule_gap(trials: list, budgets: list[float]) -> float:
    """Mean over budgets of: best schedule within the budget, minus the mean of those up to 0.1 below it."""
    gaps = []
    for budget in budgets:
        near = [t.values[0] for t in trials if budget - BELOW <= t.values[1] <= budget]
        best = choose(trials, budget)
        if near and best is not None:
            gaps.append(best.values[0] - float(np.mean(near)))
    return float(np.mean(gaps))


def layer_changes(trials: list) -> tuple[int, list[int]]:
    """How often the layer changes along the front, from cheap to expensive."""
    layers = [parse_schedule(trial.user_attrs["schedule"]).layer for trial in front(trials)]
    return sum(a != b for a, b in itertools.pairwise(layers)), layers


def main() -> int:
    store = Store(sys.argv[1] if len(sys.argv) > 1 else default_url(), read_only=True)
    comparison = Comparison(store, "quickstart")
    found = comparison.to_dict()
    searches = {search["name"]: search for search in found["searches"]}
    trials = {search.name: search.trials for search in comparison.searches}
    grid, learned = searches["grid"], searches["lagrangian"]
    changes, layers = layer_changes(trials["grid"])
    over = max(t.values[1] - t.user_attrs["budget"] for t in trials["lagrangian"])
    gap = schedule_gap(trials["grid"], comparison.budgets)
    distance = learned["budget_score"] - grid["budget_score"]
    claims = [
        ("unpruned held-out accuracy", found["unpruned"]["accuracy_held_out"], ">=", 0.80),
        ("held-out accuracy without the picture", found["no_image"]["accuracy"], "<=", 0.45),
        ("best step schedule over those up to 0.1 cheaper", gap, ">=", 0.04),
        (f"changes of the layer along the grid's front {layers}", changes, ">=", 2),
        ("lagrangian minus grid, budget_score", distance, ">=", 0.0),
        ("lagrangian over grid, hypervolume on the search split", learned["hypervolume_ratio_to_grid"], ">=", 0.97),
        ("lagrangian over grid, charged compute", learned["cost_ratio_to_grid"], "<=", 0.15),
        ("lagrangian over grid, spent compute", learned["spent_ratio_to_grid"], "<=", 0.15),
        ("lagrangian over grid, seconds", learned["seconds_ratio_to_grid"], "<=", 0.2),
        *[
            (f"lagrangian minus {n}, budget_score", learned["budget_score"] - searches[n]["budget_score"], ">=", 0.0)
            for n in ("random", "tpe")
        ],
        ("lagrangian, most that a trial exceeds its budget by", over, "<=", 1e-9),
    ]
    good = True
    for text, value, sense, bound in claims:
        holds = value >= bound if sense == ">=" else value <= bound
        good &= holds
        print(f"{'ok  ' if holds else 'FAIL'} {text}: {value:.4g} (asked: {sense} {bound})")
    for default in found["defaults"]:
        print(f"     {default['name']}: {default['accuracy_held_out']:.3f} at flops_ratio {default['flops_ratio']:.3f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
