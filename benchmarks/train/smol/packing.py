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

# Shares while training, of the short questions and of the others: what is learned late is asked more often.
MIX = {
    **dict.fromkeys(MAKERS, 1.0),
    **dict.fromkeys(("where", "count", "count_color"), 2.0),
    **dict.fromkeys(("beside", "same_color", "compare", "list_things", "describe"), 1.6),
}
LEAST_SHARE = 0.1


def weakest_more_often(mix: dict[str, float], accuracies: dict[str, float]) -> dict[str, float]:
    """``mix`` half way towards what each kind of question still misses, by exact match on the search split."""
    wanted = {kind: LEAST_SHARE + 1 - accuracies.get(kind, 0.5) for kind in mix}
    return {kind: (share + wanted[kind]) / 2 for kind, share in mix.items()}


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


def questions_for(scene: Scene, rng: random.Random, mix: dict[str, float], short: int, long: int) -> list[Question]:
    found: dict[str, Question] = {}
    for wanted, kinds in ((short, [kind for kind in mix if kind in SHORT]), (long, [k for k in mix if k not in SHORT])):
        goal = len(found) + wanted
        for _ in range(6 * wanted):
            question = ask(rng.choices(kinds, [mix[kind] for kind in kinds])[0], scene, rng)
            if question:
                found.setdefault(question.text, question)
            if len(found) == goal:
                break
    return list(found.values())


def every_question(scene: Scene, rng: random.Random) -> list[Question]:
    return [question for kind in MAKERS if (question := ask(kind, scene, rng))]


def pack(tokenizer: Any, batch: list[list[Question]], visual_tokens: int = VISUAL_TOKENS) -> Packed:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    image = tokenizer.convert_tokens_to_ids("<image>")
    prefix = [*ids("<|im_start|>user\n"), *[image] * visual_tokens, *ids("\n")]
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
    length = 32 * -(-max(map(len, rows)) // 32)  # few lengths, so that memory is used again
    blank = (2, 0, -100, -1, 0.0)
    filled = [[*row, *[blank] * (length - len(row))] for row in rows]
    whole = [torch.tensor([[token[part] for token in row] for row in filled]) for part in range(5)]
    return Packed(whole[0], whole[1], whole[2], whole[3], whole[4])
