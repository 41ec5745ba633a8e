"""What measuring a policy can end in: a full record, a part of one, or a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluation:
    """One measured (method, policy) on one split.

    Attributes:
        id: hash of the whole context and of the realised counts; equal ids mean equal results.
        keep_ratio: [L], as realised, mean over samples with a picture.
        flops: sum over samples of their pruned prefills: what this evaluation costs when nothing is cached.
        spent_flops: what it did cost, after cache and sharing: layers that several policies share are paid by the
            first of them; 0 if it came from a cache.
        kv_bytes: of the cache after the prefill, mean over tasks of means over samples.
        tasks: accuracy and flops_ratio of each task.
        scores: of each task's samples, in the order of the split.
        seconds: its share of the time; 0 if it came from a cache.
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
    """A policy that a race stopped; never a front point.

    Attributes:
        samples: how many it saw; ``accuracy``, ``flops`` and ``spent_flops`` are of these.
        keep_ratio, flops_ratio: of all samples, exact, since they follow from lengths.
        full_flops: what all samples would have cost.
    """

    id: str
    split: str
    method: str
    schedule: str
    keep_ratio: tuple[float, ...]
    accuracy: float
    flops_ratio: float
    flops: int
    full_flops: int
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
