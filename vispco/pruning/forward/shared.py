"""One prefill of a batch under many policies: a tree over layers, in which equal beginnings run once.

Policies whose counts agree on the batch up to layer l share layers 0 to l, and where several choose at a boundary
the method ranks once. The first path runs in the model's own forward, which also shows what every layer is called
with; at each branching the state is put aside, and the other paths are driven layer by layer from there, deepest
first, through the same hooks. So every path does, on the same numbers, what it would do alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vispco.models.base import ModelAdapter
from vispco.pruning.forward.counts import most_kept
from vispco.pruning.forward.prefill import Call, Path, Prefill
from vispco.pruning.forward.tokens import Prompt
from vispco.pruning.methods.base import Method
from vispco.pruning.schedules import Counts
from vispco.pruning.session import PruningSession

Members = list[int]
OWN = ("hidden_states", "past_key_values")  # arguments of a layer that every path has for itself


@dataclass(frozen=True, eq=False)
class Walk:
    """Where a path stands before a layer: its tokens, their hidden states [B, n, H], and the cache so far."""

    prefill: Prefill
    hidden: Tensor
    cache: Any = None

    @property
    def bytes(self) -> int:
        held = [self.hidden]
        for layer in self.cache.layers if self.cache is not None else ():
            if hasattr(layer, "recurrent_states"):
                held += [part for part in (layer.conv_states[0], layer.recurrent_states[0]) if part is not None]
            else:
                held += [part for part in (layer.keys, layer.values) if part is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def fork(self, path: Path) -> Walk:
        return Walk(self.prefill.fork(path), self.hidden, fork_cache(self.cache))


@dataclass
class Branching:
    """Paths still to be walked from before layer ``number`` on; ``state`` is None if it was given up."""

    number: int
    children: list[Members]
    state: Walk | None

    @property
    def bytes(self) -> int:
        return 0 if self.state is None else self.state.bytes


class SharedPrefill(PruningSession):
    """Last-token logits of one batch under ``counts`` int [P, B, L], one policy after another.

    Counts are what :func:`vispco.pruning.forward.counts.checked_counts` gives.

    ``memory_limit``: bytes of hidden states that may be put aside; what does not fit is computed again when its
    turn comes (``recomputed`` lists the layers, and the tokens [B] in each). None: no limit.
    """

    def __init__(
        self, adapter: ModelAdapter, method: Method, counts: NDArray[np.int64], memory_limit: int | None = None
    ) -> None:
        super().__init__(adapter, method, _First(counts[0]))
        self.recomputed: list[tuple[int, NDArray[np.int64]]] = []
        self._paths = counts
        self._memory_limit = memory_limit
        self._stack: list[Branching] = []
        self._members: Members = []
        self._recording = False
        self._layer_calls: list[dict[str, Any]] = []
        self._root: Walk | None = None
        self._leaf: Walk | None = None
        self._mask: Tensor | None = None

    @torch.inference_mode()
    def logits(
        self, inputs: Mapping[str, Any], keys: Sequence[int] | None = None, *, cached: bool = False
    ) -> Iterator[tuple[Members, Tensor]]:
        """(policies, their logits [B, V] after the last prompt token), until every policy has been named once.

        ``inputs`` are padded on the left; ``keys`` [B] tell samples apart for seeded methods, as
        ``PruningSession.sample_keys``. With ``cached``, :meth:`greedy` may be asked for more tokens of the policies
        just named.
        """
        self.sample_keys = keys
        self._mask = inputs.get("attention_mask")
        self.install()
        try:
            self._recording = True
            logits = self.adapter.model(**inputs, use_cache=cached, logits_to_keep=1).logits[:, -1]
            self._recording = False
            yield self._members, logits
            while self._stack:
                self._leaf = self._walk(*self._next())
                yield self._members, self.adapter.head(self._leaf.hidden[:, -1:])[:, -1]
        finally:
            self._recording = False
            self._stack.clear()
            self._layer_calls.clear()
            self._root = self._leaf = self._mask = None
            self.remove()

    @torch.inference_mode()
    def greedy(self, logits: Tensor, max_new_tokens: int, stop: Sequence[int] = (), pad: int = 0) -> Tensor:
        """The policies just named go on from their ``logits`` [B, V]: tokens [B, at most ``max_new_tokens``].

        The most probable token each time; after one of ``stop`` comes ``pad``.
        """
        tokens = [logits.argmax(dim=-1)]
        leaf, mask = self._leaf, self._mask
        if max_new_tokens == 1:
            return tokens[0][:, None]
        assert leaf is not None
        assert leaf.cache is not None
        prompt = leaf.prefill.prompt.valid
        mask = prompt.long() if mask is None else mask
        stops = torch.tensor(list(stop), device=logits.device, dtype=tokens[0].dtype)
        ended = torch.isin(tokens[0], stops)
        while len(tokens) < max_new_tokens and not bool(ended.all()):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            out = self.adapter.model(
                input_ids=tokens[-1][:, None],
                attention_mask=mask,
                past_key_values=leaf.cache,
                use_cache=True,
                logits_to_keep=1,
                **self.adapter.decoding_inputs(mask, 1),
            )
            tokens.append(out.logits[:, -1].argmax(dim=-1).masked_fill(ended, pad))
            ended = ended | torch.isin(tokens[-1], stops)
        return torch.stack(tokens, dim=1)

    @torch.inference_mode()
    def given(self, tokens: Tensor) -> Tensor:
        """Logits [B, m, V] after each of ``tokens`` [B, m], which follow the prompt of the policies just named.

        Asked for once per yield of :meth:`logits`, with ``cached``.
        """
        leaf, mask = self._leaf, self._mask
        assert leaf is not None
        assert leaf.cache is not None
        prompt = leaf.prefill.prompt.valid
        mask = torch.cat([prompt.long() if mask is None else mask, torch.ones_like(tokens)], dim=1)
        more = self.adapter.decoding_inputs(mask, tokens.shape[1])
        out = self.adapter.model(input_ids=tokens, attention_mask=mask, past_key_values=leaf.cache, **more)
        return out.logits  # type: ignore[no-any-return]

    # --- the first path, in the model's own forward ------------------------------------------------

    def _left(self, counts: Counts) -> Counts:
        return self._paths[:, :, -1].min(axis=0)  # type: ignore[no-any-return]

    def _start(self, prompt: Prompt, counts: Tensor, attention: str, drafts: int = 0) -> Prefill:
        n_visual = prompt.visual.sum(dim=1).cpu().numpy()
        before = np.concatenate([np.broadcast_to(n_visual[:, None], self._paths[..., :1].shape), self._paths], axis=2)
        self._dropped: NDArray[np.bool_] = np.any(np.diff(before, axis=2) < 0, axis=1)
        self._scored: NDArray[np.bool_] = self._dropped & np.any(self._paths > 0, axis=1)
        self._on_device = torch.from_numpy(self._paths).to(prompt.embeddings.device)
        self._members = list(range(len(self._paths)))
        prompt = replace(prompt, most=most_kept(before))
        return Prefill(self.adapter, self.method, prompt, self._path(self._members), attention)

    def on_layer(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if not self._recording or self._thread.prefill is None:
            return super().on_layer(number, module, args, kwargs)
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        walk = Walk(self._thread.prefill, hidden, kwargs.get("past_key_values"))
        if number == 0:
            self._root = walk.fork(self._path(self._members))
        self._layer_calls.append({**kwargs, **{key: None for key in OWN if key in kwargs}})
        self._leaf = walk = self._branch(number, walk)
        self._thread.prefill = walk.prefill
        return super().on_layer(number, module, args, kwargs)

    # --- the other paths ---------------------------------------------------------------------------

    def _path(self, members: Members) -> Path:
        """The path of the first member; what any member ranks is ranked."""
        first = members[0]
        ranked: list[bool] = np.any(self._scored[members], axis=0).tolist()
        dropped: list[bool] = self._dropped[first].tolist()
        scored: list[bool] = self._scored[first].tolist()
        return Path(self._on_device[first], dropped, scored, ranked)

    def _branch(self, number: int, walk: Walk) -> Walk:
        """Follow the first member through the boundary before layer ``number``; put the others aside."""
        children: dict[bytes, Members] = {}
        for member in self._members:
            children.setdefault(self._paths[member, :, number].tobytes(), []).append(member)
        if len(children) == 1:
            return walk
        if self._scored[self._members, number].any():
            walk.prefill.rank(number, walk.hidden, self._layer_calls[number])
        first, *rest = children.values()
        # The copy stands still while the path goes on; the path keeps its cache, which the model holds.
        self._stack.append(Branching(number, rest, walk.fork(walk.prefill.path)))
        self._keep_within_memory()
        self._members = first
        return Walk(walk.prefill.fork(self._path(first)), walk.hidden, walk.cache)

    def _next(self) -> tuple[int, Walk]:
        """The next child of the deepest branching: where it starts, and in which state."""
        branching = self._stack.pop()
        if branching.state is None:
            branching.state = self._again(branching.number, [m for child in branching.children for m in child])
        state = branching.state
        self._members = branching.children.pop(0)
        if branching.children:
            self._stack.append(branching)
            self._keep_within_memory()
        return branching.number, state.fork(self._path(self._members))

    def _walk(self, number: int, walk: Walk) -> Walk:
        """Run the layers from ``number`` on; the result stands after the last one."""
        for at in range(number, len(self._layer_calls)):
            if at > number:
                walk = self._branch(at, walk)
            walk = self._run_layer(at, walk)
        return walk

    def _run_layer(self, number: int, walk: Walk) -> Walk:
        self._thread.prefill = walk.prefill
        own = {"hidden_states": walk.hidden, "past_key_values": walk.cache}
        call = {**self._layer_calls[number], **{key: own[key] for key in OWN if key in self._layer_calls[number]}}
        arguments = () if "hidden_states" in call else (walk.hidden,)
        output = self.adapter.layers()[number](*arguments, **call)
        self._thread.prefill = None
        return Walk(walk.prefill, output if isinstance(output, Tensor) else output[0], walk.cache)

    # --- memory ------------------------------------------------------------------------------------

    def _keep_within_memory(self) -> None:
        """Give up states, first those that are the fewest layers after another one."""
        while self._memory_limit is not None and sum(b.bytes for b in self._stack) > self._memory_limit:
            kept = [b for b in self._stack if b.state is not None]
            gaps = [b.number - before for b, before in zip(kept, [0, *(b.number for b in kept)], strict=False)]
            kept[gaps.index(min(gaps))].state = None

    def _again(self, number: int, members: Members) -> Walk:
        """State before the boundary of layer ``number`` once more, from the nearest one that was kept."""
        start, walk = 0, self._root
        for branching in self._stack:
            if branching.state is not None:
                start, walk = branching.number, branching.state
        assert walk is not None
        walk = walk.fork(self._path(members))
        for at in range(start, number):
            walk = self._run_layer(at, walk)
            tokens = walk.prefill.layers[-1].valid.sum(dim=1).cpu().numpy()
            self.recomputed.append((at, tokens))
        if self._scored[members, number].any():
            walk.prefill.rank(number, walk.hidden, self._layer_calls[number])
        return walk


def fork_cache(cache: Any) -> Any:
    """A copy that can grow by itself; keys and values are shared, since dynamic caches never write into them. The
    states of linear attention are written into, so they are copied."""
    if cache is None:
        return None
    forked = copy.copy(cache)
    forked.layers = [
        copy.deepcopy(layer) if hasattr(layer, "recurrent_states") else copy.copy(layer) for layer in cache.layers
    ]
    return forked


class _First:
    """The policy of the first path."""

    def __init__(self, given: NDArray[np.int64]) -> None:
        self.given = given

    def counts(self, n_visual: NDArray[np.int64], layers: int, context: Any = None) -> NDArray[np.int64]:
        return self.given
