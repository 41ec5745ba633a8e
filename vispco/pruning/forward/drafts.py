"""Where the prompt ends in the first call of assisted decoding, which holds draft tokens after it.

Nothing in the call itself says so. ``generate`` asks the model's ``_get_candidate_generator`` for drafts before, with
the prompt and the cache that the call will fill; inside a prune block that method is watched.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

METHOD = "_get_candidate_generator"


class DraftWatch:
    """By cache, how long the prompt is that it will hold."""

    def __init__(self, model: Any) -> None:
        self._model, self._lengths = model, weakref.WeakKeyDictionary[Any, int]()

    def install(self) -> None:
        if hasattr(type(self._model), METHOD) and METHOD not in vars(self._model):
            setattr(self._model, METHOD, _Watched(self._model, self._lengths))

    def remove(self) -> None:
        if isinstance(vars(self._model).get(METHOD), _Watched):
            delattr(self._model, METHOD)

    def prompt_length(self, cache: Any, tokens: int) -> int:
        """How many of the first ``tokens`` that go into ``cache`` are the prompt; known for one call only."""
        known = self._lengths.pop(cache, 0) if cache is not None else 0
        return known if 0 < known < tokens else tokens


class _Watched:
    """The model's method; in a copy of the model it is that and nothing more."""

    def __init__(self, model: Any, lengths: weakref.WeakKeyDictionary[Any, int]) -> None:
        self._model, self._lengths = model, lengths

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[1]
        cache = (kwargs.get("model_kwargs") or {}).get("past_key_values")
        if cache is not None:
            self._lengths[cache] = ids.shape[1]
        return getattr(type(self._model), METHOD)(self._model, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._model, METHOD)
