"""The evaluator as an Optuna objective, for the user's own study and sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vispco.errors import ConfigError
from vispco.evaluation.evaluator import Evaluator
from vispco.problem import Problem

if TYPE_CHECKING:
    import optuna


def objective(problem: Problem, evaluator: Evaluator | None = None) -> Callable[[optuna.Trial], tuple[float, float]]:
    """An objective for a study with directions ``("maximize", "minimize")``: accuracy and flops_ratio.

    Draws from the problem's schedule family, measures on the search split, and sets the user attributes that
    our own trials carry. With ``n_jobs`` above 1 trials are proposed at once and measured one after another: there is
    one model.

    Raises:
        ConfigError: the problem's study asks for another cost or for limits, which this does not give.
    """
    from vispco.search.space import suggest_parameters
    from vispco.search.study_cost import has_plain_cost

    if not has_plain_cost(problem.study):
        raise ConfigError(
            "vispco.objective gives accuracy and flops_ratio, and the study asks for another cost or for limits: leave "
            "cost and limits out of it, or run the sampler as an entry of the study (kind: tpe)"
        )
    shared = evaluator or Evaluator(problem)
    family = problem.family()

    def run(trial: optuna.Trial) -> tuple[float, float]:
        schedule = family.schedule(suggest_parameters(trial, family.distributions()))
        evaluation = shared.evaluate([schedule], "search")[0]
        trial.set_user_attr("schedule", evaluation.schedule)
        trial.set_user_attr("keep_ratio", list(evaluation.keep_ratio))
        trial.set_user_attr("evaluation", evaluation.id)
        trial.set_user_attr("charged_flops", evaluation.flops)
        trial.set_user_attr("spent_flops", evaluation.spent_flops)
        return evaluation.accuracy, evaluation.flops_ratio

    return run
