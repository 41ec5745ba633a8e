"""What ``smol`` can do: ``python benchmarks/testbed.py [--samples 1440] [--pruned 720] [--json FILE]``.

On held-out samples of ``scene-vqa``, answers generated freely: accuracy by type of question and by length of the
answer, without the picture, and pruned at three levels of compute; on descriptions also the share of tokens that are
right when all before them are given. Without pictures: how far the language model is from SmolLM2 itself. Prints each
claim with its figure and whether it holds; exits 1 if one does not. Ten to twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vispco.evaluation.plain import PlainEvaluation, evaluate_plain, plain_task
from vispco.models.loading import load_model
from vispco.models.smol.language import load_language_model
from vispco.pruning.schedules import Ratios
from vispco.tasks.base import Sample
from vispco.tasks.rendering import render_prompt
from vispco.tasks.scene_vqa import GROUP_OF, GROUPS

MODEL = {"name": "smol", "dtype": "bfloat16"}
LENGTHS = (1, 2, 5, 10, 20)  # tokens, where a class of answers begins
BATCH = 16
# None of these topics or forms is in the training's own list (benchmarks/train/smol/text.py).
TOPICS = ("a lighthouse", "honey", "the violin", "deserts", "a postman", "glass", "the calendar", "penguins")
FORMS = ("What is special about {}?", "Write a letter that mentions {}.", "Why do people like {}?")
FACTS = (
    ("What is the capital of France?", "paris"),
    ("What is the capital of Japan?", "tokyo"),
    ("What is the capital of Italy?", "rome"),
    ("What is the largest planet of the solar system?", "jupiter"),
    ("What gas do plants take in?", "carbon dioxide"),
    ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("What is the chemical symbol of gold?", "au"),
    ("At how many degrees Celsius does water boil?", "100"),
    ("How many days does a week have?", "seven|7"),
    ("What is the opposite of hot?", "cold"),
    ("Which animal is called the king of the jungle?", "lion"),
    ("What is the closest star to the Earth?", "sun"),
    ("What language is spoken in Brazil?", "portuguese"),
    ("What do bees make?", "honey"),
    ("How many legs does a spider have?", "eight|8"),
    ("On which continent is Egypt?", "africa"),
)


def chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


# --- pictures -------------------------------------------------------------------------------------


def by_kind(found: PlainEvaluation) -> dict[str, float]:
    kinds = np.array([sample.category for sample in found.samples])
    return {kind: float(found.scores[kinds == kind].mean()) for kind in GROUP_OF if kind in kinds}


def by_group(found: PlainEvaluation) -> dict[str, float]:
    groups = np.array([GROUP_OF[sample.category] for sample in found.samples])
    return {name: float(found.scores[groups == name].mean()) for name in GROUPS if name in groups}


def by_length(found: PlainEvaluation, tokenizer: Any) -> dict[str, tuple[float, int]]:
    """Accuracy and number of samples by tokens of the right answer."""
    sizes = np.array([len(tokenizer(sample.answers[0]).input_ids) for sample in found.samples])
    ends = [*LENGTHS[1:], 10**6]
    rows = {}
    for first, end in zip(LENGTHS, ends, strict=True):
        inside = (sizes >= first) & (sizes < end)
        if inside.any():
            name = f"{first}+" if end == 10**6 else str(first) if end == first + 1 else f"{first}-{end - 1}"
            rows[name] = (float(found.scores[inside].mean()), int(inside.sum()))
    return rows


@torch.inference_mode()
def right_tokens(model: Any, processor: Any, samples: Sequence[Sample]) -> float:
    """Share of the answers' tokens, their end among them, that are the most probable ones after all right ones."""
    right, total = 0, 0
    for start in range(0, len(samples), 8):
        part = samples[start : start + 8]
        answers = [f"{sample.answers[0]}<|im_end|>" for sample in part]
        texts = [render_prompt(processor, sample) + answer for sample, answer in zip(part, answers, strict=True)]
        images = [list(sample.images) for sample in part]
        inputs = processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="left")
        logits = model(**inputs).logits
        for ids, row, answer in zip(inputs["input_ids"], logits, answers, strict=True):
            size = len(processor.tokenizer(answer).input_ids)
            right += int((row[-size - 1 : -1].argmax(-1) == ids[-size:]).sum())
            total += size
    return right / total


# --- text -----------------------------------------------------------------------------------------


@torch.inference_mode()
def text_ability(model: Any, tokenizer: Any) -> dict[str, float]:
    """``smol`` without pictures beside SmolLM2 itself: simple questions, and texts that the latter wrote."""
    own = load_language_model().to(model.dtype)
    found: dict[str, float] = {"facts": len(FACTS)}
    for name, one in (("SmolLM2", own), ("smol", model)):
        found[f"facts {name}"] = sum(
            any(word in answer for word in wanted.split("|"))
            for answer, (_, wanted) in zip(_answers(one, tokenizer, [f for f, _ in FACTS]), FACTS, strict=True)
        )
    torch.manual_seed(0)
    prompts = [form.format(topic) for form in FORMS for topic in TOPICS]
    settings = {"do_sample": True, "temperature": 0.8, "min_new_tokens": 48}
    inputs = tokenizer([chat(prompt) for prompt in prompts], return_tensors="pt", padding=True)
    ids = own.generate(**inputs, max_new_tokens=48, pad_token_id=2, **settings)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), 48, dtype=torch.long)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logs = {
        name: one(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -49:-1].float().log_softmax(-1)
        for name, one in (("SmolLM2", own), ("smol", model))
    }
    for name, log in logs.items():
        found[f"nats {name}"] = -float(log.gather(-1, ids[:, -48:, None]).mean())
    found["divergence"] = float((logs["SmolLM2"].exp() * (logs["SmolLM2"] - logs["smol"])).sum(-1).mean())
    found["same token"] = float((logs["SmolLM2"].argmax(-1) == logs["smol"].argmax(-1)).float().mean())
    return found


def _answers(model: Any, tokenizer: Any, questions: Sequence[str]) -> list[str]:
    inputs = tokenizer([chat(question) for question in questions], return_tensors="pt", padding=True)
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False, pad_token_id=2)
    return [text.lower() for text in tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])]


# --- the whole ------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL["name"])
    parser.add_argument("--samples", type=int, default=1440)
    parser.add_argument("--pruned", type=int, default=720, help="samples of each pruned measurement")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--at", type=int, nargs="*", default=[18, 10, 3], help="layers at which a quarter is kept")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    place = {**MODEL, "name": options.model}
    loaded = load_model(options.model, dtype=place["dtype"])
    model, processor = loaded
    told: dict[str, Any] = {"model": options.model, "samples": options.samples}

    def measure(samples: int, **settings: Any) -> PlainEvaluation:
        return evaluate_plain(place, plain_task("scene-vqa", {}, samples), batch_size=BATCH, loaded=loaded, **settings)

    started = time.monotonic()
    plain = measure(options.samples)
    seconds = (time.monotonic() - started) / options.samples  # of this machine, now: printed, not kept
    blind = measure(options.samples, schedule=Ratios([0.0] * model.config.text_config.num_hidden_layers).text())
    kinds, blind_kinds = by_kind(plain), by_kind(blind)
    print(f"{'type of question':18s} {'unpruned':>8s} {'no image':>8s}")
    for kind, score in kinds.items():
        print(f"{kind:18s} {score:8.3f} {blind_kinds[kind]:8.3f}")
    told |= {"kinds": kinds, "kinds without image": blind_kinds, "standard error": plain.standard_error}
    told |= {"groups": by_group(plain), "groups without image": by_group(blind), "accuracy": plain.accuracy}

    rows = {"unpruned": by_length(plain, processor.tokenizer)}
    for layer in options.at:
        found = measure(options.pruned, schedule=f"step(layer={layer}, keep=0.25)", method=options.method)
        name = f"{options.method} {found.pruning['schedule']}" if found.pruning else options.method
        rows[f"{name} ({found.costs['flops_ratio']:.2f})"] = by_length(found, processor.tokenizer)
    print(f"\ntokens of the answer{'':36s} " + " ".join(f"{name:>6s}" for name in rows["unpruned"]))
    for name, row in rows.items():
        print(
            f"{name:56s} " + " ".join(f"{row[size][0]:6.3f}" if size in row else "     -" for size in rows["unpruned"])
        )
    told["lengths"] = rows

    described = [sample for sample in plain.samples if sample.category == "describe"]
    told["description tokens"] = right_tokens(model, processor, described)
    told["text"] = text = text_ability(model, processor.tokenizer)
    print("\nwithout pictures: " + ", ".join(f"{name} {value:.4g}" for name, value in text.items()))
    print(f"{seconds:.3f} s a sample, unpruned\n")
    groups, unseen = told["groups"], told["groups without image"]
    claims = [
        ("short answers", groups["short"], ">=", 0.95),
        ("lists", groups["lists"], ">=", 0.90),
        ("tokens of descriptions, the right ones before them given", told["description tokens"], ">=", 0.95),
        ("short answers without the picture", unseen["short"], "<=", 0.35),
        ("simple questions without a picture, minus SmolLM2's", text["facts smol"] - text["facts SmolLM2"], ">=", -1),
        ("nats a token on SmolLM2's own texts, above its own", text["nats smol"] - text["nats SmolLM2"], "<=", 0.1),
    ]
    good = True
    for words, value, sense, bound in claims:
        holds = value >= bound if sense == ">=" else value <= bound
        good &= holds
        print(f"{'ok  ' if holds else 'FAIL'} {words}: {value:.4g} (asked: {sense} {bound})")
    for name in ("sentences", "steps"):
        print(f"     {name}: {groups[name]:.4g}")
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
