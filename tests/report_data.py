"""Made experiments for tests of the report: several entries, seeds and tasks, gradient paths, names of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from vispco.evaluation.records import Evaluation
from vispco.pruning.schedules import Schedule, Step
from vispco.storage.optuna_sql.bulk import append
from vispco.storage.reading import study_ids
from vispco.storage.store import Store

SAMPLES, LAYERS = 60, 8
BUDGETS = [0.3, 0.52, 0.8]
# Entry -> kind, seeds (None: deterministic), trials, gain in accuracy over the grid.
ENTRIES: dict[str, tuple[str, int | None, int, float]] = {
    "grid": ("grid", None, 40, 0.0),
    "lagrangian": ("lagrangian", 1, 6, 0.05),
    "tpe": ("tpe", 1, 12, -0.02),
}
HOSTILE = (
    "</script><script>window.broken=1</script><img src=x onerror='window.broken=2'>"
    "&lt;b&gt; %{x} {{y}} ${z}\u2028\u2029"
)
RIGHT_TO_LEFT = "\u202e\u05e9\u05dc\u05d5\u05dd <b>\u0645\u0631\u062d\u0628\u0627</b> \U0001f469\u200d\U0001f680"


def made_evaluation(
    name: str, split: str, scores: Mapping[str, Any], ratio: float, schedule: Schedule, layers: int, flops: int = 1000
) -> Evaluation:
    """Of the scores of each task's samples; each task has the same share of FLOPs."""
    tasks = {task: {"accuracy": float(found.mean()), "flops_ratio": ratio} for task, found in scores.items()}
    return Evaluation(
        id=name,
        split=split,
        method="fastv",
        schedule=schedule.text(),
        keep_ratio=tuple(schedule.keep_ratio(layers)),
        accuracy=float(np.mean([task["accuracy"] for task in tasks.values()])),
        flops_ratio=ratio,
        flops=flops,
        spent_flops=flops,
        kv_bytes=1.0,
        tasks=tasks,
        scores=scores,
    )


def study_facts(entry: str, kind: str, seed: int = 0, points: int | None = None, **more: Any) -> dict[str, Any]:
    """What an experiment knows of one of its studies."""
    method = {"method": "fastv", "method_key": "fastv", "family": "step"}
    return {"entry": entry, "seed": seed, "kind": kind, **method, "points": points, **more}


def fill(
    store: Store,
    experiment: str = "made",
    *,
    entries: Mapping[str, tuple[str, int | None, int, float]] | None = None,
    tasks: Sequence[str] = ("colours",),
    note: str = "made for a test",
    study: str | None = None,
    seed: int = 0,
    further: Mapping[str, float] | None = None,
) -> None:
    """Every front point is measured on both splits. ``further``: costs that are minimised too, and what the unpruned
    model has of them."""
    rng, entries, others = np.random.default_rng(seed), entries or ENTRIES, dict(further or {})
    groups = {task: [f"g{i // 2}" for i in range(SAMPLES)] for task in tasks}
    easy = {task: rng.random(SAMPLES) for task in tasks}
    store.save_experiment(
        experiment,
        spec_text=study
        or f"experiment: made\npurpose: >-\n  {note.replace(chr(0x2028), ' ').replace(chr(0x2029), ' ')}\n",
        spec_hash="0123abcd",
        identity={"model": {"name": "demo"}},
        provenance={"versions": {"torch": "2"}, "python": "3", "platform": "p", "device": "cpu", "commit": None},
    )

    def measured(name: str, split: str, accuracy: float, ratio: float, schedule: Step) -> Evaluation:
        scores = {
            task: (easy[task] + 0.15 * rng.normal(size=SAMPLES) + 0.1 * number < accuracy).astype(float)
            for number, task in enumerate(tasks)
        }
        return made_evaluation(f"{experiment[:20]}-{name}-{split}", split, scores, ratio, schedule, LAYERS)

    for split in ("search", "held_out"):
        whole = Step(layer=1, keep=1.0)
        for role, key, accuracy, ratio in (
            ("reference", "unpruned", 0.9, 1.0),
            ("reference", "no_image", 0.2, 1.0),
            ("default", "fastv:k2-r50", 0.6, 0.655),
        ):
            one = measured(key, split, accuracy, ratio, Step(layer=2, keep=0.5) if role == "default" else whole)
            store.put_evaluation(one, groups)
            store.link(experiment, role, key, one)
    known = {"further_costs": others} if others else {}
    if known:
        store.save_facts(experiment, known)  # which say how many objectives a new study has
    studies: dict[str, dict[str, Any]] = {}
    kept: list[Evaluation] = []
    for entry, (kind, seeds, trials, gain) in entries.items():
        for number in range(seeds or 1):
            study = f"{experiment}/{entry}" + (f"@{number}" if seeds and seeds > 1 else "")
            points = trials if kind == "grid" else None
            studies[study] = study_facts(entry, kind, number, points, deterministic=seeds is None)
            log, rows, best = store.trial_log(study), [], -1.0
            for ratio in np.linspace(0.25, 0.95, trials).tolist():
                schedule = Step(
                    layer=1 + len(rows) % (LAYERS - 1), keep=round(0.05 + 1e-5 * (len(kept) + len(rows)), 6)
                )
                level = 0.25 + 0.6 * ratio + gain - 0.02 * (len(rows) % (LAYERS - 1)) + 0.02 * rng.normal()
                accuracy = float(np.clip(level, 0, 1))
                if accuracy > best or others:  # only what is on a front is confirmed
                    best = accuracy
                    kept.append(measured(f"{entry}-{number}-{len(rows)}", "held_out", accuracy, ratio, schedule))
                rows.append(
                    create_trial(
                        values=[accuracy, ratio, *(whole * (0.3 + 0.7 * rng.random()) for whole in others.values())],
                        params={"layer": schedule.layer, "keep": schedule.keep},
                        distributions={"layer": IntDistribution(1, LAYERS - 1), "keep": FloatDistribution(0.0, 1.0)},
                        user_attrs={
                            "schedule": schedule.text(),
                            "keep_ratio": list(schedule.keep_ratio(LAYERS)),
                            "evaluation": f"{study}-{len(rows)}",
                            "charged_flops": 1000,
                            "spent_flops": 500,
                            "propose_flops": 0,
                        },
                    )
                )
            with store.engine.begin() as connection:
                append(connection, study_ids(connection, experiment)[log.name], rows)
            if kind == "lagrangian":
                for place in range(len(BUDGETS)):
                    store.save_steps(study, f"budget-{place}", _path(rng, place))
    store.put_evaluations(kept, groups)
    store.link_all(experiment, "schedule", [(f"fastv|{one.schedule}", one) for one in kept])
    store.save_facts(experiment, {"accounting": "exact", "floor": 0.2, "budgets": BUDGETS, "studies": studies, **known})


def _path(rng: np.random.Generator, place: int) -> list[dict[str, Any]]:
    return [
        {
            "loss": 1.0 / (step + 1),
            "violation": 0.3 * 0.8**step - 0.01 * place + 0.01 * rng.normal(),
            "multiplier": float(step // 4),
            "penalty": 20.0 * 2 ** (step // 8),
            "free": [0.5, 0.5],
        }
        for step in range(18)
    ]
