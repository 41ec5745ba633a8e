"""The scoring of the VisPCO repository, for setting a run beside the paper's tables. It is loose.

An empty answer is right for every short-answer question, "a" is right for "banana", "pizza" is option A. Numbers scored
so cannot be compared with anybody else's; tables never mix them with the ``standard`` ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MARKS = ".、:：)"  # noqa: RUF001  (full-width marks are part of the rule)


def letter(answer: str) -> str:
    """A leading letter before a mark, else the last letter, with or without a mark after it; else the whole text."""
    answer = answer.strip()
    leading = re.match(rf"([a-z])[{MARKS}]", answer, flags=re.IGNORECASE)
    closing = re.search(rf"([a-z])\s*[{MARKS}]?$", answer, flags=re.IGNORECASE)
    found = leading or closing
    return found[1].upper() if found else answer


def letter_match(answer: str, gold: str) -> bool:
    """Both the answer and the gold are reduced to a letter."""
    return letter(answer) == letter(gold)


def relaxed_match(answer: str, golds: Sequence[str]) -> bool:
    """Either text within the other, punctuation deleted; one of the golds is enough."""
    said = _normalised(answer)
    return any(gold in said or said in gold for gold in map(_normalised, golds) if gold)


def yes_no_match(answer: str, gold: str) -> bool:
    """ "yes" anywhere, else "no" anywhere, also within a word such as "unknown"."""
    return _yes_no(answer) == _yes_no(gold)


def _yes_no(text: str) -> str:
    text = _normalised(text)
    return "yes" if "yes" in text else "no" if "no" in text else text


def _normalised(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.lower().strip()).split())
