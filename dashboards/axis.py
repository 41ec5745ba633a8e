"""The cost that an experiment's budgets are in, as an axis: where a point lies, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

FLOPS_RATIO = "flops_ratio"


def share(point: Mapping[str, Any]) -> float:
    """Where a point, a choice or a published default of ``vispco compare --json`` lies."""
    found = point.get("cost_ratio", point[FLOPS_RATIO])
    return float("nan") if found is None else float(found)


def name_of(comparison: Mapping[str, Any]) -> str:
    """Of the share: ``flops_ratio``, or that of another cost."""
    return f"{comparison['cost']}_ratio" if "cost" in comparison else FLOPS_RATIO


def of_what(comparison: Mapping[str, Any]) -> str:
    """What a share is of, in a sentence: the compute, or another cost."""
    cost = str(comparison.get("cost", "flops"))
    return "compute" if cost == "flops" else cost


def title_of(comparison: Mapping[str, Any], name: str = "") -> str:
    """``name`` or the share's own, with what the unpruned model has of another cost than FLOPs."""
    told = name or name_of(comparison)
    whole = comparison["unpruned"].get("cost")
    if "cost" not in comparison or whole is None:
        return told
    return f"{told} (1 is {whole:.4g} {comparison.get('cost_unit', '')})"


def hover_named(figure: go.Figure, comparison: Mapping[str, Any]) -> go.Figure:
    """Hover texts that say the cost's own name."""
    if "cost" in comparison:
        for trace in figure.data:
            if trace.hovertemplate:
                trace.hovertemplate = trace.hovertemplate.replace(f"{FLOPS_RATIO} %", f"{name_of(comparison)} %")
    return figure
