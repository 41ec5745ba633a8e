"""Several questions about one picture in one sequence, each exactly as if it were asked alone.

Every question attends to the picture and to itself only, at the positions it would have if asked alone, so a packed
question is exactly the question that the task asks, at a fraction of the cost.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.mosaic import Scene, sample_questions

if TYPE_CHECKING:
    from torch import Tensor

VISUAL_TOKENS = 64


@dataclass(frozen=True)
class Prefix:
    """What every sequence of one model begins with: token ids [P] and positions [axes, P].

    ``picture``: index of the first visual token. ``after``: the position of the first token behind the prefix, on
    every axis. ``end``, ``pad``: token ids.
    """

    ids: list[int]
    positions: NDArray[np.int64]
    picture: int
    after: int
    end: int
    pad: int


def llava_prefix(vocab: dict[str, int]) -> Prefix:
    ids = [vocab["<s>"]] + [vocab["<image>"]] * VISUAL_TOKENS
    return Prefix(ids, np.arange(len(ids))[None], 1, len(ids), vocab["</s>"], vocab["<pad>"])


@dataclass
class Packed:
    """Packed sequences: ids, labels [B, T]; mask [B, 1, T, T], True where attention is allowed.

    ``position_ids``: [B, T], or [3, B, T] of a model with three axes.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    mask: Tensor

    def to(self, device: str) -> Packed:
        return Packed(*(getattr(self, f).to(device) for f in ("input_ids", "position_ids", "labels", "mask")))


def pack(questions: list[list[tuple[list[int], int]]], prefix: Prefix) -> Packed:
    """Pack (question ids, answer id) pairs behind one picture each."""
    import torch

    start, axes = len(prefix.ids), len(prefix.positions)
    length = start + max(sum(len(q) + 1 for q, _ in row) for row in questions)
    batch = len(questions)
    ids = np.full((batch, length), prefix.pad)
    positions = np.zeros((axes, batch, length), dtype=np.int64)
    labels = np.full((batch, length), -100)
    segment = np.full((batch, length), -1)
    ids[:, :start], positions[:, :, :start], segment[:, :start] = prefix.ids, prefix.positions[:, None], 0
    for row, pairs in enumerate(questions):
        at = start
        for number, (question, answer) in enumerate(pairs, start=1):
            end = at + len(question) + 1
            ids[row, at:end] = [*question, answer]
            positions[:, row, at:end] = np.arange(prefix.after, prefix.after + end - at)
            labels[row, end - 2], labels[row, end - 1] = answer, prefix.end
            segment[row, at:end] = number
            at = end
    same = segment[:, :, None] == segment[:, None, :]
    allowed = (same | (segment[:, None, :] == 0)) & np.tri(length, dtype=bool)
    placed = positions[0] if axes == 1 else positions
    return Packed(*(torch.from_numpy(a) for a in (ids, placed, labels, allowed[:, None])))


def draw_questions(
    scenes: list[Scene],
    mix: dict[str, float],
    count: int,
    rng: random.Random,
    vocab: dict[str, int],
    prefix: Prefix | None = None,
) -> tuple[Packed, list[list[str]]]:
    """Up to ``count`` questions about each scene, packed, and their kinds; by default for the LLaVA demo."""
    drawn = [sample_questions(scene, rng, mix, count) for scene in scenes]
    rows = [[([vocab[w] for w in q.text.split()], vocab[q.answer]) for q in qs] for qs in drawn]
    return pack(rows, prefix or llava_prefix(vocab)), [[q.kind for q in qs] for qs in drawn]
