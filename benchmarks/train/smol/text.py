"""Keeping what the language model knows: it is held to its own untouched answers to questions without pictures."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TOPICS = (
    *("the ocean", "a good breakfast", "the history of Rome", "photosynthesis", "a bicycle", "winter", "music"),
    *("the moon", "a small village", "computers", "gravity", "the heart", "trains", "bread", "democracy", "a dog"),
    *("volcanoes", "the number zero", "friendship", "a library", "rivers", "the internet", "bees", "chess", "tea"),
    *("a garden", "electricity", "painting", "the weather", "a long journey", "sleep", "money", "the alphabet"),
    *("forests", "a hospital", "algebra", "the Middle Ages", "shoes", "birds", "a busy market", "cooking rice"),
    *("the telephone", "honesty", "football", "planets", "an island", "cotton", "elections", "the skin", "maps"),
    *("rain", "a drum", "robots", "probability", "old age", "paper", "a farm", "medicine", "clocks", "dancing"),
    *("a river boat", "oxygen", "theatre", "a birthday", "traffic", "mushrooms"),
)
FORMS = (
    "Tell me about {}.",
    "Write a short story about {}.",
    "Explain {} to a child.",
    "Give me three facts about {}.",
    "What are the advantages of knowing about {}?",
    "Write a poem about {}.",
    "How would you describe {} in one paragraph?",
    "List five words that have to do with {}.",
)
PROMPTS = tuple(form.format(topic) for form in FORMS for topic in TOPICS)
TOKENS, TOP = 64, 32


@torch.no_grad()
def own_answers(model: Any, tokenizer: Any, path: Path, batch: int = 33) -> dict[str, Tensor]:
    """The untouched model's sampled answers to :data:`PROMPTS` and its 32 most probable tokens at each of theirs.

    Kept in ``path``. Returns ``ids`` [N, T], ``real`` [N, T], ``answer`` [N, T], ``top`` and ``logs`` [N, T, 32].
    """
    if path.exists():
        return load_file(path)
    torch.manual_seed(0)
    tokenizer.padding_side = "left"
    found: list[Tensor] = []
    for start in range(0, len(PROMPTS), batch):
        texts = [
            f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
            for prompt in PROMPTS[start : start + batch]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding="max_length", max_length=32, add_special_tokens=False)
        found.append(
            model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, temperature=0.8)
        )
    ids = torch.cat(found)
    real = torch.ones_like(ids)
    for row, prompt in enumerate(PROMPTS):
        real[row, : 32 - len(tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n").input_ids)] = 0
    answer = real.clone()
    answer[:, :31] = 0
    answer[:, -1] = 0
    top, logs = [], []
    for start in range(0, len(ids), 16):
        part, mask = ids[start : start + 16], real[start : start + 16]
        logits = model(input_ids=part, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        best = logits.float().log_softmax(-1).topk(TOP)
        top.append(best.indices)
        logs.append(best.values)
    tensors = {"ids": ids, "real": real, "answer": answer, "top": torch.cat(top), "logs": torch.cat(logs)}
    save_file(tensors, path)
    return tensors


def distance(hidden_to_logits: Any, decoder: Any, answers: dict[str, Tensor], rng: random.Random, count: int) -> Tensor:
    """Mean divergence of the present model from its untouched self on ``count`` of the answers, in nats a token."""
    rows = torch.tensor(rng.sample(range(len(answers["ids"])), count))
    ids, real, answer = (answers[name][rows] for name in ("ids", "real", "answer"))
    positions = (real.cumsum(1) - 1).clamp(min=0)
    length = ids.shape[1]
    allowed = real[:, None, :].bool() & torch.ones(length, length, dtype=torch.bool).tril()
    dtype, heads = next(decoder.parameters()).dtype, decoder.config.num_attention_heads
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    hidden = decoder(
        input_ids=ids,
        attention_mask=mask[:, None].repeat(1, heads, 1, 1),
        position_ids=positions,
        use_cache=False,
        prefix=0,
    ).last_hidden_state
    chosen = answer.bool()
    found = hidden_to_logits(hidden[chosen]).float().log_softmax(-1)
    logs = answers["logs"][rows][chosen]
    return (logs.exp() * (logs - found.gather(-1, answers["top"][rows][chosen]))).sum(-1).mean()
