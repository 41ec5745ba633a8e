"""VisPCO: where in a vision-language model, and how hard, to prune visual tokens.

Importing this package loads neither transformers models nor plotly; names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vispco import methods, plugins
    from vispco.analysis.comparison import Comparison
    from vispco.api import export, flops_ratio, report, run
    from vispco.choosing import choose
    from vispco.evaluation.evaluator import Evaluator
    from vispco.evaluation.records import Evaluation
    from vispco.models.families import adapter_for
    from vispco.models.loading import load_model
    from vispco.models.resolution import rescaled
    from vispco.optuna_objective import objective
    from vispco.problem import Problem
    from vispco.pruning.methods.base import make_method
    from vispco.pruning.prune import install, prune
    from vispco.pruning.schedule_file import load_schedule
    from vispco.pruning.schedules import (
        AtResolution,
        Exponential,
        Linear,
        MultiStep,
        Ratios,
        Schedule,
        Sigmoid,
        Step,
        parse_schedule,
    )
    from vispco.storage.store import open_store

__version__ = "0.1.0"

_HOMES = {
    "AtResolution": "vispco.pruning.schedules",
    "Comparison": "vispco.analysis.comparison",
    "Evaluation": "vispco.evaluation.records",
    "Evaluator": "vispco.evaluation.evaluator",
    "Exponential": "vispco.pruning.schedules",
    "Linear": "vispco.pruning.schedules",
    "MultiStep": "vispco.pruning.schedules",
    "Problem": "vispco.problem",
    "Ratios": "vispco.pruning.schedules",
    "Schedule": "vispco.pruning.schedules",
    "Sigmoid": "vispco.pruning.schedules",
    "Step": "vispco.pruning.schedules",
    "adapter_for": "vispco.models.families",
    "choose": "vispco.choosing",
    "export": "vispco.api",
    "flops_ratio": "vispco.api",
    "install": "vispco.pruning.prune",
    "load_model": "vispco.models.loading",
    "load_schedule": "vispco.pruning.schedule_file",
    "make_method": "vispco.pruning.methods.base",
    "objective": "vispco.optuna_objective",
    "open_store": "vispco.storage.store",
    "parse_schedule": "vispco.pruning.schedules",
    "prune": "vispco.pruning.prune",
    "rescaled": "vispco.models.resolution",
    "report": "vispco.api",
    "run": "vispco.api",
}
_MODULES = ("methods", "plugins")

__all__ = [
    "AtResolution",
    "Comparison",
    "Evaluation",
    "Evaluator",
    "Exponential",
    "Linear",
    "MultiStep",
    "Problem",
    "Ratios",
    "Schedule",
    "Sigmoid",
    "Step",
    "adapter_for",
    "choose",
    "export",
    "flops_ratio",
    "install",
    "load_model",
    "load_schedule",
    "make_method",
    "methods",
    "objective",
    "open_store",
    "parse_schedule",
    "plugins",
    "prune",
    "report",
    "rescaled",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"vispco.{name}")
    raise AttributeError(f"module 'vispco' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
