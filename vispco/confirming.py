"""Measure one chosen schedule on the held-out split, for a decision that named one that was not measured there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vispco.evaluation.evaluator import Evaluator
from vispco.problem import Problem
from vispco.pruning.schedules import parse_schedule

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison


def confirm(comparison: Comparison, search: str, trial: int) -> None:
    """Load the experiment's model, measure the trial's schedule on the held-out split and note it.

    Raises:
        LockedError: somebody runs the experiment.
    """
    store, name = comparison.store, comparison.experiment
    study = next(one for one in comparison.searches if one.name == search)
    record = next(one for one in study.trials if one.number == trial)
    origin = comparison.origin(study, record) or study
    text = str(record.user_attrs["schedule"])
    problem = Problem.from_text(comparison.stored.spec_text, f"study stored for {name!r}")
    with store.lock(name):
        (evaluation,) = Evaluator(problem, store).evaluate([parse_schedule(text)], "held_out", origin.make_method())
        store.link(name, "schedule", f"{origin.method_key}|{text}", evaluation)
