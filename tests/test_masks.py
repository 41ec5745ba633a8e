from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vispco.pruning.forward.masks import gather_mask

BATCH, LENGTH, KEPT = 3, 9, 5
LOWEST = torch.finfo(torch.float32).min


def one_by_one(mask: Tensor, rows: Tensor, columns: Tensor, filler: Tensor, square: bool) -> Tensor:
    """Entry by entry, as the docstring says it."""
    blocked, open_ = (False, True) if mask.dtype == torch.bool else (LOWEST, 0.0)
    cut = torch.empty(BATCH, mask.shape[1], rows.shape[1], columns.shape[1], dtype=mask.dtype)
    for b in range(BATCH):
        for q in range(rows.shape[1]):
            for k in range(columns.shape[1]):
                value = mask[b if len(mask) > 1 else 0, :, rows[b, q], columns[b, k]]
                if filler[b, k]:
                    value = torch.full_like(value, open_ if square and q == k else blocked)
                cut[b, :, q, k] = value
    return cut


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("queries", [KEPT, 2, None])
@pytest.mark.parametrize("fillers", [False, True])
def test_gather_mask(heads: int, shared: bool, additive: bool, queries: int | None, fillers: bool) -> None:
    make = torch.Generator().manual_seed(0)
    mask = torch.rand(1 if shared else BATCH, heads, LENGTH, LENGTH, generator=make) < 0.5
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, LOWEST)
    columns = torch.stack([torch.randperm(LENGTH, generator=make)[:KEPT].sort().values for _ in range(BATCH)])
    filler = torch.zeros(BATCH, KEPT, dtype=torch.bool)
    if fillers:
        filler[1, :2] = filler[2, :4] = True
    given, before = None if queries is None else columns[:, :queries], mask.clone()
    rows = torch.arange(LENGTH).expand(BATCH, -1) if given is None else given
    found = gather_mask(mask, given, columns, filler)
    assert torch.equal(found, one_by_one(mask, rows, columns, filler, square=queries == KEPT))
    assert torch.equal(mask, before)  # the full mask serves other paths too
