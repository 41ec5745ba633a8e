"""The cost that an experiment's budgets are in, as an axis in percent of the unpruned model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vispco.costs.bounds import amount

FLOPS_RATIO = "flops_ratio"
ACCURACY = "accuracy, %"


def share(point: Mapping[str, Any]) -> float:
    """Where a point, a choice or a published default of ``vispco compare --json`` lies."""
    found = point.get("cost_ratio", point[FLOPS_RATIO])
    return float("nan") if found is None else float(found)


def percents(values: Sequence[float | None]) -> list[float | None]:
    """Shares in percent, with more digits than anybody reads.

    >>> percents([0.5, None])
    [50.0, None]
    """
    return [None if value is None else round(100 * value, 4) for value in values]


def name_of(comparison: Mapping[str, Any]) -> str:
    """Of the share, as a key: ``flops_ratio``, or that of another cost."""
    return f"{comparison['cost']}_ratio" if "cost" in comparison else FLOPS_RATIO


def scored(comparison: Mapping[str, Any], split: str = "held_out") -> str:
    """What numbers under ``accuracy`` are, on a split."""
    name = comparison.get("score", "accuracy")
    return f"held-out {name}" if split == "held_out" else f"{name} on the search split"


def of_what(comparison: Mapping[str, Any]) -> str:
    """What a share is of, in a sentence: the compute, or another cost."""
    cost = str(comparison.get("cost", "flops"))
    return "compute" if cost == "flops" else cost


def title_of(comparison: Mapping[str, Any], name: str = "") -> str:
    """Title of an axis: ``name``, default the cost, with what the unpruned model has of another cost than FLOPs."""
    told = f"{name or of_what(comparison)}, % of unpruned"
    whole = comparison["unpruned"].get("cost")
    if "cost" not in comparison or whole is None:
        return told
    return f"{told} ({amount(whole, comparison.get('cost_unit', ''))})"
