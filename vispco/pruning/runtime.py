"""Pruning on unmodified transformers models: a context manager of hooks that leaves no trace.

At a boundary the hidden states that enter a decoder layer are gathered to the tokens that stay, and so is what
each layer receives per token: position embeddings, position ids and mask. Later layers then run on fewer
tokens and their caches hold fewer entries; original positions are kept. In decoding each layer's mask follows
the entries of that layer's cache. The decoder's output is scattered back to the prompt's length, so that logits
keep their indices; rows of dropped tokens are zero.
"""

from __future__ import annotations

import pathlib
import warnings
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vispco.errors import ConfigError, ModelError, ScheduleError, shortened
from vispco.models.base import ModelAdapter, adapter_for
from vispco.models.vision import VisionExtras
from vispco.pruning.decoding import Cached, DecodeStep
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.needs import LAYER_BEFORE, check_needs
from vispco.pruning.prefill import Call, Path, Prefill
from vispco.pruning.published import named_schedule
from vispco.pruning.schedules import Counts, Policy
from vispco.pruning.tokens import Prompt, Tokens
from vispco.pruning.tower import TowerReader


class PruningSession:
    """Hooks of one ``with vispco.prune(...)`` block, and what the last prefill did.

    ``counts`` int [B, L]: visual tokens that entered each layer. ``kept(layer)`` gives the prompt positions.

    A caller may give ``sample_keys`` [B], which tell samples apart for seeded methods (default: the prompt's tokens, so
    that one question about two pictures is one sample), and ``vision``, of the batch's visual tokens, for methods that
    read the vision tower where the model is given features in place of pixels. Beams of a sample share its key.
    """

    def __init__(self, adapter: ModelAdapter, method: Method, policy: Policy, *, gather_always: bool = False) -> None:
        self.adapter = adapter
        self.method = method
        self.policy = policy
        self.counts: Tensor | None = None
        self.sample_keys: Sequence[int] | None = None
        self.vision: VisionExtras | None = None
        self.gather_always = gather_always
        self._last_layers: list[Tokens] = []
        self._inputs: dict[str, Any] = {}
        self._noted: dict[str, Any] = {}
        self._prefill: Prefill | None = None
        self._decode: DecodeStep | None = None
        self._caches: weakref.WeakKeyDictionary[Any, Cached] = weakref.WeakKeyDictionary()
        self._handles: list[Any] = []
        check_needs(method, adapter)
        self._tower = TowerReader(adapter, method)

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
                if number < self.adapter.deepstack_layers():
                    add(layer.register_forward_hook(_OutputHook(self, number)))
                if self.method.needs & LAYER_BEFORE and number + 1 < len(layers):
                    queries, keys = self.adapter.projections(number)
                    add(keys.register_forward_hook(_Capture(self, number, "keys")))
                    if "attention" in self.method.needs:
                        add(queries.register_forward_hook(_Capture(self, number, "queries")))
            self._handles += [*self._tower.install(), *self.adapter.note_pictures(self._noted)]
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._prefill = self._decode = None
        self._inputs = {}
        self._noted.clear()
        self._tower.clear()

    def _on_entry(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = {**self._noted, **({"input_ids": args[0]} if args else {}), **kwargs}
        self._tower.on_entry(self._inputs)

    def _on_decoder(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        self._prefill = self._decode = None
        embeds: Tensor = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        known = self._caches.get(cache) if cache is not None else None
        past = cache.get_seq_length() if cache is not None else 0
        if past == 0:
            try:
                self._begin_prefill(embeds, self._visual_mask(), kwargs, cache)
            finally:
                self._tower.clear()
            assert self._prefill is not None
            kwargs, self._prefill.deepstack = self.adapter.take_deepstack(kwargs)
            return args, kwargs
        if (known is None or embeds.shape[1] > 1) and bool(self._visual_mask().any()):
            raise ModelError(
                "visual tokens arrive behind a filled cache; prefill the whole prompt in one call, "
                "inside the prune block"
            )
        if known is None or not known.cut:
            return None
        self._decode = DecodeStep(self.adapter, known, cache, embeds.shape[1], self._given_mask(), embeds)
        return args, self._decode.for_decoder(kwargs, own_positions=self._inputs.get("position_ids") is None)

    def _visual_mask(self) -> Tensor:
        return self.adapter.visual_mask(self._inputs.get("input_ids"), self._inputs.get("inputs_embeds"))

    def _given_mask(self) -> Tensor | None:
        mask = self._inputs.get("attention_mask")
        return None if isinstance(mask, dict) else mask

    def _begin_prefill(self, embeds: Tensor, visual: Tensor, kwargs: dict[str, Any], cache: Any) -> None:
        mask, attention = self._given_mask(), self.adapter.attention()
        valid = mask.bool() if mask is not None and mask.ndim == 2 else torch.ones_like(visual)
        shown, visual = visual, (visual & valid).to(embeds.device)
        layers, inputs, keys = len(self.adapter.layers()), self._inputs, self.sample_keys
        prompt = Prompt(
            embeddings=embeds,
            visual=visual,
            valid=valid.to(embeds.device),
            read_coordinates=lambda: self.adapter.coordinates(inputs, visual),
            read_keys=lambda: _keys_of_rows(keys, len(valid)) or _content_keys(inputs.get("input_ids"), valid),
            read_vision=lambda: self._tower.rows(inputs, shown, valid, self.vision),
        )
        n_visual = visual.sum(dim=1).cpu().numpy()
        if inputs.get("input_ids") is None and not n_visual.any():
            warnings.warn(
                "no visual token was found among inputs_embeds, so nothing is pruned; features that are merged into "
                "them cannot be told from text: give the model input_ids and pixels",
                stacklevel=2,
            )
        counts = checked_counts(self.policy.counts(n_visual, layers, prompt), n_visual, layers, self.method)
        dropping = bool((counts < n_visual[:, None]).any()) or self.gather_always
        if dropping:
            self._refuse(cache, attention, embeds.shape[1])
        self.counts = torch.from_numpy(counts)
        self._prefill = self._start(prompt, self.counts.to(embeds.device), attention)
        self._last_layers = self._prefill.layers

    def _start(self, prompt: Prompt, counts: Tensor, attention: str) -> Prefill:
        n_visual = prompt.visual.sum(dim=1)
        prompt = replace(prompt, most=most_kept(torch.cat([n_visual[:, None], counts], dim=1).cpu().numpy()))
        path = Path.of(counts, n_visual)
        return Prefill(self.adapter, self.method, prompt, path, attention, self.gather_always)

    def _refuse(self, cache: Any, attention: str, length: int) -> None:
        """What cannot be cut is said before anything runs."""
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
        windows = [w for w in map(self.adapter.sliding_window, range(len(self.adapter.layers()))) if w is not None]
        if "flash" in attention and windows and length > min(windows):
            raise ModelError(
                f"flash kernels count a sliding window in cache entries, so a pruned prompt of {length} tokens would "
                f"see past its window of {min(windows)}; load the model with attn_implementation='sdpa'"
            )

    def on_layer(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if self._prefill is not None:
            cache = kwargs.get("past_key_values")
            if number == 0 and cache is not None:
                self._caches[cache] = Cached(
                    self._prefill.prompt.valid.shape[1], self._prefill.layers, self.adapter.first_attending
                )
            return self._prefill.on_layer(number, args, kwargs)
        if self._decode is not None and not self.adapter.recurrent(number):
            return args, {**kwargs, "attention_mask": self._decode.for_layer(number)}
        return None

    def on_output(self, number: int, output: Any) -> Any:
        return output if self._prefill is None else self._prefill.on_output(number, output)

    def on_projection(self, layer: int, what: str, output: Tensor) -> None:
        if self._prefill is not None and self._prefill.captures(layer):
            self._prefill.on_projection(layer, what, output)

    def _on_output(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        state, self._prefill, self._decode = self._prefill, None, None
        self._inputs = {}
        if state is None or not state.cut:
            return output
        if hasattr(output, "last_hidden_state"):
            output.last_hidden_state = state.full_length(output.last_hidden_state)
            return output
        return (state.full_length(output[0]), *output[1:])


def checked_counts(counts: Counts, n_visual: Counts, layers: int, method: Method) -> Counts:
    """What a policy gave for samples with ``n_visual`` [B] tokens, int [B, L], at most those.

    Raises:
        ScheduleError: wrong shape, counts that rise or are negative, or a method that cannot cut before layer 0.
    """
    counts = _whole(counts)
    if counts.shape != (len(n_visual), layers) or (np.diff(counts, axis=1) > 0).any() or (counts < 0).any():
        raise ScheduleError(
            f"the policy gave counts of shape {counts.shape} for {len(n_visual)} samples and {layers} layers; "
            "it must give one count per sample and layer, never rising over layers and never negative"
        )
    counts = np.minimum(counts, n_visual[:, None])
    of_layer_before = sorted(method.needs & LAYER_BEFORE)
    if of_layer_before and (counts[:, 0] < n_visual).any() and counts[:, 0].any():
        raise ScheduleError(
            f"method {method.name!r} ranks tokens by the {' and '.join(of_layer_before)} of the layer before, and "
            "there is none before layer 0; let all visual tokens enter layer 0"
        )
    return counts


def _whole(given: Any) -> Counts:
    """What a policy gave, as int64: differences of unsigned numbers would wrap, and NaN compares as nothing.

    Raises:
        ScheduleError: it is no array of whole numbers.
    """
    try:
        counts = np.asarray(given)
        with np.errstate(invalid="ignore"):  # NaN becomes some number, which is not equal to it
            whole = counts.astype(np.int64)
        if counts.dtype.kind not in "iufb" or not np.array_equal(counts, whole):
            raise ValueError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ScheduleError(
            f"the policy gave {type(given).__name__} {shortened(given)}; counts of tokens are whole numbers"
        ) from None
    return whole


def most_kept(counts: Counts) -> int:
    """The most tokens that any sample keeps where it loses some; ``counts`` int [..., 1 + L], of the prompt first."""
    left = counts[..., 1:]
    return int(np.where((left < counts[..., :-1]) & (left > 0), left, 0).max(initial=0))


class _LayerHook:
    """Pre-hook of one decoder layer."""

    def __init__(self, session: PruningSession, number: int) -> None:
        self.session = session
        self.number = number

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.session.on_layer(self.number, args, kwargs)


class _OutputHook:
    """Hook behind one decoder layer."""

    def __init__(self, session: PruningSession, number: int) -> None:
        self.session = session
        self.number = number

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        return self.session.on_output(self.number, output)


class _Capture:
    """Hook behind one projection."""

    def __init__(self, session: PruningSession, layer: int, what: str) -> None:
        self.session = session
        self.layer = layer
        self.what = what

    def __call__(self, module: Any, args: Any, output: Tensor) -> None:
        self.session.on_projection(self.layer, self.what, output)


def _keys_of_rows(keys: Sequence[int] | None, rows: int) -> list[int]:
    """``keys`` of samples, each as often as the sample has rows side by side; none if there are none."""
    if not keys:
        return []
    if rows % len(keys):
        raise ModelError(
            f"the session has {len(keys)} sample_keys for a batch of {rows} rows; give one for each sample"
        )
    return [key for key in keys for _ in range(rows // len(keys))]


def _content_keys(input_ids: Tensor | None, valid: Tensor) -> list[int]:
    """A key per sample that depends on its own tokens only, not on its place in a batch."""
    if input_ids is None:
        return list(range(len(valid)))
    rows = zip(input_ids.cpu(), valid.cpu(), strict=True)
    return [zlib.crc32(ids[keep].numpy().tobytes()) for ids, keep in rows]


@contextmanager
def prune(
    model: Any,
    *,
    method: str | Method | None = None,
    schedule: Policy | str | pathlib.Path | None = None,
    gather_always: bool = False,
    **parameters: Any,
) -> Iterator[PruningSession]:
    """Prune visual tokens of ``model`` inside the block; afterwards the model is as it was.

    Args:
        model: a loaded transformers vision-language model; forward passes and ``generate`` work as usual.
        method: a method's name, with ``parameters`` as its keyword arguments, or a method object. Default: what
            belongs to the schedule, or ``fastv``.
        schedule: a schedule, any policy, a schedule's text such as ``"step(layer=2, keep=0.5)"``, a published
            name such as ``"sparsevlm:192"``, or the path of a file written by ``vispco export`` (``.json``).
        gather_always: run the gather at every layer, also where nothing is dropped: for tests and benchmarks.

    Yields:
        The session, which tells what the last prefill kept.

    Raises:
        ModelError: the model's family is unknown, or the model is inside another prune block; in a forward
            pass, a cache or attention backend that cannot be cut.
        ScheduleError: the schedule does not fit the model or the method, or its file cannot be read.
        ConfigError: unknown method or parameter.
    """
    if schedule is None:
        raise ScheduleError("prune needs schedule=, for example vispco.Step(layer=2, keep=0.5)")
    adapter = adapter_for(model)
    policy: Policy
    if not isinstance(schedule, (str, pathlib.Path)) and not callable(getattr(schedule, "counts", None)):
        raise ScheduleError(
            f"schedule is {shortened(schedule)}, which is no schedule; write for example vispco.Step(layer=2, keep=0.5)"
        )
    if method is not None and not isinstance(method, (str, Method)):
        raise ConfigError(f"method is {shortened(method)}; give a method's name or a method object")
    if isinstance(schedule, (str, pathlib.Path)):
        policy, named = named_schedule(str(schedule), len(adapter.layers()))
    else:
        policy, named = schedule, None
    given = named if method is None and not parameters else method
    if isinstance(given, Method):
        if parameters:
            raise ConfigError(f"prune got a method object and parameters {list(parameters)}; give them to the method")
        chosen = given
    else:
        chosen = make_method(given or (named.name if named else "fastv"), parameters)
    session = PruningSession(adapter, chosen, policy, gather_always=gather_always)
    if hasattr(policy, "keep_ratio"):
        policy.keep_ratio(len(session.adapter.layers()))
    session.install()
    try:
        yield session
    finally:
        session.remove()
