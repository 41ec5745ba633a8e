"""MMMU's open questions: the conclusions of an answer are read as texts and as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def read_open(answer: str) -> set[str | float]:
    """What an answer says: the shortest tail after a cue of each line, and all numbers in these tails.

    >>> sorted(read_open("x = 5")), read_open("The answer is 3.14159")
    ([5.0], {3.14})
    """
    lines = answer.strip().strip(".").lower().split("\n")
    tails = []
    for number, line in enumerate(lines):
        cues = (*CUES, "=") if number == len(lines) - 1 else CUES
        found = [line.split(cue)[-1].strip() for cue in cues if cue in line]
        # An empty tail says nothing; another cue's stands.
        shortest = min((tail for tail in found if tail), key=len, default="")
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            tails.append(shortest)
    tails = tails or [answer.strip().strip(".").lower()]
    numbers = [number for tail in tails for pattern in NUMBERS for number in re.findall(pattern, tail)]
    return {form for text in (*tails, *numbers) for form in _forms(text)}


def open_match(answer: str, golds: Sequence[str]) -> bool:
    """A gold text within something that is said, or a gold number among what is said, to two decimals."""
    true = {form for gold in golds for form in _forms(gold)}
    return any(
        form in true if isinstance(form, float) else any(isinstance(g, str) and g in form for g in true)
        for form in read_open(answer)
    )


def _forms(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    # A single character must stand alone, or it would be found in almost any text.
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
