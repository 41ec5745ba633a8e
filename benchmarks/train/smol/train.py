"""Train ``smol``'s vision tower, projector and low-rank updates on ``scene-vqa``.

Three stages, each resumable to the step: the tower alone (`tower`), the projector onto words (`words`), all together
(`together`). Before the last one the projector is taught the places of patches (places.py). The learning rate of the
last stage is flat until a decay is asked for, by `--decay N` on a resumed run or by writing {"decay": N} to
OUT/decay.json while it runs; the state before the decay is kept for a longer run.

    python -m benchmarks.train.smol.train --out OUT [--tower 700] [--words 200] [--together 3000] [--decay N]
    python -m benchmarks.train.smol.train --out OUT --begin vispco/models/smol --places 0    (from the shipped weights)

The shipped weights are those of `--tower 2600 --words 200` and 3,778 steps of the last stage: 800, a decay over 600,
from there with `--begin` 564 more, which begin with the places, and a decay over 480, and with `--begin --places 0
--text-weight 4 --text-every 4` 634 more and a decay over 700: 255 minutes on two cores. The optimizers of the first
stage began anew at step 900, those of the last at steps 1,400 and 2,444.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.train.smol.attention import NAME as PACKED
from benchmarks.train.smol.lora import add_updates, merge_updates
from benchmarks.train.smol.masters import Masters, fast_dtype
from benchmarks.train.smol.packing import MIX, Packed, every_question, pack, questions_for, weakest_more_often
from benchmarks.train.smol.places import STEPS, teach_places
from benchmarks.train.smol.text import distance, own_answers
from benchmarks.train.smol.tower import (
    Readers,
    WordTargets,
    begin_with_neighbours,
    ink_loss,
    pixel_values,
    readers_loss,
)
from vispco.models.smol.build import GRID, build_model
from vispco.models.smol.language import load_language_model, load_tokenizer
from vispco.tasks.scenes.layout import Scene, sample_crowd, sample_scene
from vispco.tasks.scenes.questions import SHORT, Question

# The commonest words have the lowest numbers: as many compete with the right ones in a step of the last stage.
FEW_WORDS = 8192
FIXED = re.compile(r"position_embedding|layers\.[01]\.self_attn\.[qk]_proj")
STAGES = ("tower", "words", "together")
RECORDED = ("stage", "step", "begun", "mix", "decay_from", "decay_steps", "seconds", "curve")
# Patches along the side of smaller pictures: 0.86 to 0.25 of the visual tokens.
SMALLER = (13, 12, 11, 10, 9, 8, 7)
# New readers learn on a tower that is left alone by them for so many steps.
SETTLE = 150


class Run:
    """The model under training, its optimizers, and where it stands."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out, self.rank = options, Path(options.out), options.rank
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(options.seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer()
        language = load_language_model()
        model = build_model(language, self.tokenizer.convert_tokens_to_ids("<image>"))
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        begin_with_neighbours(self.tower)
        self.readers = Readers(self.tower.config.hidden_size)
        model.set_attn_implementation("eager")
        self.dtype = fast_dtype(self.device)
        self.model = model.to(self.device, self.dtype).train()
        # What the projector loses cannot be asked about, so in the last stage its output is read too.
        self.seen_readers = Readers(model.config.text_config.hidden_size)
        for readers in (self.readers, self.seen_readers):
            readers.to(self.device, self.dtype)
        self.model.requires_grad_(False)
        self.targets = WordTargets(self.tokenizer, model.get_input_embeddings().weight.detach())
        self.decoder, self.head = model.model.language_model, model.lm_head
        self.stage, self.step, self.decay_from, self.decay_steps = "tower", 0, -1, 0
        self.curve: list[dict[str, Any]] = []
        self.seconds, self.begun = 0.0, 0
        self.mix = dict(MIX)
        self.updates: dict[str, nn.Parameter] = {}
        self.answers: dict[str, Tensor] = {}
        self.masters = self._masters()

    def _masters(self) -> Masters:
        tower = {name: param for name, param in self.tower.named_parameters() if "post_layernorm" not in name}
        readers = dict(self.readers.named_parameters())
        projector = dict(self.projector.named_parameters())
        if self.stage == "tower":
            # What makes neighbours see each other is left alone until it has served its purpose.
            tower = {name: param for name, param in tower.items() if not FIXED.search(name)}
            square = {name: param for name, param in tower.items() if param.ndim == 2 and ".layers." in name}
            rest = {name: param for name, param in tower.items() if name not in square}
            groups = {
                "tower2": (square, 4e-3, "muon"),
                "tower": (rest, 2e-3, "adamw"),
                "readers": (readers, 2e-3, "adamw"),
            }
        elif self.stage == "words":
            groups = {"projector": (projector, 2e-3, "adamw")}
        else:
            if not self.updates:
                torch.manual_seed(self.options.seed + 1)
                with torch.random.fork_rng():
                    self.answers = self.own_answers()
                self.model.train()
                self.decoder.set_attn_implementation(PACKED)
                self.updates = add_updates(self.decoder)
                self.compile_layers()
            groups = {
                "projector": (projector, 1e-3, "adamw"),
                "updates": (self.updates, 1e-3, "adamw"),
                "tower": (tower, 1.5e-4, "adamw"),
                "readers": (readers, 5e-4 if self.begun == 0 else 2e-3, "adamw"),
                "readers_of_projector": (dict(self.seen_readers.named_parameters()), 2e-3, "adamw"),
            }
        for params, _, _ in groups.values():
            for param in params.values():
                param.requires_grad_(True)
        if self.stage == "words":
            self.tower.requires_grad_(False)
        if self.updates:
            merge_updates(self.decoder)
        return Masters(groups)

    def own_answers(self) -> dict[str, Tensor]:
        """Made by the first process, read by the others."""
        path = self.out / "own_answers.safetensors"
        made = None if self.rank else own_answers(self.model.eval(), self.tokenizer, path)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        return load_file(path) if made is None else made

    def compile_layers(self) -> None:
        """To save time a step. The layers share one compiled form, since they differ in their weights alone."""
        for layer in self.decoder.layers if self.options.compile else ():
            layer.forward = torch.compile(layer.forward, dynamic=True)

    # --- state ------------------------------------------------------------------------------------

    def save(self, name: str = "last") -> None:
        """The whole state; written beside the old one first."""
        if self.rank:
            return
        tensors = self.masters.state()
        if self.stage == "words":
            kept = {
                **{f"tower/{n}": p for n, p in self.tower.named_parameters()},
                **{f"readers/{n}": p for n, p in self.readers.named_parameters()},
            }
            tensors.update({f"kept/{n}": p.detach().contiguous() for n, p in kept.items()})
        record = {
            **{key: getattr(self, key) for key in RECORDED},
            "seed": self.options.seed,
        }
        path = self.out / f"{name}.safetensors"
        save_file(tensors, path.with_suffix(".new"), metadata={"record": json.dumps(record)})
        path.with_suffix(".new").replace(path)
        (self.out / "curve.json").write_text(json.dumps(record, indent=1))

    def resume(self, name: str = "last") -> bool:
        from safetensors import safe_open

        path = self.out / f"{name}.safetensors"
        if not path.exists():
            return False
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["record"])
        for key in RECORDED:
            setattr(self, key, record[key])
        tensors = load_file(path)
        if self.stage == "words":
            for part, module in (("tower", self.tower), ("readers", self.readers)):
                for param_name, param in module.named_parameters():
                    param.data.copy_(tensors[f"kept/{part}/{param_name}"])
        self.masters = self._masters()
        self.masters.load(tensors)
        merge_updates(self.decoder)
        return True

    def begin(self, folder: Path) -> None:
        """Go on with the last stage from weights that were shipped; optimizers and readers are new."""
        record = json.loads((folder / "training.json").read_text())
        self.stage, self.step, self.begun = "together", record["step"], record["step"]
        self.seconds, self.curve = record["seconds"], record["curve"]
        self.masters = self._masters()
        shipped = load_file(folder / "weights.safetensors")
        self.masters.load({f"master/{name}": tensor.float() for name, tensor in shipped.items()})
        merge_updates(self.decoder)
        if self.options.places:
            self.teach_places()

    def teach_places(self) -> None:
        def features_of(step: int) -> Tensor:
            rng = random.Random(f"smol/{self.options.seed}/places/{step}/{self.rank}")
            return self.features([sample_scene("train", rng) for _ in range(8)])

        errors = teach_places(self.projector, self.targets, features_of, self.options.places)
        self.masters = self._masters()
        self.note({"places": [round(error, 4) for error in errors[::50]]})

    # --- steps ------------------------------------------------------------------------------------

    def hidden(self, scenes: list[Scene], side: int = GRID) -> list[Tensor]:
        """What enters the tower's first layer and what leaves each, [B, side * side, H]."""
        pixels = pixel_values(scenes, side).to(self.device, self.dtype)
        found = self.tower(pixels, output_hidden_states=True, interpolate_pos_encoding=side != GRID)
        return [states[:, 1:] for states in found.hidden_states]

    def features(self, scenes: list[Scene], side: int = GRID) -> Tensor:
        """[B, side * side, H] of the tower, as the projector reads them."""
        return self.hidden(scenes, side)[-1]

    def rng(self) -> random.Random:
        return random.Random(f"smol/{self.options.seed}/{self.stage}/{self.step}/{self.rank}")

    def tower_step(self, last: int) -> dict[str, float]:
        rng = self.rng()
        scenes = [
            sample_crowd("train", rng, rng.randint(8, 20)) if number % 4 else sample_scene("train", rng)
            for number in range(self.options.tower_batch)
        ]
        crowds, plain = scenes, scenes[::4]
        hidden = self.hidden(crowds)
        features = hidden[-1]
        ink = ink_loss(self.readers, hidden[1], crowds)
        loss, right = readers_loss(self.readers, features, crowds, places=False)
        places, _ = readers_loss_place(self.readers, features[::4], plain)
        (loss + 0.5 * places + 10 * ink).backward()
        done = self.step / last
        factor = min(1.0, (self.step + 1) / 30) * (1.0 if done < 0.7 else max(0.03, (1 - done) / 0.3))
        norm = self.masters.step(factor)
        return {
            "loss": float(loss.detach()),
            "ink": float(ink.detach()),
            "norm": norm,
            **{name: hit / count for name, (hit, count) in right.items()},
        }

    def words_step(self, last: int) -> dict[str, float]:
        rng = self.rng()
        scenes = [sample_scene("train", rng) for _ in range(16)]
        with torch.no_grad():
            features = self.features(scenes)
        target = self.targets(scenes).to(self.device)
        found = self.projector(features).float()
        loss = (found - target).square().mean() / target.flatten(0, 1).var(0).mean()
        loss.backward()
        self.masters.step(min(1.0, (self.step + 1) / 20) * max(0.05, 1 - self.step / last))
        return {"loss": float(loss)}

    def answer_logits(self, packed: Packed, seen: Tensor, few: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, labels and weights of all answer tokens, [N, V], [N], [N].

        Args:
            seen: what the projector says of the pictures, [B, 196, H].
            few: over the commonest words only.
        """
        ids = packed.input_ids.to(self.device)
        embedded = self.model.get_input_embeddings()(ids)
        image = (ids == self.model.config.image_token_id)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(image, seen.to(embedded.dtype))
        hidden = self.decoder(
            inputs_embeds=embedded,
            attention_mask=packed.mask(embedded.dtype, self.decoder.config.num_attention_heads).to(self.device),
            position_ids=packed.positions.to(self.device),
            use_cache=False,
            prefix=packed.prefix,
        ).last_hidden_state
        asked = packed.labels.to(self.device) >= 0
        labels, weights = packed.labels.to(self.device)[asked], packed.weights.to(self.device)[asked]
        if not few:
            return self.head(hidden[asked]), labels, weights
        words = torch.unique(torch.cat([labels, torch.arange(FEW_WORDS, device=labels.device)]))
        logits = nn.functional.linear(hidden[asked], self.head.weight[words])
        return logits, torch.searchsorted(words, labels), weights

    def side(self) -> int:
        """Patches along a picture's side in this step, the same in all processes."""
        rng = random.Random(f"smol/{self.options.seed}/side/{self.step}")
        return rng.choice(SMALLER) if rng.random() < self.options.smaller else GRID

    def together_step(self) -> dict[str, float]:
        rng = self.rng()
        scenes = [sample_scene("train", rng) for _ in range(self.options.batch)]
        questions = [questions_for(scene, rng, self.mix, self.options.short, self.options.long) for scene in scenes]
        side = self.side()
        features = self.features(scenes, side)
        seen = self.projector(features)
        logits, labels, weights = self.answer_logits(pack(self.tokenizer, questions, side * side), seen, few=True)
        each = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        loss = (each * weights).sum() / weights.sum()
        total, parts = loss, {"loss" if side == GRID else "smaller": float(loss.detach())}
        right: dict[str, tuple[int, int]] = {}
        if side == GRID:  # the readers' labels are of whole pictures' patches
            settled = self.begun == 0 or self.step >= self.begun + SETTLE
            reading, right = readers_loss(self.readers, features if settled else features.detach(), scenes, places=True)
            kept, _ = readers_loss(self.seen_readers, seen if settled else seen.detach(), scenes, places=True)
            total = loss + 0.3 * reading + 0.3 * kept
            parts |= {"reading": float(reading.detach()), "kept": float(kept.detach())}
        if self.step % self.options.text_every == 0:
            away = distance(self.head, self.decoder, self.answers, rng, 4)
            total = total + self.options.text_weight * away
            parts["text"] = float(away.detach())
        total.backward()
        factor = self.options.rate * min(1.0, (self.step - self.begun + 1) / 20)
        if self.decay_from >= 0:
            factor *= max(0.01, 1 - (self.step - self.decay_from) / self.decay_steps)
        parts["norm"] = self.masters.step(factor)
        merge_updates(self.decoder)
        shares = {name: right[name][0] / right[name][1] for name in ("word", "place") if name in right}
        right_tokens = float((logits.argmax(-1) == labels).float().mean())
        return {**parts, "token" if side == GRID else "smaller_token": right_tokens, **shares}

    # --- measuring --------------------------------------------------------------------------------

    @torch.no_grad()
    def examine(self, pictures: int = 32, side: int = GRID) -> dict[str, Any]:
        """Teacher-forced exact match by question type on scenes of the search split."""
        scores: dict[str, list[float]] = defaultdict(list)
        tokens: list[float] = []
        for start in range(0, pictures, 4):
            rng = random.Random(f"examine/{start}")
            scenes = [sample_scene("search", rng) for _ in range(4)]
            asked: list[list[Question]] = [every_question(scene, rng) for scene in scenes]
            seen = self.projector(self.features(scenes, side))
            logits, labels, _ = self.answer_logits(pack(self.tokenizer, asked, side * side), seen)
            right = (logits.argmax(-1) == labels).tolist()
            place = 0
            for question in (question for questions in asked for question in questions):
                end = place + labels[place:].tolist().index(2) + 1
                scores[question.kind].append(float(all(right[place:end])))
                if question.kind == "describe":
                    tokens += map(float, right[place:end])
                place = end
        kinds = {kind: round(sum(found) / len(found), 3) for kind, found in scores.items()}
        short = [kinds[kind] for kind in SHORT if kind in kinds]
        return {
            "short": round(sum(short) / len(short), 4),
            "describe_tokens": sum(tokens) / len(tokens),
            "kinds": kinds,
        }

    @torch.no_grad()
    def read(self, pictures: int = 64) -> dict[str, float]:
        """What the readers get right on crowds of the search split."""
        total: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for start in range(0, pictures, 32):
            rng = random.Random(f"read/{start}")
            scenes = [sample_crowd("search", rng, 14) for _ in range(32)]
            for name, (hit, count) in readers_loss(self.readers, self.features(scenes), scenes, places=False)[
                1
            ].items():
                total[name][0] += hit
                total[name][1] += count
        return {name: round(hit / count, 4) for name, (hit, count) in total.items()}

    # --- the whole --------------------------------------------------------------------------------

    def run(self) -> None:
        lasts = {stage: getattr(self.options, stage) for stage in STAGES}
        last_saved = time.monotonic()
        means: dict[str, list[float]] = defaultdict(list)
        while True:
            begun = time.monotonic()
            last = lasts[self.stage]
            if self.stage == "together" and self.decay_from >= 0:
                last = self.decay_from + self.decay_steps
            if self.step >= last:
                if not self.advance():
                    break
                means.clear()
                continue
            if self.stage == "together":
                self.listen()
                parts = self.together_step()
            else:
                parts = {"tower": self.tower_step, "words": self.words_step}[self.stage](last)
            self.step += 1
            self.seconds += time.monotonic() - begun
            for name, value in parts.items():
                means[name].append(value)
            if self.step % 20 == 0:
                shown = {name: round(sum(found) / len(found), 4) for name, found in means.items()}
                self.note({"train": shown})
                means.clear()
            if self.step % self.options.examine_every == 0 and self.stage != "words":
                found = {} if self.rank else self.examine() if self.stage == "together" else self.read()
                self.note({"found": found})
                if self.stage == "together" and self.options.smaller and not self.rank:
                    self.note({"smaller": {side: self.examine(16, side)["short"] for side in SMALLER[1::2]}})
                if self.stage == "together":
                    self.reweigh(found.get("kinds", {}))
            if time.monotonic() - last_saved > 200:
                self.save()
                last_saved = time.monotonic()
        self.save()

    def reweigh(self, accuracies: dict[str, float]) -> None:
        """Ask the weakest kinds of question more often from now on, the same in all processes."""
        mix = [weakest_more_often(self.mix, accuracies)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(mix, 0)
        self.mix = mix[0]

    def note(self, what: dict[str, Any]) -> None:
        entry = {"stage": self.stage, "step": self.step, "minutes": round(self.seconds / 60, 2), **what}
        self.curve.append(entry)
        if not self.rank:
            print(time.strftime("%H:%M:%S"), json.dumps(entry), flush=True)

    def listen(self) -> None:
        """Begin the decay that was asked for, if one was; keep the state before it."""
        path = self.out / "decay.json"
        steps = 0
        if self.decay_from < 0 and not self.rank and path.exists():
            steps = int(json.loads(path.read_text())["decay"])
            path.rename(path.with_suffix(f".{self.step}"))
        asked = torch.tensor([steps])
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(asked, 0)
        if asked.item():
            self.save("before_decay")
            self.decay_from, self.decay_steps = self.step, int(asked.item())
            self.note({"decay": self.decay_steps})

    def advance(self) -> bool:
        """Go to the next stage; False after the last."""
        measure = {"tower": self.read, "words": dict, "together": self.examine}[self.stage]
        found = {} if self.rank else measure()
        self.note({"finished": found})
        if self.stage == "together":
            return False
        self.stage, self.step = STAGES[STAGES.index(self.stage) + 1], 0
        if self.stage == "together":
            self.teach_places()
        else:
            self.masters = self._masters()
        self.save()
        self.save(f"before_{self.stage}")
        return True


def readers_loss_place(readers: Readers, features: Tensor, scenes: list[Scene]) -> tuple[Tensor, Any]:
    """The loss of the reader of places alone: only scenes on a grid have places."""
    import numpy as np

    from benchmarks.train.smol.tower import patch_labels

    target = torch.from_numpy(np.stack([patch_labels(scene)[0]["place"] for scene in scenes])).to(features.device)
    logits = readers(features)["place"]
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--begin", type=Path, help="a folder of shipped weights to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tower", type=int, default=700, help="steps of the first stage")
    parser.add_argument("--words", type=int, default=200, help="steps of the second stage")
    parser.add_argument(
        "--together", type=int, default=100_000, help="steps of the third stage, if no decay is asked for"
    )
    parser.add_argument(
        "--places", type=int, default=STEPS, help="steps in which the projector learns places; 0 where it knows them"
    )
    parser.add_argument(
        "--decay", type=int, default=0, help="let the learning rate fall to zero over so many steps, from now on"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="the decoder's layers (needs a compiler)"
    )
    parser.add_argument("--tower-batch", type=int, default=12, help="pictures a process")
    parser.add_argument("--batch", type=int, default=2, help="pictures a process")
    parser.add_argument("--short", type=int, default=9, help="short questions a picture")
    parser.add_argument("--long", type=int, default=3, help="lists, sentences and questions of several steps a picture")
    parser.add_argument(
        "--smaller", type=float, default=0.0, help="share of the last stage's steps on smaller pictures"
    )
    parser.add_argument(
        "--rate", type=float, default=1.0, help="of the last stage's learning rates, lower for a short run"
    )
    parser.add_argument("--text-every", type=int, default=8)
    parser.add_argument("--text-weight", type=float, default=1.0)
    parser.add_argument("--examine-every", type=int, default=100)
    options = parser.parse_args()
    if options.decay:
        Path(options.out, "decay.json").write_text(json.dumps({"decay": options.decay}))
    if options.processes == 1:
        work(0, options)
        return
    Path(options.out).mkdir(parents=True, exist_ok=True)
    store = Path(options.out).resolve() / f"store-{time.time_ns()}"
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, options, str(store))) for rank in range(options.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def work(rank: int, options: argparse.Namespace, store: str = "") -> None:
    """One of the run's processes; they share each step's pictures and average their gradients."""
    options.rank = rank
    torch.set_num_threads(options.threads)
    if store:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=options.processes
        )
    run = Run(options)
    resumed = run.resume()
    if not resumed and options.begin:
        run.begin(options.begin)
    if not rank:
        print(f"{'resumed at' if resumed else 'starting'} {run.stage} {run.step}", flush=True)
    run.run()


if __name__ == "__main__":
    main()
