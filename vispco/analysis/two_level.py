"""Two-level bootstrap: the runs of a search and the groups of held-out samples are drawn together.

A search is run with several seeds, and all searches are judged on the same held-out samples. So there are two reasons
why a number could have come out otherwise: other seeds, and other samples. :func:`estimate` counts both.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vispco.analysis.bootstrap import Scores, group_bootstraps

RESAMPLES = 9999
LEVEL = 0.95
FEWEST_RUNS = 5  # below, ten thousand draws repeat one and the same run too often to say how much runs differ

Floats = NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Runs:
    """The runs of one search under the shared resamples of groups.

    ``values`` [R]: each run's number. ``draws`` [R, B]: the same on resampled groups; equal columns are equal samples
    for all runs made by one call of :func:`resample`. ``influence`` [R, G]: by how much each group moves a run's
    number, sum 0 within a task; groups of all tasks side by side. ``inflation`` [G]: G_t / (G_t - 1) of a group's task.
    ``fixed``: the search is deterministic, so that there is nothing to draw among its runs.
    """

    values: Floats
    draws: Floats
    influence: Floats
    inflation: Floats
    fixed: bool = False


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    ``interval`` holds the true value in 95 % of repetitions of what ``covers`` says: ``"seeds and samples"``, running
    the searches with other seeds and asking other questions of the same kind, or ``"samples"``, only the latter: it is
    then conditional on the schedules that were found. None where that cannot be known (a task with a single group).
    ``p_value`` is that of the hypothesis that the true value is 0, against both sides.
    """

    value: float
    interval: tuple[float, float] | None
    p_value: float | None
    covers: str


def resample(
    entries: Mapping[Name, Sequence[Scores]],
    groups: Mapping[str, Sequence[str]],
    *,
    fixed: Collection[Name] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Name, Runs]:
    """Draw groups once, for the runs of all entries.

    Args:
        entries: name -> per-sample scores of each run, {task: [samples]}.
        groups: group of each sample, per task, as for :func:`group_bootstraps`, whose draws these are.
        fixed: entries that are deterministic.
    """
    flat = [scores for runs in entries.values() for scores in runs]
    draws = group_bootstraps(flat, groups, resamples=resamples, seed=seed)
    values, influences, inflations = np.zeros(len(flat)), [], []
    for task in sorted(flat[0]) if flat else []:
        _, member = np.unique(np.asarray(groups[task]), return_inverse=True)
        scores = np.stack([np.asarray(one[task], dtype=np.float64) for one in flat])
        means = scores.mean(axis=1)
        values += means / len(flat[0])
        moved = np.stack([np.bincount(member, weights=row) for row in scores - means[:, None]])
        influences.append(moved / (len(member) * len(flat[0])))
        count = moved.shape[1]
        inflations.append(np.full(count, count / (count - 1) if count > 1 else np.inf))
    found, start = {}, 0
    for name, runs in entries.items():
        end = start + len(runs)
        influence = np.concatenate([part[start:end] for part in influences], axis=1)
        found[name] = Runs(values[start:end], draws[start:end], influence, np.concatenate(inflations), name in fixed)
        start = end
    return found


def estimate(first: Runs, second: Runs | None = None, *, seed: int = 0) -> Estimate:
    """Mean over the runs of ``first``, less that of ``second`` if given, by a symmetric bootstrap-t.

    Each resample draws the groups (the same for both) and the runs of each side (independently: runs with equal seeds
    are not pairs), gives a difference d*, and its own standard error e*. With d and e of the data, the interval is d
    plus and minus e times the 95 % quantile of t* = abs(d* - d) / e*, and

        p = (1 + number of t* >= abs(d) / e) / (resamples + 1),

    so that p <= 0.05 exactly where the interval leaves out 0 (Hall 1988; Davison and Hinkley 1997, 5.2.1 and 4.2.5).
    Dividing by e* is what makes ten seeds ten: percentiles of d* alone are too narrow by a quarter when seeds differ
    much, and too wide by half when they differ only in which samples they get right.

    e squared is the variance over runs plus the variance over groups less what both contain, the interaction of runs
    and groups (Cameron, Gelbach and Miller 2011; Owen 2007 on resampling both), at least the larger of the two. Within
    resamples the interaction is in the draws as often as in e*, and nothing is subtracted.

    Args:
        first, second: from one call of :func:`resample`. Runs of a deterministic search are not drawn. Where another
            has fewer than 5 runs, none are drawn and the estimate covers samples only.
    """
    sides = [(first, 1.0)] if second is None else [(first, 1.0), (second, -1.0)]
    loose = [runs for runs, _ in sides if not runs.fixed]
    drawn = bool(loose) and all(len(runs.values) >= FEWEST_RUNS for runs in loose)
    rng = np.random.default_rng([seed, 1])
    value, draws = 0.0, np.zeros(first.draws.shape[1])
    over_runs, both, drawn_over_runs = 0.0, 0.0, np.zeros_like(draws)
    moved = np.zeros(first.influence.shape[1])
    for runs, sign in sides:
        value += sign * float(runs.values.mean())
        moved += sign * runs.influence.mean(axis=0)
        count = len(runs.values)
        if runs.fixed or not drawn:
            draws += sign * runs.draws.mean(axis=0)
            continue
        shares = rng.multinomial(count, np.full(count, 1 / count), size=len(draws)).T / count
        means = (shares * runs.draws).sum(axis=0)
        draws += sign * means
        drawn_over_runs += (shares * (runs.draws - means) ** 2).sum(axis=0) / (count - 1)
        over_runs += float(runs.values.var(ddof=1)) / count
        apart = runs.influence - runs.influence.mean(axis=0)
        both += float((apart**2 @ runs.inflation).sum()) / (count * (count - 1))
    covers = "seeds and samples" if drawn else "samples"
    if not np.isfinite(first.inflation).all():
        return Estimate(value, None, None, covers)
    over_groups = float(moved**2 @ first.inflation)
    error = np.sqrt(max(over_runs + over_groups - both, over_runs, over_groups))
    away = np.sort(_ratio(np.abs(draws - value), np.sqrt(drawn_over_runs + over_groups)))
    place = int(np.ceil(LEVEL * (len(away) + 1))) - 1
    half = float(away[min(place, len(away) - 1)] * error) if error > 0 else 0.0
    reached = float(_ratio(np.array([abs(value)]), np.array([error]))[0])
    # Scores of 0 and 1 make ties; rounding must not break them.
    p_value = (1 + len(away) - int(np.searchsorted(away, reached * (1 - 1e-9)))) / (len(away) + 1)
    interval = (value - half, value + half) if np.isfinite(half) else None
    return Estimate(value, interval, p_value, covers)


def _ratio(distance: Floats, error: Floats) -> Floats:
    """distance / error; 0 where there is no distance, infinite where there is no error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance <= 1e-12, 0.0, distance / error)
