"""Own data: equal texts first, whole options before parts of them, and nothing where two readings remain.

Benchmarks have protocols of their own, often looser, which their numbers must follow; own data need not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal

NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?", re.ASCII)  # neither 007 nor 1e3
WRAPPED = " \t\r\n\"'`*_()[].,:;!"
LETTER = r"[(\[*\"']*(?P<letter>[A-Za-z])"
ALONE = re.compile(LETTER + r"[)\].:,*\"']*")
WITH_TEXT = re.compile(LETTER + r"\s*[)\].:*\"']+\s*(?P<rest>.+)", re.DOTALL)
STATED = re.compile(
    r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*" + LETTER + r"(?=[)\].:,;!*\"']|\s*$)", re.IGNORECASE | re.DOTALL
)
NEGATION = re.compile(r"\b(?:not|no|nor|neither|never|none|cannot)\b|n['\u2019]t\b")


def plain(text: str) -> str:
    """What texts are compared by: composed characters, no case, single blanks, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def same(answer: str, gold: str) -> bool:
    """Equal texts without case and outer blanks, or equal numbers.

    >>> same(" Dark  red", "dark red"), same("3.0", "3"), same("007", "7"), same("3", "[3, 4]")
    (True, True, False, False)
    """
    said, wanted = plain(answer), plain(gold)
    if said == wanted:
        return True
    return bool(NUMBER.fullmatch(said) and NUMBER.fullmatch(wanted)) and Decimal(said) == Decimal(wanted)


def chosen_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names: its text, its letter, a stated letter, or the only option within a sentence.

    Args:
        options: letter -> text.

    >>> shades = {"A": "red", "B": "dark red", "C": "blue", "D": "I do not know"}
    >>> [chosen_letter(said, shades) for said in ("dark red", "B", "(c)", "C. blue", "It is dark red.", "Don't know")]
    ['B', 'B', 'C', 'C', 'B', None]
    """
    equal = [letter for letter, text in options.items() if same(answer, text)]
    equal = equal or [letter for letter, text in options.items() if same(answer.strip(WRAPPED), text.strip(WRAPPED))]
    if equal:
        return equal[0] if len(equal) == 1 else None
    if (alone := ALONE.fullmatch(answer.strip())) and (letter := alone["letter"].upper()) in options:
        return letter
    if (led := WITH_TEXT.fullmatch(answer.strip())) and (letter := led["letter"].upper()) in options:
        others = _named(led["rest"], options) - {letter}
        return letter if not others else None
    stated = {found["letter"].upper() for found in STATED.finditer(answer)} & options.keys()
    named = _named(answer, options) or _said_no(answer, options)
    if stated:
        return stated.pop() if len(stated) == 1 and named <= stated else None
    return named.pop() if len(named) == 1 else None


def _said_no(answer: str, options: Mapping[str, str]) -> set[str]:
    """An option that itself denies may be followed by a negation: "No, there is not."."""
    said = plain(answer)
    denying = {letter: plain(text) for letter, text in options.items() if NEGATION.fullmatch(plain(text))}
    led = {letter for letter, text in denying.items() if re.match(f"{text}[.,:;!]", said)}
    rest = NEGATION.sub(" ", re.sub(r"^\w+", "", said))
    return led if len(led) == 1 and not _named(rest, options) else set()


def _named(answer: str, options: Mapping[str, str]) -> set[str]:
    """Letters of options whose whole text stands in ``answer``, not as a part of a longer option; none if negated."""
    rest, found = plain(answer), set()
    for letter, text in sorted(options.items(), key=lambda option: -len(plain(option[1]))):
        wanted = plain(text)
        if not wanted:
            continue
        before = r"(?<![\w.,:/-])" if wanted[0].isdigit() else r"(?<!\w)"  # 3 is neither in 13, nor in 1.3
        rest, count = re.subn(rf"{before}{re.escape(wanted)}(?!\w|[.,:/]\d)", " \0 ", rest)
        if count:
            found.add(letter)
    return set() if NEGATION.search(rest) else found
