"""The vision tower's own lessons: what lies under each patch, and the words for it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vispco.models.smol.build import GRID, PATCH_PIXELS
from vispco.tasks.scenes.drawing import draw
from vispco.tasks.scenes.layout import Scene, sample_crowd
from vispco.tasks.scenes.vocabulary import COLORS, NUMBERS, PLACES, SHAPES, WORDS

KINDS = ("nothing", "shape", "number", "word", "label")
READERS = {
    "kind": len(KINDS),
    "color": len(COLORS),
    "shape": len(SHAPES),
    "number": len(NUMBERS),
    "word": len(WORDS),
    "under": len(WORDS) + 1,
    "over": len(SHAPES),
    "place": len(PLACES),
}
INK = 8
SHOWN, HINT = 0.05, 0.01  # share of a patch that must be ink to have a label, or to be nothing


def pixel_values(scenes: list[Scene], side: int = GRID) -> Tensor:
    """float32 [B, 3, P, P] with P of ``side`` patches, as the processor gives them."""
    drawn = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2).float()
    if side != GRID:
        size = (side * PATCH_PIXELS,) * 2
        drawn = nn.functional.interpolate(drawn, size, mode="bicubic", antialias=True).clamp(0, 255).round()
    return drawn / 127.5 - 1.0


def ink_of(scene: Scene) -> Iterator[tuple[Any, str, NDArray[np.float32]]]:
    """Every thing and label with its ink on the picture, [side, side]."""
    side = scene.canvas.pixels
    for thing in scene.things:
        for part, sprite, top, left in scene.parts(thing):
            ink = np.zeros((side, side), dtype=np.float32)
            height, width = sprite.size
            up, before = max(0, -top), max(0, -left)
            down, after = min(height, side - top), min(width, side - left)
            ink[top + up : top + down, left + before : left + after] = sprite.ink[up:down, before:after]
            yield thing, part, ink


def patch_labels(scene: Scene) -> tuple[dict[str, NDArray[np.int64]], list[tuple[Any, str] | None]]:
    """Labels [196] for every reader, -1 where it has none, and what is seen in each patch.

    Every patch goes to the part with most ink in it; patches with a trace of ink are left out.
    """
    parts, coverage = [], []
    for thing, part, ink in ink_of(scene):
        coverage.append(ink.reshape(GRID, PATCH_PIXELS, GRID, PATCH_PIXELS).mean((1, 3)).reshape(-1))
        parts.append((thing, part))
    labels = {name: np.full(GRID * GRID, -1, dtype=np.int64) for name in READERS}
    seen: list[tuple[Any, str] | None] = [None] * (GRID * GRID)
    if not parts:
        labels["kind"][:] = 0
        return labels, seen
    shares = np.stack(coverage)
    most, share = shares.argmax(0), shares.max(0)
    labels["kind"][share < HINT] = 0
    for patch in np.flatnonzero(share >= SHOWN):
        thing, part = parts[most[patch]]
        seen[patch] = (thing, part)
        if part == "label":
            labels["kind"][patch] = KINDS.index("label")
            labels["word"][patch] = WORDS.index(thing.label)
            labels["over"][patch] = SHAPES.index(thing.name)
        else:
            labels["kind"][patch] = KINDS.index(thing.kind)
            names = {"shape": SHAPES, "number": NUMBERS, "word": WORDS}[thing.kind]
            labels[thing.kind][patch] = names.index(thing.name)
            if thing.kind == "shape":
                labels["under"][patch] = WORDS.index(thing.label) if thing.label else len(WORDS)
            labels["color"][patch] = list(COLORS).index(thing.color)
        labels["place"][patch] = thing.cell
    return labels, seen


class Readers(nn.Module):
    """A linear reader of every patch for each kind of label."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(READERS.values()))
        self.ink = nn.Linear(width, INK * INK)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        parts = self.linear(features).float().split(list(READERS.values()), dim=-1)
        return dict(zip(READERS, parts, strict=True))


def ink_loss(readers: Readers, features: Tensor, scenes: list[Scene]) -> Tensor:
    """Where in each patch there is ink, told after the first layer: mean binary cross-entropy of 8 x 8 parts.

    The layers above then have outlines to name, not colours on grounds.
    """
    cell, maps = PATCH_PIXELS // INK, []
    for scene in scenes:
        ink = sum(one for _, _, one in ink_of(scene))
        whole = ink if isinstance(ink, np.ndarray) else np.zeros((scene.canvas.pixels,) * 2, dtype=np.float32)
        parts = whole.reshape(GRID, INK, cell, GRID, INK, cell).mean((2, 5)).transpose(0, 2, 1, 3)
        maps.append(parts.reshape(GRID * GRID, INK * INK).clip(0, 1))
    target = torch.from_numpy(np.stack(maps)).to(features.device)
    return nn.functional.binary_cross_entropy_with_logits(readers.ink(features).float(), target)


def readers_loss(
    readers: Readers, features: Tensor, scenes: list[Scene], places: bool
) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """Summed cross-entropies of the readers on ``features`` [B, 196, H]; right answers and all, by reader."""
    labels = [patch_labels(scene)[0] for scene in scenes]
    loss, right = features.new_zeros((), dtype=torch.float32), {}
    for name, logits in readers(features).items():
        if name == "place" and not places:
            continue
        target = torch.from_numpy(np.stack([one[name] for one in labels])).to(features.device)
        if not (target >= 0).any():
            continue
        loss = loss + nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1)
        known = target >= 0
        right[name] = (int((logits.argmax(-1)[known] == target[known]).sum()), int(known.sum()))
    return loss, right


def whitened_patches(filters: int, pictures: int = 160, floor: float = 0.02) -> Tensor:
    """[filters, 3, 16, 16]: principal components of patches that show things, scaled to about unit variance.

    Random filters see little but the ground's brightness, and shapes are then learned many times more slowly.
    """
    rng = random.Random("patches")
    scenes = [sample_crowd("train", rng, 14) for _ in range(pictures)]
    pixels = pixel_values(scenes).unfold(2, PATCH_PIXELS, PATCH_PIXELS).unfold(3, PATCH_PIXELS, PATCH_PIXELS)
    patches = pixels.permute(0, 2, 3, 1, 4, 5).reshape(len(scenes) * GRID * GRID, -1)
    kinds = torch.from_numpy(np.concatenate([patch_labels(scene)[0]["kind"] for scene in scenes]))
    variances, axes = torch.linalg.eigh(torch.cov(patches[kinds > 0].T))
    scale = (variances + floor * variances.mean()).rsqrt()
    return (axes * scale).T.flip(0)[:filters].reshape(filters, 3, PATCH_PIXELS, PATCH_PIXELS)


@torch.no_grad()
def begin_with_neighbours(tower: Any, layers: int = 2, strength: float = 2.0, pictures: int = 160) -> None:
    """Positions become sine / cosine pairs, and head ``h`` of the first layers looks at the ``h``-th neighbour."""
    embeddings = tower.embeddings
    config = tower.config
    head = config.hidden_size // config.num_attention_heads
    pairs = head // 4
    rates = torch.tensor([2 * math.pi / (2 * GRID) * (0.8 * GRID) ** (k / (pairs - 1)) for k in range(pairs)])
    index = torch.arange(GRID).float()

    def waves(places: Tensor) -> Tensor:
        angle = places[:, None] * rates
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)

    row, column = waves(index), waves(index)
    position = torch.zeros(GRID, GRID, config.hidden_size)
    position[..., : 2 * pairs] = row[:, None]
    position[..., 2 * pairs : 4 * pairs] = column[None]
    embeddings.position_embedding.weight.zero_()
    embeddings.position_embedding.weight[1:] = position.flatten(0, 1)
    filters = config.hidden_size - 4 * pairs
    embeddings.patch_embedding.weight.zero_()
    embeddings.patch_embedding.weight[4 * pairs :] = 0.4 * whitened_patches(filters, pictures)
    around = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    for layer in tower.encoder.layers[:layers]:
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        for number, (down, right) in enumerate(around):
            rows = slice(number * head, (number + 1) * head)
            key[rows] = 0
            query[rows] = 0
            key[rows, : 4 * pairs] = strength * torch.eye(head)
            blocks = []
            for step in (down, right):
                for rate in rates:
                    cos, sin = math.cos(step * rate), math.sin(step * rate)
                    blocks.append(torch.tensor([[cos, sin], [-sin, cos]]))
            query[rows, : 4 * pairs] = strength * torch.block_diag(*blocks)


class WordTargets:
    """What the projector learns to say of each patch: a sum of the language model's own input embeddings."""

    def __init__(self, tokenizer: Any, embeddings: Tensor) -> None:
        self.tokenizer, self.embeddings = tokenizer, embeddings.float()
        self.known: dict[str, Tensor] = {}

    def word(self, text: str) -> Tensor:
        if text not in self.known:
            ids = self.tokenizer(f" {text}", add_special_tokens=False).input_ids
            self.known[text] = self.embeddings[ids].sum(0)
        return self.known[text]

    def __call__(self, scenes: list[Scene]) -> Tensor:
        """[B, 196, H]"""
        targets = []
        for scene in scenes:
            said = {None: self.word("background")}
            rows = []
            for item in patch_labels(scene)[1]:
                if item not in said:
                    thing, part = item  # type: ignore[misc]
                    place = 0.5 * self.word(PLACES[thing.cell])
                    if part == "label":
                        said[item] = self.word(thing.label) + 0.7 * self.word(thing.name) + place
                    else:
                        mate = 0.7 * self.word(thing.label) if thing.label else 0.0
                        said[item] = self.word(thing.color) + self.word(thing.name) + place + mate
                rows.append(said[item])
            targets.append(torch.stack(rows))
        return torch.stack(targets)
