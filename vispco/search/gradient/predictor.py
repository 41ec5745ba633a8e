"""The ratio predictor: reads a budget, and optionally the sample's embeddings, and gives a family's parameters.

After arXiv 2604.15188 (reference: its official code). Deviations: it reads the mean visual and the mean text embedding
of the prompt, without padding, instead of running over every token, so that asking it costs next to nothing; its
outputs are added to the family's own starting point; budgets are scaled to [0, 1] over the experiment's range; it
serves every family and depth.
"""

from __future__ import annotations

import base64

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from vispco.pruning.forward.tokens import Prompt

WIDTH = 64
FAR = 5.0  # standard deviations


class ParameterTable(nn.Module):
    """Free parameters of their own for every budget: the static mode."""

    def __init__(self, start: Tensor, budgets: int) -> None:
        super().__init__()
        self.free = nn.Parameter(start.double().repeat(budgets, 1))

    def forward(self, budgets: Tensor, features: Tensor | None = None) -> Tensor:
        return self.free


class RatioPredictor(nn.Module):
    """Budgets in [0, 1] -> free parameters; with ``reads`` also of the sample's features.

    A budget code sets scale and shift (FiLM) of what was read from the sample. All weights float64, so that a search
    gives the same on every device up to the model's own arithmetic.

    Args:
        start: free parameters [P] that an untrained predictor gives for every budget.
        reads: length of a sample's features (:func:`prompt_features`); 0: budgets only.
        seed: of the initial weights.
    """

    def __init__(self, start: Tensor, *, reads: int = 0, seed: int = 0, width: int = WIDTH) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.code = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
            self.reader = nn.Sequential(nn.Linear(reads, width), nn.GELU()) if reads else None
            self.film = nn.Linear(width, 2 * width) if reads else None
            self.out = nn.Linear(width, len(start))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("start", start.clone())
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.zeros(reads))
        self.register_buffer("spread", torch.ones(reads))
        self.double()

    def standardise(self, features: Tensor) -> None:
        """From now on read features by their distance from the mean of these [N, F], in standard deviations.

        Prompts' embeddings have a large part in common, which would drown what tells them apart.
        """
        features = features.double()
        spread = features.std(dim=0, correction=0)
        self.mean = features.mean(dim=0)
        self.spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))

    def forward(self, budgets: Tensor, features: Tensor | None = None) -> Tensor:
        """[K, P] of ``budgets`` [K]; with ``features`` [B, F] of samples, [B, K, P]."""
        code = self.code(2 * budgets[:, None] - 1)
        if self.reader is None or self.film is None:
            return self.start + self.out(code)  # type: ignore[no-any-return]
        assert features is not None
        scale, shift = self.film(code).chunk(2, dim=-1)
        standard = ((features.double() - self.mean) / self.spread).clamp(-FAR, FAR)
        read = self.reader(standard)[:, None]
        return self.start + self.out(code + (1 + scale) * read + shift)  # type: ignore[no-any-return]


def prompt_features(prompt: Prompt) -> Tensor:
    """float32 [B, 2 H]: the mean visual and the mean other embedding of each prompt; zeros where there is none."""
    embeddings = prompt.embeddings.detach().float()
    means = []
    for mask in (prompt.visual, prompt.valid & ~prompt.visual):
        weight = mask.to(embeddings)[..., None]
        means.append((embeddings * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1))
    return torch.cat(means, dim=-1).cpu()


def to_text(state: dict[str, Tensor]) -> str:
    """Tensors as text: safetensors in base64."""
    return base64.b64encode(save({name: value.contiguous() for name, value in state.items()})).decode()


def from_text(text: str) -> dict[str, Tensor]:
    return load(base64.b64decode(text))


def shifted_counts(ratios: Tensor, by: float, n_visual: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts [B, L] of ``ratios`` [B, L] moved by ``by`` in log-odds; all tokens enter layer 0.

    The common move is how an input-conditioned policy is snapped to a budget; order over layers stays.
    """
    inner = ratios.double().clamp(1e-4, 1 - 1e-4)
    moved = torch.sigmoid(torch.logit(inner) + by)
    moved[:, 0] = 1.0
    visual = torch.from_numpy(np.asarray(n_visual, dtype=np.int64))[:, None].double()
    counts = torch.floor(moved * visual + 0.5)
    counts = torch.where(moved < 1e-3, torch.zeros_like(counts), torch.maximum(counts, (visual > 0).double()))
    found: NDArray[np.int64] = np.minimum.accumulate(counts.long().numpy(), axis=1)
    return found
