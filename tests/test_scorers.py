"""Scoring rules: golden vectors obtained from the sources named, and what the VisPCO repository's rules let through."""

from __future__ import annotations

from typing import Any

import pytest

from vispco.tasks.scorers import vispco
from vispco.tasks.scorers.anls import anls, edits
from vispco.tasks.scorers.contains import contains_gold
from vispco.tasks.scorers.exact import exact_match
from vispco.tasks.scorers.letters import (
    bare_letter,
    first_character,
    is_letter,
    is_option,
    lenient_letter,
    mmbench_letter,
    mmmu_letter,
)
from vispco.tasks.scorers.open_ended import open_match, read_open
from vispco.tasks.scorers.relaxed import relaxed_match
from vispco.tasks.scorers.soft import CONTRACTIONS, direct_accuracy, normalise, soft_accuracy
from vispco.tasks.scorers.yes_no import binary_metrics, equal_answer, mme_answer, mme_points, word_answer

OPTIONS = {"A": "red apple", "B": "green pear", "C": "blue plum", "D": "yellow lemon"}

# answer | MMBench, lenient, MMMU, first character, ScienceQA, VisPCO repository ("-": none)
LETTERS = """
B | B B B B B B
b | - - - B B B
B. | B B B B B B
(B) | B B B ( - B
B. green pear | B B B B B B
B: green pear | B B - B - B
B) green pear | B B - B - B
The answer is B. | B B B T - B
The answer is B | B B B T - B
green pear | B - - G - R
Green pear. | B - - G - R
A cat is red | - A A A - D
I think it is a pear | - - - I - R
It is a green pear, not a red apple | - - A I - E
The correct answer is **B**. Because A is wrong. | - A A T - G
A or B | - A B A - B
Both A and B are right but B is better | - B B B - R
red | - - - R - D
pizza | - - - P - A
Yes | - - - Y - S
C is correct | C C C C - T
None of the above | - - - N - E
the image shows (C) a blue plum in the box | C C C T - X
 | - - - - - -
"""


@pytest.mark.parametrize("line", LETTERS.strip("\n").splitlines())
def test_letters(line: str) -> None:
    answer, _, expected = line.rpartition("| ")
    answer = answer.removesuffix(" ")
    found = (
        mmbench_letter(answer, OPTIONS),
        lenient_letter(answer, OPTIONS),
        mmmu_letter(answer, OPTIONS),
        first_character(answer),
        bare_letter(answer),
        vispco.letter(answer),
    )
    assert " ".join(letter or "-" for letter in found) == expected


def test_the_table_of_letters_is_whole() -> None:
    assert len(LETTERS.strip("\n").splitlines()) == 24


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C since the FDA requires it", "C"),
        ("B because DNA is copied", "B"),
        ("The answer is D based on the data of NASA in 1969", "D"),
        ("A. It is B. no", "A"),
        ("(A) or (C) or (B)", "B"),
    ],
)
def test_mmmu_ranks_several_letters_as_words(answer: str, letter: str) -> None:
    """As parse_mmmu_multi_choice_response of lmms-eval 0.7.3 does."""
    assert mmmu_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Answer: C", "C"),
        ("Based on the video, it is (C)", "C"),
        ("(A) seems wrong, the option is B here", "A"),
    ],
)
def test_the_shared_rule_knows_the_cues_of_lmms_eval(answer: str, letter: str) -> None:
    assert lenient_letter(answer, "ABCD") == letter


@pytest.mark.parametrize("answer", ["B", "B.", "B. text", "(B)", "b", " B "])
def test_ai2d_accepts(answer: str) -> None:
    assert is_letter(answer, "B")


@pytest.mark.parametrize("answer", ["B) text", "The answer is B", "", "A", "AB"])
def test_ai2d_refuses(answer: str) -> None:
    assert not is_letter(answer, "B")


def test_a_okvqa_accepts_the_options_text_too() -> None:
    assert is_option("Green pear.", "B", OPTIONS)
    assert is_option("B", "B", OPTIONS)
    assert not is_option("a green pear", "B", OPTIONS)
    assert not is_option("red apple", "B", OPTIONS)


NORMALISED = [
    ("A cat", "cat"),
    ("Two dogs", "2 dogs"),
    ("it's 10,000", "it 's 10000"),
    ("3.5", "3.5"),
    ("3.", "3"),
    ("hello-world", "hello world"),
    ("U.S.A.", "usa"),
    ("dont know", "don't know"),
    ("The red, blue car!", "red blue car"),
    ("a/b", "b"),
    ("$5.00", "$5.00"),
    ("no-smoking area", "no smoking area"),
    ("John's", "john 's"),
    ("None", "0"),
]


@pytest.mark.parametrize(("answer", "standard"), NORMALISED)
def test_normaliser(answer: str, standard: str) -> None:
    assert normalise(answer) == standard


def test_contractions() -> None:
    assert len(CONTRACTIONS) == 120
    assert sum("'" not in word for word in CONTRACTIONS) == 75
    assert CONTRACTIONS["couldn'tve"] == CONTRACTIONS["couldnt've"] == "couldn't've"
    assert CONTRACTIONS["y'alld've"] == "y'all'd've"
    assert CONTRACTIONS["'ow'sat"] == CONTRACTIONS["ow's'at"] == CONTRACTIONS["'ows'at"] == "'ow's'at"
    assert CONTRACTIONS["oclock"] == "o'clock"
    assert CONTRACTIONS["twas"] == "'twas"
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    assert CONTRACTIONS["let's"] == "let's"


# answer, gold, lmms-eval, VLMEvalKit (the same on the stripped answer), VisPCO repository
RELAXED = [
    ("3.5", "3.4", True, True, False),
    ("3.58", "3.4", False, False, False),
    ("35%", "0.35", True, True, True),
    ("35", "35%", False, False, True),
    ("0.36", "35%", True, True, False),
    ("1,000", "1000", False, False, True),
    ("1,000", "1,000", True, True, True),
    ("0.0", "0", False, False, True),
    ("0", "0", True, True, True),
    ("0.1", "0", False, False, True),
    ("Yes.", "yes", False, False, True),
    ("-3", "3", False, False, True),
    ("$5", "5", False, False, True),
    ("2019", "2010", True, True, False),
    ("12.6", "12", True, True, True),
    ("12.61", "12", False, False, True),
    ("nan", "5", False, False, False),
    ("Blue ", "blue", False, True, True),
]


@pytest.mark.parametrize(("answer", "gold", "standard", "vlmevalkit", "repository"), RELAXED)
def test_relaxed(answer: str, gold: str, standard: bool, vlmevalkit: bool, repository: bool) -> None:
    assert relaxed_match(answer, gold) is standard
    assert relaxed_match(answer.strip(), gold) is vlmevalkit
    assert vispco.relaxed_match(answer, [gold]) is repository


# answer, MME, POPE in lmms-eval, POPE in VLMEvalKit, VisPCO repository (None: wrong for both golds)
YES_NO = [
    ("Yes", "yes", "yes", "yes", "yes"),
    ("yes.", "yes", None, "yes", "yes"),
    ("Yes, there is a dog.", "yes", None, "yes", "yes"),
    ("no, there is not", "no", None, "no", "no"),
    ("Not really", "no", None, None, "no"),
    ("I cannot tell", None, None, None, "no"),
    ("I know yes", None, None, "yes", "yes"),
    ("There is no dog", None, None, "no", "no"),
    ("y", "yes", None, None, None),
    ("N", "no", None, None, None),
    ("The answer is yes", None, None, "yes", "yes"),
    ("nothing yes", "no", None, "yes", "yes"),
    ("Unknown", None, None, None, "no"),
    ("", None, None, None, None),
]


@pytest.mark.parametrize(("answer", "mme", "equal", "word", "repository"), YES_NO)
def test_yes_no(answer: str, mme: Any, equal: Any, word: Any, repository: Any) -> None:
    assert mme_answer(answer) == mme
    assert equal_answer(answer) == equal
    assert word_answer(answer) == word
    right = [gold for gold in ("yes", "no") if vispco.yes_no_match(answer, gold.title())]
    assert right == ([repository] if repository else [])


def test_soft_accuracy_is_a_mean_over_annotators() -> None:
    found = [soft_accuracy("cat", ["cat"] * k + [f"dog {i}" for i in range(10 - k)]) for k in range(11)]
    assert found == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1])
    assert soft_accuracy("A Cat.", ["the cat"] * 4 + ["dog"] * 6) == 1


def test_direct_answers_are_compared_as_they_are() -> None:
    assert [direct_accuracy("cat", ["cat"] * k + ["dog"] * 7) for k in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert direct_accuracy("Cat", ["cat"] * 10) == 0


@pytest.mark.parametrize(
    ("answer", "golds", "formula", "right"),
    [
        ("The word is CENTRE.", ["CENTRE"], False, True),
        ("cent", ["CENTRE"], False, False),
        ("", ["CENTRE"], False, False),
        ("x ^ { 2 } + 1", ["x^{2}+1"], True, True),
        ("X^{2}+1", ["x^{2}+1"], True, False),
        ("line1\nline2", ["line1 line2"], False, True),
        ("\uff11\uff12\uff13", ["123"], False, True),
        ("a b", ["ab"], False, False),
        ("anything", [""], False, False),
        ("it is b", ["x", "B"], False, True),
    ],
)
def test_ocrbench(answer: str, golds: list[str], formula: bool, right: bool) -> None:
    assert contains_gold(answer, golds, formula=formula) is right


@pytest.mark.parametrize(
    ("answer", "said", "gold"),
    [
        ("The answer is 3.14159", {3.14}, "3.14"),
        ("x = 5", {5.0}, "5"),
        ("So the result is 1,000 units", {"1,000 units", 1000.0, 0.0}, "1000"),
        ("B", {" b", "b "}, "b"),
        ("The total is 12.345.", {12.35}, "12.35"),
    ],
)
def test_mmmu_open(answer: str, said: set[str | float], gold: str) -> None:
    assert read_open(answer) == said
    assert open_match(answer, [gold])
    assert not open_match(answer, ["something else", "7"])


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [("Paris", "paris", 1), ("Pariss", "Paris", 5 / 6), ("Lond", "Paris", 0), ("", "Paris", 0)],
)
def test_anls(answer: str, gold: str, score: float) -> None:
    assert anls(answer, [gold]) == pytest.approx(score)
    assert anls(answer, ["xxxxxxxxxxxx", gold]) == pytest.approx(score)


def test_edit_distance() -> None:
    assert edits("kitten", "sitting") == 3
    assert edits("", "abc") == edits("abc", "") == 3
    assert anls("abcd", ["abxx"]) == 0.5, "one half is kept"


def test_exact_match_flags() -> None:
    assert exact_match("A Girl!", "a girl")
    assert not exact_match("girl", "a girl")
    assert not exact_match("Girl", "girl", ignore_case=False)
    assert not exact_match("girl.", "girl", ignore_punctuation=False)


def test_mme_points() -> None:
    """acc + acc+ of a category: both right, one right, none right."""
    assert mme_points([[1, 1]]) == 200
    assert mme_points([[1, 0]]) == 50
    assert mme_points([[1, 1], [1, 0], [0, 0]]) == pytest.approx((200 + 50 + 0) / 3)


def test_pope_metrics() -> None:
    said = ["yes", "yes", "no", "no", None, "yes"]
    golds = ["yes", "no", "no", "yes", "yes", "yes"]
    found = binary_metrics(said, golds)
    assert found["accuracy"] == 3 / 6
    assert found["precision"] == 2 / 3
    assert found["recall"] == 2 / 3, "what is neither yes nor no drops out"
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["yes_ratio"] == 0.5
    assert set(binary_metrics(["no"], ["no"]).values()) == {1.0, 0.0}


# --- what the repository's rules let through, and these must not --------------------------------------


def loose(answer: str, gold: str) -> bool:
    return vispco.relaxed_match(answer, [gold])


SECTION_3 = [
    # rule, standard(answer, gold), repository(answer, gold), answer, gold, standard's verdict
    ("3.1 SEED", lambda a, g: first_character(a) == g, vispco.letter_match, "pizza", "A", False),
    ("3.1 ScienceQA", lambda a, g: bare_letter(a) == g, vispco.letter_match, "The answer is B", "B", False),
    ("3.1 ScienceQA", lambda a, g: bare_letter(a) == g, vispco.letter_match, "red", "D", False),
    ("3.1 AI2D", is_letter, vispco.letter_match, "banana", "A", False),
    ("3.2", lambda a, g: mmbench_letter(a, OPTIONS) == g, vispco.letter_match, "red", "D", False),
    ("3.2", lambda a, g: mmbench_letter(a, OPTIONS) == g, vispco.letter_match, "green pear", "B", True),
    ("3.4", lambda a, g: lenient_letter(a, OPTIONS) == g, vispco.letter_match, "pizza", "A", False),
    ("3.4", lambda a, g: lenient_letter(a, OPTIONS) == g, vispco.letter_match, "C is correct", "C", True),
    ("3.5", relaxed_match, loose, "", "17", False),
    ("3.5", relaxed_match, loose, "100", "1000", False),
    ("3.5", relaxed_match, loose, "3.5", "3.4", True),
    ("3.6", lambda a, g: soft_accuracy(a, [g, *["dog"] * 9]) == 1, loose, "cat", "cat", False),
    ("3.6", lambda a, g: soft_accuracy(a, [g] * 10) == 1, loose, "a", "banana", False),
    ("3.7", lambda a, g: mmmu_letter(a, OPTIONS) == g, vispco.letter_match, "pizza", "A", False),
    ("3.7 open", lambda a, g: open_match(a, [g]), vispco.letter_match, "the cat", "bat", False),
    ("3.8", lambda a, g: mme_answer(a) == g, vispco.yes_no_match, "Unknown", "no", False),
    ("3.8 pairs", lambda a, g: mme_points([[a == "yes", g == "yes"]]) == 100, lambda a, g: True, "yes", "no", False),
    ("3.9 strict", lambda a, g: equal_answer(a) == g, vispco.yes_no_match, "Yes.", "yes", False),
    ("3.9 word", lambda a, g: word_answer(a) == g, vispco.yes_no_match, "I cannot tell", "no", False),
    ("3.10", lambda a, g: anls(a, [g]) > 0, loose, "a", "banana", False),
    ("3.11", exact_match, loose, "girl", "girls", False),
    ("2.3 OCRBench", lambda a, g: contains_gold(a, [g]), loose, "cent", "CENTRE", False),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "standard", "repository", "answer", "gold", "right"), SECTION_3)
def test_no_rule_is_as_loose_as_the_repositorys(
    rule: str, standard: Any, repository: Any, answer: str, gold: str, right: bool
) -> None:
    assert standard(answer, gold) is right
    assert repository(answer, gold) is not right, "the case tells the two apart"
