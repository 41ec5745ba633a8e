"""``vispco validate`` and ``vispco doctor``."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from vispco.errors import VispcoError


def validate_study(path: Path, overrides: list[str] | None) -> list[dict[str, Any]]:
    """Run every check that a run would, up to the first measurement.

    Raises:
        ConfigError, ModelError, DataError, ScheduleError: the first thing that is wrong.
    """
    import numpy as np

    from vispco.evaluation.evaluator import Evaluator
    from vispco.evaluation.prepared import check_prunable, unread
    from vispco.experiment.planning import plan, resolutions
    from vispco.experiment.validation import validate
    from vispco.problem import Problem
    from vispco.search.study_cost import StudyCost

    problem = Problem.from_yaml(path, overrides)
    validate(problem)
    for task in problem.tasks:
        task.check()
    evaluator = Evaluator(problem)
    check_prunable(problem, evaluator.prepared("search"))
    cost = StudyCost(evaluator)
    floor = cost.floor(problem.family(), problem.default_method)
    budgets = cost.budgets(floor)
    shape, studies = problem.shape, len(plan(problem.study))
    parts = evaluator.prepared("search")
    told = unread(problem, parts)
    problem.check_calibration()
    gradients = problem.calibration_tasks if problem.study.calibration else []
    return [
        {"check": "study", "result": f"{problem.study.experiment}, {studies} {'study' if studies == 1 else 'studies'}"},
        {"check": "model", "result": f"{problem.study.model.name}, {shape.layers} layers of width {shape.hidden}"},
        *(
            {
                "check": f"task {part.task.name}",
                "result": f"{len(part.samples)} search samples, {part.n_visual.mean():.0f} visual and "
                f"{part.n_text.mean():.1f} text tokens on average, {(part.n_visual + part.n_text).max()} at most",
            }
            for part in parts
        ),
        *([{"check": "prompts", "result": told}] if told else []),
        *(
            {
                "check": f"resolution {share:g}",
                "result": f"{np.mean([part.n_visual.mean() for part in evaluator.at(share).prepared('search')]):.0f} "
                "visual tokens on average",
            }
            for share in resolutions(problem.study)
        ),
        *(
            {
                "check": f"calibration {task.name}",
                "result": f"{len(task.samples('calibration'))} samples, for gradients only",
            }
            for task in gradients
        ),
        *([] if cost.in_flops else [{"check": "cost", "result": cost.told()}]),
        *({"check": "objective too", "result": one.name} for one in cost.further),
        {"check": "floor", "result": f"{floor:.4f}"},
        {"check": "budgets", "result": ", ".join(f"{budget:.3f}" for budget in budgets)},
    ]


def doctor_rows(storage: str | None) -> list[dict[str, Any]]:
    import torch

    from vispco.provenance import versions
    from vispco.storage.store import Store, default_url, redact

    rows = [{"what": "python", "value": platform.python_version()}]
    rows += [{"what": name, "value": value} for name, value in versions().items()]
    rows.append({"what": "CPU threads", "value": str(torch.get_num_threads())})
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    rows.append({"what": "GPUs", "value": ", ".join(gpus) or "none"})
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
    rows.append({"what": "offline mode", "value": "on (HF_HUB_OFFLINE)" if offline else "off"})
    url = storage or default_url()
    try:
        store = Store(url, read_only=True)
        value = f"{redact(url)}, {len(store.experiment_names())} experiments"
        store.engine.dispose()
    except VispcoError as error:
        value = str(error)
    rows.append({"what": "storage", "value": value})
    return rows
