"""Train the demo VLM from scratch: ``python -m vispco.models.demo.train --out DIR``.

Stages, each from the weights of the one before:

1. ``see``: the vision tower alone; linear heads, thrown away afterwards, read colour and shape of each
   cell from the mean of its visual tokens. Learning to see through the decoder takes many times longer.
2. ``one_hop``: whole model, one-hop questions. All kinds at once sit on a plateau here.
3. ``two_hops``: questions that start from one cell and end in another, with questions about the place itself.
4. ``places``: mostly questions about where something is. A linear head, thrown away afterwards, reads the cell of
   each visual token from what the projector gives: without it the decoder finds a named cell by rotary distance, no
   token says where it is, and questions that end elsewhere than they start stay at 0.55.
5. ``mixed``: every kind of question in the shares of the task, and places; stopped within its learning-rate cycle.
6. ``all``: every kind, most of them with two or three hops, until the learning rate is zero.

In the last three the vision tower is frozen, and on a CPU the step runs under bfloat16 autocast with eager
attention, for speed.

Several questions about one picture are packed into one sequence: each attends to the picture and to
itself only, at the positions it would have if asked alone, so a packed question is exactly the question
that the task asks, at a fraction of the cost. Mosaics are drawn fresh at every step from the ``train``
pictures; accuracy is watched on mosaics of the ``calibration`` pictures.

Seeded and resumable: a checkpoint holds weights, optimiser and step, and step ``n`` draws its data from
``(seed, stage, n)``. ``training.json`` beside the weights says what was done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vispco.models.demo.build import build_model, build_processor, vocabulary
from vispco.pruning.masks import as_backend_mask
from vispco.tasks.mosaic import (
    CELLS,
    COLORS,
    MULTI_HOP,
    ONE_HOP,
    PLACES,
    SHAPES,
    TASK_MIX,
    TWO_HOPS,
    WHERE,
    Scene,
    sample_questions,
    sample_scene,
    split_pictures,
)

VISUAL_TOKENS = 64
REPORT_EVERY = 100
VALIDATION_SCENES = 256


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    batch: int
    peak_lr: float
    mix: dict[str, float] | None = None
    questions: int = 10
    frozen_vision: bool = False
    place_weight: float = 0.0
    cycle: int | None = None


STAGES = (
    Stage("see", 1500, 64, 1e-3),
    Stage("one_hop", 2000, 24, 1e-3, dict.fromkeys(ONE_HOP, 1.0), 10),
    Stage("two_hops", 1500, 24, 1e-3, TWO_HOPS, 10),
    Stage("places", 800, 24, 1e-3, WHERE, 8, frozen_vision=True, place_weight=0.5),
    Stage("mixed", 1700, 24, 1e-3, {**TASK_MIX, **PLACES}, 10, frozen_vision=True, place_weight=0.5, cycle=3000),
    Stage("all", 2000, 24, 1e-3, MULTI_HOP, 10, frozen_vision=True, place_weight=0.2),
)


# --- data -----------------------------------------------------------------------------------------


def jitter(pixels: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Mirror and shift a picture by up to 6 pixels, so that the 3,187 pictures are not learned by heart."""
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    dy, dx = rng.randint(-6, 6), rng.randint(-6, 6)
    height, width, _ = pixels.shape
    moved = np.empty_like(pixels)
    moved[:] = pixels[0, 0]
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = pixels[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return moved


def draw_scenes(batch: int, rng: random.Random) -> list[Scene]:
    pictures = split_pictures("train")
    return [
        Scene(tuple(replace(p, pixels=jitter(p.pixels, rng)) for p in sample_scene(pictures, rng).pictures))
        for _ in range(batch)
    ]


def pixel_values(scenes: list[Scene]) -> Tensor:
    """float32 [B, 3, 128, 128], as the processor would give (a test compares them)."""
    pixels = np.stack([scene.pixels() for scene in scenes])
    return 1.0 - torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0


@dataclass
class Packed:
    """Packed sequences: ids, positions, labels [B, T]; mask [B, 1, T, T], True where attention is allowed."""

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    mask: Tensor

    def to(self, device: str) -> Packed:
        return Packed(*(getattr(self, f).to(device) for f in ("input_ids", "position_ids", "labels", "mask")))


def pack(questions: list[list[tuple[list[int], int]]], vocab: dict[str, int]) -> Packed:
    """Pack (question ids, answer id) pairs behind one picture each."""
    prefix = [vocab["<s>"]] + [vocab["<image>"]] * VISUAL_TOKENS
    length = len(prefix) + max(sum(len(q) + 1 for q, _ in row) for row in questions)
    batch = len(questions)
    ids = np.full((batch, length), vocab["<pad>"])
    positions = np.zeros((batch, length), dtype=np.int64)
    labels = np.full((batch, length), -100)
    segment = np.full((batch, length), -1)
    ids[:, : len(prefix)], positions[:, : len(prefix)], segment[:, : len(prefix)] = prefix, range(len(prefix)), 0
    for row, pairs in enumerate(questions):
        at = len(prefix)
        for number, (question, answer) in enumerate(pairs, start=1):
            end = at + len(question) + 1
            ids[row, at:end] = [*question, answer]
            positions[row, at:end] = np.arange(len(prefix), len(prefix) + end - at)
            labels[row, end - 2], labels[row, end - 1] = answer, vocab["</s>"]
            segment[row, at:end] = number
            at = end
    same = segment[:, :, None] == segment[:, None, :]
    allowed = (same | (segment[:, None, :] == 0)) & np.tri(length, dtype=bool)
    return Packed(*(torch.from_numpy(a) for a in (ids, positions, labels, allowed[:, None])))


def draw_questions(
    scenes: list[Scene], mix: dict[str, float], count: int, rng: random.Random, vocab: dict[str, int]
) -> tuple[Packed, list[list[str]]]:
    drawn = [sample_questions(scene, rng, mix, count) for scene in scenes]
    rows = [[([vocab[w] for w in q.text.split()], vocab[q.answer]) for q in qs] for qs in drawn]
    return pack(rows, vocab), [[q.kind for q in qs] for qs in drawn]


# --- stages ---------------------------------------------------------------------------------------


class CellHeads(nn.Module):
    """Linear readers, only for training: colour and shape of a cell from its mean visual token, cell from a token."""

    def __init__(self, width: int, projected: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.color = nn.Linear(width, len(COLORS))
        self.shape = nn.Linear(width, len(SHAPES))
        self.place = nn.Linear(projected, len(CELLS))

    def place_loss(self, projected: Tensor) -> Tensor:
        """``projected`` [B, 64, H], the visual tokens as the decoder receives them."""
        at = torch.arange(VISUAL_TOKENS, device=projected.device)
        cell = 2 * (at // 32) + (at % 8) // 4
        logits = self.place(projected.float())
        return nn.functional.cross_entropy(logits.flatten(0, 1), cell.repeat(len(projected)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``features`` [B, 64, H] -> logits [B, 4, colours], [B, 4, shapes]."""
        batch, _, width = features.shape
        cells = features.view(batch, 2, 4, 2, 4, width).mean(dim=(2, 4)).view(batch, 4, width)
        cells = self.norm(cells)
        return self.color(cells), self.shape(cells)


def see_loss(model: Any, heads: CellHeads, scenes: list[Scene], device: str) -> tuple[Tensor, dict[str, float]]:
    outputs = model.model.vision_tower(pixel_values(scenes).to(device), output_hidden_states=True)
    features = outputs.hidden_states[-1][:, 1:]
    colors, shapes = heads(features)
    color = torch.tensor([[COLORS.index(c) for c in scene.colors] for scene in scenes], device=device)
    shape = torch.tensor([[SHAPES.index(s) for s in scene.shapes] for scene in scenes], device=device)
    loss = nn.functional.cross_entropy(colors.flatten(0, 1), color.flatten())
    loss = loss + nn.functional.cross_entropy(shapes.flatten(0, 1), shape.flatten())
    accuracy = {
        "color": (colors.argmax(-1) == color).float().mean().item(),
        "shape": (shapes.argmax(-1) == shape).float().mean().item(),
    }
    return loss, accuracy


def answer_loss(
    model: Any,
    heads: CellHeads | None,
    scenes: list[Scene],
    packed: Packed,
    kinds: list[list[str]],
    device: str,
    place_weight: float = 0.0,
) -> tuple[Tensor, dict[str, list[float]]]:
    packed = packed.to(device)
    outputs = model.model(
        input_ids=packed.input_ids,
        pixel_values=pixel_values(scenes).to(device),
        attention_mask=as_backend_mask(packed.mask, model.config._attn_implementation, torch.float32),
        position_ids=packed.position_ids,
        use_cache=False,
    )
    hidden = outputs.last_hidden_state
    where = packed.labels != -100
    logits, labels = model.lm_head(hidden[where]).float(), packed.labels[where]
    loss = nn.functional.cross_entropy(logits, labels)
    if heads is not None and place_weight:
        projected = outputs.image_hidden_states.view(len(scenes), VISUAL_TOKENS, -1)
        loss = loss + place_weight * heads.place_loss(projected)
    eos = model.config.text_config.eos_token_id
    answers = labels != eos
    right = (logits.argmax(-1) == labels)[answers].float().tolist()
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kind, value in zip((k for row in kinds for k in row), right, strict=True):
        by_kind[kind].append(value)
    return loss, by_kind


def summarise(by_kind: dict[str, list[float]]) -> dict[str, float]:
    return {kind: round(sum(v) / len(v), 4) for kind, v in sorted(by_kind.items())}


@torch.no_grad()
def validate(model: Any, heads: CellHeads, stage: Stage, device: str) -> dict[str, float]:
    """Accuracy per question kind on unseen (``calibration``) pictures."""
    rng = random.Random(f"validate/{stage.name}")
    vocab, pictures = vocabulary(), split_pictures("calibration")
    totals: dict[str, list[float]] = defaultdict(list)
    model.eval()
    for _ in range(0, VALIDATION_SCENES, 64):
        batch = [sample_scene(pictures, rng) for _ in range(64)]
        if stage.mix is None:
            for kind, value in see_loss(model, heads, batch, device)[1].items():
                totals[kind].append(value)
        else:
            packed, kinds = draw_questions(batch, stage.mix, stage.questions, rng, vocab)
            for kind, values in answer_loss(model, None, batch, packed, kinds, device)[1].items():
                totals[kind] += values
    model.train()
    report = summarise(totals)
    weights = {kind: (stage.mix or {}).get(kind, 1.0) for kind in report}
    report["mean"] = round(sum(report[k] * w for k, w in weights.items()) / sum(weights.values()), 4)
    return report


def run_stage(model: Any, stage: Stage, seed: int, folder: Path, device: str, history: list[dict[str, Any]]) -> None:
    heads = CellHeads(model.config.vision_config.hidden_size, model.config.text_config.hidden_size).to(device)
    trained = list(model.model.vision_tower.parameters()) if stage.mix is None else list(model.parameters())
    parameters = [*trained, *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=stage.peak_lr, weight_decay=0.01, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.peak_lr, stage.cycle or stage.steps, pct_start=0.1)
    state_file = folder / f"{stage.name}.state.pt"
    model.model.vision_tower.requires_grad_(not stage.frozen_vision)
    fast = stage.frozen_vision and device == "cpu"
    model.set_attn_implementation("eager" if fast else "sdpa")
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start = state["step"]
    vocab, began = vocabulary(), time.monotonic()
    for step in range(start, stage.steps):
        rng = random.Random(f"{seed}/{stage.name}/{step}")
        scenes = draw_scenes(stage.batch, rng)
        if stage.mix is None:
            loss, _ = see_loss(model, heads, scenes, device)
        else:
            packed, kinds = draw_questions(scenes, stage.mix, stage.questions, rng, vocab)
            with torch.autocast(device, torch.bfloat16, enabled=fast):
                loss, _ = answer_loss(model, heads, scenes, packed, kinds, device, stage.place_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        done = step + 1
        if done % REPORT_EVERY == 0 or done == stage.steps:
            accuracy = validate(model, heads, stage, device)
            rate = (time.monotonic() - began) / (done - start)
            print(
                f"{stage.name} {done}/{stage.steps} loss {loss.item():.3f} {rate:.2f} s/step {json.dumps(accuracy)}",
                flush=True,
            )
            history.append({"stage": stage.name, "step": done, "accuracy": accuracy})
            state = {
                "model": model.state_dict(),
                "heads": heads.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "step": done,
            }
            partial = state_file.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(state_file)


def data_hash() -> str:
    """Identity of the training pictures and of the question kinds."""
    digest = hashlib.sha256(json.dumps([TASK_MIX, sorted(vocabulary())]).encode())
    for picture in split_pictures("train"):
        digest.update(f"{picture.key} {picture.color} {picture.shape}".encode())
        digest.update(picture.pixels.tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--steps", nargs="*", default=[], metavar="STAGE=N", help="override a stage's steps")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = {name: int(number) for name, number in (item.split("=") for item in arguments.steps)}
    stages = [replace(stage, steps=steps.get(stage.name, stage.steps)) for stage in STAGES]
    checkpoints = arguments.out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)

    model = build_model(arguments.seed).to(device)
    model.train()
    history_file = checkpoints / "history.json"
    history = json.loads(history_file.read_text()) if history_file.exists() else []
    for stage in stages:
        finished = checkpoints / f"{stage.name}.safetensors"
        if finished.exists():
            model.load_state_dict(load_file(finished))
            continue
        run_stage(model, stage, arguments.seed, checkpoints, device, history)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, finished)
        history_file.write_text(json.dumps(history))

    model.set_attn_implementation("sdpa")
    model.cpu().eval().save_pretrained(arguments.out)
    build_processor().save_pretrained(arguments.out)
    record = {
        "seed": arguments.seed,
        "stages": {stage.name: {"steps": stage.steps, "batch": stage.batch} for stage in stages},
        "data_sha256": data_hash(),
        "torch": torch.__version__,
        "accuracy_on_calibration_pictures": history[-1]["accuracy"] if history else None,
        "history": history,
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"saved to {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
