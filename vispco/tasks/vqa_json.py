"""``vqa-json``: your own pictures and questions, from JSON, JSONL, CSV, TSV, parquet or a folder."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cached_property
from string import ascii_uppercase
from typing import Any, ClassVar

from vispco.config import content_hash
from vispco.errors import ConfigError
from vispco.registry import Registry
from vispco.tasks.base import PLACE, TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.chartqa import relaxed
from vispco.tasks.loading import Row, Table
from vispco.tasks.mmbench import inferred
from vispco.tasks.prompts import LETTER, SHORT, option_lines
from vispco.tasks.scorers.anls import anls
from vispco.tasks.scorers.captions import Frequencies, cider, rouge_l
from vispco.tasks.scorers.contains import contains_gold
from vispco.tasks.scorers.own import chosen_letter, plain, same
from vispco.tasks.scorers.vispco import letter_match, relaxed_match, yes_no_match
from vispco.tasks.scorers.yes_no import word_answer
from vispco.tasks.textvqa import soft

ONE_ANSWER = ("mmbench", "yes-no", "vispco-letter", "vispco-yes-no")
OF_OPTIONS = ("standard", "exact", "choice", "mmbench", "vispco-letter")  # scorers that may get a letter
FEWEST = 4  # annotators without whom full agreement is not worth 1


def exact(sample: Sample, answer: str) -> float:
    """One of the answers, without case and outer blanks; numbers by their value."""
    return float(any(same(answer, gold) for gold in sample.answers))


def choice(sample: Sample, answer: str) -> float:
    """Names a right option, by its letter or its text, and no other."""
    return float(chosen_letter(answer, sample.lettered) in sample.answers)


def standard(sample: Sample, answer: str) -> float:
    """``choice`` where there are options, else ``exact``."""
    return choice(sample, answer) if sample.options else exact(sample, answer)


def contains(sample: Sample, answer: str) -> float:
    return float(contains_gold(answer, sample.answers))


def yes_no(sample: Sample, answer: str) -> float:
    return float(word_answer(answer) == sample.answers[0].strip().lower())


def chrf(sample: Sample, answer: str) -> float:
    """sacrebleu's chrF2 of the answer and its references, in [0, 1]."""
    try:
        from sacrebleu import sentence_chrf
    except ImportError:
        raise ConfigError("scorer 'chrf' needs sacrebleu: pip install 'vispco[text]', or use rouge-l") from None
    return float(sentence_chrf(answer, list(sample.answers)).score) / 100


def of_the_data_set(sample: Sample, answer: str) -> float:
    raise NotImplementedError("the task scores this itself, since it depends on the whole data set")


SCORERS = Registry("scorer", "scorers")
_BUILTIN: dict[str, Scorer] = {
    "standard": standard,
    "exact": exact,
    "choice": choice,
    "mmbench": inferred,
    "vqa": soft,
    "relaxed": relaxed,
    "contains": contains,
    "anls": lambda sample, answer: anls(answer, sample.answers),
    "rouge-l": lambda sample, answer: rouge_l(answer, sample.answers),
    "chrf": chrf,
    "cider": of_the_data_set,
    "yes-no": yes_no,
    "vispco-letter": lambda sample, answer: float(letter_match(answer, sample.answers[0])),
    "vispco-relaxed": lambda sample, answer: float(relaxed_match(answer, sample.answers)),
    "vispco-yes-no": lambda sample, answer: float(yes_no_match(answer, sample.answers[0])),
}
for _name, _rule in _BUILTIN.items():
    SCORERS.register(_name)(_rule)


@TASKS.register("vqa-json")
class VQAJson(Benchmark):
    """Rows with a picture (or several), a question and its answer or answers, and options if there are any.

    Rows in the style of LLaVA (``conversations``) give their first question and answer; those without a picture are
    left out. ``scorer`` chooses the rule, by default ``choice`` where there are options and ``exact`` elsewhere. For
    captions and long answers: ``cider`` (a tenth of CIDEr-D, at most 1, with document frequencies of all rows that the
    data set has), ``rouge-l``, ``chrf``.
    """

    name: ClassVar[str] = "vqa-json"
    version: ClassVar[int] = 2
    split = "train"
    columns = {"question": ("question", "query"), "answers": ("answers", "answer", "label")}
    optional = {"options": ("options", "choices"), "id": ("id", "question_id")}
    pictures = {"image": ("image", "images", "file_name")}
    scorers: ClassVar[Mapping[str, Scorer]] = SCORERS

    def score(self, sample: Sample, answer: str) -> float:
        if self.scorer == "cider":
            return min(1.0, cider(answer, sample.answers, self._frequencies) / 10)
        return super().score(sample, answer)

    def fingerprint(self) -> dict[str, Any]:
        found = super().fingerprint()
        if self.scorer == "cider":  # a score depends on the answers of all rows
            found["frequencies"] = self._frequency_hash
        return found

    @cached_property
    def _frequency_hash(self) -> str:
        known = self._frequencies
        return content_hash([known.documents, sorted((" ".join(gram), count) for gram, count in known.of.items())])

    @cached_property
    def _frequencies(self) -> Frequencies:
        splits = dict.fromkeys(self.data_split(split) for split in self.sizes)
        return Frequencies.count(sample.answers for split in splits for sample in self.rows(split)[1])

    def required(self, table: Table) -> Sequence[str]:
        return [] if "conversations" in table.columns else super().required(table)

    def leaves_out(self, row: Row) -> bool:
        return bool(row.get("conversations"))

    def read(self, row: Row) -> Item:
        question = _turn(row, "human") if row.get("conversations") else row.text(self._given(row, "question"))
        named = self._given(row, "answers")
        talked = row.get("conversations") and row.get(named) is None
        answers = (_turn(row, "gpt"),) if talked else _answers(row, named)
        options = self._options(row)
        if options:
            _distinct(row, options)
            answers = tuple(dict.fromkeys(_letter(row, answer, options) for answer in answers))
        self._fits(row, answers, options)
        hint = row.optional("hint")
        asked = f"{hint}\n{question}" if hint else question
        return Item(
            question=question,
            answers=answers,
            prompt=f"{asked}\n{option_lines(options)}" if options else asked,
            options=options,
            category=row.optional("category"),
            post_prompt=LETTER if options else SHORT,
            extra={"id": row.optional("id")},
        )

    def _given(self, row: Row, name: str) -> str:
        """What this row calls a column: rows written by hand do not all use the same of its names."""
        others: Sequence[str] = {**type(self).columns, **type(self).optional}[name]
        return next((other for other in (name, *others) if row.get(other) is not None), name)

    def _options(self, row: Row) -> tuple[str, ...]:
        column = self._given(row, "options")
        given = row.get(column)
        if given is None:
            given = {letter: row.get(letter) for letter in ascii_uppercase}
        if isinstance(given, dict):
            named = {letter: text for letter, text in given.items() if text is not None}
            if sorted(named) != list(ascii_uppercase[: len(named)]):
                raise row.error(f"options are named {', '.join(sorted(named))}", "name them A, B, C, ...")
            return tuple(str(named[letter]) for letter in sorted(named))
        return row.texts(column, written=True)

    def _fits(self, row: Row, answers: Sequence[str], options: Sequence[str]) -> None:
        """Whether the scorer can score this row."""
        if self.scorer in ("choice", "mmbench", "vispco-letter") and not options:
            raise row.error(f"scorer {self.scorer!r} needs options", "add them, or use scorer: exact")
        if options and self.scorer in _BUILTIN and self.scorer not in OF_OPTIONS:
            raise row.error(
                f"scorer {self.scorer!r} reads free text, and the right answer of a question with options is a letter",
                f"remove the options, or use scorer: {', '.join(OF_OPTIONS)}",
            )
        if self.scorer in ONE_ANSWER and len(set(map(plain, answers))) > 1:
            raise row.error(
                f"scorer {self.scorer!r} compares with one answer, and there are {', '.join(answers)[:60]}",
                "give one, or use scorer: standard",
            )
        if self.scorer == "vqa" and len(answers) < FEWEST:
            raise row.error(
                f"scorer 'vqa' compares with other people's answers, and there are {len(answers)}",
                f"give at least {FEWEST} (usually 10), or use scorer: exact",
            )
        if self.scorer == "yes-no" and answers[0].strip().lower() not in ("yes", "no"):
            raise row.error(f"answer is {answers[0]!r}", "write yes or no, or use scorer: exact")


def _turn(row: Row, speaker: str) -> str:
    """The first question, or the first answer, of a conversation, without marks for pictures."""
    turns: Any = row.get("conversations")
    human = [isinstance(turn, dict) and turn.get("from") in ("human", "user") for turn in turns]
    wanted = [turn for turn, is_human in zip(turns, human, strict=True) if is_human == (speaker == "human")]
    text = str(wanted[0].get("value") or "") if wanted and isinstance(wanted[0], dict) else ""
    text = text.replace(PLACE, "").strip()
    if not text:
        raise row.error(f"conversations have no turn of {speaker!r} with a text", f"add one, or remove the {row.unit}")
    return text


def _answers(row: Row, name: str) -> tuple[str, ...]:
    """A list, also one that is written in a cell as texts in quotes; any other text is an answer as it stands."""
    value = row.get(name)
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            listed = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return (value,)
        if listed == []:
            raise row.error(f"{name} is the text '[]', which may be an answer or none", "give one, or remove the row")
        if not (isinstance(listed, list) and all(isinstance(text, str) for text in listed)):
            return (value,)
    return row.texts(name, written=True)


def _distinct(row: Row, options: Sequence[str]) -> None:
    """Refuse options that are letters of others: an answer A would mean two of them."""
    letters = ascii_uppercase[: len(options)]
    for letter, text in zip(letters, options, strict=False):
        other = text.strip().upper()
        if len(other) == 1 and other in letters and other != letter:
            raise row.error(
                f"option {letter} is {text!r}, which is the letter of another option",
                "put the options in the order of their letters, or give their texts in words",
            )


def _letter(row: Row, answer: str, options: Sequence[str]) -> str:
    """An answer that is a letter or an option's text, as a letter; refused where it may be both."""
    letters = ascii_uppercase[: len(options)]
    alike = [letter for letter, text in zip(letters, options, strict=False) if text == answer]
    alike = alike or [letter for letter, text in zip(letters, options, strict=False) if same(text, answer)]
    as_letter = answer.strip().upper()
    readings = {*alike, *([as_letter] if len(as_letter) == 1 and as_letter in letters else [])}
    if len(readings) > 1:
        raise row.error(
            f"the right option is {answer!r}, which may be {' or '.join(sorted(readings))} "
            f"of the options {', '.join(options)[:80]}",
            "make the texts of options differ, and write the letter",
        )
    if not readings:
        raise row.error(
            f"the right option is {answer!r}, but the options are {letters[0]} to {letters[-1]}",
            "write the letter or the text of one option",
        )
    (letter,) = readings
    twins = [other for other, text in zip(letters, options, strict=False) if same(text, options[letters.index(letter)])]
    if len(twins) > 1:
        raise row.error(f"options {' and '.join(twins)} are alike, and one is right", "make them differ")
    return letter
