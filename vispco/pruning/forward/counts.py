"""What a policy's counts must be, and what follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from vispco.errors import ScheduleError, shortened
from vispco.pruning.methods.base import Method
from vispco.pruning.needs import LAYER_BEFORE
from vispco.pruning.schedules import Counts


def checked_counts(counts: Counts, n_visual: Counts, layers: int, method: Method) -> Counts:
    """What a policy gave for samples with ``n_visual`` [B] tokens, int [B, L], at most those.

    Raises:
        ScheduleError: wrong shape, counts that rise or are negative, or a method that cannot cut before layer 0.
    """
    counts = _whole(counts)
    if counts.shape != (len(n_visual), layers) or (np.diff(counts, axis=1) > 0).any() or (counts < 0).any():
        raise ScheduleError(
            f"the policy gave counts of shape {counts.shape} for {len(n_visual)} samples and {layers} layers; "
            "it must give one count per sample and layer, never rising over layers and never negative"
        )
    counts = np.minimum(counts, n_visual[:, None])
    of_layer_before = sorted(method.needs & LAYER_BEFORE)
    if of_layer_before and (counts[:, 0] < n_visual).any() and counts[:, 0].any():
        raise ScheduleError(
            f"method {method.name!r} ranks tokens by the {' and '.join(of_layer_before)} of the layer before, and "
            "there is none before layer 0; let all visual tokens enter layer 0"
        )
    return counts


def _whole(given: Any) -> Counts:
    """What a policy gave, as int64: differences of unsigned numbers would wrap, and NaN compares as nothing.

    Raises:
        ScheduleError: it is no array of whole numbers.
    """
    try:
        counts = np.asarray(given)
        with np.errstate(invalid="ignore"):  # NaN becomes some number, which is not equal to it
            whole = counts.astype(np.int64)
        if counts.dtype.kind not in "iufb" or not np.array_equal(counts, whole):
            raise ValueError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ScheduleError(
            f"the policy gave {type(given).__name__} {shortened(given)}; counts of tokens are whole numbers"
        ) from None
    return whole


def most_kept(counts: Counts) -> int:
    """The most tokens that any sample keeps where it loses some; ``counts`` int [..., 1 + L], of the prompt first."""
    left = counts[..., 1:]
    return int(np.where((left < counts[..., :-1]) & (left > 0), left, 0).max(initial=0))


def first_kept(counts: Counts, visual: Counts) -> Counts:
    """Visual tokens [B] that the first choice among ``visual`` [B] leaves, of ``counts`` [B, L]; 0 where nothing is
    dropped."""
    left: Counts = np.where(counts < visual[:, None], counts, 0).max(axis=1, initial=0)
    return left
