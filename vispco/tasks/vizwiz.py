"""``vizwiz``: questions of blind people about their own photographs, answered by ten people each."""

from __future__ import annotations

from typing import ClassVar

from vispco.tasks.base import TASKS
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import UNANSWERABLE
from vispco.tasks.textvqa import soft, vispco


@TASKS.register("vizwiz")
class VizWiz(Benchmark):
    """VQA soft accuracy; many right answers are "unanswerable". The test split has no answers."""

    name: ClassVar[str] = "vizwiz"
    max_new_tokens = 64
    hub = (("lmms-lab-encoder/VizWiz-VQA", None), ("lmms-lab/VizWiz-VQA", None))
    split = "val"
    columns = {"question": ("question",), "answers": ("answers",)}
    post_prompt = UNANSWERABLE
    scorers: ClassVar[dict[str, Scorer]] = {"standard": soft, "vispco": vispco}

    def read(self, row: Row) -> Item:
        return Item(
            question=row.text("question"),
            answers=row.texts("answers"),
            prompt=row.text("question").capitalize(),
            category=row.optional("category"),
            # One question about each photograph.
            picture=row.optional("question_id"),
            extra={"id": row.optional("question_id")},
        )
