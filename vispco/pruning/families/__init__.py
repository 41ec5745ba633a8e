"""Schedule families, by name; importing this package registers the built-in ones."""

from vispco.pruning.families import constant, curves, multistep, step
from vispco.pruning.families.base import FAMILIES, ScheduleFamily
from vispco.pruning.families.curves import CurveFamily
from vispco.pruning.families.step import StepFamily

__all__ = ["FAMILIES", "CurveFamily", "ScheduleFamily", "StepFamily", "constant", "curves", "multistep", "step"]
