"""``mmmu``: college questions of 30 subjects, with options or open, several pictures within the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.base import PLACE, TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import LETTER, SHORT, option_lines
from vispco.tasks.scorers.letters import mmmu_letter
from vispco.tasks.scorers.open_ended import open_match
from vispco.tasks.scorers.vispco import letter_match

SUBJECTS = (
    *("Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science"),
    *("Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design"),
    *("Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography"),
    *("History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music"),
    *("Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology"),
)
MARK = re.compile(r"<image (\d)>")


def right(sample: Sample, answer: str) -> float:
    """A letter that cannot be read is wrong, where the original guesses."""
    if sample.options:
        return float(mmmu_letter(answer, sample.lettered) in sample.answers)
    return float(open_match(answer, sample.answers))


def vispco(sample: Sample, answer: str) -> float:
    return float(letter_match(answer, sample.answers[0]))


@TASKS.register("mmmu")
class MMMU(Benchmark):
    """Share of right answers on the validation split (``mmmu_acc``); pictures stand where the question says."""

    name: ClassVar[str] = "mmmu"
    version: ClassVar[int] = 2
    max_new_tokens = 128
    hub = (("lmms-lab-encoder/MMMU", None), ("lmms-lab/MMMU", None), ("MMMU/MMMU", "+".join(SUBJECTS)))
    split = "validation"
    columns = {name: (name,) for name in ("id", "question", "options", "answer", "question_type")}
    pictures = {f"image_{number}": (f"image_{number}",) for number in range(1, 8)}
    scorers: ClassVar[dict[str, Scorer]] = {"standard": right, "vispco": vispco}

    def read(self, row: Row) -> Item:
        options = row.texts("options", written=True) if row.text("question_type") == "multiple-choice" else ()
        question = row.text("question")
        seen: set[str] = set()

        def place(mark: re.Match[str]) -> str:
            # A picture that is named again is not shown again.
            again = mark[1] in seen
            seen.add(mark[1])
            return mark[0] if again else PLACE

        asked = f"{question}\n{option_lines(options)}" if options else question
        return Item(
            question=question,
            answers=row.texts("answer", written=True),
            prompt=MARK.sub(place, asked) + "\n",
            options=options,
            category="_".join(row.text("id").split("_")[1:-1]),
            picture=row.text("id"),
            post_prompt=LETTER if options else SHORT,
        )

    def picture_columns(self, row: Row) -> Sequence[str]:
        texts = (row.text("question"), *map(str, row.values["options"] or ()))
        marks = MARK.findall("".join(texts))
        return [f"image_{number}" for number in dict.fromkeys(marks)] or ["image_1"]

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        found = {"mmmu_acc": float(np.mean(scores))}
        for name in sorted({sample.category for sample in samples}):
            inside = np.array([sample.category == name for sample in samples])
            found[f"subject/{name}"] = float(scores[inside].mean())
        return found
