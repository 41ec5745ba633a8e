"""What the pruned models share: fewer placeholders, which tokens stay, and where they stood.

vLLM is told before the vision tower runs how many tokens a picture has, and where the text stands. Which of a
picture's tokens stay, and so their positions, is known only after the tower. A kept token's place within its picture
therefore travels with its state, as further columns through vLLM's cache of pictures, and is added to its position in
the forward pass. Columns hold digits to the base 256, which bfloat16 keeps exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vispco.integrations.vllm.settings import Settings
from vispco.models.grids import Grid
from vispco.models.vision import VisionExtras
from vispco.pruning.forward.pictures import prune_picture

AXES, BASE = 3, 256
COLUMNS = 2 * AXES


def with_places(states: Tensor, places: Tensor) -> Tensor:
    """``states`` [K, H] and ``places`` int [K, 3] side by side, [K, H + 6]."""
    digits = torch.cat([places // BASE, places % BASE], dim=1)
    return torch.cat([states, digits.to(states)], dim=1)


def split_places(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`with_places` joined."""
    digits = rows[:, -COLUMNS:].round().long()
    return rows[:, :-COLUMNS], digits[:, :AXES] * BASE + digits[:, AXES:]


def fewer(updates: Iterable[Any], settings: Settings) -> list[Any]:
    """A processor's prompt updates with as many placeholders for a picture as stay of it."""

    def shortened(replacement: Callable[[int], list[int]]) -> Callable[[int], list[int]]:
        def replace(item: int) -> list[int]:
            ids = replacement(item)
            return ids[: settings.count(len(ids))]

        return replace

    return [dataclasses.replace(update, replacement=shortened(update.replacement)) for update in updates]


class PrunedProcessor:
    """Mixed into a family's processor."""

    info: Any

    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> list[Any]:
        updates = super()._get_prompt_updates(*args, **kwargs)  # type: ignore[misc]
        pictures = [update for update in updates if update.modality == "image"]
        return fewer(pictures, Settings.of(self.info.get_hf_config()))

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Pictures that were pruned in another way are other pictures, also in a shared cache."""
        digest = Settings.of(self.info.get_hf_config()).digest
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {kind: [f"{one}-{digest}" for one in found] for kind, found in hashes.items()}


class PicturesOnly:
    """Mixed into a family's processing info: videos are not pruned, so none are taken."""

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        return {"image": None}


class PrunedModel:
    """Mixed into a family's model.

    ``_added`` int [3, tokens of a step]: what the forward pass adds to positions. A buffer of the model and not of a
    call: vLLM calls the two one after the other, and a captured graph reads one address.
    """

    def begin_pruning(self, vllm_config: Any) -> None:
        self.settings = Settings.of(vllm_config.model_config.hf_config)
        most = vllm_config.scheduler_config.max_num_batched_tokens
        device = vllm_config.device_config.device
        self._added = torch.zeros(AXES, most, dtype=torch.long, device=device)

    def pruned(self, pictures: Sequence[Tensor], grids: Sequence[Grid], extras: Sequence[VisionExtras | None]) -> Any:
        """States and places of each picture's tokens that stay."""
        return tuple(self._one(*one) for one in zip(pictures, grids, extras, strict=True))

    def _one(self, features: Tensor, grid: Grid, extras: VisionExtras | None) -> Tensor:
        count = self.settings.count(len(features))
        states, kept = prune_picture(self.settings.method, features, grid, count, extras=extras)
        return with_places(states, self.places(grid).to(kept.device)[kept])

    def places(self, grid: Grid) -> Tensor:
        """int [N, 3]: how far each token's position lies after that of its picture."""
        raise NotImplementedError

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        self._added[:, : len(input_ids)] = 0
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            assert is_multimodal is not None
            parts = [split_places(rows) for rows in multimodal_embeddings]
            multimodal_embeddings = [states for states, _ in parts]
            places = torch.cat([places for _, places in parts]).T.to(self._added)
            self._added[:, : len(input_ids)][:, is_multimodal.to(self._added.device)] = places
        embeds: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embeds

    def moved(self, positions: Tensor) -> Tensor:
        """Positions [3, n] of a step's tokens as they were in the whole prompt."""
        return positions + self._added[:, : positions.shape[-1]]
