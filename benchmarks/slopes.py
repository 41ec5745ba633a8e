"""Slopes of the relaxed model against what schedules really lose: ``python benchmarks/slopes.py [--model demo]``.

Random relaxed schedules of three steps, blunt and sharp, under FastV. Each free parameter is moved up and down, and the
pruned model's loss on 128 calibration samples is compared with what the slopes of the relaxed one predict for the same
samples. Prints, over schedules, the cosine of the two vectors of differences, how often their signs agree, and how much
larger the predicted ones are. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch
from torch import Tensor

from vispco.evaluation.evaluator import Evaluator
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Ratios
from vispco.search.gradient.distillation import Calibration

MOVE = 0.4  # of a free parameter, in log-odds


def log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def random_free(rng: random.Random) -> Tensor:
    """Free parameters of ``multistep``: three centres from the first to the last layer, three factors."""
    centres = sorted(rng.uniform(0.08, 0.92) for _ in range(3))
    return torch.tensor([log_odds(p) for p in (*centres, *(rng.uniform(0.25, 0.95) for _ in range(3)))])


def falling(ratios: Tensor) -> Tensor:
    """All tokens enter the first layer, and none comes back."""
    return torch.cat([torch.ones(1, dtype=ratios.dtype), ratios[1:]]).cummin(0).values


def slopes(calibration: Calibration, ratios: Tensor, temperature: float) -> Tensor:
    """[L], mean over all mini-batches."""
    total = torch.zeros_like(ratios)
    for number in range(len(calibration.batches)):
        free = ratios.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(calibration.loss(number, free, temperature), [free])
        total += slope / len(calibration.batches)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--schedules", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.1)
    options = parser.parse_args()
    problem = Problem.from_yaml(Path("studies/demo/learned.yaml"), [f"model={options.model}"])
    calibration, family = Calibration(Evaluator(problem), make_method("fastv"), 16, 0, samples=128), problem.family()
    rng = random.Random(1)
    cosines, signs, sizes = [], [], []
    for _ in range(options.schedules):
        free, sharpness = random_free(rng).double(), math.exp(rng.uniform(math.log(1.5), math.log(10)))
        moves = MOVE * torch.eye(len(free), dtype=torch.float64)
        ends = [[falling(family.relaxed(free + way * move, sharpness)) for way in (1, -1)] for move in moves]
        schedules = [Ratios(tuple(round(x, 5) for x in end.tolist())) for pair in ends for end in pair]
        losses, weights = calibration.pruned_losses(schedules, 0, len(calibration.batches))
        lost = ((losses * weights).sum(dim=1) / weights.sum()).view(-1, 2)
        real = lost[:, 0] - lost[:, 1]
        slope = slopes(calibration, falling(family.relaxed(free, sharpness)), options.temperature)
        predicted = torch.stack([(slope * (up - down)).sum() for up, down in ends])
        cosines.append(float(torch.nn.functional.cosine_similarity(predicted, real, dim=0)))
        signs.append(float((predicted.sign() == real.sign()).double().mean()))
        sizes.append(float(predicted.norm() / real.norm()))
    print(f"cosine {sum(cosines) / len(cosines):.2f} (least {min(cosines):.2f}), signs {sum(signs) / len(signs):.2f}")
    print(f"predicted over real: median {sorted(sizes)[len(sizes) // 2]:.1f}, most {max(sizes):.1f}")


if __name__ == "__main__":
    main()
