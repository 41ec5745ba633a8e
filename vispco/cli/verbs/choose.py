"""Decide on a schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from vispco.cli.app import app
from vispco.cli.options import (
    BatchSize,
    CostName,
    Json,
    Limit,
    MaxDrop,
    ProfileFile,
    Storage,
    StudyTokens,
    Sure,
    TaskDrop,
)
from vispco.cli.output import print_json


@app.command()
def choose(
    experiment: str,
    max_drop: MaxDrop = 1.0,
    cost: CostName = None,
    limit: Limit = None,
    max_task_drop: TaskDrop = None,
    sure: Sure = 0.95,
    profile: ProfileFile = None,
    answer_tokens: StudyTokens = None,
    batch: BatchSize = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the choice on the held-out split if it was not; runs the model.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """The decision: the cheapest schedule within a loss of accuracy, and whether held-out samples confirm it."""
    from vispco.analysis.comparison import Comparison
    from vispco.cli.choosing import decided, pricing, print_decision, question
    from vispco.storage.store import open_store

    with open_store(storage, create=False, read_only=not measure) as store:
        comparison = Comparison(store, experiment)
        asked = question(max_drop, cost, limit or [], max_task_drop or [], sure, comparison.cost)
        found = decided(comparison, asked, pricing(comparison, profile, answer_tokens, batch), measure=measure)
    if as_json:
        print_json(found)
    else:
        print_decision(found)
