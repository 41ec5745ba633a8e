"""Measure one chosen schedule on the held-out split, for a decision that named one that was not measured there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vispco.evaluation.evaluator import Evaluator
from vispco.experiment.progress import Progress, Silent
from vispco.experiment.unchanged import check_unchanged, content_of
from vispco.problem import Problem
from vispco.pruning.schedules import parse_schedule

if TYPE_CHECKING:
    from vispco.analysis.comparison import Comparison


def confirm(comparison: Comparison, search: str, trial: int, progress: Progress | None = None) -> None:
    """Load the experiment's model, measure the trial's schedule on the held-out split and note it.

    Raises:
        LockedError: somebody runs the experiment.
        ConfigError: the model, data or plug-ins that its names lead to now are not those it was measured with.
    """
    store, name = comparison.store, comparison.experiment
    study = next(one for one in comparison.searches if one.name == search)
    record = next(one for one in study.trials if one.number == trial)
    origin = comparison.origin(study, record) or study
    text = str(record.user_attrs["schedule"])
    problem = Problem.from_text(comparison.stored.spec_text, f"study stored for {name!r}")
    with store.lock(name):
        evaluator = Evaluator(problem, store)
        check_unchanged(problem, store)
        content_of(evaluator, store, (progress or Silent()).say)
        (evaluation,) = evaluator.evaluate([parse_schedule(text)], "held_out", origin.make_method())
        store.link(name, "schedule", f"{origin.method_key}|{text}", evaluation)
