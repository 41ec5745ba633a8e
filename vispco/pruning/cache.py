"""The cache of a pruned prompt: as long as the prompt, with the entries of the tokens that stayed.

The layers of the cache that a prefill fills are replaced by :class:`PrunedLayer`, so that what is known of the prompt
goes where the cache goes: into copies, crops, other orders of the rows. Lengths and mask sizes are those of the whole
prompt, which is what decoders and ``generate`` count positions by; :meth:`PrunedLayer.mask` cuts a mask of this size to
the entries that are there.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from vispco.errors import ModelError
from vispco.pruning.forward.masks import as_backend_mask, gather_mask


@dataclass(frozen=True, eq=False)
class Kept:
    """The part of a prompt of ``length`` tokens that a layer holds.

    ``index``: int [B, n], places in the prompt; ``real``: bool [B, n], False at filler; ``tail``: int [], how many
    of the last places are text in every row, so that no layer lost one of them.
    """

    index: Tensor
    real: Tensor
    length: int
    tail: Tensor

    @cached_property
    def all_real(self) -> bool:
        return bool(self.real.all())

    def rows(self, indices: Any) -> Kept:
        if isinstance(indices, Tensor):
            indices = indices.to(self.index.device)
        return replace(self, index=self.index[indices], real=self.real[indices])

    def without_last(self, places: int) -> Kept:
        return Kept(self.index[:, :-places], self.real[:, :-places], self.length - places, self.tail - places)


def text_tail(visual: Tensor, valid: Tensor) -> Tensor:
    """int []: how many of the last places of ``visual``, ``valid`` bool [B, T] are text in every row."""
    return (valid & ~visual).all(dim=0).flip(0).long().cumprod(0).sum()


class _Owner(weakref.ref[nn.Module]):
    """The decoder layer whose entries a cache holds. Copies have the same; in another process there is none."""

    def __deepcopy__(self, memo: Any) -> _Owner:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class PrunedLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer of a cache; ``stored`` is the layer that keeps the entries, of whatever kind.

    Every update must be announced by :meth:`expect`, which the hooks of a prune block do: without them the model's mask
    would not fit. A layer that holds no pruned prompt is what ``stored`` is. ``beside_recurrent``: other layers of the
    cache hold recurrent states, which no crop can roll back.
    """

    def __init__(self, stored: Any) -> None:
        self.stored = stored
        self.kept: Kept | None = None
        self.length = 0  # in places of the prompt and what came after it
        self.beside_recurrent = False
        self._owner: _Owner | None = None
        self._coming: Kept | None = None
        self._expected: int | None = None

    # --- what the hooks say ----------------------------------------------------------------------

    def expect(self, module: nn.Module, entries: int, kept: Kept | None = None) -> None:
        """``entries`` come next, from ``module``; with ``kept`` they are those of a pruned prompt.

        Raises:
            ModelError: the prompt is another model's.
        """
        if kept is not None or self._owner is None:
            self._owner = _Owner(module)
        elif self._owner() is not module:
            raise ModelError("this cache holds a prompt that another model pruned; prefill it with this one")
        self._coming, self._expected = kept, entries

    def forget(self) -> None:
        """What was announced does not come."""
        self._coming = self._expected = None

    def mask(self, given: Tensor | None, new: int, attention: str, like: Tensor) -> Tensor | None:
        """The mask of ``new`` tokens over the entries that are there.

        Args:
            given: over all places that the cache says it holds: 4-D, 2-D as flash kernels take it, or None.
            attention: the backend.
            like: hidden states [B, new, H].
        """
        kept, total, device = self._pruned, self.length + new, like.device if given is None else given.device
        window = self._window
        if given is None and new == 1 and kept.all_real and (window is None or total <= window):
            return None
        entries = int(self.stored.get_mask_sizes(new)[0])
        after = torch.arange(kept.length, total, device=device).expand(len(kept.index), -1)
        places = torch.cat([kept.index.to(device), after], dim=1)[:, -entries:]
        real = torch.cat([kept.real.to(device), torch.ones_like(after, dtype=torch.bool)], dim=1)[:, -entries:]
        if "flash" in attention:
            if window is not None and total > window and kept.index.shape[1] < kept.length:
                raise ModelError(
                    f"flash kernels count a sliding window in cache entries, so at place {total} they would see past "
                    f"the window of {window}, as the prompt is pruned; load the model with attn_implementation='sdpa'"
                )
            if given is not None and given.ndim == 2:
                real = real & given.bool().gather(1, places)
            return None if bool(real.all()) else real.long()
        if given is not None:
            places = places - (total - given.shape[-1])  # a sliding mask begins where its window does
            return gather_mask(given, None, places.clamp(min=0), ~real | (places < 0))
        query = torch.arange(self.length, total, device=device)[:, None]
        allowed = (places[:, None, :] <= query) & real[:, None, :]
        if window is not None:
            allowed = allowed & (places[:, None, :] > query - window)
        if new == 1 and bool(allowed.all()):
            return None
        return as_backend_mask(allowed[:, None], attention, like.dtype)

    @property
    def _pruned(self) -> Kept:
        assert self.kept is not None
        return self.kept

    @property
    def _window(self) -> int | None:
        return self.stored.sliding_window if self.is_sliding else None

    # --- what transformers asks ------------------------------------------------------------------

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new, expected, coming = key_states.shape[-2], self._expected, self._coming
        self.forget()
        if expected != new and (self.kept is not None or expected is not None):
            raise ModelError(
                "this cache holds a pruned prompt, whose entries fit no mask but a prune block's; use it inside a "
                "prune block of the model that filled it, or prefill again"
            )
        if coming is not None:
            self.kept, self.length = coming, coming.length
        elif self.kept is not None:
            self.length += new
        found: tuple[Tensor, Tensor] = self.stored.update(key_states, value_states, *args, **kwargs)
        return found

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.stored.lazy_initialization(key_states, value_states)

    def get_seq_length(self) -> int:
        return self.length if self.kept is not None else int(self.stored.get_seq_length())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.kept is None:
            sizes: tuple[int, int] = self.stored.get_mask_sizes(query_length)
            return sizes
        window = self._window
        if window is None:
            return self.length + query_length, 0
        return min(self.length, window - 1) + query_length, max(self.length - window + 1, 0)

    def get_max_length(self) -> int:
        return int(self.stored.get_max_length())

    def crop(self, tokens_to_remove: int) -> None:
        if self.kept is None or tokens_to_remove > 0:
            self.stored.crop(tokens_to_remove)
            return
        if tokens_to_remove and self.beside_recurrent:
            raise ModelError(
                f"crop({tokens_to_remove}) cannot take back what linear-attention layers have read; copy the cache "
                "before what you may want to undo, or prefill again"
            )
        left = self.length + tokens_to_remove
        into_prompt = self.kept.length - left
        if into_prompt > 0:
            tail = int(self.kept.tail)
            if into_prompt > tail:
                raise ModelError(
                    f"crop({tokens_to_remove}) of {self.length} tokens reaches into the pruned part of the prompt, of "
                    f"which not every token is there; crop at most {self.length - self.kept.length + tail}, or "
                    "prefill again"
                )
        window = self._window
        if window is not None and self.keys is not None:
            after = self.kept.index.shape[1] + left - self.kept.length
            if self.keys.shape[-2] + tokens_to_remove < min(after, window - 1):
                raise ModelError(
                    f"crop({tokens_to_remove}) needs tokens that a sliding layer, of {window}, holds no more; call "
                    "cache.activate_past_recording() before the tokens that may be taken back"
                )
        self.stored.crop(tokens_to_remove)
        self.length = left
        if into_prompt > 0:
            self.kept = self.kept.without_last(into_prompt)

    def reset(self) -> None:
        self.stored.reset()
        self.kept, self.length = None, 0
        self.forget()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.stored.reorder_cache(beam_idx)
        self._choose(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.stored.batch_select_indices(indices)
        self._choose(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.stored.batch_repeat_interleave(repeats)
        if self.kept is not None:
            rows = torch.arange(len(self.kept.index), device=self.kept.index.device)
            self._choose(rows.repeat_interleave(repeats))

    def _choose(self, rows: Any) -> None:
        if self.kept is not None:
            self.kept = self.kept.rows(rows)

    def offload(self) -> None:
        self.stored.offload()

    def prefetch(self) -> None:
        self.stored.prefetch()

    @property
    def keys(self) -> Tensor | None:
        return self.stored.keys  # type: ignore[no-any-return]

    @property
    def values(self) -> Tensor | None:
        return self.stored.values  # type: ignore[no-any-return]

    @property
    def is_initialized(self) -> bool:
        return bool(self.stored.is_initialized)

    @property
    def is_croppable(self) -> bool:
        return bool(self.stored.is_croppable)

    @property
    def is_sliding(self) -> bool:
        return getattr(self.stored, "is_sliding", False)

    def __getattr__(self, name: str) -> Any:
        if name == "stored" or name.startswith("__"):  # a copy that is still empty is asked for these
            raise AttributeError(name)
        return getattr(self.stored, name)

    def __copy__(self) -> PrunedLayer:
        """A copy that can grow by itself; entries are shared, since layers never write into them."""
        other = PrunedLayer.__new__(PrunedLayer)
        other.__dict__.update(self.__dict__, stored=copy.copy(self.stored))
        return other

    def __repr__(self) -> str:
        return f"PrunedLayer({self.stored})"


def check_whole(cache: Any, layers: int) -> None:
    """Refuse a cache, of a decoder with so many ``layers``, in which a call or a crop stopped on its way.

    Raises:
        ModelError: a pruned prompt is there, and layers do not hold equally many tokens.
    """
    layers_of = getattr(cache, "layers", ())
    held = [layer.get_seq_length() for layer in layers_of if isinstance(layer, PrunedLayer)]
    if any(held) and (len(set(held)) > 1 or len(layers_of) < layers):
        raise ModelError(
            f"layers of this cache hold {min(held) if len(layers_of) >= layers else 0} to {max(held)} tokens, so a "
            "call or a crop stopped on its way; prefill again"
        )


def pruned_layer(cache: Any, number: int) -> PrunedLayer | None:
    """Layer ``number`` of ``cache`` if it holds a pruned prompt."""
    layers = cache.layers if cache is not None else ()
    layer = layers[number] if number < len(layers) else None
    return layer if isinstance(layer, PrunedLayer) and layer.kept is not None else None


def to_be_pruned(cache: Cache, number: int) -> PrunedLayer:
    """Layer ``number`` of an empty ``cache``, ready for a pruned prompt."""
    while len(cache.layers) <= number:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[number]
    if not isinstance(layer, PrunedLayer):
        layer = cache.layers[number] = PrunedLayer(layer)
    return layer
