"""Which of several shapes is nearest to the teacher: paired losses on growing parts of the calibration split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vispco.pruning.schedules import Schedule
from vispco.search.calibration import Calibration

CLEAR = 2.0  # standard errors of a paired difference


def nearest(calibration: Calibration, candidates: Sequence[Schedule], first: int, most: int) -> list[Schedule]:
    """``candidates`` by KL(teacher || pruned model), nearest first; ties in the given order.

    All are tried on ``first`` mini-batches; those that are within two standard errors of the best go on to twice as
    many, up to ``most``. A heuristic that saves compute, no test: it is repeated without correction.
    """
    most = min(most, len(calibration.batches))
    done, until = 0, min(max(1, first), most)
    losses: dict[Schedule, Tensor] = {candidate: torch.zeros(0, dtype=torch.float64) for candidate in candidates}
    weights = torch.zeros(0, dtype=torch.float64)
    left = list(candidates)
    dropped: list[Schedule] = []
    while True:
        for candidate in left:
            more, weight = calibration.pruned_losses(candidate, done, until)
            losses[candidate] = torch.cat([losses[candidate], more])
        weights = torch.cat([weights, weight])
        left.sort(key=lambda candidate: float((losses[candidate] * weights).sum()))
        best = losses[left[0]]
        near = [candidate for candidate in left if not _clearly_worse(losses[candidate] - best, weights)]
        dropped = [candidate for candidate in left if candidate not in near] + dropped
        left = near
        if until >= most or len(left) == 1:
            return [*left, *dropped]
        done, until = until, min(2 * until, most)


def _clearly_worse(difference: Tensor, weights: Tensor) -> bool:
    share = weights / weights.sum()
    mean = float((share * difference).sum())
    error = float(((share * (difference - mean)) ** 2).sum().sqrt())
    return mean > CLEAR * error and mean > 0
