"""Train a demo VLM: ``python -m benchmarks.train.demo.train --model llava|deep|qwen --out DIR``.

What each starts from and its stages: ``benchmarks.train.demo.recipes``. Mosaics are drawn fresh at every step from the
``train`` pictures (``data``), several questions are packed into one sequence (``packing``), and accuracy is watched on
mosaics of the ``calibration`` pictures. With the vision tower frozen, on a CPU, the step runs with eager attention, and
under bfloat16 autocast where the stage says so, for speed.

Seeded and resumable: a checkpoint holds weights, optimiser and step, and step ``n`` draws its data from
``(seed, stage, n)``. ``training.json`` beside the weights says what was done.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.train.demo.data import data_hash, draw_scenes
from benchmarks.train.demo.families import TrainedFamily, family_of
from benchmarks.train.demo.losses import CellHeads, answer_loss, see_loss, summarise
from benchmarks.train.demo.packing import draw_questions
from benchmarks.train.demo.recipes import RECIPES, Recipe, Stage
from vispco.tasks.mosaic import sample_scene, split_pictures

REPORT_EVERY = 100
VALIDATION_SCENES = 256


@torch.no_grad()
def validate(
    family: TrainedFamily, heads: CellHeads, stage: Stage, device: str, teacher: Any = None
) -> dict[str, float]:
    """Accuracy per question kind on unseen (``calibration``) pictures."""
    rng = random.Random(f"validate/{stage.name}")
    vocab, prefix, pictures = family.vocabulary, family.prefix, split_pictures("calibration")
    totals: dict[str, list[float]] = defaultdict(list)
    family.model.eval()
    for _ in range(0, VALIDATION_SCENES, 64):
        batch = [sample_scene(pictures, rng) for _ in range(64)]
        if stage.mix is None:
            for kind, value in see_loss(family, heads, batch, device, teacher)[1].items():
                totals[kind].append(value)
        else:
            packed, kinds = draw_questions(batch, stage.mix, stage.questions, rng, vocab, prefix)
            for kind, values in answer_loss(family, None, batch, packed, kinds, device)[1].items():
                totals[kind] += values
    family.model.train()
    report = summarise(totals)
    weights = {kind: (stage.mix or {}).get(kind, 1.0) for kind in report if kind != "like_teacher"}
    report["mean"] = round(sum(report[k] * w for k, w in weights.items()) / sum(weights.values()), 4)
    return report


def run_stage(model: Any, stage: Stage, seed: int, folder: Path, device: str, history: list[dict[str, Any]]) -> None:
    family = family_of(model)
    heads = CellHeads(family.seen_width(), model.config.text_config.hidden_size).to(device)
    trained = list(family.vision().parameters()) if stage.mix is None else list(model.parameters())
    parameters = [*trained, *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=stage.peak_lr, weight_decay=0.01, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.peak_lr, stage.cycle or stage.steps, pct_start=0.1)
    state_file = folder / f"{stage.name}.state.pt"
    for module in family.frozen():
        module.requires_grad_(not stage.frozen_vision)
    fast = (stage.frozen_vision or stage.eager) and device == "cpu"
    model.set_attn_implementation("eager" if fast else "sdpa")
    teacher = demo(device, "eager" if fast else "sdpa") if stage.teacher_weight else None
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start = state["step"]
    vocab, prefix, began = family.vocabulary, family.prefix, time.monotonic()
    for step in range(start, stage.steps):
        rng = random.Random(f"{seed}/{stage.name}/{step}")
        scenes = draw_scenes(stage.batch, rng)
        if stage.mix is None:
            loss, _ = see_loss(
                family, heads, scenes, device, teacher, stage.teacher_weight, stage.place_weight, stage.evenly
            )
        else:
            packed, kinds = draw_questions(scenes, stage.mix, stage.questions, rng, vocab, prefix)
            with torch.autocast(device, torch.bfloat16, enabled=fast and stage.autocast):
                loss, _ = answer_loss(
                    family, heads, scenes, packed, kinds, device, stage.place_weight, teacher, stage.teacher_weight
                )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        done = step + 1
        if done % REPORT_EVERY == 0 or done == stage.steps:
            accuracy = validate(family, heads, stage, device, teacher)
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


def demo(device: str, attention: str = "sdpa") -> Any:
    """The finished LLaVA demo, that the others start from or imitate."""
    from vispco.models.loading import load_model

    model, _ = load_model("demo", device=device, dtype="float32", attn_implementation=attention)
    return model.requires_grad_(False)


def start_of(recipe: Recipe, seed: int, device: str) -> Any:
    """The model before its first stage, in training mode."""
    model = recipe.build(seed).to(device)
    if recipe.start is not None:
        recipe.start(model, demo(device))
    return model.train()


def save(model: Any, recipe: Recipe, stages: list[Stage], seed: int, history: list[dict[str, Any]], out: Path) -> None:
    """Weights, processor and ``training.json``; accuracy is that of the weights as stored."""
    from vispco.models.loading import weights_hash

    model.set_attn_implementation("sdpa")
    model.cpu().eval().to(getattr(torch, recipe.stored)).save_pretrained(out)
    recipe.processor().save_pretrained(out)
    model.float()
    family = family_of(model)
    heads = CellHeads(family.seen_width(), model.config.text_config.hidden_size)
    record = {
        "seed": seed,
        "starts_from": None if recipe.start is None else {"model": "demo", "weights": weights_hash(demo("cpu"))},
        "stages": {stage.name: {"steps": stage.steps, "batch": stage.batch} for stage in stages},
        "data_sha256": data_hash(),
        "torch": torch.__version__,
        "accuracy_on_calibration_pictures": validate(family, heads, stages[-1], "cpu"),
        "history": history,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"saved to {out}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(RECIPES), default="llava")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--steps", nargs="*", default=[], metavar="STAGE=N", help="override a stage's steps")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = RECIPES[arguments.model]
    steps = {name: int(number) for name, number in (item.split("=") for item in arguments.steps)}
    stages = [replace(stage, steps=steps.get(stage.name, stage.steps)) for stage in recipe.stages]
    checkpoints = arguments.out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)

    model = start_of(recipe, arguments.seed, device)
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
    save(model, recipe, stages, arguments.seed, history, arguments.out)


if __name__ == "__main__":
    main()
