"""The page's terms: a hover text wherever one is used, and the list that closes the page."""

from __future__ import annotations

import re
from html import escape

GLOSSARY = {
    "accuracy": "Score of the task's own metric, from 0 to 100 %; of several tasks the unweighted mean. Under "
    "score: agreement or likelihood, how far answers stay those of the unpruned model.",
    "budget": "Upper bound on the cost of a schedule, as a share of the unpruned model's, on the search split.",
    "budget score": "Mean over budgets of the held-out accuracy of what a search chose for each. A missed budget "
    "counts as the no-image accuracy.",
    "charged": "Compute that a search needs on its own: nothing shared between schedules or taken from earlier runs.",
    "compute": "FLOPs of one prefill's decoder layers and of choosing tokens, in percent of the unpruned model's.",
    "confirmed": "The loss on the held-out split is within what was allowed, at the stated confidence (one-sided "
    "paired test over independent groups of samples).",
    "decision": "The cheapest measured schedule within a stated loss of accuracy, chosen on the search split.",
    "dominated": "Another schedule is at least as accurate for at most the same cost, and better in one of the two.",
    "family": "A few parameters that give a whole schedule: step, multistep, linear, exponential, sigmoid, layerwise.",
    "floor": "The least compute that the method and family can reach; no schedule fits a smaller budget.",
    "front": "The schedules of a search that no other of its schedules dominates.",
    "grid": "All schedules of a regular raster, measured one by one: the reference for other searches.",
    "held-out split": "Samples on which results are confirmed. Nothing is chosen there.",
    "hypervolume": "Area that a front dominates, up to the no-image accuracy and the unpruned model's compute; of "
    "several costs, the volume.",
    "interval": "95 % confidence interval: from resampled samples, and from resampled seeds where there are enough.",
    "keep ratio": "Share of the visual tokens that enter a layer.",
    "method": "The rule that ranks visual tokens, such as FastV.",
    "missed": "A search has no schedule within the budget.",
    "multiplier": "The price that a gradient search puts on compute over its budget.",
    "no image": "The model without any visual token: what it answers from the text alone.",
    "penalty": "Weight of the quadratic term that keeps a gradient search near its budget.",
    "p-value": "Probability of so large a difference if there were none, corrected for all comparisons (Holm).",
    "published default": "A schedule that a method's paper or code recommends, measured as it is.",
    "schedule": "Which share of the visual tokens enters each decoder layer.",
    "search split": "Samples on which schedules are measured and chosen, so that the accuracy there is optimistic.",
    "seed": "Start of a random search; other seeds show how much of a result is luck.",
    "spent": "Compute that was run here, with results shared between schedules, over what the grid spent.",
    "trial": "One schedule that a search measured.",
    "unpruned": "The model with all its visual tokens.",
    "violation": "How far the relaxed schedule is over its budget: (cost - budget) / budget.",
}


def term(name: str, shown: str | None = None) -> str:
    """A term with its definition as hover text, linked to the glossary.

    Raises:
        KeyError: the glossary does not have it.
    """
    return f'<a class="term" href="#{_id(name)}" title="{escape(GLOSSARY[name])}">{escape(shown or name)}</a>'


def glossary_html() -> str:
    """All terms with their definitions, by name."""
    rows = "".join(
        f'<div id="{_id(name)}"><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>'
        for name, text in sorted(GLOSSARY.items())
    )
    return f'<dl class="glossary">{rows}</dl>'


def _id(name: str) -> str:
    return "term-" + re.sub(r"\W+", "-", name)
