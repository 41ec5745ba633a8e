"""One prefill of a batch under many policies: a tree over layers, in which equal beginnings run once.

Policies whose counts agree on the batch up to layer l share layers 0 to l, and where several choose at a boundary
the method ranks once. The first path runs in the model's own forward, which also shows what every layer is called
with; at each branching the state is put aside, and the other paths are driven layer by layer from there, deepest
first, through the same hooks. So every path does, on the same numbers, what it would do alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vispco.costs import layer_flops
from vispco.models.base import ModelAdapter
from vispco.pruning.methods.base import Method
from vispco.pruning.prefill import Call, Path, Prefill
from vispco.pruning.runtime import PruningSession
from vispco.pruning.tokens import Prompt

Members = list[int]


@dataclass
class Branching:
    """Paths still to be walked from before layer ``number`` on; ``state`` and ``hidden`` are None if given up."""

    number: int
    children: list[Members]
    state: Prefill | None
    hidden: Tensor | None

    @property
    def bytes(self) -> int:
        if self.hidden is None:
            return 0
        return self.hidden.numel() * self.hidden.element_size()


class SharedPrefill(PruningSession):
    """Last-token logits of one batch under ``counts`` int [P, B, L], one policy after another.

    Counts are what :func:`vispco.pruning.runtime.checked_counts` gives.

    ``memory_limit``: bytes of hidden states that may be put aside; what does not fit is computed again when its
    turn comes (``recomputed_flops`` says how much that was). None: no limit.
    """

    def __init__(
        self, adapter: ModelAdapter, method: Method, counts: NDArray[np.int64], memory_limit: int | None = None
    ) -> None:
        super().__init__(adapter, method, _First(counts[0]))
        self.recomputed_flops = 0
        self._paths = counts
        self._memory_limit = memory_limit
        self._stack: list[Branching] = []
        self._members: Members = []
        self._recording = False
        self._layer_calls: list[dict[str, Any]] = []
        self._root: tuple[Prefill, Tensor] | None = None

    @torch.inference_mode()
    def logits(self, inputs: Mapping[str, Any], keys: Sequence[int] | None = None) -> Iterator[tuple[Members, Tensor]]:
        """(policies, their logits [B, V] behind the last prompt token), until every policy has been named once.

        ``inputs`` are padded on the left; ``keys`` [B] tell samples apart for seeded methods, as
        ``PruningSession.sample_keys``.
        """
        self.sample_keys = keys
        self.install()
        try:
            self._recording = True
            logits = self.adapter.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            self._recording = False
            yield self._members, logits
            while self._stack:
                hidden = self._walk(*self._next())
                yield self._members, self.adapter.head(hidden[:, -1:])[:, -1]
        finally:
            self._recording = False
            self._stack.clear()
            self._layer_calls.clear()
            self._root = None
            self.remove()

    # --- the first path, in the model's own forward ------------------------------------------------

    def _start(self, prompt: Prompt, counts: Tensor, attention: str) -> Prefill:
        n_visual = prompt.visual.sum(dim=1).cpu().numpy()
        before = np.concatenate([np.broadcast_to(n_visual[:, None], self._paths[..., :1].shape), self._paths], axis=2)
        self._dropped: NDArray[np.bool_] = np.any(np.diff(before, axis=2) < 0, axis=1)
        self._scored: NDArray[np.bool_] = self._dropped & np.any(self._paths > 0, axis=1)
        self._on_device = torch.from_numpy(self._paths).to(prompt.embeddings.device)
        self._members = list(range(len(self._paths)))
        return Prefill(self.adapter, self.method, prompt, self._path(self._members), attention)

    def on_layer(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if not self._recording or self._prefill is None:
            return super().on_layer(number, args, kwargs)
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if number == 0:
            self._root = self._prefill.fork(self._path(self._members)), hidden
        self._layer_calls.append({key: value for key, value in kwargs.items() if key != "hidden_states"})
        self._prefill = self._branch(number, self._prefill, hidden)
        return self._prefill.on_layer(number, args, kwargs)

    # --- the other paths ---------------------------------------------------------------------------

    def _path(self, members: Members) -> Path:
        """The path of the first member; what any member ranks is ranked."""
        first = members[0]
        ranked: list[bool] = np.any(self._scored[members], axis=0).tolist()
        dropped: list[bool] = self._dropped[first].tolist()
        scored: list[bool] = self._scored[first].tolist()
        return Path(self._on_device[first], dropped, scored, ranked)

    def _branch(self, number: int, state: Prefill, hidden: Tensor) -> Prefill:
        """Follow the first member through the boundary before layer ``number``; put the others aside."""
        children: dict[bytes, Members] = {}
        for member in self._members:
            children.setdefault(self._paths[member, :, number].tobytes(), []).append(member)
        if len(children) == 1:
            return state
        if self._scored[self._members, number].any():
            state.rank(number)
        first, *rest = children.values()
        self._stack.append(Branching(number, rest, state, hidden))
        self._keep_within_memory()
        self._members = first
        return state.fork(self._path(first))

    def _next(self) -> tuple[int, Prefill, Tensor]:
        """The next child of the deepest branching: where it starts, and in which state."""
        branching = self._stack.pop()
        members = [member for child in branching.children for member in child]
        if branching.hidden is None or branching.state is None:
            branching.state, branching.hidden = self._again(branching.number, members)
        state, hidden = branching.state, branching.hidden
        self._members = branching.children.pop(0)
        if branching.children:
            self._stack.append(branching)
            self._keep_within_memory()
        return branching.number, state.fork(self._path(self._members)), hidden

    def _walk(self, number: int, state: Prefill, hidden: Tensor) -> Tensor:
        """Run the layers from ``number`` on; returns what leaves the last one."""
        for at in range(number, len(self._layer_calls)):
            if at > number:
                state = self._branch(at, state, hidden)
            hidden = self._run_layer(at, state, hidden)
        return hidden

    def _run_layer(self, number: int, state: Prefill, hidden: Tensor) -> Tensor:
        self._prefill = state
        output = self.adapter.layers()[number](hidden, **self._layer_calls[number])
        self._prefill = None
        return output if isinstance(output, Tensor) else output[0]

    # --- memory ------------------------------------------------------------------------------------

    def _keep_within_memory(self) -> None:
        """Give up states, first those that are the fewest layers behind another one."""
        while self._memory_limit is not None and sum(b.bytes for b in self._stack) > self._memory_limit:
            kept = [b for b in self._stack if b.hidden is not None]
            gaps = [b.number - before for b, before in zip(kept, [0, *(b.number for b in kept)], strict=False)]
            given_up = kept[gaps.index(min(gaps))]
            given_up.state = given_up.hidden = None

    def _again(self, number: int, members: Members) -> tuple[Prefill, Tensor]:
        """State before the boundary of layer ``number`` once more, from the nearest one that was kept."""
        kept = [b for b in self._stack if b.hidden is not None]
        assert self._root is not None
        start, (state, hidden) = 0, self._root
        if kept and kept[-1].state is not None and kept[-1].hidden is not None:
            start, state, hidden = kept[-1].number, kept[-1].state, kept[-1].hidden
        state = state.fork(self._path(members))
        for at in range(start, number):
            hidden = self._run_layer(at, state, hidden)
            tokens = state.layers[-1].valid.sum(dim=1).cpu().numpy()
            self.recomputed_flops += int(layer_flops(self.adapter.shape(), tokens).sum())
        return state, hidden


class _First:
    """The policy of the first path."""

    def __init__(self, given: NDArray[np.int64]) -> None:
        self.given = given

    def counts(self, n_visual: NDArray[np.int64], layers: int, context: Any = None) -> NDArray[np.int64]:
        return self.given
