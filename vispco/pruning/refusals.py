"""What a prune block refuses before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from vispco.errors import ModelError
from vispco.models.base import ModelAdapter
from vispco.pruning.forward.tokens import Prompt, Tokens

UNSEEN_LOSS = (
    "the model is pruned while it trains, without labels: a loss that is taken outside of it, as with label smoothing, "
    "also reads the rows of dropped tokens, which are zeros; leave out labels of visual tokens and right after them"
)
IGNORED = -100  # the label of tokens that no loss is taken of


def refuse_uncuttable(adapter: ModelAdapter, attention: str, cache: Any, length: int) -> None:
    """Refuse the backend ``attention`` or a ``cache`` that cannot take a pruned prompt of ``length`` tokens.

    Raises:
        ModelError: the kernel, the kind of cache, or a sliding window that flash kernels would count wrongly.
    """
    if attention not in ("sdpa", "eager") and "flash" not in attention:
        raise ModelError(
            f"attention backend {attention!r} is not supported under pruning; load the model with "
            "attn_implementation='sdpa', 'eager' or 'flash_attention_2'"
        )
    if cache is not None and getattr(cache, "is_compileable", False):
        raise ModelError(
            f"{type(cache).__name__} has a fixed size and cannot hold a pruned prompt; "
            "use the default dynamic cache (no cache_implementation)"
        )
    if cache is not None and not (isinstance(cache, Cache) and hasattr(cache, "layers")):
        raise ModelError(
            f"a cache of type {type(cache).__name__} cannot hold a pruned prompt; use transformers' DynamicCache"
        )
    if "flash" not in attention:
        return
    windows = [w for w in map(adapter.sliding_window, range(len(adapter.layers()))) if w is not None]
    if windows and length > min(windows):
        raise ModelError(
            f"flash kernels count a sliding window in cache entries, so a pruned prompt of {length} tokens would "
            f"see past its window of {min(windows)}; load the model with attn_implementation='sdpa'"
        )


def refuse_packed(given: dict[str, Any], mask: Any) -> None:
    """Refuse rows that hold several prompts one after the other; ``mask``: that was
    given, which packed rows lack.

    Raises:
        ModelError: the positions that the decoder is ``given`` begin again within a row.
    """
    positions = given.get("position_ids")
    packed = given.get("cu_seq_lens_q") is not None
    if mask is None and isinstance(positions, Tensor) and positions.ndim == 2:
        packed |= bool((positions.diff(dim=1) < 0).any())
    if packed:
        raise ModelError(
            "a row holds several prompts (its positions begin again), which pruning would rank as one and join; give "
            "each prompt a row of its own, with an attention_mask"
        )


def refuse_visual_end(prompt: Prompt, loses: NDArray[np.bool_]) -> None:
    """Refuse to read an answer after a visual token that may be gone; ``loses`` bool [B]: rows that lose some.

    Raises:
        ModelError: such a row ends with a visual token.
    """
    places = torch.arange(prompt.valid.shape[1], device=prompt.valid.device)
    last = (prompt.valid * places).argmax(dim=1, keepdim=True)
    ends = prompt.visual.gather(1, last)[:, 0].cpu().numpy() & loses
    if ends.any():
        where = f"prompt {int(ends.argmax()) + 1} of {len(ends)}" if len(ends) > 1 else "the prompt"
        raise ModelError(
            f"{where} ends with a visual token, which the schedule may drop, so there is no token that an answer could "
            "follow; put text after the picture, and prefill the whole prompt in one call"
        )


def refuse_labels(labels: Tensor, prompt: Prompt, left: Tokens) -> None:
    """Refuse a loss over what dropped tokens would predict: there is nothing there. ``labels`` [B, T], not shifted.

    Raises:
        ModelError: a label other than -100 stands after a visual token that is not among those that are ``left``.
    """
    there = torch.zeros_like(prompt.visual, dtype=torch.int).scatter_add_(1, left.index, left.valid.int()) > 0
    gone = prompt.visual & ~there
    wrong = (labels[:, 1 : gone.shape[1] + 1].to(gone.device) != IGNORED) & gone[:, : labels.shape[1] - 1]
    if bool(wrong.any()):
        raise ModelError(
            f"{int(wrong.sum())} labels stand after visual tokens that were dropped, which predict nothing; set "
            f"labels to {IGNORED} up to the answer"
        )
