"""What is written around a question, to the letter as lmms-eval writes it: scores depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CHINESE = "\n请直接使用所提供的选项字母作为答案回答。"
SHORT = "\nAnswer the question using a single word or phrase."
ONE_WORD = "\nAnswer the question with a single word."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT


def option_lines(options: Sequence[str]) -> str:
    """``A. first`` and so on, a line each."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False))
