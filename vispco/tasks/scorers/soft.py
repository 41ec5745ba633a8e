"""Agreement with several annotators: TextVQA, VizWiz, and A-OKVQA's direct answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(WORDS)}
MARKS = ';/[]"{}()=+\\_-><@`,?!'

# Word with its apostrophe; it is also known without.
_PLAIN = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've
isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Words with several apostrophes; each is also known with any one of them missing.
_DOUBLE = """
couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've 'ow's'at
"""


def _contractions() -> dict[str, str]:
    found = {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}
    found |= {word.replace("'", ""): word for word in _PLAIN.split()}
    for word in _DOUBLE.split():
        found |= {word[:i] + word[i + 1 :]: word for i, mark in enumerate(word) if mark == "'"}
    return found


CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """The answer normaliser of the VQA evaluation as lmms-eval runs it.

    >>> normalise("The red, blue car!"), normalise("Two dogs"), normalise("it's 10,000")
    ('red blue car', '2 dogs', "it 's 10000")
    """
    answer = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    # The look-behind that the original means to have is mistyped there and without effect.
    return _words(re.sub(r"\.(?!\d)", "", without_marks(answer)))


def vlmevalkit_punctuation(answer: str) -> str:
    return re.sub(r"(?<!\d)\.(?!\d)", "", without_marks(answer))


def without_marks(text: str) -> str:
    found, in_number = text, re.search(r"\d,\d", text) is not None
    for mark in MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if touches or in_number else " ")
    return found


def _words(text: str) -> str:
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, golds: Sequence[str]) -> float:
    """Mean over annotators of min(1, how many of the others agree with the answer / 3).

    >>> [round(soft_accuracy("cat", ["cat"] * k + ["dog"] * (10 - k)), 6) for k in range(5)]
    [0.0, 0.3, 0.6, 0.9, 1.0]
    """
    said = normalise(answer)
    agree = [normalise(gold) == said for gold in golds]
    return sum(min(1.0, (sum(agree) - own) / 3) for own in agree) / len(golds)


def direct_accuracy(answer: str, golds: Sequence[str]) -> float:
    """A-OKVQA's direct answers: min(1, annotators with exactly this answer / 3)."""
    return min(1.0, list(golds).count(answer) / 3)
