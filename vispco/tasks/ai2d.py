"""``ai2d``: questions about diagrams of school science, four options."""

from __future__ import annotations

from typing import ClassVar

from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import LETTER, option_lines
from vispco.tasks.scorers.letters import is_letter


def strict(sample: Sample, answer: str) -> float:
    """``B``, ``B.``, ``(B)`` and ``B. text`` are read; ``B) text`` and sentences are wrong."""
    return float(is_letter(answer, sample.answers[0]))


@TASKS.register("ai2d")
class AI2D(Benchmark):
    """Share of right options, on diagrams with letters over the labels.

    ``path: lmms-lab/ai2d-no-mask`` (``Efficient-Large-Model/ai2d-no-mask``) has the diagrams without.
    """

    name: ClassVar[str] = "ai2d"
    hub = (("lmms-lab-encoder/ai2d", None), ("lmms-lab/ai2d", None))
    columns = {name: (name,) for name in ("question", "options", "answer")}
    post_prompt = LETTER
    scorers: ClassVar[dict[str, Scorer]] = {"standard": strict}

    def read(self, row: Row) -> Item:
        options = row.texts("options")
        return Item(
            question=row.text("question"),
            answers=(row.letter("answer", options),),
            prompt=f"{row.text('question')}\n{option_lines(options)}",
            options=options,
        )
