"""The contract of a pruning method: score visual tokens at a boundary; the rest has defaults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.registry import Registry, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.models.base import ModelShape

METHODS = Registry("method")


@dataclass
class ScoreContext:
    """What a method may look at when tokens are about to enter layer ``boundary``.

    Tokens are those that entered the layer before, ``n`` of them, in prompt order. ``visual`` and ``valid``
    are bool [B, n]; ``last`` [B] is the index of the last prompt token among the n; ``rank`` [B, n] is the
    index of a visual token among the sample's original visual tokens (meaningless elsewhere);
    ``sample_keys`` [B] identify samples for seeded methods, whatever batch they are in.
    """

    boundary: int
    visual: Tensor
    valid: Tensor
    last: Tensor
    rank: Tensor
    sample_keys: list[int]
    rows: Callable[[Tensor], Tensor]

    def attention_rows(self, query_index: Tensor) -> Tensor:
        """Attention of the layer before for chosen queries, float32 [B, h, R, n], from ``query_index`` [B, R].

        Softmax over all valid keys up to the query, as in the model; only these rows are computed.
        """
        return self.rows(query_index)


class Method(ABC):
    """A rule that ranks visual tokens; it knows nothing of layers' budgets or schedules.

    Subclasses are frozen dataclasses whose fields are the method's parameters.

    ``needs_attention``: reads :meth:`ScoreContext.attention_rows`, so it cannot prune before layer 0.
    ``differentiable``: its scores can drive the relaxed model of the lagrangian search.
    """

    name: ClassVar[str]
    needs_attention: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    @abstractmethod
    def score(self, context: ScoreContext) -> Tensor:
        """float32 [B, n]; larger means keep; values at non-visual positions are ignored."""

    def select(self, context: ScoreContext, keep: Tensor) -> Tensor:
        """bool [B, n], True at the ``keep`` [B] visual tokens that stay. Default: the best scores.

        Equal scores go to the earlier token, so that results do not depend on the batch.
        """
        import torch

        scores = self.score(context).masked_fill(~context.visual, -torch.inf)
        order = scores.argsort(dim=-1, descending=True, stable=True)
        place = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        return (place < keep[:, None]) & context.visual

    def scoring_flops(self, shape: ModelShape, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """FLOPs of scoring one sample at one boundary, for ``tokens`` in the layer before (any shape)."""
        return np.zeros_like(tokens)

    def parameters(self) -> dict[str, Any]:
        """The method's parameters as plain data, for hashes and exports."""
        return asdict(self) if is_dataclass(self) else {}


def make_method(name: str, parameters: dict[str, Any] | None = None) -> Method:
    """Build a registered method.

    Raises:
        ConfigError: unknown method or parameter.
    """
    import vispco.pruning.methods  # noqa: F401  (registers the built-in methods)

    cls: type[Method] = METHODS[name]
    known: list[str] = [field.name for field in fields(cls)] if is_dataclass(cls) else []
    for key in parameters or {}:
        if key not in known:
            hint = suggest(key, known) if known else "it has no parameters"
            raise ConfigError(f"method {name!r} has no parameter {key!r}; {hint}")
    return cls(**(parameters or {}))
