"""One prefill on its way through the layers: at each boundary the tokens that stay are gathered."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from vispco.errors import MeasurementError
from vispco.models.base import ModelAdapter
from vispco.models.decoder import Deepstack
from vispco.pruning.forward.attention import LayerAttention, LookAhead
from vispco.pruning.forward.masks import as_backend_mask, causal_mask, gather_mask, with_diagonal
from vispco.pruning.forward.tokens import Prompt, Tokens, rows_at
from vispco.pruning.methods.base import Method, ScoreContext
from vispco.pruning.needs import LAYER_BEFORE

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Path:
    """What one policy does to a batch: ``counts`` int [B, L], visual tokens that enter each layer.

    Per boundary, the one before layer 0 first: whether tokens are ``dropped``, whether the method then chooses
    among them (``scored``; where all go at once, nothing is ranked), and whether it ranks at all (``ranked``):
    for this path, or for another one that shares the layers before.
    """

    counts: Tensor
    dropped: list[bool]
    scored: list[bool]
    ranked: list[bool]

    @staticmethod
    def of(counts: Tensor, n_visual: Tensor) -> Path:
        """The path of a policy alone; ``n_visual`` int [B]."""
        dropped = (counts.diff(dim=1, prepend=n_visual[:, None]) < 0).any(dim=0).tolist()
        scored = [drop and some for drop, some in zip(dropped, counts.any(dim=0).tolist(), strict=True)]
        return Path(counts, dropped, scored, scored)


@dataclass
class Prefill:
    """State of one prefill. Layers' keyword arguments arrive at full length and leave at the tokens' length.

    ``layers``: the tokens that entered each layer so far. ``gather_always`` gathers at every boundary, also where
    nothing is dropped (tests, benchmarks). ``drafts``: tokens after the prompt, which methods do not see.
    """

    adapter: ModelAdapter
    method: Method
    prompt: Prompt
    path: Path
    attention: str
    gather_always: bool = False
    drafts: int = 0
    deepstack: Deepstack | None = None
    layers: list[Tokens] = field(default_factory=list)
    cut: bool = False

    def __post_init__(self) -> None:
        visual, valid = self.prompt.visual, self.prompt.valid
        if self.drafts:
            visual = nn.functional.pad(visual, (0, self.drafts), value=False)
            valid = nn.functional.pad(valid, (0, self.drafts), value=True)
        self.tokens = Tokens.of(visual, valid)
        if any(self.path.ranked) and "vision" in self.method.needs:
            _ = self.prompt.vision  # the tower's part is there only until the decoder starts
        with torch.no_grad():
            self._begun = self.method.begin(self.prompt) if any(self.path.ranked) else None
        self._captured: dict[str, Tensor] = {}
        self._looking = False  # a method that looks ahead calls projections itself
        self._scored: tuple[ScoreContext, Tensor] | None = None
        self._shortened: dict[int, tuple[Any, Any]] = {}
        self._layer_kwargs: dict[str, Any] = {}

    @property
    def length(self) -> int:
        """Tokens of the call: the prompt, and drafts after it."""
        return self.prompt.valid.shape[1] + self.drafts

    @property
    def cuts(self) -> bool:
        """Whether any layer is to hold another set of tokens than the prompt."""
        return self.gather_always or any(self.path.dropped)

    def fork(self, path: Path) -> Prefill:
        """The same state on another path, which must agree with this one on the layers that are done."""
        other = copy.copy(self)
        other.layers, other._shortened, other._captured = list(self.layers), dict(self._shortened), {}
        other.path = path
        return other

    def rank(self, boundary: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Rank now, once for all forks that choose at ``boundary``; ``hidden`` and ``kwargs`` are about to enter it."""
        if self._scored is None:
            self._scored = self._ranked(boundary, hidden, kwargs)

    # --- what the hooks call ---------------------------------------------------------------------

    def captures(self, layer: int) -> bool:
        """Whether the boundary after ``layer`` ranks tokens by queries or keys of ``layer``."""
        if self._looking or not self.method.needs & LAYER_BEFORE:
            return False
        return layer + 1 < len(self.path.ranked) and self.path.ranked[layer + 1]

    def on_projection(self, layer: int, what: str, output: Tensor) -> None:
        """Rank at once when what is needed is there, so that it is not held through the MLP."""
        self._captured[what] = output
        wanted = {"queries", "keys"} if "attention" in self.method.needs else {"keys"}
        if wanted <= self._captured.keys() and "look_ahead" not in self.method.needs:
            context = self._context(layer + 1)
            self._scored = context, self._score(context)

    def on_layer(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        gathers = self.path.dropped[number] or (self.gather_always and number > 0)
        if gathers:
            hidden = self._drop(number, hidden, kwargs)
        self._scored = None  # also what was ranked for other paths only
        self.layers.append(self.tokens)
        if not self.cut:
            self._layer_kwargs = kwargs
            return None
        kwargs = {**kwargs, **self._shorten(kwargs, number)}
        self._layer_kwargs = kwargs
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def on_output(self, layer: int, output: Any) -> Any:
        """What leaves ``layer``, with the visual features that the decoder would have added after it."""
        if self.deepstack is None or layer >= len(self.deepstack.features):
            return output
        hidden = output if isinstance(output, Tensor) else output[0]
        hidden = self.deepstack.add(layer, hidden, self.tokens.index)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    def full_length(self, hidden: Tensor) -> Tensor:
        """The decoder's output [B, n, H] back at the prompt's length [B, T, H]; rows of dropped tokens are zero."""
        index, valid = self.tokens.index.to(hidden.device), self.tokens.valid.to(hidden.device)
        full = hidden.new_zeros(hidden.shape[0], self.length, hidden.shape[-1])
        return full.scatter_add_(1, index[..., None].expand_as(hidden), hidden * valid[..., None])

    # --- choosing --------------------------------------------------------------------------------

    def _drop(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Choose the tokens that enter layer ``number``; returns their hidden states."""
        tokens = self.tokens
        keep = tokens.valid & ~tokens.visual
        if self.path.scored[number]:
            context, scores = self._scored or self._ranked(number, hidden, kwargs)
            chosen, hidden = self.method.reduce(context, scores, self.path.counts[:, number], hidden)
            keep = keep | chosen
        elif not self.path.dropped[number]:
            keep = tokens.valid
        self.tokens, places = tokens.take(keep)
        self.cut = True
        self._shortened.clear()
        return rows_at(hidden, places)

    def _ranked(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[ScoreContext, Tensor]:
        context = self._context(number)
        if "look_ahead" in self.method.needs:
            context.look_ahead = cache(partial(self._look_ahead, number, hidden, kwargs))
        self._looking = True
        try:
            return context, self._score(context)
        finally:
            self._looking = False

    def _context(self, boundary: int) -> ScoreContext:
        tokens = self._of_prompt()
        return ScoreContext(
            boundary=boundary,
            visual=tokens.visual,
            valid=tokens.valid,
            last=tokens.last(),
            index=tokens.index,
            rank=tokens.rank,
            prompt=self.prompt,
            shape=self.adapter.known_shape,
            attention=cache(partial(self._attention_of, boundary - 1, self._captured)),
            begun=self._begun,
            final_norm=self.adapter.norm,
        )

    def _of_prompt(self) -> Tokens:
        """The tokens that are left as methods see them: drafts are none."""
        if not self.drafts:
            return self.tokens
        last = self.prompt.valid.shape[1] - 1
        valid = self.tokens.valid & (self.tokens.index <= last)
        return replace(self.tokens, valid=valid, index=self.tokens.index.clamp(max=last))

    def _attention_of(self, layer: int, captured: dict[str, Tensor]) -> LayerAttention:
        keys = captured["keys"]
        seen = self._seen_by(self._layer_kwargs, keys.device)
        return LayerAttention(self.adapter, layer, queries=captured.get("queries"), keys=keys, **seen)

    def _look_ahead(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> LayerAttention:
        kwargs = {**kwargs, **self._shorten(kwargs, layer)} if self.cut else kwargs
        return LookAhead(self.adapter, layer, hidden=hidden, **self._seen_by(kwargs, hidden.device))

    def _seen_by(self, kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """What a layer that is called with ``kwargs`` knows of its tokens."""
        mask = kwargs.get("attention_mask")
        cos, sin = (part.to(device) for part in kwargs["position_embeddings"])
        return {
            "position_embeddings": (cos, sin),
            "valid": self._of_prompt().valid.to(device),
            "mask": mask if mask is None else mask.to(device),
        }

    def _score(self, context: ScoreContext) -> Tensor:
        # Without gradients, also because a layer that is checkpointed would have to do this again.
        with torch.no_grad():
            scores = self.method.score(context).to(context.visual.device)
        if not bool(torch.isfinite(scores.masked_fill(~context.visual, 0.0)).all()):
            raise MeasurementError(
                f"method {self.method.name!r} gave scores that are not finite before layer {context.boundary}; "
                "check the model's weights and dtype"
            )
        # Queries, keys and states must not outlive the layer.
        context.attention = context.look_ahead = _gone
        self._captured = {}
        return scores

    # --- shortening ------------------------------------------------------------------------------

    def _shorten(self, kwargs: dict[str, Any], layer: int) -> dict[str, Any]:
        """What a layer receives per token, cut to the tokens that are left. Layers of one kind share the result."""
        short: dict[str, Any] = {}
        if kwargs.get("position_embeddings") is not None:
            short["position_embeddings"] = self._once(kwargs["position_embeddings"], self._rotary)
        if kwargs.get("position_ids") is not None:
            short["position_ids"] = self._once(kwargs["position_ids"], self._position_ids)
        if "attention_mask" in kwargs:
            mask = kwargs["attention_mask"]
            if layer in self.adapter.recurrent_layers:
                short["attention_mask"] = self.tokens.valid.long() if bool(self.tokens.filler.any()) else None
            else:
                short["attention_mask"] = self._once(mask, lambda m: self._mask(m, short["position_embeddings"][0]))
        return short

    def _once(self, source: Any, make: Any) -> Any:
        key = id(source)
        if key not in self._shortened:
            self._shortened[key] = (source, make(source))  # the source is kept so that its id stays taken
        return self._shortened[key][1]

    def _rotary(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(rows_at(part, self.tokens.index) for part in parts)

    def _position_ids(self, ids: Tensor) -> Tensor | None:
        if "flash" in self.attention:
            # Flash kernels take gaps in the ids for the seams of packed sequences.
            return None
        batch, index = len(self.tokens.index), self.tokens.index.to(ids.device)
        if ids.ndim == 3:  # several axes
            return ids.expand(-1, batch, -1).gather(2, index.expand(len(ids), -1, -1))
        return ids.expand(batch, -1).gather(1, index)

    def _mask(self, mask: Tensor | None, like: Tensor) -> Tensor | None:
        tokens = self.tokens
        if mask is not None and mask.ndim == 2:
            return tokens.valid.to(mask.device, mask.dtype)
        if mask is not None:
            index = tokens.index.to(mask.device)
            return gather_mask(mask, index, index, tokens.filler.to(mask.device))
        if not bool(tokens.filler.any()):
            return None
        if "flash" in self.attention:
            return tokens.valid.long()
        allowed = with_diagonal(causal_mask(tokens.valid, tokens.valid.shape[1]))
        return as_backend_mask(allowed, self.attention, like.dtype)


def _gone() -> LayerAttention:
    raise MeasurementError("attention of the layer before is only there while a method scores; read it in score()")
