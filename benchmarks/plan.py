"""What ``vispco plan`` predicts against what a run takes: ``python benchmarks/plan.py [STUDY] [--search ENTRY]``.

Runs the study into a new database and prints, for each study, trials, PFLOPs as charged and minutes, planned and real.
Minutes are planned without sharing, so that a grid takes less; the last column says by how much. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from vispco.cli.output import print_rows
from vispco.experiment.estimate import estimate
from vispco.experiment.planning import plan
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="studies/quickstart.yaml")
    parser.add_argument("--search", action="append", help="only this entry; may be repeated")
    parser.add_argument("--set", action="append", default=[], help="override a key, as vispco run does")
    asked = parser.parse_args()
    problem = Problem.from_yaml(asked.study, asked.set)
    planned = {row["study"]: row for row in estimate(problem, only=asked.search)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/plan.db")
        started = time.monotonic()
        Run(problem, store).run(asked.search)
        whole = (time.monotonic() - started) / 60
        for item in plan(problem.study, asked.search):
            trials = store.trial_log(item.study).complete()
            charged = sum(trial.user_attrs["charged_flops"] for trial in trials)
            spent = sum(trial.user_attrs["spent_flops"] for trial in trials)
            seconds = sum(trial.duration.total_seconds() for trial in trials if trial.duration is not None)
            wanted = planned[item.study]
            rows.append(
                {
                    "study": item.study,
                    "trials planned": wanted["trials"],
                    "trials": len(trials),
                    "pflops planned": wanted["pflops"],
                    "pflops": charged / 1e15,
                    "minutes planned": wanted["minutes"],
                    "minutes": seconds / 60,
                    "shared away": 1 - spent / charged if charged else None,
                }
            )
        store.engine.dispose()
    print_rows(rows)
    print(f"the whole run, with references and held-out measurements: {whole:.2f} minutes")


if __name__ == "__main__":
    main()
