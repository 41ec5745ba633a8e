"""Which of several shapes is nearest to the teacher: paired losses on growing parts of the calibration split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vispco.pruning.schedules import Schedule
from vispco.search.gradient.distillation import Calibration

CLEAR = 2.0  # standard errors of a paired difference


def nearest_of_each(
    calibration: Calibration, groups: Sequence[Sequence[Schedule]], first: int, most: int
) -> list[list[Schedule]]:
    """Each group by KL(teacher || pruned model), nearest first; ties in the given order.

    All groups are measured together, so that what schedules have in common runs once.

    In a group all are tried on ``first`` mini-batches; those that are within two standard errors of the best go on to
    twice as many, up to ``most``. A heuristic that saves compute, no test: it is repeated without correction. What a
    group decides does not depend on the others.
    """
    most = min(most, len(calibration.batches))
    done, until = 0, min(max(1, first), most)
    races = [_Race(list(dict.fromkeys(group))) for group in groups]
    losses: dict[Schedule, Tensor] = {}
    while wanted := list(dict.fromkeys(one for race in races if race.open for one in race.left)):
        values, _ = calibration.pruned_losses(wanted, done, until)
        empty = torch.zeros(0, dtype=torch.float64)
        losses.update(
            {one: torch.cat([losses.get(one, empty), more]) for one, more in zip(wanted, values, strict=True)}
        )
        weights = calibration.even_weights(0, until)
        for race in races:
            if race.open:
                race.look(losses, weights)
        if until >= most:
            break
        done, until = until, min(2 * until, most)
    return [race.ranked for race in races]


class _Race:
    """One group: ``left`` are still in it, nearest first."""

    def __init__(self, group: list[Schedule]) -> None:
        self.left, self._dropped = group, list[Schedule]()

    @property
    def open(self) -> bool:
        return len(self.left) > 1

    @property
    def ranked(self) -> list[Schedule]:
        return [*self.left, *self._dropped]

    def look(self, losses: dict[Schedule, Tensor], weights: Tensor) -> None:
        self.left.sort(key=lambda candidate: float((losses[candidate] * weights).sum()))
        best = losses[self.left[0]]
        near = [candidate for candidate in self.left if not clearly_worse(losses[candidate] - best, weights)]
        self._dropped = [candidate for candidate in self.left if candidate not in near] + self._dropped
        self.left = near


def clearly_worse(difference: Tensor, weights: Tensor) -> bool:
    """Whether the weighted mean of paired differences [n] is more than two of its standard errors above 0."""
    share = weights / weights.sum()
    mean = float((share * difference).sum())
    error = float(((share * (difference - mean)) ** 2).sum().sqrt())
    return mean > CLEAR * error and mean > 0
