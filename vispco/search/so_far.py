"""What a search has come to while it runs, in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from optuna.trial import TrialState

from vispco.analysis.selection import choose, fits, is_measured
from vispco.storage.trials import TrialLog


def result_so_far(log: TrialLog, budgets: Sequence[float], blind: float) -> str:
    """``score_within_budget`` on the search split, where schedules are chosen, and the compute that was spent.

    It is ``budget_score`` once there is a schedule within every budget, and never falls.

    Args:
        blind: accuracy without a picture, which a budget counts for that nothing fits.
    """
    trials = [trial for trial in log.complete() if is_measured(trial)]
    spent = sum(trial.user_attrs.get("spent_flops", 0) for trial in log.trials(TrialState.COMPLETE, TrialState.PRUNED))
    chosen = [(choose(trials, budget), budget) for budget in budgets]
    score = fmean(trial.values[0] if trial is not None and fits(trial, b) else blind for trial, b in chosen)
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
