"""The hooks of a prune block.

At a boundary the hidden states that enter a decoder layer are gathered to the tokens that stay, and so is what
each layer receives per token: position embeddings, position ids and mask. Later layers then run on fewer
tokens and their caches hold fewer entries; original positions are kept. What is known of the prompt goes with its
cache (:mod:`vispco.pruning.cache`); in decoding each layer's mask follows the entries of that layer's cache. The
decoder's output is scattered back to the prompt's length, so that logits keep their indices; rows of dropped tokens
are zero.
"""

from __future__ import annotations

import operator
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vispco.errors import ModelError
from vispco.models.base import ModelAdapter
from vispco.models.hooks import COMPILED, Hooks, named_arguments, owner_of_hooks
from vispco.models.wrappers import refuse_compiled
from vispco.pruning.cache import Kept, PrunedLayer, check_whole, pruned_layer, text_tail, to_be_pruned
from vispco.pruning.forward.counts import checked_counts, most_kept
from vispco.pruning.forward.drafts import DraftWatch
from vispco.pruning.forward.prefill import Call, Path, Prefill
from vispco.pruning.forward.tokens import Prompt
from vispco.pruning.forward.tower import TowerReader
from vispco.pruning.methods.base import Method
from vispco.pruning.needs import LAYER_BEFORE, check_needs
from vispco.pruning.record import Record
from vispco.pruning.refusals import UNSEEN_LOSS, refuse_labels, refuse_packed, refuse_uncuttable, refuse_visual_end
from vispco.pruning.schedules import Counts, Policy


class PruningSession(Record):
    """Hooks of one ``with vispco.prune(...)`` block; what callers may ask of it is in :class:`Record`."""

    def __init__(self, adapter: ModelAdapter, method: Method, policy: Policy, *, gather_always: bool = False) -> None:
        super().__init__()
        self.adapter = adapter
        self.method = method
        self.policy = policy
        self.gather_always = gather_always
        self._hooks = Hooks(owner=self)
        self._drafts = DraftWatch()
        check_needs(method, adapter)
        self._tower = TowerReader(adapter, method)
        self._recurrent = bool(adapter.recurrent_layers)

    # --- hooks -----------------------------------------------------------------------------------

    def install(self) -> None:
        layers = self.adapter.layers()
        if owner_of_hooks(layers[0]) is not None:
            raise ModelError("this model is already inside a prune block; leave it before entering another one")
        hooks = self._hooks
        try:
            hooks.before(self.adapter.model, self._on_model)
            hooks.before(self.adapter.entry(), self._on_entry)
            hooks.after(self.adapter.entry(), self._on_exit, always=True)
            hooks.before(self.adapter.decoder(), self._on_decoder)
            hooks.after(self.adapter.decoder(), self._on_output, always=True)
            for number, layer in enumerate(layers):
                hooks.before(layer, partial(self.on_layer, number))
                if number < self.adapter.deepstack_layers():
                    hooks.after(layer, partial(self.on_output, number))
                if self.method.needs & LAYER_BEFORE and number + 1 < len(layers):
                    queries, keys = self.adapter.projections(number)
                    hooks.after(keys, partial(self.on_projection, number, "keys"))
                    if "attention" in self.method.needs:
                        hooks.after(queries, partial(self.on_projection, number, "queries"))
            self._hooked = self._modules()
            refuse_compiled(self.adapter.model, hooks.modules)
            self._tower.install(hooks)
            self.adapter.note_pictures(lambda: self._thread.noted, hooks)
            self._drafts.install(self.adapter.model, hooks)
        except BaseException:
            self.remove()
            raise

    def _modules(self) -> list[nn.Module]:
        """Of the decoder, what hooks stand on, as the model has it now."""
        layers = self.adapter.layers()
        found = [self.adapter.entry(), self.adapter.decoder(), *layers]
        if self.method.needs & LAYER_BEFORE:
            for number in range(len(layers) - 1):
                found += self.adapter.projections(number)
        return found

    def remove(self) -> None:
        """Take the hooks off the model; it is as it was."""
        self._hooks.remove()
        self._end_call()
        self._tower.clear()

    def _on_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        logits = kwargs.get("logits_to_keep")
        self._thread.reads_end, self._thread.labels = isinstance(logits, int) and logits > 0, kwargs.get("labels")

    def _on_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._thread.inputs = {**self._thread.noted, **named_arguments(module, args, kwargs)}
        self._tower.on_entry(self._thread.inputs)

    def _on_exit(self, module: nn.Module, args: Any, output: Any) -> None:
        self._thread.inputs, self._thread.labels, self._thread.reads_end = None, None, False

    def _on_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        self._end_call()
        if getattr(module, "_is_replica", False):
            raise ModelError(
                "nn.DataParallel runs copies of the model, which a prune block does not reach; run one process for "
                "each GPU, or prune the model on one of them"
            )
        embeds: Tensor | None = kwargs.get("inputs_embeds")
        cache, inputs = kwargs.get("past_key_values"), self._inputs(kwargs)
        if embeds is None:  # a decoder that is called by itself with text
            return None
        prompt_length = self._drafts.prompt_length(cache, embeds.shape[1])
        if cache is not None and cache.get_seq_length() > 0:
            check_whole(cache, self._layers_run(module))
            if _brings_pictures(inputs) and bool(self._visual_mask(inputs).any()):
                raise ModelError(
                    "visual tokens arrive after a filled cache; prefill the whole prompt in one call, "
                    "inside the prune block"
                )
            return None
        try:
            self._begin_prefill(embeds, self._visual_mask(inputs), kwargs, cache, prompt_length)
        finally:
            self._tower.clear()
        if self._thread.prefill is None:
            raise ModelError(COMPILED)
        kwargs, self._thread.prefill.deepstack = self.adapter.take_deepstack(kwargs)
        return args, kwargs

    def _inputs(self, of_decoder: dict[str, Any]) -> dict[str, Any]:
        """What the entry module received; the decoder may also be called by itself."""
        return of_decoder if self._thread.inputs is None else self._thread.inputs

    def _visual_mask(self, inputs: dict[str, Any]) -> Tensor:
        return self.adapter.visual_mask(inputs.get("input_ids"), inputs.get("inputs_embeds"))

    def _begin_prefill(self, embeds: Tensor, visual: Tensor, kwargs: dict[str, Any], cache: Any, length: int) -> None:
        """``length``: of the prompt; after it are drafts."""
        thread, inputs, attention = self._thread, self._inputs(kwargs), self.adapter.attention()
        mask = inputs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        valid = (mask.bool() if mask is not None else torch.ones_like(visual))[:, :length]
        shown = visual[:, :length]
        visual = (shown & valid).to(embeds.device)
        ids, keys, extras = inputs.get("input_ids"), thread.sample_keys, thread.vision
        ids = ids if ids is None else ids[:, :length]
        layers = len(self.adapter.layers())
        prompt = Prompt(
            embeddings=embeds[:, :length],
            visual=visual,
            valid=valid.to(embeds.device),
            read_coordinates=lambda: self.adapter.coordinates(inputs, visual),
            read_keys=lambda: _keys_of_rows(keys, len(valid)) or _content_keys(ids, valid),
            read_vision=lambda: self._tower.rows(inputs, shown, valid, extras),
        )
        n_visual = visual.sum(dim=1).cpu().numpy()
        if ids is None and not n_visual.any():
            warnings.warn(
                "no visual token was found among inputs_embeds, so nothing is pruned; features that are merged into "
                "them cannot be told from text: give the model input_ids and pixels",
                stacklevel=2,
            )
        counts = checked_counts(self.policy.counts(n_visual, layers, prompt), n_visual, layers, self.method)
        if bool((counts < n_visual[:, None]).any()) or self.gather_always:
            refuse_uncuttable(self.adapter, attention, cache, embeds.shape[1])
            refuse_packed(kwargs, inputs.get("attention_mask"))
            if self.adapter.model.training and torch.is_grad_enabled() and thread.labels is None:
                warnings.warn(UNSEEN_LOSS, stacklevel=2)
            self._refuse_other_modules()
        if thread.reads_end and bool((loses := self._left(counts) < n_visual).any()):
            refuse_visual_end(prompt, loses)
        thread.counts = torch.from_numpy(counts)
        thread.prefill = self._start(prompt, thread.counts.to(embeds.device), attention, embeds.shape[1] - length)
        thread.layers, thread.cache, thread.began = thread.prefill.layers, cache, time.perf_counter()
        self._count(prefills=1, visual=int(n_visual.sum()), dropped=int((n_visual - counts[:, -1]).sum()))

    def _start(self, prompt: Prompt, counts: Tensor, attention: str, drafts: int = 0) -> Prefill:
        n_visual = prompt.visual.sum(dim=1)
        prompt = replace(prompt, most=most_kept(torch.cat([n_visual[:, None], counts], dim=1).cpu().numpy()))
        path = Path.of(counts, n_visual)
        return Prefill(self.adapter, self.method, prompt, path, attention, self.gather_always, drafts)

    def _left(self, counts: Counts) -> Counts:
        """Visual tokens [B] that stay to the end."""
        return counts[:, -1]

    def _refuse_other_modules(self) -> None:
        """The hooks do not see what was put in the place of a module after they were put on."""
        now = self._modules()
        if len(now) != len(self._hooked) or any(map(operator.is_not, now, self._hooked)):
            raise ModelError(
                "parts of the decoder were replaced inside the prune block, as by adding, merging or unloading an "
                "adapter; leave the block, change the model, and enter the block again"
            )

    def on_layer(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        thread, cache = self._thread, kwargs.get("past_key_values")
        if thread.prefill is not None:
            call = thread.prefill.on_layer(number, args, kwargs)
            if cache is not None and thread.prefill.cuts and number not in self.adapter.recurrent_layers:
                kept, thread.cache = self._kept(thread.prefill), cache
                layer = to_be_pruned(cache, number)
                layer.beside_recurrent = self._recurrent
                layer.expect(module, kept.index.shape[1], kept)
            return call
        filled = pruned_layer(cache, number)
        if filled is None:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        given, new = kwargs.get("attention_mask"), hidden.shape[1]
        filled.expect(module, new)
        key = (id(filled.kept), id(given), filled.is_sliding, filled.length)
        if key not in thread.masks:
            thread.masks[key] = filled.mask(given, new, self.adapter.attention(), hidden)
        return args, {**kwargs, "attention_mask": thread.masks[key]}

    def _kept(self, prefill: Prefill) -> Kept:
        """What the next layer's cache will hold. Layers that hold the same share it."""
        thread, tokens, prompt = self._thread, prefill.tokens, prefill.prompt
        if thread.tail is None:
            thread.tail = text_tail(prompt.visual, prompt.valid) + prefill.drafts
        if id(tokens) not in thread.kept:
            real = tokens.valid if prefill.cut else torch.ones_like(tokens.valid)
            # The tokens are kept so that their id stays taken.
            thread.kept[id(tokens)] = tokens, Kept(tokens.index, real, prefill.length, thread.tail)
        return thread.kept[id(tokens)][1]

    def on_output(self, number: int, module: nn.Module, args: Any, output: Any) -> Any:
        prefill = self._thread.prefill
        return output if prefill is None else prefill.on_output(number, output)

    def on_projection(self, layer: int, what: str, module: nn.Module, args: Any, output: Tensor) -> None:
        prefill = self._thread.prefill
        if prefill is not None and prefill.captures(layer):
            prefill.on_projection(layer, what, output)

    def _on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        thread = self._thread
        state, began = thread.prefill, thread.began
        self._end_call()
        if output is None or state is None:
            return output
        self._count(milliseconds=(time.perf_counter() - began) * 1000)
        if state.cuts and len(state.layers) < self._layers_run(module):
            raise ModelError(
                "the decoder's layers ran without the hooks of this prune block, so nothing was pruned: code of this "
                "model was compiled before the block; call the plain model, not what torch.compile gave"
            )
        if not state.cut:
            return output
        if thread.labels is not None:
            refuse_labels(thread.labels, state.prompt, state.tokens)
        if hasattr(output, "last_hidden_state"):
            output.last_hidden_state = state.full_length(output.last_hidden_state)
            return output
        return (state.full_length(output[0]), *output[1:])

    def _layers_run(self, decoder: nn.Module) -> int:
        layers = len(self.adapter.layers())
        return min(layers, getattr(decoder.config, "num_hidden_layers", layers))

    def _end_call(self) -> None:
        """What was known of a call goes with it, however it ended."""
        thread = self._thread
        if thread.cache is not None:
            for layer in getattr(thread.cache, "layers", ()):
                if isinstance(layer, PrunedLayer):
                    layer.forget()
        thread.prefill = thread.cache = thread.tail = None
        thread.kept, thread.masks = {}, {}


def _brings_pictures(inputs: dict[str, Any]) -> bool:
    """Whether features stand for the placeholders of this call; a placeholder without one is text."""
    given = {key for key, value in inputs.items() if value is not None}
    return any(key.startswith("pixel_values") for key in given) or bool(given & {"mm_encoder_outputs", "inputs_embeds"})


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
