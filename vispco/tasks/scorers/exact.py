"""Equality of texts."""

from __future__ import annotations

import string

PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, gold: str, *, ignore_case: bool = True, ignore_punctuation: bool = True) -> bool:
    """lmms-eval's ``exact_match``: equal after lower-casing and deleting every ASCII punctuation mark. GQA."""
    if ignore_case:
        answer, gold = answer.lower(), gold.lower()
    if ignore_punctuation:
        answer, gold = answer.translate(PUNCTUATION), gold.translate(PUNCTUATION)
    return answer == gold
