"""ANLS, average normalised Levenshtein similarity: DocVQA, InfoVQA."""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLD = 0.5


def anls(answer: str, golds: Sequence[str], threshold: float = THRESHOLD) -> float:
    """The best similarity 1 - edits / longer length over the golds; 0 below ``threshold``. Case and blanks are folded.

    >>> round(anls("Pariss", ["Paris"]), 3), anls("Lond", ["Paris"])
    (0.833, 0.0)
    """
    said = " ".join(answer.lower().split())
    best = max(_similarity(said, " ".join(gold.lower().split())) for gold in golds)
    return best if best >= threshold else 0.0


def _similarity(a: str, b: str) -> float:
    return 1 - edits(a, b) / max(len(a), len(b)) if a or b else 1.0


def edits(a: str, b: str) -> int:
    """Insertions, deletions and replacements that turn ``a`` into ``b``."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]
