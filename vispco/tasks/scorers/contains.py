"""OCRBench: a gold text occurs in the answer."""

from __future__ import annotations

from collections.abc import Sequence

# Full-width forms of ASCII, and the ideographic space.
NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def contains_gold(answer: str, golds: Sequence[str], *, formula: bool = False) -> bool:
    """Any gold within the answer, never the reverse.

    ``formula`` (rows of HME100k): case counts, blanks do not. Otherwise the reverse, and lines are joined by blanks.
    """
    said = _folded(answer, formula)
    return any(gold in said for gold in (_folded(gold, formula) for gold in golds) if gold)


def _folded(text: str, formula: bool) -> str:
    text = text.translate(NARROW)
    text = text if formula else text.lower()
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if formula else text
