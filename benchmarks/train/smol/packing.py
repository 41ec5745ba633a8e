"""Several questions about one picture in one sequence: each sees the picture and itself, as if it stood alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vispco.models.smol.build import VISUAL_TOKENS
from vispco.tasks.scenes.layout import Scene
from vispco.tasks.scenes.questions import MAKERS, SHORT, Question, ask

# Shares while training: what is learned late, or has many tokens to get right, is asked more often.
SHORT_MIX = {
    **dict.fromkeys(SHORT, 1.0),
    "where": 1.8,
    "count": 2.0,
    "count_color": 2.0,
    "beside": 1.6,
    "same_color": 1.6,
    "under": 1.4,
    "read_word": 1.4,
    "compare": 1.6,
    "largest": 1.4,
    "what_at": 1.4,
}
LONG_MIX = {
    "list_colors": 1.3,
    "list_shapes": 0.8,
    "list_words": 1.2,
    "list_things": 1.6,
    "describe": 1.6,
    "describe_one": 0.8,
    "steps_sum": 1.2,
    "steps_count": 0.8,
    "steps_same": 1.2,
    "steps_place": 1.0,
}


@dataclass(frozen=True)
class Packed:
    """``input_ids``, ``positions``, ``labels`` [B, T]; ``turn`` [B, T]: 0 for the prefix, n for the n-th question,
    -1 for padding; ``weights`` [B, T] of the answer's tokens."""

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    turn: Tensor
    weights: Tensor

    @property
    def prefix(self) -> int:
        return int((self.turn[0] == 0).sum())

    def mask(self, dtype: torch.dtype, heads: int) -> Tensor:
        """Additive [B, heads, T, T]."""
        length = self.turn.shape[1]
        one, other = self.turn[:, :, None], self.turn[:, None, :]
        allowed = ((other == 0) | (one == other)) & torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
        return mask[:, None].repeat(1, heads, 1, 1)


def questions_for(scene: Scene, rng: random.Random, short: int, long: int) -> list[Question]:
    found: dict[str, Question] = {}
    for mix, wanted in ((SHORT_MIX, short), (LONG_MIX, long)):
        goal = len(found) + wanted
        for _ in range(6 * wanted):
            question = ask(rng.choices(list(mix), list(mix.values()))[0], scene, rng)
            if question:
                found.setdefault(question.text, question)
            if len(found) == goal:
                break
    return list(found.values())


def every_question(scene: Scene, rng: random.Random) -> list[Question]:
    return [question for kind in MAKERS if (question := ask(kind, scene, rng))]


def pack(tokenizer: Any, batch: list[list[Question]]) -> Packed:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    image = tokenizer.convert_tokens_to_ids("<image>")
    prefix = [*ids("<|im_start|>user\n"), *[image] * VISUAL_TOKENS, *ids("\n")]
    rows = []
    for questions in batch:
        row = [(token, place, -100, 0, 0.0) for place, token in enumerate(prefix)]
        for number, question in enumerate(questions, 1):
            asked = ids(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
            said = ids(f"{question.answer}<|im_end|>")
            weight = len(said) ** -0.5
            tokens = [*asked, *said]
            # The label of a position is the token after it.
            labels = [-100] * (len(asked) - 1) + said + [-100]
            row += [
                (token, len(prefix) + place, label, number, weight if label >= 0 else 0.0)
                for place, (token, label) in enumerate(zip(tokens, labels, strict=True))
            ]
        rows.append(row)
    length = max(map(len, rows))
    blank = (2, 0, -100, -1, 0.0)
    filled = [[*row, *[blank] * (length - len(row))] for row in rows]
    whole = [torch.tensor([[token[part] for token in row] for row in filled]) for part in range(5)]
    return Packed(whole[0], whole[1], whole[2], whole[3], whole[4])
