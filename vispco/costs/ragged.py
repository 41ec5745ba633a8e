"""Prompts of unequal length in one batch: what it runs, as one prompt that stands for each of its rows.

Rows are filled up to the longest, before the first layer and again after each drop. A batch therefore takes the time of
as many rows of its longest, which may be another row at another layer.
"""

from __future__ import annotations

import numpy as np

from vispco.pruning.schedules import Counts

Prompt = tuple[Counts, Counts, Counts]  # counts [1, L], visual [1], text [1], as :meth:`CostModel.of` takes them


def padded(counts: Counts, visual: Counts, text: Counts) -> Prompt:
    """The prompt whose tokens at each layer are those of the longest row there.

    A time of it, at this batch, is that of the batch; its FLOPs and bytes are those of one row, filler included. The
    tower's time is right where rows have equally many visual tokens.

    >>> counts, visual, text = padded(np.array([[64, 16], [64, 48]]), np.array([64, 64]), np.array([50, 10]))
    >>> counts.tolist(), visual.tolist(), text.tolist()
    ([[64, 16]], [64], [50])

    Args:
        counts: visual tokens entering each layer, [B, L].
        visual, text: visual and other tokens of each prompt, [B].
    """
    counts, visual, text = (np.asarray(value, dtype=np.int64) for value in (counts, visual, text))
    most = text.max(keepdims=True)
    return (counts + text[:, None]).max(axis=0, keepdims=True) - most, (visual + text).max(keepdims=True) - most, most
