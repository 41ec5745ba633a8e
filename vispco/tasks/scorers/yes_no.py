"""Yes or no: MME and POPE, and the numbers that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vispco.tasks.scorers.soft import vlmevalkit_punctuation


def mme_answer(answer: str) -> str | None:
    """MME: "yes" or "no" within the first four characters; None otherwise."""
    text = answer.lower().strip().replace(".", "")
    if text in ("y", "n"):
        return "yes" if text == "y" else "no"
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else None


def equal_answer(answer: str) -> str | None:
    """POPE in lmms-eval: the answer is "yes" or "no" and nothing else, not even a period."""
    text = answer.lower().strip()
    return text if text in ("yes", "no") else None


def word_answer(answer: str) -> str | None:
    """POPE in VLMEvalKit: one of the words "yes" and "no" occurs and the other does not."""
    words = vlmevalkit_punctuation(answer.lower()).split()
    found = [word for word in ("yes", "no") if word in words]
    return found[0] if len(found) == 1 else None


def mme_points(pairs: Sequence[Sequence[float]]) -> float:
    """Points of a category, at most 200: over its pictures, 100 x mean of both questions + 100 if both are right."""
    return sum(100 * sum(pair) / len(pair) + 100 * (min(pair) == 1) for pair in pairs) / len(pairs)


def binary_metrics(said: Sequence[str | None], golds: Sequence[str]) -> Mapping[str, float]:
    """Accuracy, precision, recall, F1 and share of "yes"; a number with denominator 0 is 0.

    ``None``, neither yes nor no, is wrong; in recall it drops out, as in lmms-eval, which counts only "no" as missed.
    """
    pairs = list(zip(said, golds, strict=True))
    right = sum(a == g for a, g in pairs)
    hit, false, missed = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    precision = hit / (hit + false) if hit + false else 0.0
    recall = hit / (hit + missed) if hit + missed else 0.0
    return {
        "accuracy": right / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_ratio": sum(a == "yes" for a, _ in pairs) / len(pairs),
    }
