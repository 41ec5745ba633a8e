"""ChartQA's relaxed accuracy: numbers may be off by 5 %, everything else must be equal."""

from __future__ import annotations

TOLERANCE = 0.05


def relaxed_match(answer: str, gold: str, tolerance: float = TOLERANCE) -> bool:
    """Numbers within ``tolerance`` of a gold that is not 0; else equality, case ignored.

    Nothing is stripped or mended: "1,000" and "$5" are no numbers, and years fall under the tolerance too.
    """
    said, true = _number(answer), _number(gold)
    if said is not None and true:
        return abs(said - true) / abs(true) <= tolerance
    return answer.lower() == gold.lower()


def _number(text: str) -> float | None:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
