"""What measuring a policy can end in: a full record, a part of one, or a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluation:
    """One measured (method, policy) on one split.

    ``id`` is the hash of the whole context and of the realised counts, so equal ids mean equal results.
    ``keep_ratio`` [L] is what was realised, mean over samples with a picture. ``flops`` is the sum over
    samples of their pruned prefills: what this evaluation costs when nothing is cached. ``scores`` holds the
    per-sample scores of each task, in the order of the split. ``spent_flops`` is what it did cost, after cache and
    sharing: layers that several policies share are paid by the first of them; ``seconds`` is its share of the
    time. Both are 0 if it came from a cache.
    """

    id: str
    split: str
    method: str
    schedule: str
    keep_ratio: tuple[float, ...]
    accuracy: float
    flops_ratio: float
    flops: int
    spent_flops: int
    kv_bytes: float
    tasks: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, NDArray[np.float64]]
    seconds: float = 0.0


@dataclass(frozen=True)
class Stopped:
    """A policy that a race stopped after ``samples`` samples; never a front point.

    ``accuracy``, ``flops`` and ``spent_flops`` are those of the samples seen; ``flops_ratio`` and ``keep_ratio`` are
    exact, since they follow from lengths.
    """

    id: str
    split: str
    method: str
    schedule: str
    keep_ratio: tuple[float, ...]
    accuracy: float
    flops_ratio: float
    flops: int
    spent_flops: int
    samples: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Failed:
    """A policy that could not be measured; ``error`` says why in one line."""

    id: str
    split: str
    method: str
    schedule: str
    error: str


Outcome = Evaluation | Stopped | Failed
