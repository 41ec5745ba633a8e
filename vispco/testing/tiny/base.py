"""The contract of a small random model for the conformance suites, and how its batches are put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from vispco.models.families import adapter_for

LAYERS = 4
IMAGE, VIDEO = 4, 5
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class TinyFamily(ABC):
    """A small random model of one family and its inputs.

    ``picture_tokens``: visual tokens of one picture in :meth:`batch`; ``views``: grids of one picture;
    ``picture_inputs``: what :meth:`pictures` gives with a row for each of them.
    """

    name: ClassVar[str]
    picture_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    picture_tokens: ClassVar[int] = 16
    views: ClassVar[int] = 1

    @abstractmethod
    def build(self) -> Any:
        """A new random model in evaluation mode."""

    @abstractmethod
    def pictures(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Processor outputs for ``count`` pictures, at least one."""

    def picture(self) -> Tensor:
        """Token ids of one picture, with whatever text belongs to it."""
        return torch.full((self.picture_tokens,), IMAGE)

    def types(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Further inputs per token. Default: none."""
        return {}

    @cache  # noqa: B019  (a handful of instances for the life of a test run)
    def model(self) -> Any:
        """One model, shared by all who ask."""
        return self.build()

    def batch(self, rows: Sequence[tuple[int, int, int]], side: str = "left", seed: int = 0) -> dict[str, Tensor]:
        """Rows of (text tokens before, pictures, text tokens after), padded on ``side``.

        Pictures of one row have a text token between them.
        """
        generator = torch.Generator().manual_seed(seed)
        ids = []
        for before, images, after in rows:
            text = torch.randint(10, 60, (before + after + max(images - 1, 0),), generator=generator)
            parts = [text[:before]]
            for number in range(images):
                parts += [self.picture()]
                parts += [text[before + number : before + number + 1]] if number + 1 < images else []
            ids.append(torch.cat([*parts, text[len(text) - after :]]))
        count = sum(images for _, images, _ in rows)
        return {**self.pad(ids, side), **(self.pictures(count, generator) if count else {})}

    def pad(self, ids: Sequence[Tensor], side: str) -> dict[str, Tensor]:
        length = max(len(row) for row in ids)
        input_ids = torch.zeros(len(ids), length, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for number, row in enumerate(ids):
            span = slice(length - len(row), None) if side == "left" else slice(0, len(row))
            input_ids[number, span], mask[number, span] = row, 1
        return {"input_ids": input_ids, "attention_mask": mask, **self.types(input_ids)}

    def extend(self, batch: dict[str, Tensor], new: Tensor) -> dict[str, Tensor]:
        """``batch`` with text tokens ``new`` [B, s] after it."""
        return adapter_for(self.model()).with_text(batch, new)

    def row(self, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """One row of ``batch`` alone, without its padding."""
        where = batch["attention_mask"][number].bool()
        alone = self.pad([batch["input_ids"][number, where]], "left")
        counts = (batch["input_ids"] == IMAGE).sum(dim=1) // self.picture_tokens
        start, count = int(counts[:number].sum()), int(counts[number])
        return {**alone, **(self.take_pictures(batch, start, count) if count else {})}

    def take_pictures(self, batch: dict[str, Tensor], start: int, count: int) -> dict[str, Tensor]:
        return {key: batch[key][start : start + count] for key in self.picture_inputs}
