"""The learned search against the dense step grid, samplers of equal compute and DOP: ``python benchmarks/learned.py``.

``[--folder DIR] [--only demo/step,demo-qwen/multistep,...] [--best-known] [--no-run]``

Runs studies/demo/learned.yaml, ten seeds, for each model and family, from where an earlier run stopped;
``--best-known`` runs studies/demo/best-known.yaml after it, for the front that regret is told against (hours on two
cores; ``--no-run`` prints what is there). Each pair has a database of its own in DIR, so that nothing is cheaper
because another study has measured it. Then prints all entries against the grid, and each claim with its figure, its
95 % interval over seeds and samples, and whether it holds. Exits 1 if one does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.regret import BEST_KNOWN
from vispco.analysis.seeds import against
from vispco.analysis.violations import violations
from vispco.cli.over_seeds import print_against
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.store import Store

STUDIES = Path("studies/demo")
MODELS, FAMILIES = ("demo", "demo-qwen", "demo-deep"), ("step", "multistep", "layerwise")
LEARNED = "learned"
SPENT = {"demo-deep": 0.03}  # of the shared grid; its grid has 501 schedules, the others' 141
MOST_SPENT, MOST_REGRET = 0.1, 0.01


@dataclass(frozen=True)
class Case:
    """A model and a family of schedules; a method other than FastV may follow: ``demo/step/fitprune``."""

    model: str
    family: str
    method: str = "fastv"

    @classmethod
    def parse(cls, text: str) -> Case:
        return cls(*text.split("/"))

    @property
    def name(self) -> str:
        return "-".join((self.model, self.family, *([self.method] if self.method != "fastv" else [])))

    def problem(self, study: str, overrides: Sequence[str] = ()) -> Problem:
        """``study``: learned or best-known."""
        own = {"experiment": f"{study}-{self.name}", "model": self.model, "family": self.family, "method": self.method}
        settings = [*(f"{key}={value}" for key, value in own.items()), *overrides]
        return Problem.from_yaml(STUDIES / f"{study}.yaml", settings)

    def store(self, folder: Path) -> Store:
        return Store(f"sqlite:///{folder / self.name}.db")


@dataclass(frozen=True)
class Claim:
    """``holds`` is None where nothing was asked."""

    text: str
    holds: bool | None = None

    def __str__(self) -> str:
        mark = "     " if self.holds is None else "ok   " if self.holds else "FAIL "
        return mark + self.text


def over_others(comparison: Comparison) -> Iterator[Claim]:
    """Learned minus each other entry."""
    for row in against(comparison, LEARNED)["entries"]:
        if row["difference"] is None:
            continue
        more, (high, low) = -row["difference"], (-end for end in row["difference_ci"] or (float("nan"),) * 2)
        text = f"learned minus {row['entry']}: {100 * more:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
        asked = row["entry"] in ("dop", "halving", "warm-paid")
        yield Claim(text + " (asked: interval above 0)" * asked, low > 0 if asked else None)


def on_budget(comparison: Comparison) -> Iterator[Claim]:
    """Relaxed flops_ratio before the snap, and what is measured after it (vispco compare --violations)."""
    entry = next(entry for entry in violations(comparison)["entries"] if entry["entry"] == LEARNED)
    share = entry["held"] / entry["pairs"]
    yield Claim(
        f"held within 2 % before the snap: {share:.3f} of {entry['pairs']} budgets (asked: >= 0.95)", share >= 0.95
    )
    yield Claim(f"most above a budget after the snap: {entry['over']:.1e} (asked: <= 0)", entry["over"] <= 1e-9)


def paid(over_grid: dict[str, Any], most: float) -> Iterator[Claim]:
    """What was spent, beside what was charged; the grid's part is what the grid spent."""
    row = next(row for row in over_grid["entries"] if row["entry"] == LEARNED)
    spent, charged, seconds = row["spent_share"], row["charged_share"], row["wall_seconds"]
    text = f"spent over the grid's: {spent:.3f} (asked: <= {most}); charged {charged:.3f}, {seconds:.0f} s a run"
    yield Claim(text, spent <= most)


def regrets(comparison: Comparison) -> Iterator[Claim]:
    """Points below the best-known front, which is only worth the name after studies/demo/best-known.yaml."""
    found = against(comparison, BEST_KNOWN)
    known = any(name.startswith("best-known") for name in found["best_known"]["experiments"])
    for row in found["entries"]:
        if row["regret"] is not None:
            asked = row["entry"] == LEARNED and known
            text = f"{row['entry']}, regret: {100 * row['regret']:.2f} points"
            yield Claim(text + " (asked: <= 1)" * asked, row["regret"] <= MOST_REGRET if asked else None)
    if not known:
        yield Claim("the front above is that of this experiment alone: run again with --best-known")


def claims(case: Case, comparison: Comparison, over_grid: dict[str, Any]) -> Iterator[Claim]:
    yield from over_others(comparison)
    yield from on_budget(comparison)
    yield from paid(over_grid, SPENT.get(case.model, MOST_SPENT))
    yield from regrets(comparison)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("learned"), help="of the databases")
    parser.add_argument("--only", default=",".join(f"{model}/{family}" for model in MODELS for family in FAMILIES))
    parser.add_argument("--best-known", action="store_true")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="override a key, as vispco run does")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    good = True
    for case in map(Case.parse, options.only.split(",")):
        store = case.store(options.folder)
        if not options.no_run:
            for study in ("learned", *(["best-known"] if options.best_known else [])):
                Run(case.problem(study, options.set), store).run()
        comparison = Comparison(store, f"learned-{case.name}")
        over_grid = against(comparison, "grid")
        print_against(over_grid)
        print()
        for claim in claims(case, comparison, over_grid):
            good &= claim.holds is not False
            print(claim)
        print()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
