"""``textvqa``: questions about text in photographs, answered by ten people each."""

from __future__ import annotations

from typing import ClassVar

from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Options, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import SHORT
from vispco.tasks.scorers.soft import soft_accuracy
from vispco.tasks.scorers.vispco import relaxed_match


def soft(sample: Sample, answer: str) -> float:
    """Agreement with the annotators, each left out in turn."""
    return soft_accuracy(answer, sample.answers)


def vispco(sample: Sample, answer: str) -> float:
    return float(relaxed_match(answer, sample.answers))


class TextVQAOptions(Options):
    """``ocr``: also show the model what an OCR system read, as the LLaVA paper did."""

    ocr: bool = False


@TASKS.register("textvqa")
class TextVQA(Benchmark):
    """VQA soft accuracy. Questions are capitalised, and thereby lower-cased, as in lmms-eval."""

    name: ClassVar[str] = "textvqa"
    max_new_tokens = 64
    hub = (("lmms-lab-encoder/textvqa", None), ("lmms-lab/textvqa", None))
    split = "validation"
    columns = {"question": ("question",), "answers": ("answers",)}
    post_prompt = SHORT
    scorers: ClassVar[dict[str, Scorer]] = {"standard": soft, "vispco": vispco}
    Options = TextVQAOptions

    def read(self, row: Row) -> Item:
        prompt = row.text("question").capitalize()
        if self.options.ocr:
            prompt += f"\nReference OCR token: {', '.join(row.texts('ocr_tokens'))}"
        return Item(
            question=row.text("question"),
            answers=row.texts("answers"),
            prompt=prompt,
            picture=row.optional("image_id"),
            extra={"id": row.optional("question_id")},
        )
