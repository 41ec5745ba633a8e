"""What pruning with a method adds to a prefill, fitted to whole prefills."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispco.costs.profile import Curve, Scoring
from vispco.costs.prompter import Prompted
from vispco.pruning.forward.counts import first_kept
from vispco.pruning.schedules import Counts, Schedule, keep_all

POINTS = 9  # of the boundary's curve


@dataclass(frozen=True, eq=False)
class Draw:
    """A schedule, None for the plain model, on a prompt."""

    schedule: Schedule | None
    prompted: Prompted

    def counts(self, layers: int) -> Counts:
        """[1, L]."""
        return (self.schedule or keep_all()).counts(np.array([self.prompted.visual]), layers)


def explain(
    drawn: Sequence[Draw], added: NDArray[np.float64], wholes: NDArray[np.float64], layers: int, most: int
) -> Scoring:
    """Times of a method's parts from what its prefills took beyond the plain parts, ``added`` [D], by least squares of
    relative errors without negative times.

    Once per prefill: a constant, and a time for each token that the first choice keeps, alone and times the tokens it
    is chosen from (methods that pick one token after the other). Per choice: a constant, and times linear and square in
    the tokens of the layer before. ``wholes`` [D]: of the prefills. ``most``: tokens up to which the curve goes.
    """
    from scipy.optimize import nnls

    features = np.array([_features(draw, layers) for draw in drawn])
    scale = features.max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(features / scale / wholes[:, None], added / wholes)
    start, pick, pair, once, linear, square = (found / scale).tolist()
    tokens = sorted({1, *np.linspace(1, most, POINTS).astype(int).tolist()})
    ms = [once + linear * n + square * n * n for n in tokens]
    return Scoring(boundary=Curve(tokens=tokens, ms=ms), start=start, pick=pick, pair=pair)


def _features(draw: Draw, layers: int) -> list[float]:
    visual, text = draw.prompted.visual, draw.prompted.text
    path: list[int] = [visual, *draw.counts(layers)[0].tolist()]
    before = np.array([n + text for n, m in itertools.pairwise(path) if 0 < m < n], dtype=np.float64)
    picks: Any = first_kept(np.array([path[1:]]), np.array([visual]))[0]
    return [1.0, float(picks), float(picks * visual), len(before), float(before.sum()), float((before**2).sum())]
