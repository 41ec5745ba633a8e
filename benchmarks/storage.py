"""What the database costs: ``python benchmarks/storage.py [--quick] [--storage URL]``.

1. What a driver does in Python and SQL for one trial (store the evaluation and the trial, ask the log what searches ask
   after each), over one evaluation of the demo: one schedule at a time on the search split of studies/quickstart.yaml.
2. ``vispco compare`` on one experiment of 10,000 trials in seven studies, with 1,000 evaluations of 5,000 per-sample
   scores: the command in a process of its own, imports included.

Every time is the least of its rounds: what the work takes when nothing disturbs it. That the answers are right is held
by tests/test_reading.py, tests/test_comparison.py and tests/test_analysis.py. Prints each claim and whether it holds;
exits 1 if one does not.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, create_trial

from vispco.analysis.comparison import Comparison
from vispco.evaluation.records import Evaluation
from vispco.problem import Problem
from vispco.pruning.families import StepFamily
from vispco.pruning.schedules import Step
from vispco.storage.optuna_sql.bulk import append
from vispco.storage.reading import study_ids
from vispco.storage.store import Store

LAYERS = 36
SAMPLES = 5000
EXPERIMENT = "large"
STUDY = """
experiment: large
model: demo
tasks: [{name: mosaic-vqa, splits: {calibration: 16, search: 12, held_out: 12}}]
searches:
  grid: {kind: grid}
  random: {kind: random, trials: 10, seeds: [0, 1, 2]}
  tpe: {kind: tpe, trials: 10, seeds: [0, 1, 2]}
"""


def made_trial(rng: np.random.Generator, number: int) -> FrozenTrial:
    """A measured step schedule: accuracy grows with compute, with noise."""
    layer, keep = int(rng.integers(1, LAYERS)), round(float(rng.random()), 4)
    schedule = Step(layer=layer, keep=keep)
    ratio = (layer + (LAYERS - layer) * keep) / LAYERS + 1e-7 * number
    trial = create_trial(
        values=[float(np.clip(ratio**0.3 + rng.normal(0, 0.02), 0, 1)), ratio],
        params={"layer": layer, "keep": keep},
        distributions=StepFamily(LAYERS).distributions(),
        user_attrs={
            "schedule": schedule.text(),
            "keep_ratio": [1.0] * layer + [keep] * (LAYERS - layer),
            "evaluation": f"{number:016x}",
            "charged_flops": 3_000_000_000_000 + number,
            "spent_flops": 3_000_000_000_000,
            "propose_flops": 0,
            "token": f"{number:032x}",
        },
    )
    trial.datetime_start = datetime(2026, 1, 1) + timedelta(seconds=number)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=0.75)
    return trial


def made_evaluation(rng: np.random.Generator, name: str, split: str, accuracy: float, ratio: float) -> Evaluation:
    scores = (rng.random(SAMPLES) < accuracy).astype(float)
    measured = {"accuracy": float(scores.mean()), "flops_ratio": ratio}
    return Evaluation(
        id=name,
        split=split,
        method="fastv",
        schedule="step(layer=2, keep=0.5)",
        keep_ratio=(1.0,) * LAYERS,
        accuracy=measured["accuracy"],
        flops_ratio=ratio,
        flops=3_000_000_000_000,
        spent_flops=0,
        kv_bytes=1.5,
        tasks={"mosaic-vqa": measured},
        scores={"mosaic-vqa": scores},
    )


def build(url: str, trials: int, evaluations: int) -> None:
    """One experiment: a grid of 700, and six searches that share the rest of the trials."""
    store, rng = Store(url), np.random.default_rng(0)
    names = ["grid", *(f"{kind}@{seed}" for kind in ("random", "tpe") for seed in range(3))]
    rest = (trials - 700) // 6
    facts = {
        "layers": LAYERS,
        "accounting": "exact",
        "floor": 0.03,
        "budgets": [round(0.05 + 0.08 * i, 2) for i in range(12)],
        "studies": {
            f"{EXPERIMENT}/{name}": {
                "entry": name.partition("@")[0],
                "seed": int(name.partition("@")[2] or 0),
                "kind": name.partition("@")[0],
                "method": "fastv",
                "method_parameters": {},
                "method_key": "fastv",
                "family": "step",
                "points": 700 if name == "grid" else None,
            }
            for name in names
        },
    }
    study = Problem.from_text(STUDY).study
    store.save_experiment(
        EXPERIMENT, spec_text=STUDY, spec_hash=study.spec_hash(), identity=study.identity(), provenance={}
    )
    store.save_facts(EXPERIMENT, facts)
    groups = {"mosaic-vqa": [f"picture-{i // 2}" for i in range(SAMPLES)]}
    references = [
        made_evaluation(rng, f"{key}-{split}", split, accuracy, 1.0)
        for key, accuracy in (("unpruned", 0.95), ("no_image", 0.3))
        for split in ("search", "held_out")
    ]
    store.put_evaluations(references, groups)
    for reference in references:
        store.link(EXPERIMENT, "reference", reference.id.partition("-")[0], reference)
    number = 0
    for name in names:
        log = store.trial_log(f"{EXPERIMENT}/{name}")
        made = [made_trial(rng, number + i) for i in range(700 if name == "grid" else rest)]
        number += len(made)
        with store.engine.begin() as connection:
            append(connection, study_ids(connection, EXPERIMENT)[log.name], made)
    store.engine.dispose()
    store = Store(url)
    comparison = Comparison(store, EXPERIMENT)
    # What a run would have confirmed, then more, as of earlier fronts, up to the number asked for.
    shown = {t.user_attrs["schedule"]: t for s in comparison.searches for t in comparison.shown(s)}
    every = {t.user_attrs["schedule"]: t for s in comparison.searches for t in s.trials}
    confirmed = list({**shown, **every}.items())[:evaluations]
    for start in range(0, len(confirmed), 200):
        part = [
            (f"fastv|{schedule}", made_evaluation(rng, f"h{start + i:015x}", "held_out", *trial.values))
            for i, (schedule, trial) in enumerate(confirmed[start : start + 200])
        ]
        store.put_evaluations([evaluation for _, evaluation in part], groups)
        store.link_all(EXPERIMENT, "schedule", part)
    print(f"     {url.rpartition('/')[2]}: {number} trials, {len(confirmed)} evaluations, {len(shown)} of them shown")
    store.engine.dispose()


def compare_seconds(url: str, rounds: int) -> tuple[float, float, float]:
    """Least seconds of the command in a fresh process, of its CPU, and of reading and comparing within a process."""
    whole, cpu, inside = [], [], []
    for _ in range(rounds):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        code = "from vispco.cli.main import main; main()"
        command = [sys.executable, "-c", code, "compare", EXPERIMENT, "--json", "--storage", url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        whole.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert len(json.loads(done.stdout)["searches"]) == 7
        started = time.perf_counter()
        store = Store(url)
        Comparison(store, EXPERIMENT).to_dict()
        inside.append(time.perf_counter() - started)
        store.engine.dispose()
    return min(whole), min(cpu), min(inside)


def per_trial_seconds(url: str, existing: int, rounds: int) -> dict[str, float]:
    """Least seconds of each thing that a driver does after an evaluation, in a study of ``existing`` trials."""
    store, rng = Store(url), np.random.default_rng(existing)
    log = store.trial_log(f"overhead/{existing}")
    with store.engine.begin() as connection:
        study = study_ids(connection, "overhead")[log.name]
        append(connection, study, [made_trial(rng, i) for i in range(existing)])
    groups = {"mosaic-vqa": [f"picture-{i // 2}" for i in range(512)]}
    family, schedule = StepFamily(LAYERS), Step(layer=3, keep=0.25)

    def fresh(number: int) -> Evaluation:
        made = made_evaluation(rng, f"o{existing:07x}{number:08x}", "search", 0.5, 0.5)
        return replace(made, scores={"mosaic-vqa": made.scores["mosaic-vqa"][:512]}, schedule=schedule.text())

    times: dict[str, list[float]] = {}

    def timed(what: str, action: Callable[[], Any]) -> None:
        started = time.perf_counter()
        action()
        times.setdefault(what, []).append(time.perf_counter() - started)

    log.complete()
    with store.lock("overhead"):
        for number in range(rounds + 1):
            evaluation = fresh(number)
            gc.collect()
            timed("look up", lambda e=evaluation: store.get_evaluation(e.id))
            timed("evaluation", lambda e=evaluation: store.put_evaluation(e, groups))
            timed(
                "trial",
                lambda e=evaluation: log.add(
                    e,
                    parameters=family.parameters(schedule),
                    distributions=family.distributions(),
                    seconds=0.5,
                ),
            )
            timed("complete", log.complete)
            timed("charged", log.charged_flops)
            timed("schedules", log.schedules)
    assert len(log.complete()) == existing + rounds + 1
    store.engine.dispose()
    return {what: min(found[1:]) for what, found in times.items()}


def evaluation_seconds(rounds: int) -> float:
    """Least seconds of one demo evaluation, one schedule at a time, without a store."""
    from vispco.evaluation.evaluator import Evaluator

    problem = Problem.from_yaml(Path(__file__).parent.parent / "studies" / "quickstart.yaml")
    evaluator = Evaluator(problem)
    times = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        evaluator.evaluate([Step(layer=4, keep=0.5 - 0.02 * number)], "search")
        times.append(time.perf_counter() - started)
    return min(times[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    rounds = 3 if options.quick else 7
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    claims: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/{{}}.db".format
        one = evaluation_seconds(rounds)
        print(f"     one demo evaluation, 512 samples: {one:.3f} s")
        for trials in (10_000, 20_000):
            build(url(trials), trials, 1000 * trials // 10_000)
        for existing in (100, 1000, 5000):
            parts = per_trial_seconds(url("overhead"), existing, 5 * rounds)
            total = sum(parts.values())
            told = ", ".join(f"{what} {1000 * seconds:.1f}" for what, seconds in parts.items())
            print(f"     {existing} trials there, ms: {told}")
            claims.append((f"overhead of a trial beside {existing}, over one demo evaluation", total / one, 0.02))
        (whole, cpu, inside), (doubled, _, doubled_inside) = (compare_seconds(url(n), rounds) for n in (10_000, 20_000))
    print(f"     its CPU time: {cpu:.2f} s; inside: {inside:.2f} s, twice as many {doubled_inside:.2f} s")
    claims.append(("vispco compare, 10,000 trials, 1,000 x 5,000 scores, whole command, seconds", whole, 3.0))
    claims.append(
        ("compare of twice the trials and evaluations, in the process, over once", doubled_inside / inside, 2.2)
    )
    claims.append(("compare of twice the trials and evaluations, whole command, over once", doubled / whole, 2.2))
    for text, value, most in claims:
        print(f"{'ok  ' if value <= most else 'FAIL'} {text}: {value:.4f} (asked: <= {most})")
    return 0 if all(value <= most for _, value, most in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
