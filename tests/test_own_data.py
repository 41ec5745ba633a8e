"""Own rows: what a text means where two readings exist. Equality first, whole options before parts, else refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vispco.costs.profile import read_profile
from vispco.errors import ConfigError, DataError, ScheduleError
from vispco.pruning.schedule_file import read_schedule_file
from vispco.tasks.base import Sample, make_task
from vispco.tasks.conversations import read_rows
from vispco.tasks.scorers.own import chosen_letter, same
from vispco.tasks.vqa_json import SCORERS


def read(folder: Path, row: dict[str, Any], kind: str = "jsonl", **options: Any) -> tuple[Sample, Any]:
    """The sample of one row, and its task."""
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "PNG")
    (folder / "a.png").write_bytes(held.getvalue())
    whole = {"image": "a.png", "question": "?", **row}
    if kind == "jsonl":
        text = json.dumps(whole)
    else:
        import csv

        lines = io.StringIO()
        writer = csv.DictWriter(lines, list(whole))
        writer.writeheader()
        writer.writerow(whole)
        text = lines.getvalue()
    (folder / f"rows.{kind}").write_text(text)
    task = make_task("vqa-json", {"search": 1}, {"path": str(folder / f"rows.{kind}"), **options})
    return task.samples("search")[0], task


FREE: list[tuple[Any, str, float]] = [
    ("[3, 4]", "[3, 4]", 1),
    ("[3, 4]", "3", 0),
    ("[3, 4", "[3, 4", 1),
    ("['red', 3]", "['red', 3]", 1),
    ("['red', 3]", "red", 0),
    ("[a]", "[a]", 1),
    ("['red', 'crimson']", "Crimson", 1),
    (["red", "crimson"], "crimson", 1),
    (3.0, "3", 1),
    (3, "3.0", 1),
    (3, "3.00", 1),
    (0, "-0", 1),
    (3, "3.01", 0),
    (3, "13", 0),
    ("007", "7", 0),
    ("1e3", "1000", 0),
    ("٣", "3", 0),
    ("Dark  red", " dark red\n", 1),
    ("dark red", "red", 0),
    ("red", "dark red", 0),
    ("Café", "cafe\u0301", 1),
    ("STRASSE", "straße", 1),
    (True, "true", 1),
    ("{'a': 1}", "{'a': 1}", 1),
    ("(3, 4)", "(3, 4)", 1),
]


@pytest.mark.parametrize(("gold", "answer", "score"), FREE)
def test_free_answers(gold: Any, answer: str, score: float, tmp_path: Path) -> None:
    sample, task = read(tmp_path, {"answer": gold})
    assert task.score(sample, answer) == score


def test_lists_in_cells(tmp_path: Path) -> None:
    sample, _ = read(tmp_path, {"answer": '["red", "crimson"]'}, "csv")
    assert sample.answers == ("red", "crimson")
    sample, _ = read(tmp_path, {"answer": "[3, 4]"}, "csv")
    assert sample.answers == ("[3, 4]",)


SHADES = ["red", "dark red", "blue", "I do not know"]

CHOSEN: list[tuple[list[str], str, str | None]] = [
    (SHADES, "dark red", "B"),
    (SHADES, "Dark Red.", "B"),
    (SHADES, "red", "A"),
    (SHADES, "It is dark red", "B"),
    (SHADES, "It is red, dark red", None),
    (SHADES, "Don't know", None),
    (SHADES, "Does it matter?", None),
    (SHADES, "I do not know", "D"),
    (SHADES, "I do not know.", "D"),
    (SHADES, "hundred", None),
    (SHADES, "not red", None),
    (SHADES, "It isn't blue", None),
    (SHADES, "A", "A"),
    (SHADES, "b", "B"),
    (SHADES, "(C)", "C"),
    (SHADES, "**B**", "B"),
    (SHADES, "B.", "B"),
    (SHADES, "B: dark red", "B"),
    (SHADES, "B. dark red", "B"),
    (SHADES, "A. dark red", None),
    (SHADES, "B. red", None),
    (SHADES, "The answer is C.", "C"),
    (SHADES, "The answer is (B), since it is dark", "B"),
    (SHADES, "The answer is A dog", None),
    (SHADES, "Answer: C", "C"),
    (SHADES, "The answer is A. No, the answer is B.", None),
    (SHADES, "E", None),
    (SHADES, "", None),
    (["cat", "dog"], "A dog", "B"),
    (["3", "13", "1.3"], "13", "B"),
    (["3", "13", "1.3"], "1.3", "C"),
    (["3", "13", "1.3"], "there are 3.", "A"),
    (["3", "13", "1.3"], "3.0", "A"),
    (["3", "30"], "3.5", None),
    (["yes", "no"], "No.", "B"),
    (["yes", "no"], "No, there is not.", "B"),
    (["yes", "no"], "No, yes is not right.", None),
    (["red", "blue"], "Red, not really.", None),
    (["yes", "no"], "yes and no", None),
    (["C++", "C"], "C++", "A"),
]


@pytest.mark.parametrize(("options", "answer", "letter"), CHOSEN)
def test_which_option_an_answer_names(options: list[str], answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, dict(zip("ABCDE", options, strict=False))) == letter


GOLDS: list[tuple[Any, Any, tuple[str, ...]]] = [
    ("B", ["red", "blue"], ("B",)),
    ("b", ["red", "blue"], ("B",)),
    ("blue", ["red", "blue"], ("B",)),
    ("Blue", ["red", "blue"], ("B",)),
    ("A", ["A", "B"], ("A",)),
    (3, [1, 2, 3.0], ("C",)),
    ("3", "[3, 4]", ("A",)),
    (["A", "B"], ["red", "crimson", "blue"], ("A", "B")),
    (["A", "red"], ["red", "blue"], ("A",)),
]


@pytest.mark.parametrize(("gold", "options", "letters"), GOLDS)
def test_right_options(gold: Any, options: Any, letters: tuple[str, ...], tmp_path: Path) -> None:
    sample, task = read(tmp_path, {"answer": gold, "options": options})
    assert sample.answers == letters
    assert [task.score(sample, letter) for letter in letters] == [1.0] * len(letters)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"answer": "A", "options": ["D", "B", "A", "C"]}, r"line 1 .*option A is 'D', which is the letter of another"),
    ({"answer": "b", "options": ["b", "a"]}, r"option A is 'b', which is the letter of another"),
    (
        {"answer": "red", "options": ["red", "blue", "red"]},
        r"line 1 .*'red', which may be A or C of the options red, bl",
    ),
    (
        {"answer": "A", "options": ["red", "blue", "Red "]},
        r"options A and C are alike, and one is right; make them differ",
    ),
    ({"answer": "3", "options": ["3.0", "4", "3.00"]}, r"'3', which may be A or C"),
    ({"answer": "green", "options": ["red", "blue"]}, r"the right option is 'green', but the options are A to B"),
    ({"answer": "dark", "options": ["dark red", "blue"]}, r"the right option is 'dark', but the options are A to B"),
    ({"answer": "[]"}, r"line 1 .*answers is the text '\[\]', which may be an answer or none"),
    (
        {"answers": ["yes", "no"], "scorer": "yes-no"},
        r"scorer 'yes-no' compares with one answer, and there are yes, no",
    ),
    ({"answers": ["A", "B"], "options": ["x", "y"], "scorer": "mmbench"}, r"'mmbench' compares with one answer"),
    ({"answer": float("inf")}, r"line 1 .*answers is inf; give it, or remove the line"),
    ({"answer": float("nan")}, r"line 1 .*answers is nan; give it, or remove the line"),
    ({"answer": "a", "image": ["a.png", None]}, r"line 1 .*image names \['a.png', None\]; give each picture"),
    ({"answer": "a", "image": ["", "a.png"]}, r"line 1 .*image names \['', 'a.png'\]; give each picture"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_two_readings_are_refused_with_the_row(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    options = {key: row.pop(key) for key in ("scorer",) if key in row}
    with pytest.raises(DataError, match=message):
        read(tmp_path, dict(row), **options)


TOO_DEEP, TOO_LONG = '{"a":' * 100_000, f'{{"answer": {"9" * 5000}}}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [(TOO_DEEP, "its values lie too deep in one another"), (TOO_LONG, "a number has thousands of digits")],
)
def test_json_that_python_cannot_hold_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    """Wherever a person's JSON is read."""
    for kind, place in (("jsonl", "line 1 of .*rows.jsonl"), ("json", ".*rows.json")):
        (tmp_path / f"rows.{kind}").write_text(text)
        with pytest.raises(DataError, match=f"{place} is no JSON: {reason}; "):
            make_task("vqa-json", {"search": 1}, {"path": str(tmp_path / f"rows.{kind}")}).samples("search")
        with pytest.raises(DataError, match=f"is no JSON: {reason}; "):
            read_rows(tmp_path / f"rows.{kind}")
    with pytest.raises(ScheduleError, match="is not JSON; write it with"):
        read_schedule_file(tmp_path / "rows.json")
    with pytest.raises(ConfigError, match="is not JSON; write a profile with"):
        read_profile(tmp_path / "rows.json")


def test_loose_rules_are_named() -> None:
    """``standard`` and ``choice`` are strict; what MMBench's protocol takes for D is asked for by its name."""
    sample = Sample("0", "0", (), "?", ("D",), options=tuple(SHADES))
    assert {name: SCORERS[name](sample, "Don't know") for name in ("standard", "choice", "mmbench")} == {
        "standard": 0.0,
        "choice": 0.0,
        "mmbench": 1.0,
    }


def test_equality_is_symmetric() -> None:
    texts = ["3", "3.0", "3.00", "red", "Red", "007", "7", "", " ", "[3]"]
    assert all(same(a, b) == same(b, a) for a in texts for b in texts)


@pytest.mark.parametrize("scorer", ["contains", "vispco-relaxed", "anls", "rouge-l", "relaxed", "chrf", "cider", "vqa"])
def test_scorers_of_free_text_are_not_given_a_letter(scorer: str, tmp_path: Path) -> None:
    """The right answer of a question with options is their letter: "a banana" would contain A."""
    row = {"answer": "red", "options": ["red", "blue"]}
    with pytest.raises(DataError, match="reads free text, and the right answer of a question with options is a letter"):
        read(tmp_path, row, scorer=scorer)


def test_no_option_is_left_out(tmp_path: Path) -> None:
    """A question with fewer distractors is an easier one."""
    letters = "ABCDEFGHIJKL"
    sample, _ = read(tmp_path, {"answer": "C", **{letter: f"thing {letter}" for letter in letters}}, "csv")
    assert sample.options == tuple(f"thing {letter}" for letter in letters)


def test_a_score_that_depends_on_all_rows_is_known_by_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    prints = [
        read(tmp_path / name, {"answer": text}, scorer=scorer)[1].fingerprint()
        for name, text, scorer in (
            ("a", "a red car", "cider"),
            ("b", "a blue car", "cider"),
            ("a", "a red car", "cider"),
            ("b", "a blue car", "rouge-l"),
        )
    ]
    assert prints[0] == prints[2] != prints[1]
    assert "frequencies" not in prints[3]
