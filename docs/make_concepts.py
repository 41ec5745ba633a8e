"""Draw the figures of docs/concepts.md: ``python docs/make_concepts.py [FOLDER]``. Curves are the package's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from vispco.dashboards import matplotlib_figures

import vispco
from vispco.costs import layer_flops
from vispco.models.shapes import ModelShape
from vispco.search.gradient.augmented_lagrangian import AugmentedLagrangian

FOLDER = Path(__file__).parent / "concepts"
SIZE = (4.6, 2.1)
BLUE, RED, GREEN, GREY = "#4477aa", "#cc3311", "#228833", "#999999"


def figure(columns: int = 1) -> tuple[Figure, Any]:
    made = Figure(figsize=SIZE, facecolor="white")
    return made, made.subplots(1, columns)


def schedules() -> Figure:
    """Keep ratios over 32 layers."""
    made, axes = figure()
    shown = {
        "step(8, 0.3)": vispco.Step(8, 0.3),
        "multistep": vispco.MultiStep((6, 14, 22), (0.7, 0.4, 0.1)),
        "linear": vispco.Linear(4, 20, 0.1),
        "exponential": vispco.Exponential(3, 0.2, 0.05),
        "sigmoid": vispco.Sigmoid(16, 0.5, 0.1),
    }
    for name, schedule in shown.items():
        axes.step(range(32), schedule.keep_ratio(32), where="post", label=name)
    axes.set(xlabel="layer", ylabel="share of visual tokens", ylim=(0, 1.05))
    axes.legend(loc="lower left", fontsize=6)
    return made


def cost() -> Figure:
    """FLOPs per layer of a 7B LLaVA: 576 visual and 60 text tokens, width 4,096, MLP 11,008."""
    made, axes = figure()

    shape = ModelShape(layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, mlp=11008)
    ratios = np.array(vispco.Step(8, 0.3).keep_ratio(32))
    plain, pruned = (layer_flops(shape, 60 + 576 * share) / 1e9 for share in (np.ones(32), ratios))
    axes.bar(range(32), plain, width=1, color="#dddddd", label="plain")
    axes.bar(range(32), pruned, width=1, color=BLUE, label=f"step(8, 0.3): {sum(pruned) / sum(plain):.0%}")
    axes.set(xlabel="layer", ylabel="GFLOPs")
    axes.legend(loc="lower right", fontsize=6, frameon=True)
    return made


def frontier() -> Figure:
    """Made-up schedules."""
    made, axes = figure()
    rng = np.random.default_rng(3)
    costs = rng.uniform(0.25, 1, 60)
    scores = 0.8 - 0.55 * np.exp(-6 * (costs - 0.2)) - 0.25 * rng.random(60) ** 2
    best = [i for i in range(60) if not any(costs[j] <= costs[i] and scores[j] > scores[i] for j in range(60))]
    best.sort(key=lambda i: costs[i])
    chosen = [i for i in best if costs[i] <= 0.55][-1]
    axes.plot(costs, scores, "o", color=GREY, markersize=2.5, label="measured")
    axes.step(costs[best], scores[best], where="post", color=BLUE, label="front")
    axes.plot(costs[best], scores[best], "o", color=BLUE, markersize=3)
    axes.axvline(0.55, color=RED, linestyle="--", label="budget 0.55")
    axes.plot(costs[chosen], scores[chosen], "*", color=RED, markersize=9, label="choice")
    axes.set(xlabel="flops_ratio", ylabel="accuracy")
    axes.legend(loc="lower right", fontsize=6)
    return made


def relaxation() -> Figure:
    """Mask of a token by its place in the ranking: what runs, and whose slope the gradient is."""
    made, axes = figure()
    places, keep, count, width = np.arange(64), 0.4, 64, 0.1
    axes.step(places, places < round(keep * count), where="mid", color=BLUE, label="forward: kept or dropped")
    soft = 1 / (1 + np.exp(-(keep * count - places - 0.5) / (width * count)))
    axes.plot(places, soft, color=RED, linestyle="--", label="backward: slope of this")
    axes.set(xlabel="place of a visual token in the ranking", ylabel="mask")
    axes.legend(loc="upper right", fontsize=6)
    return made


def lagrangian() -> Figure:
    """Minimise a sum of three losses that fall with three keep ratios, whose mean may be 0.3."""
    made, (left, right) = figure(2)
    weights, state = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), AugmentedLagrangian(penalty=1.0, cap=4.0)
    keep = torch.full((3,), 0.6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([keep], lr=0.04)
    used, multipliers = [], []
    for _ in range(8):
        for _ in range(20):
            optimizer.zero_grad()
            violation = (keep.mean() - 0.3) / 0.3
            ((weights * torch.exp(-3 * keep)).sum() + state.term(violation)).backward()
            optimizer.step()
            used.append(float(keep.mean().detach()))
            multipliers.append(state.multiplier)
        state.dual_step(float((keep.mean().detach() - 0.3) / 0.3))
    left.plot(used, color=BLUE)
    left.axhline(0.3, color=RED, linestyle="--")
    left.set(xlabel="gradient step", ylabel="compute used")
    right.step(range(len(multipliers)), multipliers, where="post", color=GREEN)
    right.set(xlabel="gradient step", ylabel="price of the budget")
    return made


def sharing() -> Figure:
    """Six step schedules as a tree over eight layers."""
    made, axes = figure()
    axes.plot([0, 8], [0, 0], color=GREY, linewidth=2.5)
    for number, layer in enumerate((2, 4, 6)):
        for side, keep in ((1, 0.5), (-1, 0.25)):
            height = side * (3 - number)
            axes.plot([layer, layer + 0.5, 8], [0, height, height], color=BLUE if side > 0 else RED, linewidth=1.2)
            axes.text(8.1, height, f"step({layer}, {keep})", va="center", fontsize=6)
    axes.text(8.1, 0, "unpruned", va="center", fontsize=6)
    axes.set(xlabel="layer", yticks=[], xlim=(0, 10.2), xticks=range(9))
    axes.spines["left"].set_visible(False)
    return made


def splits() -> Figure:
    """Which samples are seen by what."""
    made, axes = figure()
    boxes = [
        ("calibration", "gradients look here", GREEN),
        ("search", "schedules are measured\nand chosen here", BLUE),
        ("held_out", "what is said of\naccuracy is said here", RED),
    ]
    for number, (name, text, color) in enumerate(boxes):
        axes.add_patch(_box(number, color))
        axes.text(number + 0.43, 0.66, name, ha="center", va="center", weight="bold", color=color)
        axes.text(number + 0.43, 0.32, text, ha="center", va="center", fontsize=7)
        if number:
            axes.annotate("", (number - 0.01, 0.5), (number - 0.13, 0.5), arrowprops={"arrowstyle": "->"})
    axes.set(xlim=(-0.05, 2.95), ylim=(0, 1))
    axes.axis("off")
    return made


def _box(number: int, color: str) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(
        (number + 0.02, 0.12), 0.82, 0.76, boxstyle="round,pad=0.02", facecolor="none", edgecolor=color
    )


FIGURES: dict[str, Callable[[], Figure]] = {
    draw.__name__: draw for draw in (schedules, cost, frontier, relaxation, lagrangian, sharing, splits)
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        matplotlib_figures.save(draw, folder / f"{name}.svg")


if __name__ == "__main__":
    main()
