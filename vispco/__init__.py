"""VisPCO: where in a vision-language model, and how hard, to prune visual tokens.

Importing this package loads neither transformers models nor plotly; names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vispco.evaluation.evaluator import Evaluator
    from vispco.evaluation.records import Evaluation
    from vispco.export import load_schedule
    from vispco.models.loading import load_model
    from vispco.objective import objective
    from vispco.problem import Problem
    from vispco.pruning.runtime import prune
    from vispco.pruning.schedules import Ratios, Schedule, Step, parse_schedule

__version__ = "0.1.0"

_HOMES = {
    "Evaluation": "vispco.evaluation.records",
    "Evaluator": "vispco.evaluation.evaluator",
    "Problem": "vispco.problem",
    "Ratios": "vispco.pruning.schedules",
    "Schedule": "vispco.pruning.schedules",
    "Step": "vispco.pruning.schedules",
    "load_model": "vispco.models.loading",
    "load_schedule": "vispco.export",
    "objective": "vispco.objective",
    "parse_schedule": "vispco.pruning.schedules",
    "prune": "vispco.pruning.runtime",
}

__all__ = [
    "Evaluation",
    "Evaluator",
    "Problem",
    "Ratios",
    "Schedule",
    "Step",
    "load_model",
    "load_schedule",
    "objective",
    "parse_schedule",
    "prune",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vispco' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
