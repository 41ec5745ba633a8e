"""Conformance suites: inherit one, name your plug-in, and pytest runs what the built-in ones must pass.

from vispco.testing import MethodConformance

class TestMine(MethodConformance):
    method = Mine()
"""

from vispco.testing.adapters import AdapterConformance
from vispco.testing.costs import CostConformance
from vispco.testing.families import FamilyConformance
from vispco.testing.methods import MethodConformance
from vispco.testing.searches import SearchConformance
from vispco.testing.tasks import ScorerConformance, TaskConformance

__all__ = [
    "AdapterConformance",
    "CostConformance",
    "FamilyConformance",
    "MethodConformance",
    "ScorerConformance",
    "SearchConformance",
    "TaskConformance",
]
