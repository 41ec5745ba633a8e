"""Option letters as a model says them: the tokens that begin an answer with one."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from vispco.errors import ModelError

BEFORE = ("", " ", "\n")  # some tokenizers have one token for a letter after a blank and one for it alone


def letter_tokens(tokenizer: Any, letter: str) -> tuple[int, ...]:
    """All tokens by which an answer may begin with ``letter`` alone.

    Raises:
        ModelError: the tokenizer has none.
    """
    ends = {ids[-1] for text in BEFORE if (ids := tokenizer.encode(f"{text}{letter}", add_special_tokens=False))}
    found = tuple(sorted(i for i in ends if tokenizer.decode([i]).strip() == letter))
    if not found:
        raise ModelError(
            f"this model's tokenizer has no token for the option letter {letter!r}, so options cannot be told apart by "
            "likelihood; use answer_by: generate"
        )
    return found


def likeliest_letters(logits: Tensor, options: Sequence[int], tokenizer: Any) -> list[str]:
    """The option letter that each answer would most probably begin with.

    A letter is worth its best token, so that a generated answer whose first token is a letter begins with the same.

    Args:
        logits: after the prompt, [B, V].
        options: their number, of each sample [B].

    Raises:
        ModelError: a letter has no token.
    """
    most = ascii_uppercase[: max(options)]
    tokens = [letter_tokens(tokenizer, letter) for letter in most]
    best = torch.stack([logits[:, list(ids)].max(dim=1).values for ids in tokens], dim=1)
    return [most[int(row[:count].argmax())] for row, count in zip(best, options, strict=True)]
