"""Reading an option's letter out of an answer: a strict and a lenient rule for every benchmark that has one.

All are case-sensitive in letters unless said otherwise, and give None where no letter can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from string import ascii_uppercase

from vispco.tasks.scorers.exact import exact_match
from vispco.tasks.scorers.soft import without_marks

Options = Mapping[str, str]  # letter -> text


def first_character(answer: str) -> str | None:
    """SEED-Bench: the first character, whatever it is, in upper case."""
    return answer.strip()[:1].upper() or None


def bare_letter(answer: str) -> str | None:
    """ScienceQA: the answer is a letter, in either case, or begins with a capital letter and a period."""
    answer = answer.strip()
    if len(answer) == 1 and answer.upper() in ascii_uppercase:
        return answer.upper()
    return answer[0] if re.match(r"[A-Z]\.", answer) else None


def is_letter(answer: str, letter: str) -> bool:
    """AI2D: a leading capital letter and period count as the letter; else the whole answer, without punctuation."""
    leading = re.match(r"\s*([A-Z])\.", answer)
    return exact_match(leading[1] if leading else answer.strip(), letter)


def is_option(answer: str, letter: str, options: Options) -> bool:
    """A-OKVQA, which has no rule for generated text: AI2D's rule, or the option's text, case ignored."""
    text = options[letter].strip().strip(".").lower()
    return is_letter(answer, letter) or answer.strip().strip(".").lower() == text


# --- MMBench ---------------------------------------------------------------------------------------

SHAPES = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def mmbench_letter(answer: str, options: Options) -> str | None:
    """MMBench as lmms-eval infers it: one letter as a word, or in one of :data:`SHAPES`, or one option's text."""
    words = answer.split()
    alone = [letter for letter in "ABCDE" if letter in words]
    # "A" may be an article in what is longer than an answer.
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    for shape in SHAPES:
        shaped = [letter for letter in "ABCDE" if shape.format(letter) in words]
        if len(shaped) == 1:
            return shaped[0]
    return _only_text(answer, options)


def _only_text(answer: str, options: Options) -> str | None:
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


# --- the shared rule of lmms-eval ------------------------------------------------------------------

CUES = (
    *(f"{the}{kind}answer is" for the in ("the ", "") for kind in ("correct ", "best ", "")),
    *(f"{the}{kind}option is" for the in ("the ", "") for kind in ("correct ", "best ")),
    *(f"{the}{kind}choice is" for the in ("the ", "") for kind in ("correct ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
PLACES = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))


def lenient_letter(answer: str, letters: Iterable[str]) -> str | None:
    """Every place where a letter may stand is a candidate; the most trusted kind wins, then the last place.

    "The correct answer is **B**. Because A is wrong." gives A: after a cue every letter is a candidate.
    """
    text = _stripped(answer, ",.!?;:'\"")
    padded, letters = f" {text} ", tuple(letters)
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        if text.startswith(letter) and not text[1:2].isalpha():
            found.append((10, 0, letter))
        if text.endswith(letter) and not text[-2:-1].isalpha():
            found.append((9, len(padded), letter))
        found += [(7, place, letter) for place in _after_cues(padded, letter)]
        found += [
            (priority, padded.rindex(shape.format(letter)), letter)
            for shape, priority in PLACES
            if shape.format(letter) in padded
        ]
    if not found:
        found = [(0, padded.rindex(letter), letter) for letter in letters if letter in padded]
    return max(found)[2] if found else None


def _after_cues(text: str, letter: str) -> list[int]:
    lower, found = text.lower(), []
    for cue in CUES:
        start = lower.find(cue)
        if start >= 0 and (place := text.find(letter, start + len(cue))) >= 0:
            found.append(place)
    return found


def _stripped(answer: str, marks: str) -> str:
    """Without blanks, then each of ``marks`` in turn, at both ends."""
    answer = answer.strip()
    for mark in marks:
        answer = answer.strip(mark)
    return answer


# --- videos ----------------------------------------------------------------------------------------


def mvbench_letter(answer: str) -> str | None:
    """MVBench as lmms-eval reads it: ``B. text``, else the first letter A to E, in either case, that stands alone.

    >>> mvbench_letter("(b) red"), mvbench_letter("E. a car"), mvbench_letter("It is a car"), mvbench_letter("cube")
    ('B', 'E', 'A', None)
    """
    if leading := re.match(r"([A-E])\.\s*(.+)$", answer.strip(), flags=re.IGNORECASE):
        return leading[1].upper()
    text = without_marks(re.sub(r"[\n\t]", " ", answer).strip())
    alone = re.search(r"\b([A-E])\b", re.sub(r"\.(?!\d)", "", text), flags=re.IGNORECASE)
    return alone[1].upper() if alone else None


# --- MMMU ------------------------------------------------------------------------------------------


def mmmu_letter(answer: str, options: Options) -> str | None:
    """MMMU: ``(X)``, else ``X`` before a blank, else ``X.``, else an option's text in a longer answer; the last one.

    Where nothing is found the original guesses at random; here it is None, which is wrong.
    """
    text = f" {_stripped(answer, ',.!?;:' + chr(39))} "
    # Among several letters the original looks for "(X)", else for the last " X ", even where it found another shape.
    for shape, ranked in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if shape.format(letter) in text]
        if found:
            return max(found, key=lambda letter: text.rfind(ranked.format(letter)))
    if len(text.split()) > 5:
        lower, places = text.lower(), {}
        for letter, option in options.items():
            if option.lower() in lower:
                places[letter] = lower.rfind(option.lower())
        return max(places, key=lambda letter: places[letter], default=None)
    return None
