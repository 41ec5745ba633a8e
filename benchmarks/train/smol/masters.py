"""Training in a lower precision with float32 masters, and its whole state as flat tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16, or float32 on a CPU that only emulates it."""
    fast = device != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _average(masters: list[Tensor]) -> None:
    """Mean of the gradients over the processes of this run, if it has several."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    gradients = [master.grad for master in masters if master.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Masters:
    """Optimizers over float32 copies of parameters that live in a lower precision.

    Args:
        groups: name -> (parameters by name, learning rate, ``adamw`` or ``muon``).
    """

    def __init__(self, groups: dict[str, tuple[dict[str, nn.Parameter], float, str]]) -> None:
        self.params: dict[str, nn.Parameter] = {}
        self.masters: dict[str, Tensor] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.rates: dict[str, float] = {}
        self.names: dict[str, list[str]] = {}
        for group, (params, rate, rule) in groups.items():
            masters = {f"{group}/{name}": param.detach().float().clone() for name, param in params.items()}
            self.params.update({f"{group}/{name}": param for name, param in params.items()})
            self.masters.update(masters)
            self.names[group] = list(masters)
            self.rates[group] = rate
            if rule == "muon":
                self.optimizers[group] = torch.optim.Muon(
                    list(masters.values()), lr=rate, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
                )
            else:
                self.optimizers[group] = torch.optim.AdamW(
                    list(masters.values()), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, foreach=True
                )

    def step(self, factor: float, clip: float = 1.0) -> float:
        """One update at ``factor`` times the learning rates; gradients are cleared. The norm of the gradient."""
        for name, master in self.masters.items():
            gradient = self.params[name].grad
            master.grad = gradient.float() if gradient is not None else torch.zeros_like(master)
            self.params[name].grad = None
        _average(list(self.masters.values()))
        norm = nn.utils.clip_grad_norm_(list(self.masters.values()), clip)
        for group, optimizer in self.optimizers.items():
            for part in optimizer.param_groups:
                part["lr"] = self.rates[group] * factor
            optimizer.step()
        self.publish()
        return float(norm)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model."""
        for name, master in self.masters.items():
            self.params[name].copy_(master)
            master.grad = None

    def state(self) -> dict[str, Tensor]:
        tensors = {f"master/{name}": master for name, master in self.masters.items()}
        for group, optimizer in self.optimizers.items():
            for name in self.names[group]:
                for key, value in optimizer.state[self.masters[name]].items():
                    tensors[f"state/{name}/{key}"] = torch.as_tensor(value)
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], optimizers: bool = True) -> None:
        for name, master in self.masters.items():
            if f"master/{name}" in tensors:
                master.copy_(tensors[f"master/{name}"])
        if optimizers:
            for group, optimizer in self.optimizers.items():
                for name in self.names[group]:
                    start = f"state/{name}/"
                    found: dict[str, Any] = {
                        key[len(start) :]: value.clone() for key, value in tensors.items() if key.startswith(start)
                    }
                    if found:
                        optimizer.state[self.masters[name]] = found
        self.publish()
