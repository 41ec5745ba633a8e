"""Where the prompt ends in the first call of assisted decoding, which holds draft tokens after it.

Nothing in the call itself says so. ``generate`` asks the model's ``_get_candidate_generator`` for drafts before, with
the prompt and the cache that the call will fill; inside a prune block that method is watched.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from vispco.models.hooks import Hooks

METHOD = "_get_candidate_generator"


class DraftWatch:
    """By cache, how long the prompt is that it will hold."""

    def __init__(self) -> None:
        self._lengths = weakref.WeakKeyDictionary[Any, int]()

    def install(self, model: Any, hooks: Hooks) -> None:
        if hasattr(model, METHOD):
            hooks.method(model, METHOD, self._note)

    def prompt_length(self, cache: Any, tokens: int) -> int:
        """How many of the first ``tokens`` that go into ``cache`` are the prompt; known for one call only."""
        known = self._lengths.pop(cache, 0) if cache is not None else 0
        return known if 0 < known < tokens else tokens

    def _note(self, own: Any, output: Any, *args: Any, **kwargs: Any) -> None:
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[1]
        cache = (kwargs.get("model_kwargs") or {}).get("past_key_values")
        if cache is not None:
            self._lengths[cache] = ids.shape[1]
