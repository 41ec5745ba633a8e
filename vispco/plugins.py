"""All that the author of a plug-in imports. Names are loaded when first used.

Registers: ``METHODS``, ``FAMILIES``, ``SEARCHES``, ``TASKS``, ``SCORERS``, ``COSTS`` and ``ADAPTERS``, each with
``@REGISTER.register("name")`` above a class (a function, for scorers). Examples: docs/extending.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vispco.costs import COSTS, CostModel, Setting
    from vispco.errors import ConfigError, DataError
    from vispco.models.base import ModelAdapter
    from vispco.models.families import ADAPTERS
    from vispco.models.grids import Grid, fixed_grids
    from vispco.plugin_files import load_plugin
    from vispco.pruning.families import FAMILIES, CurveFamily, ScheduleFamily
    from vispco.pruning.families.base import largest
    from vispco.pruning.methods import METHODS, Method, ScoreContext
    from vispco.pruning.schedules import MultiStep, Ratios, Schedule, Step
    from vispco.search import SEARCHES, Proposal, Search, SearchContext, SearchOptions
    from vispco.tasks.base import TASKS, Sample, Task
    from vispco.tasks.vqa_json import SCORERS

_NAMES = {  # by the module that they are loaded from
    "vispco.costs": ("COSTS", "CostModel", "Setting"),
    "vispco.errors": ("ConfigError", "DataError"),
    "vispco.models.base": ("ModelAdapter",),
    "vispco.models.families": ("ADAPTERS",),
    "vispco.models.grids": ("Grid", "fixed_grids"),
    "vispco.plugin_files": ("load_plugin",),
    "vispco.pruning.families": ("CurveFamily", "FAMILIES", "ScheduleFamily"),
    "vispco.pruning.families.base": ("largest",),
    "vispco.pruning.methods": ("METHODS", "Method", "ScoreContext"),
    "vispco.pruning.schedules": ("MultiStep", "Ratios", "Schedule", "Step"),
    "vispco.search": ("Proposal", "SEARCHES", "Search", "SearchContext", "SearchOptions"),
    "vispco.tasks.base": ("Sample", "TASKS", "Task"),
    "vispco.tasks.vqa_json": ("SCORERS",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "ADAPTERS",
    "COSTS",
    "FAMILIES",
    "METHODS",
    "SCORERS",
    "SEARCHES",
    "TASKS",
    "ConfigError",
    "CostModel",
    "CurveFamily",
    "DataError",
    "Grid",
    "Method",
    "ModelAdapter",
    "MultiStep",
    "Proposal",
    "Ratios",
    "Sample",
    "Schedule",
    "ScheduleFamily",
    "ScoreContext",
    "Search",
    "SearchContext",
    "SearchOptions",
    "Setting",
    "Step",
    "Task",
    "fixed_grids",
    "largest",
    "load_plugin",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vispco.plugins' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    if name in ("ADAPTERS", "TASKS"):  # the built-in names are taken before a plug-in's are
        home.register_builtin()
    return getattr(home, name)
