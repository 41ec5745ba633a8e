"""``scienceqa``: school science questions with a picture, two to five options."""

from __future__ import annotations

from typing import ClassVar

from vispco.tasks.a_okvqa import vispco
from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import LETTER, option_lines
from vispco.tasks.scorers.letters import bare_letter, lenient_letter


def strict(sample: Sample, answer: str) -> float:
    """A letter alone, or a capital letter with a period at the beginning; "(B)" and "The answer is B" are wrong."""
    return float(bare_letter(answer) == sample.answers[0])


def lenient(sample: Sample, answer: str) -> float:
    return float(lenient_letter(answer, sample.lettered) == sample.answers[0])


@TASKS.register("scienceqa")
class ScienceQA(Benchmark):
    """Share of right options among the questions with a picture."""

    name: ClassVar[str] = "scienceqa"
    version: ClassVar[int] = 2
    hub = (
        *(("lmms-lab-encoder/ScienceQA", "ScienceQA-IMG"), ("lmms-lab/ScienceQA", "ScienceQA-IMG")),
        *(("lmms-lab/ScienceQA-IMG", None), ("derek-thomas/ScienceQA", None)),
    )
    columns = {name: (name,) for name in ("question", "choices", "answer")}
    post_prompt = LETTER
    scorers: ClassVar[dict[str, Scorer]] = {"standard": strict, "lenient": lenient, "vispco": vispco}

    def read(self, row: Row) -> Item:
        options, hint = row.texts("choices"), row.optional("hint")
        context = f"Context: {hint}\n" if hint else ""
        return Item(
            question=row.text("question"),
            answers=(row.letter("answer", options),),
            prompt=f"{context}{row.text('question')}\n{option_lines(options)}",
            options=options,
            category=row.optional("subject"),
        )

    def leaves_out(self, row: Row) -> bool:
        return True
