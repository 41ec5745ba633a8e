"""``a-okvqa``: questions about COCO pictures that need knowledge of the world, four options each."""

from __future__ import annotations

from typing import ClassVar

from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import LETTER, SHORT, option_lines
from vispco.tasks.scorers.letters import is_option
from vispco.tasks.scorers.soft import direct_accuracy
from vispco.tasks.scorers.vispco import letter_match


def option(sample: Sample, answer: str) -> float:
    return float(is_option(answer, sample.answers[0], sample.lettered))


def direct(sample: Sample, answer: str) -> float:
    return direct_accuracy(answer, sample.answers)


def vispco(sample: Sample, answer: str) -> float:
    return float(letter_match(answer, sample.answers[0]))


@TASKS.register("a-okvqa")
class AOKVQA(Benchmark):
    """Share of right options; there is no rule of lmms-eval for this benchmark. The test split has no answers.

    ``scorer: direct`` asks for a free answer instead, without the rows that are marked difficult for that.
    """

    name: ClassVar[str] = "a-okvqa"
    hub = (("HuggingFaceM4/A-OKVQA", None),)
    split = "validation"
    columns = {"question": ("question",), "choices": ("choices",), "correct_choice_idx": ("correct_choice_idx",)}
    post_prompt = LETTER
    scorers: ClassVar[dict[str, Scorer]] = {"standard": option, "direct": direct, "vispco": vispco}

    def read(self, row: Row) -> Item | None:
        question, extra = row.text("question"), {"id": row.optional("question_id")}
        if self.scorer == "direct":
            if row.get("difficult_direct_answer"):
                return None
            golds = row.texts("direct_answers", written=True)
            return Item(question=question, answers=golds, post_prompt=SHORT, extra=extra)
        options = row.texts("choices")
        return Item(
            question=question,
            answers=(row.letter("correct_choice_idx", options),),
            prompt=f"{question}\n{option_lines(options)}",
            options=options,
            extra=extra,
        )
