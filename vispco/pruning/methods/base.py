"""The contract of a pruning method: score visual tokens at a boundary; the rest has defaults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.config import content_hash
from vispco.errors import ConfigError
from vispco.registry import Registry, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.shapes import ModelShape
    from vispco.pruning.forward.attention import LayerAttention
    from vispco.pruning.forward.tokens import Prompt

METHODS = Registry("method", "methods", "name")


@dataclass
class ScoreContext:
    """What a method may look at when tokens are about to enter layer ``boundary``.

    Tokens are those that entered the layer before, ``n`` of them, in prompt order. ``visual`` and ``valid``
    are bool [B, n]; ``last`` [B] is the index of the last prompt token among the n; ``index`` [B, n] is the
    place in the prompt; ``rank`` [B, n] is the index of a visual token among the sample's original visual
    tokens (meaningless elsewhere); ``prompt`` is the whole prompt; ``shape`` are the decoder's sizes; ``begun`` is
    what :meth:`Method.begin` gave. The rest is there for methods that declare it in ``needs``.
    """

    boundary: int
    visual: Tensor
    valid: Tensor
    last: Tensor
    index: Tensor
    rank: Tensor
    prompt: Prompt
    shape: ModelShape
    attention: Callable[[], LayerAttention]
    begun: Any = None
    look_ahead: Callable[[], LayerAttention] | None = None
    final_norm: Callable[[Tensor], Tensor] | None = None

    @property
    def sample_keys(self) -> list[int]:
        """[B], identify samples for seeded methods, whatever batch they are in."""
        return self.prompt.sample_keys

    def attention_rows(self, query_index: Tensor) -> Tensor:
        """Attention of the layer before for chosen queries, float32 [B, h, R, n], from ``query_index`` [B, R].

        Softmax over all keys that the query sees, as in the model; only these rows are computed.
        """
        return self.attention().rows(query_index)

    def position_kernel(self, query_index: Tensor) -> Tensor:
        """:meth:`LayerAttention.position_kernel` of the layer before, float32 [B, R, n]."""
        return self.attention().position_kernel(query_index)

    def keys(self) -> Tensor:
        """Keys of the layer before, before their rotation: [B, g, n, d]."""
        return self.attention().keys()

    def look_ahead_rows(self, query_index: Tensor) -> Tensor:
        """As :meth:`attention_rows`, of layer ``boundary`` itself, were all n tokens to enter it.

        Costs ``2 H (g d n + h d R)`` FLOPs more per sample: its keys, and its queries where asked for.
        """
        assert self.look_ahead is not None
        return self.look_ahead().rows(query_index)

    def normed(self, hidden: Tensor) -> Tensor:
        """``hidden`` [B, n, H] through the norm that stands after the last layer."""
        assert self.final_norm is not None
        return self.final_norm(hidden)

    def blocks(self, query_index: Tensor) -> Iterator[Tensor]:
        """``query_index`` [B, R] in parts whose attention rows take less memory than one layer's MLP."""
        size = max(1, self.shape.mlp // (2 * self.shape.heads))
        for start in range(0, query_index.shape[1], size):
            yield query_index[:, start : start + size]

    def of_prompt(self, values: Tensor) -> Tensor:
        """``values`` [B, T] of the whole prompt at the tokens that are left, [B, n]."""
        return values.gather(1, self.index)


class Method(ABC):
    """A rule that ranks visual tokens; it knows nothing of layers' budgets or schedules.

    Subclasses are frozen dataclasses whose fields are the method's parameters.

    ``needs``: what :meth:`score` reads beside the prompt, names of :data:`vispco.pruning.needs.NEEDS`; a method that
    needs ``"attention"`` or ``"keys"``, of the layer before, cannot prune before layer 0.
    ``differentiable``: its scores can drive the relaxed model of the lagrangian search.
    ``static_order``: a token's rank never changes, so what is kept does not depend on where tokens are dropped.
    ``otherwise``: what a user may do where a model lacks what the method needs, for the error that says so.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    differentiable: ClassVar[bool] = False
    static_order: ClassVar[bool] = False
    otherwise: ClassVar[str] = ""

    def begin(self, prompt: Prompt) -> Any:
        """Called once per prefill in which tokens are dropped; the result is ``context.begun``. Default: None."""
        return None

    @abstractmethod
    def score(self, context: ScoreContext) -> Tensor:
        """float32 [B, n]; larger means keep; values at non-visual positions are ignored."""

    def select(self, context: ScoreContext, scores: Tensor, keep: Tensor) -> Tensor:
        """bool [B, n], True at the ``keep`` [B] visual tokens that stay. Default: the best ``scores`` [B, n].

        Equal scores go to the earlier token, so that results do not depend on the batch.
        """
        return best(scores, context.visual, keep)

    def reduce(self, context: ScoreContext, scores: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens stay, bool [B, n], and the hidden states [B, n, H] of all n that enter the boundary.

        Methods that merge tokens override this and change the states of those that stay; ``hidden`` itself must
        not be changed. Default: :meth:`select`, states untouched.
        """
        return self.select(context, scores, keep), hidden

    def scoring_flops(self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64]) -> Any:
        """FLOPs of scoring one sample at one boundary; ``visual`` and ``text`` tokens in the layer before."""
        return np.zeros_like(visual + text)

    def choosing_flops(
        self, shape: ModelShape, visual: NDArray[np.int64], text: NDArray[np.int64], keep: NDArray[np.int64]
    ) -> Any:
        """FLOPs of :meth:`reduce` for one sample at one boundary that ``keep`` of its ``visual`` tokens pass."""
        return np.zeros_like(visual + text)

    def begin_flops(
        self,
        shape: ModelShape,
        visual: NDArray[np.int64],
        text: NDArray[np.int64],
        most: NDArray[np.int64] | None = None,
    ) -> Any:
        """FLOPs of :meth:`begin` for one sample with these tokens in the prompt; ``most`` as in ``Prompt.most``."""
        return np.zeros_like(visual + text)

    def parameters(self) -> dict[str, Any]:
        """The method's parameters as plain data, for hashes and exports."""
        return asdict(self) if is_dataclass(self) else {}

    def key(self) -> str:
        """Its name, and where it has parameters a short hash of them."""
        given = self.parameters()
        return f"{self.name}:{content_hash(given)[:8]}" if given else self.name


def best(scores: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """bool [B, n]: the ``count`` [B] largest ``scores`` [B, n] where ``among`` [B, n]; ties to the earlier."""
    import torch

    order = scores.masked_fill(~among, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order)
    place.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return (place < count[:, None]) & among


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a parameter's default; anything goes if that is none of the plain kinds."""
    if isinstance(default, bool) or isinstance(value, bool):
        return not isinstance(default, (bool, int, float, str)) or isinstance(value, type(default))
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return not isinstance(default, (int, str)) or isinstance(value, type(default))


def make_method(name: str, parameters: dict[str, Any] | None = None) -> Method:
    """Build a registered method.

    Raises:
        ConfigError: unknown method or parameter, or a value that the method refuses.
    """
    import vispco.pruning.methods  # noqa: F401  (registers the built-in methods)

    cls: type[Method] = METHODS[name]
    known: dict[str, Any] = {field.name: field.default for field in fields(cls)} if is_dataclass(cls) else {}
    for key in parameters or {}:
        if key not in known:
            hint = suggest(key, list(known)) if known else "it has no parameters"
            raise ConfigError(f"method {name!r} has no parameter {key!r}; {hint}")
    unlike = [key for key, value in (parameters or {}).items() if not _alike(value, known[key])]
    try:
        made = cls(**(parameters or {}))
    except TypeError:
        if not unlike:
            raise
    if unlike:
        key = unlike[0]
        given = (parameters or {})[key]
        raise ConfigError(
            f"method {name!r}: parameter {key} = {given!r}; write something like its default, {known[key]!r}"
        )
    return made
