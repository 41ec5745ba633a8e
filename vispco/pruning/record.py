"""What a prune block has seen, and answers: the last prompt of each thread, and counts over all threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vispco.errors import ModelError
from vispco.models.vision import VisionExtras
from vispco.pruning.cache import Kept
from vispco.pruning.forward.prefill import Prefill
from vispco.pruning.forward.tokens import Tokens


class _Thread(threading.local):
    """What one thread gave the session, the call it is in, and its last prefill."""

    def __init__(self) -> None:
        self.sample_keys: Sequence[int] | None = None
        self.vision: VisionExtras | None = None
        self.reads_end = False  # whether the call asks for the last tokens' logits only, as generate does
        self.labels: Tensor | None = None
        self.inputs: dict[str, Any] | None = None
        self.noted: dict[str, Any] = {}  # of the last pictures that were encoded
        self.prefill: Prefill | None = None
        self.cache: Any = None  # that the prefill fills
        self.tail: Tensor | None = None
        self.kept: dict[int, tuple[Tokens, Kept]] = {}
        self.masks: dict[Any, Tensor | None] = {}
        self.began = 0.0
        self.counts: Tensor | None = None
        self.layers: list[Tokens] = []


class Record:
    """What the last prefill of the asking thread did, and what all prefills came to.

    ``counts`` int [B, L]: visual tokens that entered each layer; None: this thread has made no prefill.
    ``kept(layer)`` gives the prompt positions. ``prefills``, ``visual_tokens``, ``dropped_tokens`` (of them, by the
    last layer) and ``milliseconds`` (of prefills in the decoder, as the host sees it) count over all threads.

    A caller may give ``sample_keys`` [B], which tell samples apart for seeded methods (default: the prompt's tokens, so
    that one question about two pictures is one sample), and ``vision``, of the batch's visual tokens, for methods that
    read the vision tower where the model is given features in place of pixels. Both hold for the calls of the thread
    that set them. Beams of a sample share its key.
    """

    def __init__(self) -> None:
        self._thread = _Thread()
        self._counting = threading.Lock()
        self.prefills = self.visual_tokens = self.dropped_tokens = 0
        self.milliseconds = 0.0

    @property
    def counts(self) -> Tensor | None:
        return self._thread.counts

    @property
    def sample_keys(self) -> Sequence[int] | None:
        return self._thread.sample_keys

    @sample_keys.setter
    def sample_keys(self, keys: Sequence[int] | None) -> None:
        self._thread.sample_keys = keys

    @property
    def vision(self) -> VisionExtras | None:
        return self._thread.vision

    @vision.setter
    def vision(self, extras: VisionExtras | None) -> None:
        self._thread.vision = extras

    def kept(self, layer: int) -> list[list[int]]:
        """Prompt positions of the visual tokens that entered ``layer`` in the last prefill, per sample."""
        tokens = self._last_layers()[layer]
        return [index[visual].tolist() for index, visual in zip(tokens.index, tokens.visual, strict=True)]

    def tokens_entering(self, layer: int) -> list[int]:
        """Tokens of every kind that entered ``layer`` in the last prefill, per sample."""
        return [int(n) for n in self._last_layers()[layer].valid.sum(dim=1)]

    def _last_layers(self) -> list[Tokens]:
        if not self._thread.layers:
            raise ModelError("no prompt was prefilled in this thread; ask in the thread that called the model")
        return self._thread.layers

    def _count(self, prefills: int = 0, visual: int = 0, dropped: int = 0, milliseconds: float = 0.0) -> None:
        with self._counting:
            self.prefills += prefills
            self.visual_tokens += visual
            self.dropped_tokens += dropped
            self.milliseconds += milliseconds
