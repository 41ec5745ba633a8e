"""Low-rank updates of every linear map of a decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 16, 32


class _Merged(torch.autograd.Function):
    """``states @ weight.T``; ``weight`` holds ``scale * up @ down`` already, gradients go to ``up`` and ``down``."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(states, weight, down, up)
        ctx.scale = scale
        return nn.functional.linear(states, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, down, up = ctx.saved_tensors
        gradient = gradients[0]
        flat, seen = gradient.flatten(0, -2), states.flatten(0, -2)
        to_down = (flat @ up).T @ seen * ctx.scale
        to_up = flat.T @ (seen @ down.T) * ctx.scale
        return gradient @ weight, None, to_down, to_up, None


class LowRank(nn.Module):
    """A frozen linear map plus ``alpha / rank * up @ down``, merged once a step by :meth:`merge`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        weight = base.weight.detach()
        self.register_buffer("original", weight.clone(), persistent=False)
        self.register_buffer("merged", weight.clone(), persistent=False)
        self.down = nn.Parameter(torch.empty(RANK, base.in_features, dtype=weight.dtype, device=weight.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK, dtype=weight.dtype, device=weight.device))
        nn.init.normal_(self.down, std=base.in_features**-0.5)

    @torch.no_grad()
    def merge(self) -> None:
        torch.addmm(self.original, self.up, self.down, alpha=ALPHA / RANK, out=self.merged)

    def forward(self, states: Tensor) -> Tensor:
        found: Tensor = _Merged.apply(states, self.merged, self.down, self.up, ALPHA / RANK)
        return found


def add_updates(decoder: nn.Module) -> dict[str, nn.Parameter]:
    """Wrap all maps of ``decoder`` in place; the new parameters by name, as ``layers.0.self_attn.q_proj.down``."""
    found: dict[str, nn.Parameter] = {}
    for name, module in list(decoder.named_modules()):
        for child, layer in list(module.named_children()):
            if child in MAPS and isinstance(layer, nn.Linear):
                wrapped = LowRank(layer)
                setattr(module, child, wrapped)
                found[f"{name}.{child}.down"] = wrapped.down
                found[f"{name}.{child}.up"] = wrapped.up
    return found


def merge_updates(decoder: nn.Module) -> None:
    """Bring the merged weights up to date; called after every step."""
    for module in decoder.modules():
        if isinstance(module, LowRank):
            module.merge()
