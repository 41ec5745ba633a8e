"""``ocrbench``: reading text, tables, receipts and formulas in pictures; ten kinds of questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.scorers.contains import contains_gold
from vispco.tasks.textvqa import vispco


def contained(sample: Sample, answer: str) -> float:
    """A gold text occurs in the answer; formulas are compared without blanks and with case."""
    return float(contains_gold(answer, sample.answers, formula=sample.extra["dataset"] == "HME100k"))


@TASKS.register("ocrbench")
class OCRBench(Benchmark):
    """Share of right rows (``ocrbench_accuracy``); ``final_score`` is the same of 1,000. The prompt is the question."""

    name: ClassVar[str] = "ocrbench"
    max_new_tokens = 128
    hub = (("echo840/OCRBench", None),)
    columns = {name: (name,) for name in ("question", "answer", "dataset", "question_type")}
    scorers: ClassVar[dict[str, Scorer]] = {"standard": contained, "vispco": vispco}

    def read(self, row: Row) -> Item:
        return Item(
            question=row.text("question"),
            answers=row.texts("answer"),
            category=row.text("question_type"),
            extra={"dataset": row.text("dataset")},
        )

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        found = {"ocrbench_accuracy": float(np.mean(scores)), "final_score": 1000 * float(np.mean(scores))}
        for name in sorted({sample.category for sample in samples}):
            inside = np.array([sample.category == name for sample in samples])
            found[f"category/{name}"] = float(scores[inside].mean())
        return found
