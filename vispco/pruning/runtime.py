"""Pruning on unmodified transformers models: a context manager of hooks that leaves no trace.

At a boundary the hidden states, position embeddings, position ids and mask that enter a decoder layer are
gathered to the tokens that stay. Later layers then run on fewer tokens and their caches hold fewer entries;
original position ids are kept. In decoding each layer's mask is gathered to the entries of that layer's
cache. The decoder's output is scattered back to the prompt's length, so that logits keep their indices; rows
of dropped tokens are zero.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vispco.errors import MeasurementError, ModelError, ScheduleError
from vispco.models.base import ModelAdapter, adapter_for
from vispco.pruning.attention import attention_rows
from vispco.pruning.masks import as_backend_mask, causal_mask, gather_mask
from vispco.pruning.methods.base import Method, ScoreContext, make_method
from vispco.pruning.schedules import Policy, parse_schedule


@dataclass
class Tokens:
    """The tokens left at some layer, ``n`` of the ``T`` in the prompt; every tensor is [B, n].

    ``index``: place in the prompt; ``valid``: False where a row is filled up to the longest row;
    ``visual``: came from pixels; ``rank``: place among the sample's visual tokens.
    """

    index: Tensor
    valid: Tensor
    visual: Tensor
    rank: Tensor

    def last(self) -> Tensor:
        """[B], place of the last valid token among the n."""
        places = torch.arange(self.valid.shape[1], device=self.valid.device)
        return (self.valid * places).amax(dim=1)

    def take(self, keep: Tensor, fill_left: bool) -> tuple[Tokens, Tensor]:
        """The tokens where ``keep`` [B, n], in order, and their places among the n (filled to equal length)."""
        length = max(int(keep.sum(dim=1).amax()), 1)
        if fill_left:
            places = keep.int().argsort(dim=1, stable=True)[:, -length:]
        else:
            places = (~keep).int().argsort(dim=1, stable=True)[:, :length]
        valid = keep.gather(1, places)
        return (
            Tokens(
                self.index.gather(1, places),
                valid,
                self.visual.gather(1, places) & valid,
                self.rank.gather(1, places),
            ),
            places,
        )


@dataclass
class Cached:
    """What is known of a prefilled cache: prompt length, and per layer the tokens that it holds."""

    prompt_length: int
    layers: list[Tokens]
    seen: int = 0


@dataclass
class Prefill:
    """State of one prefill while it passes through the layers."""

    tokens: Tokens
    counts: Tensor
    prompt_length: int
    fill_left: bool
    sample_keys: list[int]
    attention: str
    layers: list[Tokens] = field(default_factory=list)
    pruned: bool = False
    captured: dict[str, Tensor] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)


class PruningSession:
    """Hooks of one ``with vispco.prune(...)`` block, and what the last prefill did.

    ``counts`` int [B, L]: visual tokens that entered each layer. ``kept(layer)`` gives the prompt positions.
    """

    def __init__(self, adapter: ModelAdapter, method: Method, policy: Policy) -> None:
        self.adapter = adapter
        self.method = method
        self.policy = policy
        self.counts: Tensor | None = None
        self.sample_keys: Sequence[int] | None = None
        self._last_layers: list[Tokens] = []
        self._entry: tuple[Tensor | None, Tensor | None] = (None, None)
        self._prefill: Prefill | None = None
        self._decode: Cached | None = None
        self._decode_mask: Tensor | None = None
        self._caches: weakref.WeakKeyDictionary[Any, Cached] = weakref.WeakKeyDictionary()
        self._handles: list[Any] = []

    # --- what callers may ask --------------------------------------------------------------------

    def kept(self, layer: int) -> list[list[int]]:
        """Prompt positions of the visual tokens that entered ``layer`` in the last prefill, per sample."""
        tokens = self._last_layers[layer]
        return [index[visual].tolist() for index, visual in zip(tokens.index, tokens.visual, strict=True)]

    def tokens_entering(self, layer: int) -> list[int]:
        """Tokens of every kind that entered ``layer`` in the last prefill, per sample."""
        return [int(n) for n in self._last_layers[layer].valid.sum(dim=1)]

    # --- hooks -----------------------------------------------------------------------------------

    def install(self) -> None:
        layers = self.adapter.layers()
        for hook in layers[0]._forward_pre_hooks.values():
            if isinstance(getattr(hook, "session", None), PruningSession):
                raise ModelError("this model is already inside a prune block; leave it before entering another one")
        try:
            add = self._handles.append
            add(self.adapter.entry().register_forward_pre_hook(self._on_entry, with_kwargs=True))
            add(self.adapter.decoder().register_forward_pre_hook(self._on_decoder, with_kwargs=True))
            add(self.adapter.decoder().register_forward_hook(self._on_output))
            for number, layer in enumerate(layers):
                add(layer.register_forward_pre_hook(_LayerHook(self, number), with_kwargs=True))
                if self.method.needs_attention and number + 1 < len(layers):
                    queries, keys = self.adapter.projections(number)
                    add(queries.register_forward_hook(_Capture(self, number, "queries")))
                    add(keys.register_forward_hook(_Capture(self, number, "keys")))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._prefill = self._decode = self._decode_mask = None

    def _on_entry(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        self._entry = (input_ids, kwargs.get("inputs_embeds"))

    def _on_decoder(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._prefill = self._decode = self._decode_mask = None
        embeds: Tensor = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        known = self._caches.get(cache) if cache is not None else None
        past = cache.get_seq_length() if cache is not None else 0
        if known is not None and past > 0:
            return self._begin_decode(known, args, kwargs)
        visual = self.adapter.visual_mask(*self._entry)
        if past > 0:
            if bool(visual.any()):
                raise ModelError(
                    "visual tokens arrive behind a cache that was filled outside this prune block; "
                    "prefill the whole prompt in one call inside the block"
                )
            return None
        self._begin_prefill(embeds, visual, kwargs.get("attention_mask"))
        return None

    def _begin_prefill(self, embeds: Tensor, visual: Tensor, mask: Tensor | None) -> None:
        batch, length = embeds.shape[:2]
        valid = mask.bool() if mask is not None and mask.ndim == 2 else torch.ones_like(visual)
        visual = visual & valid
        layers = len(self.adapter.layers())
        n_visual = visual.sum(dim=1)
        counts = np.asarray(self.policy.counts(n_visual.cpu().numpy(), layers, None))
        counts = np.minimum(counts, n_visual.cpu().numpy()[:, None])
        if counts.shape != (batch, layers) or (np.diff(counts, axis=1) > 0).any() or (counts < 0).any():
            raise ScheduleError(
                f"the policy gave counts of shape {counts.shape} for {batch} samples and {layers} layers; "
                "it must give one count per sample and layer, never rising over layers and never negative"
            )
        self.counts = torch.from_numpy(counts)
        if self.method.needs_attention and (counts[:, 0] < n_visual.cpu().numpy()).any() and counts[:, 0].any():
            raise ScheduleError(
                f"method {self.method.name!r} ranks tokens by the attention of the layer before, and there is none "
                "before layer 0; let all visual tokens enter layer 0"
            )
        index = torch.arange(length, device=embeds.device).expand(batch, -1)
        tokens = Tokens(index, valid, visual, visual.long().cumsum(dim=1).sub(1).clamp(min=0))
        keys = self.sample_keys
        self._prefill = Prefill(
            tokens=tokens,
            counts=self.counts.to(embeds.device),
            prompt_length=length,
            fill_left=not bool(valid[:, 0].all()),
            sample_keys=list(keys) if keys is not None else _content_keys(self._entry[0], valid),
            attention=self.adapter.attention(),
        )

    def _begin_decode(
        self, known: Cached, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._decode = known
        embeds: Tensor = kwargs["inputs_embeds"]
        past = known.prompt_length + known.seen
        steps = embeds.shape[1]
        known.seen += steps
        if len(known.layers[0].index[0]) == known.prompt_length:
            return None
        # Layer 0's cache is short, so the model would take a wrong length from it: say the right one.
        mask = kwargs.get("attention_mask")
        if mask is None or mask.ndim == 2:
            valid = mask.bool() if mask is not None else embeds.new_ones(len(embeds), past + steps, dtype=torch.bool)
            mask = as_backend_mask(causal_mask(valid, steps), self.adapter.attention(), embeds.dtype)
        changed = {**kwargs, "attention_mask": mask}
        if changed.get("position_ids") is None:
            changed["position_ids"] = torch.arange(past, past + steps, device=embeds.device)[None]
        return args, changed

    def on_layer(
        self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._prefill is not None:
            return self._prefill_layer(self._prefill, number, args, kwargs)
        if self._decode is not None:
            return self._decode_layer(self._decode, number, args, kwargs)
        return None

    def _prefill_layer(
        self, state: Prefill, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        tokens = state.tokens
        if number == 0:
            state.kwargs = kwargs
            cache = kwargs.get("past_key_values")
            if cache is not None:
                self._caches[cache] = Cached(state.prompt_length, state.layers)
        changed = False
        if bool((state.counts[:, number] < tokens.visual.sum(dim=1)).any()):
            keep = self._choose(state, number)
            state.tokens, places = tokens.take(keep, state.fill_left)
            self._shorten(state, places)
            changed = True
        state.captured.clear()
        state.layers.append(state.tokens)
        self._last_layers = state.layers
        if not state.pruned:
            return None
        merged = {**kwargs, **{key: state.kwargs[key] for key in _PER_TOKEN if key in kwargs}}
        if changed:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
            if args:
                args = (hidden, *args[1:])
            else:
                merged["hidden_states"] = hidden
        return args, merged

    def _choose(self, state: Prefill, number: int) -> Tensor:
        """bool [B, n]: tokens that enter layer ``number``."""
        tokens, keep = state.tokens, state.counts[:, number]
        text = tokens.valid & ~tokens.visual
        if not bool(keep.any()):
            return text
        context = ScoreContext(
            boundary=number,
            visual=tokens.visual,
            valid=tokens.valid,
            last=tokens.last(),
            rank=tokens.rank,
            sample_keys=state.sample_keys,
            rows=lambda query: self._attention_rows(state, number - 1, query),
        )
        return text | self.method.select(context, keep)

    def _attention_rows(self, state: Prefill, layer: int, query: Tensor) -> Tensor:
        rows = attention_rows(
            self.adapter,
            layer,
            queries=state.captured["queries"],
            keys=state.captured["keys"],
            position_embeddings=state.kwargs["position_embeddings"],
            valid=state.tokens.valid,
            query_index=query,
        )
        if not bool(torch.isfinite(rows).all()):
            raise MeasurementError(f"attention of layer {layer} is not finite; check the model's weights and dtype")
        return rows

    def _shorten(self, state: Prefill, places: Tensor) -> None:
        """Cut everything that later layers receive per token to ``places`` [B, n]."""
        state.pruned = True
        tokens, kwargs = state.tokens, dict(state.kwargs)
        batch = places.shape[0]
        kwargs["position_embeddings"] = tuple(
            part.expand(batch, -1, -1).gather(1, places[..., None].expand(-1, -1, part.shape[-1]))
            for part in kwargs["position_embeddings"]
        )
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"].expand(batch, -1).gather(1, places)
        mask = kwargs.get("attention_mask")
        filler = ~tokens.valid
        if mask is not None and mask.ndim == 2:
            kwargs["attention_mask"] = tokens.valid.to(mask.dtype)
        elif mask is not None:
            kwargs["attention_mask"] = gather_mask(mask, places, places, filler)
        elif bool(filler.any()):
            allowed = causal_mask(tokens.valid, places.shape[1])
            allowed = allowed | torch.eye(places.shape[1], dtype=torch.bool, device=allowed.device)
            kwargs["attention_mask"] = as_backend_mask(allowed, state.attention, kwargs["position_embeddings"][0].dtype)
        state.kwargs = kwargs

    def _decode_layer(
        self, known: Cached, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        tokens = known.layers[number]
        mask = kwargs.get("attention_mask")
        if tokens.index.shape[1] == known.prompt_length:
            return None
        new = torch.arange(known.seen, device=tokens.index.device) + known.prompt_length
        filler = torch.cat([~tokens.valid, tokens.valid.new_zeros(len(tokens.valid), known.seen)], dim=1)
        if mask is None:
            if not bool(filler.any()):
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            allowed = causal_mask(~filler, hidden.shape[1])
            mask = as_backend_mask(allowed, self.adapter.attention(), hidden.dtype)
        elif mask.ndim == 2:
            mask = (~filler).to(mask.dtype)
        else:
            columns = torch.cat([tokens.index, new.expand(len(tokens.index), -1)], dim=1)
            mask = gather_mask(mask, None, columns, filler)
        return args, {**kwargs, "attention_mask": mask}

    def _on_output(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        state, self._prefill = self._prefill, None
        if state is None or not state.pruned:
            return output
        hidden: Tensor = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
        tokens = state.tokens
        full = hidden.new_zeros(hidden.shape[0], state.prompt_length, hidden.shape[-1])
        full.scatter_add_(1, tokens.index[..., None].expand_as(hidden), hidden * tokens.valid[..., None])
        if hasattr(output, "last_hidden_state"):
            output.last_hidden_state = full
            return output
        return (full, *output[1:])


_PER_TOKEN = ("position_embeddings", "position_ids", "attention_mask")


class _LayerHook:
    """Pre-hook of one decoder layer."""

    def __init__(self, session: PruningSession, number: int) -> None:
        self.session = session
        self.number = number

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.session.on_layer(self.number, args, kwargs)


class _Capture:
    """Holds a projection's output until the next boundary has been decided, if there is one."""

    def __init__(self, session: PruningSession, layer: int, what: str) -> None:
        self.session = session
        self.layer = layer
        self.what = what

    def __call__(self, module: Any, args: Any, output: Tensor) -> None:
        state = self.session._prefill
        if state is not None and bool((state.counts[:, self.layer + 1] < state.counts[:, self.layer]).any()):
            state.captured[self.what] = output


def _content_keys(input_ids: Tensor | None, valid: Tensor) -> list[int]:
    """A key per sample that depends on its own tokens only, not on its place in a batch."""
    if input_ids is None:
        return list(range(len(valid)))
    rows = zip(input_ids.cpu(), valid.cpu(), strict=True)
    return [zlib.crc32(ids[keep].numpy().tobytes()) for ids, keep in rows]


@contextmanager
def prune(
    model: Any, *, method: str | Method = "fastv", schedule: Policy | str | None = None, **parameters: Any
) -> Iterator[PruningSession]:
    """Prune visual tokens of ``model`` inside the block; afterwards the model is as it was.

    Args:
        model: a loaded transformers vision-language model; forward passes and ``generate`` work as usual.
        method: a method's name, with ``parameters`` as its keyword arguments, or a method object.
        schedule: a schedule, any policy, or a schedule's text such as ``"step(layer=2, keep=0.5)"``.

    Yields:
        The session, which tells what the last prefill kept.

    Raises:
        ModelError: the model's family is unknown, or the model is inside another prune block.
        ScheduleError: the schedule does not fit the model or the method.
        ConfigError: unknown method or parameter.
    """
    if schedule is None:
        raise ScheduleError("prune needs schedule=, for example vispco.Step(layer=2, keep=0.5)")
    policy = parse_schedule(schedule) if isinstance(schedule, str) else schedule
    chosen = make_method(method, parameters) if isinstance(method, str) else method
    session = PruningSession(adapter_for(model), chosen, policy)
    if hasattr(policy, "keep_ratio"):
        policy.keep_ratio(len(session.adapter.layers()))
    session.install()
    try:
        yield session
    finally:
        session.remove()
