"""What the tower's and the projector's output say of each patch: right answers of linear probes, on unseen pictures.

A probe far below the tower's in the projector's column names what the language model cannot be asked about.

    python -m benchmarks.train.smol.probe
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vispco
from benchmarks.train.smol.tower import READERS, patch_labels, pixel_values
from vispco.tasks.scenes.layout import sample_scene


def accuracy(features: Tensor, labels: Tensor, learn: Tensor, classes: int) -> float:
    """Of a linear classifier, fitted by L-BFGS on the patches of ``learn``, on the others with a label.

    Args:
        features: [patches, H].
        labels: [patches], -1 where a patch has none.
        learn: bool [patches].
    """
    known = labels >= 0
    states, wanted, learn = features[known], labels[known], learn[known]
    states = (states - states[learn].mean(0)) / (states[learn].std(0) + 1e-3)
    probe = nn.Linear(states.shape[1], classes)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(probe(states[learn]), wanted[learn])
        loss = loss + 1e-3 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return float((probe(states[~learn]).argmax(1) == wanted[~learn]).float().mean())


@torch.no_grad()
def outputs(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the tower and of the projector, [B, 196, H] each."""
    core = model.model
    features = core.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    return features, core.multi_modal_projector(features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol", help="smol, or a folder that export-model wrote")
    parser.add_argument("--pictures", type=int, default=160)
    options = parser.parse_args()
    model = vispco.load_model(options.model)[0].float()
    rng = random.Random("probe")
    scenes = [sample_scene("held_out", rng) for _ in range(options.pictures)]
    batches = [outputs(model, pixel_values(scenes[start : start + 16])) for start in range(0, len(scenes), 16)]
    tower, projected = (torch.cat(part).flatten(0, 1) for part in zip(*batches, strict=True))
    labels = [patch_labels(scene)[0] for scene in scenes]
    learn = torch.arange(len(tower)) < 0.7 * len(tower)
    print(f"{'':8} tower projector")
    for name, classes in READERS.items():
        wanted = torch.from_numpy(np.concatenate([one[name] for one in labels]))
        right = [accuracy(part, wanted, learn, classes) for part in (tower, projected)]
        print(f"{name:8} {right[0]:.3f} {right[1]:.3f}")


if __name__ == "__main__":
    main()
