"""What the vision tower said of a prompt's visual tokens, for methods that ask, inside a prune block."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vispco.errors import ModelError
from vispco.models.base import ModelAdapter
from vispco.models.hooks import Hooks
from vispco.models.vision import VisionExtras
from vispco.pruning.methods.base import Method

BEGIN = "_prepare_model_inputs"  # what ``generate`` calls before it encodes pictures


class TowerReader:
    """Watches the tower if ``method`` reads it; else does nothing."""

    def __init__(self, adapter: ModelAdapter, method: Method) -> None:
        self._adapter, self._method = adapter, method.name
        self._watch = adapter.watch_vision() if "vision" in method.needs else None
        if self._watch is not None:
            self._watch.middle = "middle" in method.needs

    def install(self, hooks: Hooks) -> None:
        if self._watch is not None:
            self._watch.install(hooks)
            if hasattr(self._adapter.model, BEGIN):
                hooks.method(self._adapter.model, BEGIN, self._on_generate)

    def clear(self) -> None:
        if self._watch is not None:
            self._watch.clear()

    def _on_generate(self, own: Any, output: Any, *args: Any, **kwargs: Any) -> None:
        """What the tower showed before, of pictures that no prefill took, is none of this prompt's."""
        given = kwargs.get("model_kwargs") or (args[2] if len(args) > 2 else {})
        self.on_entry(given)

    def on_entry(self, inputs: dict[str, Any]) -> None:
        """A forward begins. Where it brings pixels, the tower is still to run; ``generate`` runs it before."""
        if any(key.startswith("pixel_values") and value is not None for key, value in inputs.items()):
            self.clear()

    def rows(
        self, inputs: dict[str, Any], visual: Tensor, valid: Tensor, given: VisionExtras | None
    ) -> list[VisionExtras]:
        """Extras of each row's valid visual tokens.

        Args:
            inputs: what the entry module received.
            visual: bool [B, T], the tokens that the model was given features for.
            given: by the caller, in place of what the tower shows.

        Raises:
            ModelError: there are none, or not of these tokens.
        """
        counts, copies, extras = visual.sum(dim=1).tolist(), 1, given
        if extras is None and self._watch is not None and self._watch.read:
            # generate encodes each picture once; beams repeat rows side by side.
            copies = max(1, sum(counts) // self._watch.read)
            if calls := self._watch.take(sum(counts) // copies):
                once = {**inputs, "input_ids": inputs["input_ids"][::copies]} if copies > 1 else inputs
                extras = self._adapter.join_extras(once, calls)
        if extras is None or len(extras) * copies != sum(counts):
            raise ModelError(
                f"method {self._method!r} reads the vision tower, which showed nothing of these {sum(counts)} visual "
                "tokens; pass pixels, keep generate's cache (no use_cache=False), or set session.vision to what the "
                "adapter's encode_with_extras gives beside the features"
            )
        rows = [row for row in extras.split(counts[::copies]) for _ in range(copies)]
        return [
            row.take(keep[here].to(row.attention.device)) for row, keep, here in zip(rows, valid, visual, strict=True)
        ]
