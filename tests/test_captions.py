"""Scores of captions and long answers, worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from vispco.tasks.base import make_task
from vispco.tasks.scorers.captions import Frequencies, cider, common, rouge_l, words_of

# Two samples; "a" is in both, so it weighs log 2 - log 2 = 0, every other word log 2.
TWO = Frequencies.count([["a red square"], ["a blue circle"]])


def test_words() -> None:
    assert words_of("A man's dog, two-tone; 3.5!") == ["a", "man's", "dog", "two", "tone", "3", "5"]


def test_cider_by_hand() -> None:
    """1-, 2- and 3-grams agree, there are no 4-grams: 10 * 3 / 4."""
    assert cider("A red square.", ["a red square"], TWO) == pytest.approx(7.5)
    assert cider("a blue circle", ["a red square"], TWO) == 0.0
    assert cider("", ["a red square"], TWO) == 0.0
    # "a red": cosine 1 / sqrt(2) for 1-grams and for 2-grams, one word short.
    short = 10 / 4 * 2 / math.sqrt(2) * math.exp(-1 / 72)
    assert cider("a red", ["a red square"], TWO) == pytest.approx(short)
    # "red" three times counts once, and its length as three: 1 / (3 sqrt(2)); the pairs "red red" are in no reference.
    assert cider("red red red", ["a red square"], TWO) == pytest.approx(10 / 4 / (3 * math.sqrt(2)))
    # Of two references the mean.
    assert cider("a red square", ["a red square", "a blue circle"], TWO) == pytest.approx(3.75)


def test_frequencies_are_frozen() -> None:
    """The same answer and reference score the same, whatever samples are scored beside them."""
    assert TWO.documents == 2
    assert TWO.of["a",] == 2
    assert TWO.of["red", "square"] == 1
    alone = Frequencies.count([["a red square"]])
    assert cider("a red square", ["a red square"], alone) == 0.0  # with one document every weight is 0


def test_rouge_l_by_hand() -> None:
    """LCS "cat sat": precision 2 / 3, recall 2 / 4; (1 + 1.44) P R / (R + 1.44 P)."""
    assert common(["a", "cat", "sat"], ["the", "cat", "sat", "down"]) == 2
    assert rouge_l("a cat sat", ["the cat sat down"]) == pytest.approx(2.44 * (2 / 3) * 0.5 / (0.5 + 1.44 * 2 / 3))
    assert rouge_l("the cat sat down", ["the cat sat down", "no"]) == 1.0
    assert rouge_l("", ["the cat"]) == rouge_l("dog", ["the cat"]) == 0.0


@pytest.mark.parametrize(
    ("scorer", "right", "wrong"), [("cider", 0.75, 0.0), ("rouge-l", 1.0, 1 / 3), ("chrf", 1.0, 0.4)]
)
def test_scorers_of_a_study(tmp_path: Path, scorer: str, right: float, wrong: float) -> None:
    """One row is scored, and frequencies are those of both rows of the file."""
    if scorer == "chrf":
        pytest.importorskip("sacrebleu")
    texts = ("a red square", "a blue circle")
    rows = []
    for number, text in enumerate(texts):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "What is there?", "answer": text})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task = make_task("vqa-json", {"search": 1}, {"path": str(path), "scorer": scorer})
    (sample,) = task.samples("search")
    other = next(text for text in texts if text not in sample.answers)
    assert task.score(sample, sample.answers[0]) == pytest.approx(right)
    assert task.score(sample, other) <= wrong + 1e-9
