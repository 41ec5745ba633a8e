"""``vispco.choose``: the decision from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vispco.analysis.comparison import Comparison
from vispco.analysis.decision import Question, decide
from vispco.analysis.pricing import Pricing
from vispco.costs.bounds import parse_bound
from vispco.costs.profile import read_profile
from vispco.storage.store import open_store


def choose(
    experiment: str,
    max_drop: float = 1.0,
    *,
    cost: str | None = None,
    limits: Mapping[str, float | str] | None = None,
    tasks: Mapping[str, float] | None = None,
    sure: float = 0.95,
    profile: str | Path | None = None,
    answer_tokens: int | None = None,
    batch: int | None = None,
    storage: str | None = None,
) -> dict[str, Any]:
    """The cheapest measured schedule within this many points of the unpruned model, as ``vispco choose --json`` has it.

    It is chosen on the search split. ``confirmed`` says whether a paired one-sided test on the held-out split rules
    out a larger loss: True, False, or None where that cannot be tested; ``why`` says why not, and
    ``held_out["samples_needed"]`` how many samples would do.

    Args:
        experiment: name of a finished experiment.
        max_drop: points of accuracy.
        cost: what is to be least, a name of ``vispco.costs.COSTS``; default: the study's.
        limits: bounds on other costs: a number is a share of the unpruned model's, ``"120 ms"`` is absolute.
        tasks: points that single tasks may lose; ``"*"`` stands for each of them.
        sure: confidence of the test.
        profile: file of a hardware profile, for costs in time.
        answer_tokens, batch: for the costs that depend on them; default: the study's.
        storage: database URL; default ``VISPCO_STORAGE`` or ``sqlite:///vispco.db``.

    Raises:
        ConfigError: the question cannot be asked of this experiment, or nothing measured answers it.
        StorageError: no such experiment.
    """
    bounds = tuple(parse_bound(name, bound) for name, bound in (limits or {}).items())
    with open_store(storage, read_only=True) as store:
        comparison = Comparison(store, experiment)
        given = read_profile(profile) if profile is not None else None
        pricing = Pricing(comparison, given, answer_tokens=answer_tokens, batch=batch)
        return decide(comparison, Question(max_drop, cost or comparison.cost, bounds, dict(tasks or {}), sure), pricing)
