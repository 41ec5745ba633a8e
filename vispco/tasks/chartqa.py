"""``chartqa``: questions about charts, half of them written by people, half made from captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import ONE_WORD
from vispco.tasks.scorers.relaxed import relaxed_match
from vispco.tasks.textvqa import vispco


def relaxed(sample: Sample, answer: str) -> float:
    """Equal, or a number within 5 %."""
    return float(any(relaxed_match(answer, gold) for gold in sample.answers))


@TASKS.register("chartqa")
class ChartQA(Benchmark):
    """Relaxed accuracy (``relaxed_overall``)."""

    name: ClassVar[str] = "chartqa"
    hub = (
        *(("lmms-lab-encoder/ChartQA", None), ("lmms-lab/ChartQA", None)),
        *(("HuggingFaceM4/ChartQA", None), ("ahmed-masry/ChartQA", None)),
    )
    columns = {"question": ("question", "query"), "answer": ("answer", "label")}
    post_prompt = ONE_WORD
    scorers: ClassVar[dict[str, Scorer]] = {"standard": relaxed, "vispco": vispco}

    def read(self, row: Row) -> Item:
        return Item(
            question=row.text("question"),
            answers=row.texts("answer"),
            category=row.optional("type"),
            picture=row.optional("imgname"),
        )

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        found = {"relaxed_overall": float(np.mean(scores))}
        for half in ("human", "augmented"):
            inside = np.array([sample.category.startswith(half) for sample in samples])
            if inside.any():
                found[f"relaxed_{half}_split"] = float(scores[inside].mean())
        return found
