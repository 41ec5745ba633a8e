"""The learned frontier against the dense grid and samplers of equal compute: ``python benchmarks/learned.py``.

``[--storage URL] [--only step,multistep,...] [--no-run]``

Runs studies/demo/learned-*.yaml, ten seeds each, from where an earlier run stopped (hours on two cores; ``--no-run``
prints what is there). Then prints for every study all entries against the grid, and each claim with its figure, its
95 % interval over seeds and samples, and whether it holds: among them costs, alone and as paid, violations of the
budgets, and regret against the fronts of studies/demo/best-known-*.yaml where ``vispco run`` has run these. Exits 1 if
one does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.regret import BEST_KNOWN
from vispco.analysis.seeds import against, entries
from vispco.analysis.violations import violations
from vispco.cli.over_seeds import print_against
from vispco.experiment.run import Run
from vispco.problem import Problem
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
        for kind in ("random", "tpe", "warm", "nsga2", "gp"):
            if f"{kind}-{level}" in known:
                row = versus(comparison, level, f"{kind}-{level}")
                text = f"{level} minus {kind} of equal compute: {difference(row)}"
                aim = asked and kind in ("random", "tpe", "warm") and level in LEVELS[:3]
                yield Claim(text + " (asked: > 0)" * aim, row["difference"] > 0 if aim else None)


def on_budget(comparison: Comparison) -> Iterator[Claim]:
    """Relaxed flops_ratio before the snap, and what is measured after it (vispco compare --violations)."""
    for entry in violations(comparison)["entries"]:
        if entry["entry"] == "input":
            continue
        share = entry["held"] / entry["pairs"]
        text = f"{entry['entry']}, held within 2 % before the snap: {share:.3f} of {entry['pairs']} budgets"
        yield Claim(text + " (asked: >= 0.95)", share >= 0.95)
        yield Claim(
            f"{entry['entry']}, most above a budget after the snap: {entry['over']:.1e} (asked: <= 0)",
            entry["over"] <= 1e-9,
        )


def paid(comparison: Comparison, level: str, most: float) -> Iterator[Claim]:
    """What was spent, beside what was charged; the grid's part is what the grid spent."""
    row = versus(comparison, level, "grid")
    spent, charged, seconds = row["spent_share"], row["charged_share"], row["wall_seconds"]
    text = (
        f"{level}, spent over the grid's: {spent:.3f} (asked: <= {most}); charged {charged:.3f}, {seconds:.0f} s a run"
    )
    yield Claim(text, spent <= most)


def regrets(comparison: Comparison, level: str) -> Iterator[Claim]:
    """Points below the best-known front; the front is only worth the name after studies/demo/best-known-*.yaml."""
    found = against(comparison, BEST_KNOWN)
    known = [name for name in found["best_known"]["experiments"] if name.startswith("best-known")]
    for row in found["entries"]:
        if row["regret"] is not None:
            asked = row["entry"] == level and bool(known)
            text = f"{row['entry']}, regret: {100 * row['regret']:.2f} points"
            yield Claim(text + " (asked: <= 1)" * asked, row["regret"] <= 0.01 if asked else None)
    if not known:
        yield Claim("the front above is that of this experiment alone: run studies/demo/best-known-*.yaml")


def static_entry(comparison: Comparison) -> str:
    """The entry that learns a schedule per budget, without a predictor."""
    return "static" if "static" in entries(comparison) else "high"


def instead_of_static(comparison: Comparison, level: str) -> Iterator[Claim]:
    name = static_entry(comparison)
    row, static = versus(comparison, level, name), versus(comparison, name, "grid")
    share = row["propose_share"] / static["propose_share"]
    yield Claim(f"{level} minus static: {difference(row)} (asked: >= -0.5)", row["difference"] >= -0.005)
    yield Claim(f"{level}, propose compute over static's: {share:.3f} (asked: <= 1/3)", share <= 1 / 3)


def claims(name: str, comparison: Comparison) -> Iterator[Claim]:
    known = entries(comparison)
    if name == "step":
        yield from near_grid(comparison, "low", *LEAST)
        yield from instead_of_static(comparison, "low")
    elif name == "deep":
        yield from near_grid(comparison, "low", DEEP, DEEP)
    else:
        for level in (level for level in LEVELS if level in known):
            row = versus(comparison, level, "grid")
            yield Claim(f"{level} minus dense step grid: {difference(row)}")
    if "input" in known:
        row = versus(comparison, "input", static_entry(comparison))
        yield Claim(f"input-conditioned minus static: {difference(row)}")
    first = "low" if "low" in known else "mid"
    yield from on_budget(comparison)
    yield from paid(comparison, first, 0.03 if name == "deep" else 0.1)
    yield from regrets(comparison, first)
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
        for claim in claims(name, comparison):
            good &= claim.holds is not False
            print(claim)
        print()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
