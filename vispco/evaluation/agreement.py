"""How far a pruned model still says what the plain one says: scores that need no right answer.

``agreement``: the share of the plain model's answer, token by token, before the first one that differs. After that
token two answers cannot be compared, so later ones do not count. ``likelihood``: the geometric mean of the
probabilities that the pruned model gives to the tokens of the plain model's answer, each after those before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def lengths(answers: Tensor, stop: Sequence[int]) -> Tensor:
    """Tokens of each of ``answers`` [B, m], the one that ends it included: int [B]."""
    ends = torch.isin(answers, torch.tensor(list(stop), device=answers.device, dtype=answers.dtype))
    first = ends.int().argmax(dim=1) + 1
    return torch.where(ends.any(dim=1), first, torch.full_like(first, answers.shape[1]))


def agreed(answers: Tensor, plain: Tensor, stop: Sequence[int]) -> NDArray[np.float32]:
    """``agreement`` of ``answers`` [B, k] with ``plain`` [B, m], float32 [B]."""
    count = lengths(plain, stop)
    same = torch.zeros_like(plain, dtype=torch.bool)
    width = min(answers.shape[1], plain.shape[1])
    same[:, :width] = answers[:, :width] == plain[:, :width]
    together = same.int().cumprod(dim=1).sum(dim=1).minimum(count)
    found: NDArray[np.float32] = (together / count).float().cpu().numpy()
    return found


def likelihood(logits: Tensor, plain: Tensor, stop: Sequence[int]) -> NDArray[np.float32]:
    """``likelihood`` of ``plain`` [B, m], float32 [B]; ``logits`` [B, m, V] are those that predict each token."""
    count = lengths(plain, stop)
    logs = logits.float().log_softmax(dim=-1).gather(2, plain[..., None])[..., 0]
    inside = torch.arange(plain.shape[1], device=plain.device) < count[:, None]
    found: NDArray[np.float32] = ((logs * inside).sum(dim=1) / count).exp().cpu().numpy()
    return found
