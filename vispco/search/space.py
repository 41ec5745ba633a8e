"""Draw the parameters of a family with a live Optuna trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

if TYPE_CHECKING:
    import optuna


def suggest_parameters(trial: optuna.Trial, distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
    """One value per distribution, by the public ``suggest_*`` calls."""
    drawn: dict[str, Any] = {}
    for name, space in distributions.items():
        if isinstance(space, IntDistribution):
            drawn[name] = trial.suggest_int(name, space.low, space.high, step=space.step, log=space.log)
        elif isinstance(space, FloatDistribution):
            drawn[name] = trial.suggest_float(name, space.low, space.high, step=space.step, log=space.log)
        elif isinstance(space, CategoricalDistribution):
            drawn[name] = trial.suggest_categorical(name, space.choices)
        else:
            raise TypeError(
                f"distribution of {name!r} is {type(space).__name__}; families use int, float or categorical"
            )
    return drawn
