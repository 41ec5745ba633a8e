"""Losses that make a new model do what the finished LLaVA demo does, token by token and layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.train.demo.build import vocabulary
from benchmarks.train.demo.data import pixel_values
from benchmarks.train.demo.packing import VISUAL_TOKENS, Packed, Prefix, llava_prefix
from vispco.pruning.forward.masks import as_backend_mask
from vispco.tasks.mosaic import Scene


def unlike(found: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance over the variance of ``target``: 0 if equal, 1 for its mean."""
    return (found - target).square().mean() / target.var()


def unlike_evenly(found: Tensor, target: Tensor, floor: float = 0.02) -> Tensor:
    """:func:`unlike` with an equal say for every principal component of ``target`` [..., H] that is not noise.

    Place and ground make up most of the variance; what tells shapes apart lies in components ten times smaller.

    Args:
        floor: added to each component's variance, as a share of the mean over components.
    """
    with torch.no_grad():
        variances, axes = torch.linalg.eigh(torch.cov(target.flatten(0, -2).T))
        scale = (variances + floor * variances.mean()).rsqrt()
    parts = ((found - target) @ axes * scale).square()
    return parts.sum(-1).mean() / (variances * scale.square()).sum()  # type: ignore[no-any-return]


@torch.no_grad()
def teacher_features(teacher: Any, scenes: list[Scene], device: str) -> Tensor:
    """[B, 64, H]: the ``teacher``'s visual tokens as its decoder receives them."""
    projected = teacher.get_image_features(pixel_values=pixel_values(scenes).to(device)).pooler_output
    return torch.stack(list(projected)).view(len(scenes), VISUAL_TOKENS, -1)


def with_prefix(packed: Packed, old: Prefix, new: Prefix) -> Packed:
    """The same packed questions behind another model's prefix of one axis; word ids are shared."""
    start, length = len(old.ids), len(new.ids)
    text = packed.position_ids[..., start:]
    positions = (text[0] if text.ndim == 3 else text) - old.after + new.after
    batch, asked = positions.shape
    allowed = torch.ones(batch, 1, length + asked, length + asked, dtype=torch.bool).tril()
    allowed[:, :, length:, length:] = packed.mask[:, :, start:, start:]

    def joined(prefix: Any, rest: Tensor) -> Tensor:
        return torch.cat([torch.as_tensor(prefix).expand(batch, -1), rest], dim=1)

    return Packed(
        joined(new.ids, packed.input_ids[:, start:]),
        joined(new.positions[0], positions),
        joined([-100] * length, packed.labels[:, start:]),
        allowed,
    )


def imitation_loss(
    teacher: Any, hidden: tuple[Tensor, ...], scenes: list[Scene], packed: Packed, prefix: Prefix
) -> Tensor:
    """How unlike the ``teacher``'s a model's hidden states are, mean over what leaves each decoder layer.

    Args:
        hidden: the model's hidden states, [B, T, H] each, embeddings first; as many layers as the teacher's.
        packed: what the model read, on the CPU.
        prefix: the model's own.
    """
    device = hidden[0].device
    its = llava_prefix(vocabulary())
    given = with_prefix(packed, prefix, its).to(str(device))
    with torch.no_grad():
        targets = teacher.model(
            input_ids=given.input_ids,
            pixel_values=pixel_values(scenes).to(device),
            attention_mask=as_backend_mask(given.mask, teacher.config._attn_implementation, torch.float32),
            position_ids=given.position_ids,
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
    words = given.input_ids[:, len(its.ids) :] != its.pad
    losses = []
    for found, target in zip(hidden[1:], targets[1:], strict=True):
        seen = [state[:, of.picture : of.picture + VISUAL_TOKENS] for state, of in ((found, prefix), (target, its))]
        said = [state[:, len(of.ids) :][words] for state, of in ((found, prefix), (target, its))]
        losses.append(unlike(*seen) + unlike(*said))
    return torch.stack(losses).mean()
