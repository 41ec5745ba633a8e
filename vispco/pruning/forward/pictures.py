"""Pruning one picture outside of a decoder, for servers that run it elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from vispco.models.grids import Grid
from vispco.models.shapes import ModelShape
from vispco.models.vision import VisionExtras
from vispco.pruning.forward.attention import LayerAttention
from vispco.pruning.forward.tokens import Prompt, Tokens
from vispco.pruning.methods.base import Method, ScoreContext


def prune_picture(
    method: Method,
    features: Tensor,
    grid: Grid,
    count: int,
    *,
    shape: ModelShape | None = None,
    extras: VisionExtras | None = None,
    key: int = 0,
) -> tuple[Tensor, Tensor]:
    """Drop all but ``count`` visual tokens of a picture before layer 0.

    The same tokens and states as inside :func:`vispco.prune` with a prompt of this one picture. A prompt of several
    pictures is another thing: there they are ranked together, here each by itself.

    Args:
        features: [N, H], as they would enter the decoder.
        grid: cells of the picture, N tokens.
        shape: sizes of the decoder, for methods that ask.
        extras: of its N tokens, for methods that read the vision tower.
        key: seed of methods that draw tokens.

    Returns:
        States [count, H] of the tokens that stay, and their numbers int [count], ascending.
    """
    device, length = features.device, len(features)
    visual = torch.ones(1, length, dtype=torch.bool, device=device)
    coordinates = torch.zeros(1, length, 4, dtype=torch.long, device=device)
    coordinates[0, :, 1:] = grid.places()[:length].to(device)
    prompt = Prompt(
        embeddings=features[None],
        visual=visual,
        valid=visual,
        read_coordinates=lambda: coordinates,
        read_keys=lambda: [key],
        read_vision=None if extras is None else lambda: [extras],
        most=count,
    )
    tokens = Tokens.of(visual, visual)
    context = ScoreContext(
        boundary=0,
        visual=visual,
        valid=visual,
        last=tokens.last(),
        index=tokens.index,
        rank=tokens.rank,
        prompt=prompt,
        shape=shape or ModelShape(1, features.shape[1], 1, 1, features.shape[1], 1),
        attention=_no_decoder,
        begun=method.begin(prompt),
    )
    keep = torch.tensor([count], device=device)
    chosen, states = method.reduce(context, method.score(context), keep, features[None])
    kept = chosen[0].nonzero()[:, 0]
    return states[0, kept], kept


def _no_decoder() -> LayerAttention:
    raise ValueError("before the decoder there is no attention to read")
