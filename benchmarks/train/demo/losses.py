"""Losses of the demo VLMs' training, and their accuracy per question kind."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.train.demo.imitation import imitation_loss, teacher_features, unlike, unlike_evenly
from benchmarks.train.demo.packing import VISUAL_TOKENS, Packed
from vispco.pruning.forward.masks import as_backend_mask
from vispco.tasks.mosaic import CELLS, COLORS, SHAPES, Scene

if TYPE_CHECKING:
    from benchmarks.train.demo.families import TrainedFamily


class CellHeads(nn.Module):
    """Linear readers, only for training: colour and shape of a cell from its mean visual token, cell from a token."""

    def __init__(self, width: int, projected: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.color = nn.Linear(width, len(COLORS))
        self.shape = nn.Linear(width, len(SHAPES))
        self.place = nn.Linear(projected, len(CELLS))

    def place_loss(self, projected: Tensor) -> Tensor:
        """``projected`` [B, 64, H], visual tokens as the decoder has them."""
        at = torch.arange(VISUAL_TOKENS, device=projected.device)
        cell = 2 * (at // 32) + (at % 8) // 4
        logits = self.place(projected.float())
        return nn.functional.cross_entropy(logits.flatten(0, 1), cell.repeat(len(projected)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``features`` [B, 64, H] -> logits [B, 4, colours], [B, 4, shapes]."""
        batch, _, width = features.shape
        cells = features.view(batch, 2, 4, 2, 4, width).mean(dim=(2, 4)).view(batch, 4, width)
        cells = self.norm(cells)
        return self.color(cells), self.shape(cells)


def see_loss(
    family: TrainedFamily,
    heads: CellHeads,
    scenes: list[Scene],
    device: str,
    teacher: Any = None,
    teacher_weight: float = 0.0,
    place_weight: float = 0.0,
    evenly: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and accuracy of the readers.

    Args:
        teacher: a model whose visual features are imitated, token by token; ``evenly``: in all directions.
    """
    features = family.seen(scenes, device)
    colors, shapes = heads(features)
    color = torch.tensor([[COLORS.index(c) for c in scene.colors] for scene in scenes], device=device)
    shape = torch.tensor([[SHAPES.index(s) for s in scene.shapes] for scene in scenes], device=device)
    loss = nn.functional.cross_entropy(colors.flatten(0, 1), color.flatten())
    loss = loss + nn.functional.cross_entropy(shapes.flatten(0, 1), shape.flatten())
    accuracy = {
        "color": (colors.argmax(-1) == color).float().mean().item(),
        "shape": (shapes.argmax(-1) == shape).float().mean().item(),
    }
    if teacher is not None:
        target = teacher_features(teacher, scenes, device)
        accuracy["like_teacher"] = 1.0 - unlike(features, target).item()
        loss = loss + teacher_weight * (unlike_evenly if evenly else unlike)(features, target)
    if place_weight:
        loss = loss + place_weight * heads.place_loss(features)
    return loss, accuracy


def answer_loss(
    family: TrainedFamily,
    heads: CellHeads | None,
    scenes: list[Scene],
    packed: Packed,
    kinds: list[list[str]],
    device: str,
    place_weight: float = 0.0,
    teacher: Any = None,
    teacher_weight: float = 0.0,
) -> tuple[Tensor, dict[str, list[float]]]:
    """``teacher``: a model whose hidden states are imitated, layer by layer."""
    model = family.model
    given = packed.to(device)
    outputs = model.model(
        input_ids=given.input_ids,
        attention_mask=as_backend_mask(given.mask, model.config._attn_implementation, torch.float32),
        position_ids=given.position_ids,
        use_cache=False,
        output_hidden_states=teacher is not None,
        **family.pictures(scenes, device),
    )
    hidden = outputs.last_hidden_state
    where = given.labels != -100
    logits, labels = model.lm_head(hidden[where]).float(), given.labels[where]
    loss = nn.functional.cross_entropy(logits, labels)
    if heads is not None and place_weight:
        projected = outputs.image_hidden_states.view(len(scenes), VISUAL_TOKENS, -1)
        loss = loss + place_weight * heads.place_loss(projected)
    if teacher is not None:
        loss = loss + teacher_weight * imitation_loss(teacher, outputs.hidden_states, scenes, packed, family.prefix)
    answers = labels != family.prefix.end
    right = (logits.argmax(-1) == labels)[answers].float().tolist()
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kind, value in zip((k for row in kinds for k in row), right, strict=True):
        by_kind[kind].append(value)
    return loss, by_kind


def summarise(by_kind: dict[str, list[float]]) -> dict[str, float]:
    return {kind: round(sum(v) / len(v), 4) for kind, v in sorted(by_kind.items())}
