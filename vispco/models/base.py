"""What the pruning runtime and the cost model need to know of a transformers model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.errors import ModelError
from vispco.models.decoder import DecoderAdapter
from vispco.models.grids import Grid, run_lengths
from vispco.models.hooks import Hooks
from vispco.models.shapes import ModelShape

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.vision import VisionExtras, VisionWatch


class ModelAdapter(DecoderAdapter, ABC):
    """Everything that differs between model families; methods and searches never look at the class.

    Subclasses set ``model_types`` (the values of ``config.model_type`` they serve) and ``examples`` (hub ids), and
    register with ``@ADAPTERS.register(name)``. Nothing here may leave an attribute or a hook on the model.
    """

    model_types: ClassVar[tuple[str, ...]]
    examples: ClassVar[tuple[str, ...]] = ()

    def shape(self) -> ModelShape:
        """Sizes of the decoder, and of the vision tower where methods can read it."""
        shape, watch = super().shape(), self.watch_vision()
        return replace(shape, vision_width=watch.width, vision_heads=watch.heads) if watch else shape

    def provides(self) -> frozenset[str]:
        """What methods may read of this model, names of ``vispco.pruning.needs.NEEDS``."""
        watch = self.watch_vision()
        tower = {"vision"} if watch else set()
        rows = {"attention", "keys", "look_ahead"} if self._readable else set()
        more = {"text_tower"} if watch and watch.text_tower else set()
        more |= {"middle"} if watch and watch.middle_layer is not None else set()
        return frozenset(rows | tower | more | ({"pixels"} if watch and watch.pixels else set()))

    # --- inputs ----------------------------------------------------------------------------------

    def with_text(self, inputs: dict[str, Any], ids: Tensor) -> dict[str, Any]:
        """``inputs`` with text tokens ``ids`` [B, n] after every (left-padded) prompt."""
        import torch

        longer = dict(inputs)
        new = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if inputs.get(key) is not None:
                more = new.get(key, torch.zeros_like(ids))
                longer[key] = torch.cat([inputs[key], more.to(inputs[key].dtype)], dim=1)
        return longer

    def note_pictures(self, noted: Callable[[], dict[str, Any]], hooks: Hooks) -> None:
        """Put hooks on the model that put into ``noted()`` what ``generate`` leaves out of the inputs and :meth:`grids`
        needs. Default: none."""
        return

    # --- pictures --------------------------------------------------------------------------------

    def visual_token_ids(self) -> tuple[int, ...]:
        """Token ids that stand for visual tokens in ``input_ids``."""
        return (self.model.config.image_token_id,)

    @abstractmethod
    def grids(self, inputs: dict[str, Any], runs: Sequence[int]) -> Sequence[Grid | tuple[int, int, int]]:
        """Grid of every picture in the batch, in reading order; plain (frames, rows, columns) will do.

        A picture that is encoded as several views (a thumbnail and tiles) has a grid for each.

        Args:
            inputs: what the entry module received.
            runs: lengths of the runs of visual tokens that belong together, in reading order.
        """

    @abstractmethod
    def encode_images(self, inputs: dict[str, Any]) -> Tensor:
        """Visual features of a batch, [total visual tokens, H], in the order of their places in ``input_ids``.

        A family with deepstack appends those features: [total visual tokens, H + layers * H].
        """

    def watch_vision(self) -> VisionWatch | None:
        """Reads attention and keys off the vision tower while it runs; None: this adapter does not tell how."""
        return None

    def join_extras(self, inputs: dict[str, Any], calls: Sequence[VisionExtras]) -> VisionExtras:
        """Extras of the calls of the tower that one batch made, in the order of :meth:`encode_images`."""
        from vispco.models.vision import VisionExtras

        return VisionExtras.join(calls)

    def encode_with_extras(self, inputs: dict[str, Any], middle: bool = False) -> tuple[Tensor, VisionExtras]:
        """:meth:`encode_images`, and what was read off the tower in the same pass; ``middle``: its middle layer too.

        Raises:
            ModelError: there is nothing to read.
        """
        watch = self.watch_vision()
        if watch is None:
            raise ModelError(
                f"the adapter of model family {self.model.config.model_type!r} does not watch its vision tower"
            )
        watch.middle = middle
        hooks = Hooks()
        watch.install(hooks)
        try:
            features = self.encode_images(inputs)
        finally:
            hooks.remove()
        calls = watch.take(len(features))
        if calls is None:
            raise ModelError(
                f"the vision tower of model family {self.model.config.model_type!r} showed other tokens than its "
                f"{len(features)} visual ones; its adapter's watch_vision must follow how features are put together"
            )
        return features, self.join_extras(inputs, calls)

    def with_features(self, inputs: dict[str, Any], features: Tensor) -> dict[str, Any]:
        """``inputs`` with pixels replaced by ``features`` from :meth:`encode_images`."""
        rest = {key: value for key, value in inputs.items() if key not in ("pixel_values", "pixel_attention_mask")}
        if len(features):
            rest["mm_encoder_outputs"] = {"image": self.encoder_output("image", features)}
        return rest

    def encoder_output(self, kind: str, features: Tensor) -> Any:
        """What the model takes in ``mm_encoder_outputs`` for features; ``kind``: ``image`` or ``video``."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=[features])

    def visual_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """bool [B, T], True where the position came from pixels."""
        return self.places_of(self.visual_token_ids(), input_ids, inputs_embeds)

    def places_of(self, tokens: Sequence[int], input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """bool [B, T], True where one of ``tokens`` stands."""
        import torch

        if input_ids is not None:
            return torch.isin(input_ids, torch.tensor(list(tokens), device=input_ids.device))
        assert inputs_embeds is not None
        table = self.model.get_input_embeddings()
        found = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        for token in tokens:
            embedded = table(torch.tensor(token, device=inputs_embeds.device))
            found |= (inputs_embeds == embedded).all(-1)
        return found

    def seen(self, inputs: dict[str, Any]) -> Tensor | None:
        """Normalised pixels [grids, 3, height, width] of what each grid covers; None: the whole original pictures."""
        pixels: Tensor = inputs["pixel_values"]
        return pixels if pixels.ndim == 4 else None

    def views(self, inputs: dict[str, Any], visual: Tensor) -> list[Grid]:
        """Grids of the pictures whose tokens are at ``visual`` [B, T], less those that have none."""
        grids = [Grid(*grid) for grid in self.grids(inputs, run_lengths(visual.cpu()))]
        return [grid for grid in grids if grid.tokens]

    def coordinates(self, inputs: dict[str, Any], visual: Tensor) -> Tensor:
        """int [B, T, 4]: (picture, frame, row, column) of visual tokens, 0 elsewhere; pictures count per sample.

        Every view of a picture counts as one; tokens that are no cell stand in the column after their row.
        """
        import torch

        found = torch.zeros(*visual.shape, 4, dtype=torch.long)
        places = visual.cpu()
        grids = iter(self.views(inputs, visual))
        for row in range(len(places)):
            at, picture, start = places[row].nonzero()[:, 0], 0, 0
            while start < len(at):
                cells = next(grids).places()
                part = at[start : start + len(cells)]
                found[row, part, 0] = picture
                found[row, part, 1:] = cells[: len(part)]
                start, picture = start + len(cells), picture + 1
        return found.to(visual.device)
