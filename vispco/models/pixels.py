"""How well a cell of a picture is predicted by its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor


def prediction_errors(cells: Tensor) -> Tensor:
    """float32 [rows, columns]: how far ``cells`` [rows, columns, K] are from their prediction; inf at the corner."""
    left, above, corner = (torch.full_like(cells, torch.nan) for _ in range(3))
    left[:, 1:], above[1:], corner[1:, 1:] = cells[:, :-1], cells[:-1], cells[:-1, :-1]
    up = (corner == left).all(dim=-1) & ~(corner == above).all(dim=-1)
    up[:, 0] = True
    predicted = torch.where(up[..., None], above, left)
    return (cells - predicted).abs().amax(dim=-1).float().nan_to_num(nan=torch.inf, posinf=torch.inf)
