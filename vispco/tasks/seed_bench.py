"""``seed-bench``: the picture part of SEED-Bench, nine kinds of questions with four options."""

from __future__ import annotations

from typing import ClassVar

from vispco.tasks.a_okvqa import vispco
from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import LETTER, option_lines
from vispco.tasks.scorers.letters import first_character

KINDS = (
    *("scene understanding", "instance identity", "instance attributes", "instance location", "instance counting"),
    *("spatial relation", "instance interaction", "visual reasoning", "text recognition"),
)
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def first(sample: Sample, answer: str) -> float:
    """The first character of the answer is the letter, in either case."""
    return float(first_character(answer) == sample.answers[0])


@TASKS.register("seed-bench")
class SEEDBench(Benchmark):
    """Share of right options (``seed_image``). Rows about videos are left out."""

    name: ClassVar[str] = "seed-bench"
    hub = (("lmms-lab-encoder/SEED-Bench", None), ("lmms-lab/SEED-Bench", None))
    columns = {name: (name,) for name in ("question", *CHOICES, "answer", "data_type")}
    post_prompt = LETTER
    scorers: ClassVar[dict[str, Scorer]] = {"standard": first, "vispco": vispco}

    def read(self, row: Row) -> Item | None:
        if row.text("data_type") != "image":
            return None
        options = tuple(row.text(name) for name in CHOICES)
        kind = row.integer("question_type_id") if row.get("question_type_id") is not None else 0
        return Item(
            question=row.text("question"),
            answers=(row.text("answer").strip().upper(),),
            prompt=f"{row.text('question')}\n{option_lines(options)}",
            options=options,
            category=KINDS[kind - 1] if 1 <= kind <= len(KINDS) else "",
            picture="/".join(row.texts("data_id")) if row.get("data_id") else "",
            extra={"id": row.optional("question_id")},
        )
