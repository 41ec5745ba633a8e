"""The ratio predictor of the official VisPCO code: the prompt's embeddings and a budget in, kernel parameters out.

Source: JHW5981/VisPCO (arXiv 2604.15188). Its kernel is ``step``; those of the paper's other patterns are not in its
code, so here they are the schedule families of this package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from vispco.official.relaxed import SLOPE, step_kernel
from vispco.pruning.families import FAMILIES, ScheduleFamily
from vispco.pruning.families.base import Fits, bisected
from vispco.pruning.schedules import Counts, Ratios, Schedule

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DROPOUT = 0.1


class ResidualBlock(nn.Module):
    """``Dropout(GELU(Linear(LN x))) + Linear(x)``, [..., given] -> [..., out]."""

    def __init__(self, given: int, out: int) -> None:
        super().__init__()
        self.norm, self.main, self.skip = nn.LayerNorm(given), nn.Linear(given, out), nn.Linear(given, out)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.dropout(gelu(self.main(self.norm(x)))) + self.skip(x)
        return found


class RatioPredictor(nn.Module):
    """Per token ``Linear(H, H/2)`` and two residual blocks to H/8, scaled and shifted by the budget; mean; head.

    Xavier-uniform weights, zero biases; the norms start as identities.

    Args:
        hidden: H, width of the language model's embeddings, at least 8.
        outputs: parameters of the kernel.
    """

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        half, quarter, eighth = hidden // 2, hidden // 4, hidden // 8
        self.entry = nn.Linear(hidden, half)
        self.blocks = nn.ModuleList([ResidualBlock(half, quarter), ResidualBlock(quarter, eighth)])
        self.budget = nn.Sequential(nn.Linear(1, quarter), nn.GELU(), nn.Linear(quarter, quarter))
        self.films = nn.ModuleList([nn.Linear(quarter, 2 * quarter), nn.Linear(quarter, 2 * eighth)])
        self.head = nn.Sequential(
            nn.LayerNorm(eighth),
            nn.Linear(eighth, 256),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(256, 128),
            nn.GELU(),
            nn.Linear(128, outputs),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, embeddings: Tensor, budget: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Kernel outputs [B, P] from ``embeddings`` [B, T, H] and ``budget`` [B] in [0, 1].

        ``pooled`` bool [B, T]: tokens of the mean; None: all of them, as the official code does with its padding.
        """
        x, code = self.entry(embeddings), self.budget(budget[:, None])
        for block, film in zip(self.blocks, self.films, strict=True):
            scale, shift = film(code)[:, None].chunk(2, dim=-1)
            x = scale * block(x) + shift
        if pooled is None:
            mean = x.mean(dim=1)
        else:
            mean = (x * pooled[..., None].to(x.dtype)).sum(dim=1) / pooled.sum(dim=1, keepdim=True).to(x.dtype)
        found: Tensor = self.head(mean)
        return found

    def flops(self, tokens: Any) -> Any:
        """FLOPs of a forward pass of one sample with ``tokens`` tokens (a multiply-add counts 2)."""
        wide = self.entry.weight.numel()
        wide += sum(2 * block.main.weight.numel() for block in self.blocks if isinstance(block, ResidualBlock))
        linear = sum(layer.weight.numel() for layer in self.modules() if isinstance(layer, nn.Linear))
        return 2 * (tokens * wide + linear - wide)


class Kernel(ABC):
    """Turns outputs of the predictor [B, P] into ``values`` [B, P] and keep ratios [B, L]."""

    size: int

    @abstractmethod
    def values(self, outputs: Tensor) -> Tensor: ...

    @abstractmethod
    def ratios(self, values: Tensor) -> Tensor: ...

    @abstractmethod
    def parameters(self, values: Tensor) -> dict[str, Any]:
        """What a trial says of ``values`` [P]."""

    @abstractmethod
    def distributions(self) -> dict[str, BaseDistribution]:
        """The ranges of :meth:`parameters`."""

    def schedule(self, values: Tensor, n_visual: int, dtype: torch.dtype) -> Schedule:
        """What the official code cuts of ``n_visual`` tokens for ``values`` [P], computing in ``dtype``."""
        counts = official_counts(self.ratios(values[None].to(dtype)), [n_visual])[0].tolist()
        return Ratios([count / n_visual if n_visual else 1.0 for count in counts])

    @abstractmethod
    def snap(self, values: Tensor, make: Callable[[Tensor], Schedule], fits: Fits) -> tuple[Schedule, dict[str, Any]]:
        """The schedule like ``make(values)`` that has the most tokens and ``fits``, with its parameters."""


@dataclass(frozen=True)
class StepKernel(Kernel):
    """The official kernel: values are ``k = L sigmoid(o_0)`` and ``r = sigmoid(o_1)``."""

    layers: int
    size = 2

    def values(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs) * torch.tensor([self.layers, 1], dtype=outputs.dtype, device=outputs.device)

    def ratios(self, values: Tensor) -> Tensor:
        return step_kernel(values[:, 0], values[:, 1], self.layers)

    def parameters(self, values: Tensor) -> dict[str, Any]:
        return {"centre": float(values[0]), "keep": float(values[1])}

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution

        return {"centre": FloatDistribution(0.0, float(self.layers)), "keep": FloatDistribution(0.0, 1.0)}

    def snap(self, values: Tensor, make: Callable[[Tensor], Schedule], fits: Fits) -> tuple[Schedule, dict[str, Any]]:
        """Another ``r`` at the same ``k``; where none fits, r = 0 at an earlier ``k``."""
        centre, keep = values.tolist()
        if fits(make(values.new_tensor([centre, 0.0]))):
            keep = _largest(lambda x: fits(make(values.new_tensor([centre, x]))), 1.0)
        else:
            centre, keep = _largest(lambda x: fits(make(values.new_tensor([x, 0.0]))), centre), 0.0
        found = values.new_tensor([centre, keep])
        return make(found), self.parameters(found)


class FamilyKernel(Kernel):
    """A schedule family: values are its free parameters, its start plus the outputs."""

    def __init__(self, family: ScheduleFamily) -> None:
        self.family = family
        self.size = len(family.start())

    def values(self, outputs: Tensor) -> Tensor:
        return self.family.start().to(outputs) + outputs

    def ratios(self, values: Tensor) -> Tensor:
        return torch.stack([self.family.relaxed(free, SLOPE) for free in values])

    def parameters(self, values: Tensor) -> dict[str, Any]:
        return self.family.parameters(self.family.discrete(values.float()))

    def distributions(self) -> dict[str, BaseDistribution]:
        return self.family.distributions()

    def snap(self, values: Tensor, make: Callable[[Tensor], Schedule], fits: Fits) -> tuple[Schedule, dict[str, Any]]:
        """By the family, with this package's rounding."""
        schedule = self.family.snap(self.family.discrete(values.float()), fits)
        return schedule, self.family.parameters(schedule)


def _largest(fits: Callable[[float], bool], high: float) -> float:
    """The largest x in [0, ``high``] that fits, by bisection; 0 if none does."""
    return high if fits(high) else bisected(fits, 0.0, high, 30)


def make_kernel(family: str, layers: int) -> Kernel:
    """The kernel that an entry's family names: ``step`` is the official one."""
    return StepKernel(layers) if family == "step" else FamilyKernel(FAMILIES[family](layers))


def official_counts(ratios: Tensor, n_visual: Sequence[int] | Counts) -> Counts:
    """Visual tokens entering each layer, int [B, L], from keep ``ratios`` [B or 1, L], as the official code cuts.

    At each layer i from 1 on the tokens that are left become ``int(n r_i / r_(i-1))``, in the dtype of ``ratios``. So
    r_0 is divided out, every layer may lose a token to truncation, and bfloat16 rounds counts above 256.

    >>> official_counts(torch.tensor([[1.0, 1.0, 0.75, 0.5, 0.5]]), [10])
    array([[10, 10,  7,  4,  4]])
    """
    left = torch.as_tensor(np.asarray(n_visual), device=ratios.device)
    ratios = ratios.detach().expand(len(left), -1)
    counts = [left]
    for before, ratio in zip(ratios.T[:-1], ratios.T[1:], strict=True):
        share = torch.where(before > 0, ratio / before, 0)
        left = (left.to(ratios.dtype) * share).trunc().long().minimum(left)
        counts.append(left)
    return torch.stack(counts, dim=1).cpu().numpy()


class OfficialPolicy:
    """The trained predictor at one official budget, as a policy: every sample has counts of its own.

    ``vispco.prune(model, schedule=policy)`` and ``Evaluator.evaluate([policy])`` take it.
    """

    def __init__(self, predictor: RatioPredictor, kernel: Kernel, budget: float) -> None:
        self.predictor, self.kernel, self.budget = predictor.eval(), kernel, budget

    @torch.no_grad()
    def values(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """Kernel values [B, P] of prompts with ``embeddings`` [B, T, H] and ``valid`` bool [B, T]."""
        weight = self.predictor.entry.weight
        budget = torch.full((len(embeddings),), self.budget, dtype=weight.dtype, device=weight.device)
        outputs = self.predictor(embeddings.to(weight), budget, valid.to(weight.device))
        return self.kernel.values(outputs)

    def counts(self, n_visual: Counts, layers: int, context: Any = None) -> Counts:
        """See :class:`vispco.pruning.schedules.Policy`; needs the prompts."""
        ratios = self.kernel.ratios(self.values(context.embeddings, context.valid))
        return official_counts(ratios, n_visual)

    def __repr__(self) -> str:
        return f"official_policy(budget={self.budget!r})"
