"""What a search has come to while it runs, in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from optuna.trial import TrialState

from vispco.fronts import choose, is_measured
from vispco.storage.trials import TrialLog


def result_so_far(log: TrialLog, budgets: Sequence[float], blind: float) -> str:
    """``budget_score`` on the search split, where schedules are chosen, and the compute that was spent.

    Args:
        blind: accuracy without the picture, which a missed budget counts for.
    """
    trials = [trial for trial in log.complete() if is_measured(trial)]
    spent = sum(trial.user_attrs.get("spent_flops", 0) for trial in log.trials(TrialState.COMPLETE, TrialState.PRUNED))
    chosen = [choose(trials, budget) for budget in budgets]
    score = fmean(blind if trial is None else trial.values[0] for trial in chosen)
    return f"score {score:.3f}, {in_flops(spent)}" if trials else in_flops(spent)


def in_flops(flops: float) -> str:
    """
    >>> in_flops(0), in_flops(1.234e12), in_flops(999.96e9)
    ('0 FLOPs', '1.2 TFLOPs', '1.0 TFLOPs')
    """
    if not flops:
        return "0 FLOPs"
    for unit in ("", "K", "M", "G", "T", "P", "E", "Z"):
        if flops < 999.95 or unit == "Z":
            break
        flops /= 1000
    return f"{flops:.1f} {unit}FLOPs"
