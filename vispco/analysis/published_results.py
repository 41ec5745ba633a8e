"""The paper's tables beside one's own numbers: ``vispco compare --with-published``.

``studies/paper/published.csv`` holds tables 1 to 10 of VisPCO (ACL 2026, arXiv 2604.15188) as printed, with what is
odd about a number in its column ``anomaly``. Its configurations, budgets and scorers are the paper's: budgets are
nominal shares of FLOPs, scorers are looser than the benchmarks' own, and the plain methods are means over sampled
configurations. So the numbers are set beside each other, and no difference of them is given.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.study_result import StudyResult
from vispco.errors import ConfigError
from vispco.evaluation.records import Evaluation
from vispco.fronts import FITS, choose

SOURCE = "VisPCO, ACL 2026, arXiv 2604.15188"
TASKS = ("a-okvqa", "vizwiz", "seed-bench", "mmbench", "mme", "chartqa", "ocrbench", "textvqa")
OURS = {"mmbench-en": "mmbench", "mmbench-cn": "mmbench"}  # which language the paper uses is not said
PLAIN, LEARNED = "mean of configurations", "vispco"
# Part of a hub id or a folder's name -> the paper's name; the first is the paper's main model.
MODELS = {"qwen2.5-vl-3b": "Qwen2.5-VL-3B", "llava-1.5-7b": "LLaVA-1.5-7B", "gemma-3-4b": "Gemma3-4B"}
METHODS = ("fastv", "sparsevlm", "fitprune")
KERNELS = {"step": "single layer", "sigmoid": "p-sigmoid", "multistep": "multi-step"}


@dataclass(frozen=True)
class Published:
    """One printed number. ``budget`` is a share; scores are in per cent, other quantities in their own units.

    ``search`` says how the configuration was found: :data:`PLAIN`, :data:`LEARNED`, or another search's name.
    """

    table: int
    model: str
    method: str
    search: str
    kernel: str
    budget: float | None
    tflops: float | None
    quantity: str
    value: float
    deviation: float | None
    anomaly: str


@cache
def published_results() -> tuple[Published, ...]:
    """All rows of the paper's tables, in the paper's order."""
    text = (files("vispco.studies") / "paper" / "published.csv").read_text(encoding="utf-8")
    return tuple(_row(row) for row in csv.DictReader(text.splitlines()))


def _row(row: Mapping[str, str]) -> Published:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    percent = number("budget_percent")
    return Published(
        table=int(row["table"]),
        model=row["model"],
        method=row["method"],
        search=row["search"],
        kernel=row["kernel"],
        budget=None if percent is None else percent / 100,
        tflops=number("tflops"),
        quantity=row["quantity"],
        value=float(row["value"]),
        deviation=number("deviation"),
        anomaly=row["anomaly"],
    )


def beside_published(comparison: Comparison) -> dict[str, Any]:
    """The paper's tables 8 to 10 and the searches' own choices for the paper's budgets, task by task.

    Scores are in per cent; ``kept`` is a score over that of the unpruned model, the one figure that other models and
    other tasks may be set beside as well. Rows are per task the experiment shares with the paper; without one there
    are rows of the averages only.

    Raises:
        ConfigError: the experiment's scores are not the tasks' own.
    """
    identity = comparison.stored.identity
    if comparison.score != "accuracy":
        raise ConfigError(
            f"{comparison.experiment!r} measured score: {comparison.score}, how far answers stay those of the unpruned "
            "model, and the paper's tables have the tasks' own scores; compare with a study under score: task"
        )
    model, named = _model(identity)
    method, method_named = _method(comparison)
    kernel = _kernel(comparison)
    table = [row for row in published_results() if row.table in (8, 9, 10) and row.model == model]
    unpruned = {row.quantity: row for row in table if row.budget == 1.0}
    shared = _shared(comparison)
    rows, anomalies = [], []
    for budget in sorted({row.budget for row in table if row.budget not in (None, 1.0)}, reverse=True):
        assert budget is not None
        ours = {search.name: _choice(comparison, search, budget) for search in comparison.searches if search.trials}
        for task, theirs in [*shared.items(), ("average", "average")]:
            at = [row for row in table if row.budget == budget and row.quantity == theirs and row.method == method]
            printed = {
                LEARNED: next((r for r in at if r.search == LEARNED and r.kernel == kernel), None),
                PLAIN: next((r for r in at if r.search == PLAIN), None),
            }
            anomalies += [f"{budget:.0%} {theirs}: {r.anomaly}" for r in printed.values() if r and r.anomaly]
            rows.append(
                {
                    "budget": budget,
                    "task": task,
                    "published": {name: _printed(row, unpruned[theirs]) for name, row in printed.items()},
                    "ours": {name: _own(comparison, found, task) for name, found in ours.items()},
                }
            )
    anomalies += [f"unpruned {row.quantity}: {row.anomaly}" for row in unpruned.values() if row.anomaly]
    return {
        "experiment": comparison.experiment,
        "source": SOURCE,
        "model": model,
        "same_model": named,
        "method": method,
        "same_method": method_named,
        "kernel": kernel,
        "tasks": shared,
        "unpruned": {
            "published": {name: row.value for name, row in unpruned.items()},
            "ours": {task: _score(comparison.reference("unpruned", "held_out"), task) for task in [*shared, "average"]},
        },
        "rows": rows,
        "anomalies": anomalies,
    }


def _model(identity: Mapping[str, Any]) -> tuple[str, bool]:
    name = str(identity["model"].get("name", "")).lower()
    printed = next((theirs for part, theirs in MODELS.items() if part in name), None)
    return printed or MODELS["qwen2.5-vl-3b"], printed is not None


def _method(comparison: Comparison) -> tuple[str, bool]:
    used = [choice.method for search in comparison.searches for choice in search.methods.values()]
    printed = next((name for name in used if name in METHODS), None)
    return printed or METHODS[0], printed is not None


def _kernel(comparison: Comparison) -> str:
    """The kernel of the families that are learned; the single layer where there are several or none."""
    families = {str(s.family) for s in comparison.searches if not (s.is_reference or s.is_imported)}
    family = families.pop() if len(families) == 1 else "step"
    known = {row.kernel for row in published_results() if row.table == 10}
    kernel = KERNELS.get(family, family)
    return kernel if kernel in known else "single layer"


def _shared(comparison: Comparison) -> dict[str, str]:
    """Tasks of the experiment that the paper has, by the paper's names."""
    evaluation = comparison.reference("unpruned", "held_out")
    names: Iterable[str] = evaluation.tasks if evaluation else ()
    return {name: OURS.get(name, name) for name in names if OURS.get(name, name) in TASKS}


def _choice(comparison: Comparison, search: StudyResult, budget: float) -> Evaluation | None:
    """What a search has within a share of the FLOPs, whatever cost the experiment's budgets are in; None if nothing."""
    able = [t for t in comparison.front(search) if (comparison.flops_ratio(search, t) or math.inf) <= budget + FITS]
    trial = choose(able, math.inf)
    return comparison.held_out(search, trial) if trial is not None else None


def _printed(row: Published | None, whole: Published) -> dict[str, Any] | None:
    if row is None:
        return None
    return {"value": row.value, "deviation": row.deviation, "kept": row.value / whole.value, "table": row.table}


def _own(comparison: Comparison, evaluation: Evaluation | None, task: str) -> dict[str, Any] | None:
    value, whole = _score(evaluation, task), _score(comparison.reference("unpruned", "held_out"), task)
    if evaluation is None or value is None:
        return None
    return {
        "value": value,
        "kept": value / whole if whole else None,
        "flops_ratio": evaluation.flops_ratio,
        "schedule": evaluation.schedule,
    }


def _score(evaluation: Evaluation | None, task: str) -> float | None:
    """Held-out accuracy in per cent."""
    if evaluation is None:
        return None
    return 100 * (evaluation.accuracy if task == "average" else evaluation.tasks[task]["accuracy"])
