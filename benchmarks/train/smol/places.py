"""Teach the projector to say where every patch lies, before the language model reads it.

The word targets are mostly about what is seen; a projector that learned them alone keeps nothing of where it is seen
(probe.py measures that), and questions about places, order and lists are then learned very late.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.train.smol.masters import Masters
from benchmarks.train.smol.tower import WordTargets
from vispco.models.smol.build import GRID
from vispco.tasks.scenes.vocabulary import PLACES

STEPS, RATE = 500, 1e-3
# Of the projected things' spread: the place's name, and how far down and right it lies within the picture.
NAME_SHARE, COORDINATE_SHARE = 0.25, 0.2


def place_offsets(words: WordTargets) -> tuple[Tensor, Tensor]:
    """Of each patch [196, H]: its place's name without what all names share; its row and column along a line each."""
    cells = 3
    index = torch.arange(GRID)
    cell = (index * cells) // GRID
    names = torch.stack([words.word(place) for place in PLACES])
    names = names - names.mean(0)
    named = names[(cell[:, None] * cells + cell[None]).flatten()]
    line = torch.linspace(-1, 1, GRID)
    down = nn.functional.normalize(words.word("bottom") - words.word("top"), dim=0)
    right = nn.functional.normalize(words.word("right") - words.word("left"), dim=0)
    rows = line[:, None, None] * down + line[None, :, None] * right
    return named / named.norm(dim=-1).mean(), rows.flatten(0, 1)


def teach_places(
    projector: nn.Module, words: WordTargets, features_of: Callable[[int], Tensor], steps: int = STEPS
) -> list[float]:
    """Train ``projector`` in place to add the patches' places to what it says already.

    Args:
        features_of: step -> the tower's features of some pictures, [B, 196, H].

    Returns:
        Of every step, the squared error as a share of what is to be added.
    """
    before = copy.deepcopy(projector).requires_grad_(False)
    projector.requires_grad_(True)
    masters = Masters({"projector": (dict(projector.named_parameters()), RATE, "adamw")})
    names, coordinates = place_offsets(words)
    errors = []
    offset = None
    for step in range(steps):
        with torch.no_grad():
            features = features_of(step)
            said = before(features).float()
            if offset is None:
                spread = said.flatten(0, 1).var(0).sum().sqrt()
                offset = (spread * (NAME_SHARE * names + COORDINATE_SHARE * coordinates)).to(said.device)
        error = (projector(features).float() - said - offset).square().mean() / offset.var(0).mean()
        error.backward()  # type: ignore[no-untyped-call]
        masters.step(min(1.0, (step + 1) / 20) * max(0.02, 1 - step / steps))
        errors.append(float(error.detach()))
    return errors
