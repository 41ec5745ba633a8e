"""The learned frontier against the dense grid and samplers of equal compute: ``python benchmarks/learned.py``.

``[--storage URL] [--only step,multistep,...] [--no-run]``

Runs studies/demo/learned-*.yaml, ten seeds each, from where an earlier run stopped (hours on two cores; ``--no-run``
prints what is there). Then prints for every study all entries against the grid, and each claim with its figure, its
95 % interval over seeds and samples, and whether it holds. Exits 1 if one does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.entries import against, entries
from vispco.cli.over_seeds import print_against
from vispco.problem import Problem
from vispco.search.runner import Run
from vispco.storage.store import Store, default_url

STUDIES = ("step", "multistep", "layerwise", "fitprune", "sparsevlm", "qwen", "deep")
LEVELS = ("low", "mid", "high", "static")
LEAST = 0.03, 0.12  # propose_flops and charged_flops over the grid's naive cost
DEEP = 1 / 50


@dataclass(frozen=True)
class Claim:
    """``holds`` is None where nothing was asked."""

    text: str
    holds: bool | None = None

    def __str__(self) -> str:
        mark = "     " if self.holds is None else "ok   " if self.holds else "FAIL "
        return mark + self.text


def difference(row: dict[str, Any]) -> str:
    """Points with their interval."""
    low, high = row["difference_ci"] or (float("nan"), float("nan"))
    return f"{100 * row['difference']:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


def versus(comparison: Comparison, entry: str, reference: str) -> dict[str, Any]:
    """The row of ``entry`` against ``reference``."""
    return next(row for row in against(comparison, reference)["entries"] if row["entry"] == entry)


def near_grid(comparison: Comparison, level: str, propose: float, charged: float) -> Iterator[Claim]:
    row = versus(comparison, level, "grid")
    yield Claim(f"{level} minus grid: {difference(row)} (asked: >= -0.5)", row["difference"] >= -0.005)
    volume = row["hypervolume_ratio_to_grid"]
    yield Claim(f"{level}, hypervolume over the grid's: {volume:.4f} (asked: >= 0.98)", volume >= 0.98)
    for what, share, most in (("propose", row["propose_share"], propose), ("all", row["charged_share"], charged)):
        text = f"{level}, {what} compute over the grid's: {share:.3f} (asked: <= {most:.3f})"
        yield Claim(text, share <= most)


def over_samplers(comparison: Comparison, asked: bool) -> Iterator[Claim]:
    """Learned minus random and TPE at equal charged compute."""
    known = entries(comparison)
    for level in LEVELS:
        for kind in ("random", "tpe", "nsga2", "gp"):
            if f"{kind}-{level}" in known:
                row = versus(comparison, level, f"{kind}-{level}")
                text = f"{level} minus {kind} of equal compute: {difference(row)}"
                aim = asked and kind in ("random", "tpe") and level in LEVELS[:3]
                yield Claim(text + " (asked: > 0)" * aim, row["difference"] > 0 if aim else None)


def on_budget(comparison: Comparison, store: Store, level: str) -> Iterator[Claim]:
    """Relaxed flops_ratio of a predictor, before the snap, and what is measured after it."""
    before, after = [], []
    for search in entries(comparison)[level].runs:
        for trial in store.trial_log(search.study).complete():
            budget = trial.user_attrs["budget"]
            after.append(trial.values[1] - budget)
            if "relaxed_flops_ratio" in trial.user_attrs:
                before.append(abs(trial.user_attrs["relaxed_flops_ratio"] - budget))
    worst, over = max(before), max(after)
    yield Claim(f"{level}, farthest from a budget before the snap: {worst:.4f} (asked: <= 0.01)", worst <= 0.01)
    yield Claim(f"{level}, most above a budget after the snap: {over:.1e} (asked: <= 0)", over <= 1e-9)


def static_entry(comparison: Comparison) -> str:
    """The entry that learns a schedule per budget, without a predictor."""
    return "static" if "static" in entries(comparison) else "high"


def instead_of_static(comparison: Comparison, level: str) -> Iterator[Claim]:
    name = static_entry(comparison)
    row, static = versus(comparison, level, name), versus(comparison, name, "grid")
    share = row["propose_share"] / static["propose_share"]
    yield Claim(f"{level} minus static: {difference(row)} (asked: >= -0.5)", row["difference"] >= -0.005)
    yield Claim(f"{level}, propose compute over static's: {share:.3f} (asked: <= 1/3)", share <= 1 / 3)


def claims(name: str, comparison: Comparison, store: Store) -> Iterator[Claim]:
    known = entries(comparison)
    if name == "step":
        yield from near_grid(comparison, "low", *LEAST)
        for level in ("low", "mid"):
            yield from on_budget(comparison, store, level)
        yield from instead_of_static(comparison, "low")
    elif name == "deep":
        yield from near_grid(comparison, "low", DEEP, DEEP)
    else:
        for level in (level for level in LEVELS if level in known):
            row = versus(comparison, level, "grid")
            yield Claim(f"{level} minus dense step grid: {difference(row)}")
            if level != static_entry(comparison):
                yield from on_budget(comparison, store, level)
    if "input" in known:
        row = versus(comparison, "input", static_entry(comparison))
        yield Claim(f"input-conditioned minus static: {difference(row)}")
    yield from over_samplers(comparison, asked=name in ("multistep", "layerwise"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default=default_url())
    parser.add_argument("--only", default=",".join(STUDIES))
    parser.add_argument("--no-run", action="store_true")
    options = parser.parse_args()
    store, good = Store(options.storage), True
    for name in options.only.split(","):
        if not options.no_run:
            Run(Problem.from_yaml(Path("studies") / "demo" / f"learned-{name}.yaml"), store).run()
        comparison = Comparison(store, f"learned-{name}")
        print_against(against(comparison, "grid"))
        print()
        for claim in claims(name, comparison, store):
            good &= claim.holds is not False
            print(claim)
        print()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
