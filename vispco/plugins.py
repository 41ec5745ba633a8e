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

_HOMES = {
    "ADAPTERS": "vispco.models.families",
    "COSTS": "vispco.costs",
    "ConfigError": "vispco.errors",
    "CostModel": "vispco.costs",
    "CurveFamily": "vispco.pruning.families",
    "DataError": "vispco.errors",
    "FAMILIES": "vispco.pruning.families",
    "Grid": "vispco.models.grids",
    "METHODS": "vispco.pruning.methods",
    "Method": "vispco.pruning.methods",
    "ModelAdapter": "vispco.models.base",
    "MultiStep": "vispco.pruning.schedules",
    "Proposal": "vispco.search",
    "Ratios": "vispco.pruning.schedules",
    "SCORERS": "vispco.tasks.vqa_json",
    "SEARCHES": "vispco.search",
    "Sample": "vispco.tasks.base",
    "Schedule": "vispco.pruning.schedules",
    "ScheduleFamily": "vispco.pruning.families",
    "ScoreContext": "vispco.pruning.methods",
    "Search": "vispco.search",
    "SearchContext": "vispco.search",
    "SearchOptions": "vispco.search",
    "Setting": "vispco.costs",
    "Step": "vispco.pruning.schedules",
    "TASKS": "vispco.tasks.base",
    "Task": "vispco.tasks.base",
    "fixed_grids": "vispco.models.grids",
    "largest": "vispco.pruning.families.base",
    "load_plugin": "vispco.plugin_files",
}

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
