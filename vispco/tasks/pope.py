"""``pope``: is an object in the picture? Half of the questions ask for something that is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import SHORT
from vispco.tasks.scorers.yes_no import binary_metrics, equal_answer, word_answer

READERS: dict[str, Callable[[str], str | None]] = {"standard": word_answer, "strict": equal_answer}


def word(sample: Sample, answer: str) -> float:
    """The word yes or no, as VLMEvalKit reads it."""
    return float(word_answer(answer) == sample.answers[0])


def strict(sample: Sample, answer: str) -> float:
    """Nothing but yes or no, as lmms-eval reads it: "Yes." is wrong."""
    return float(equal_answer(answer) == sample.answers[0])


@TASKS.register("pope")
class POPE(Benchmark):
    """Accuracy; :meth:`metrics` adds precision, recall and F1 where the answers themselves are given."""

    name: ClassVar[str] = "pope"
    max_new_tokens = 128
    hub = (("lmms-lab-encoder/POPE", None), ("lmms-lab/POPE", None))
    columns = {"question": ("question",), "answer": ("answer",)}
    post_prompt = SHORT
    scorers: ClassVar[dict[str, Scorer]] = {"standard": word, "strict": strict}

    def read(self, row: Row) -> Item:
        answer = row.text("answer").strip().lower()
        if answer not in ("yes", "no"):
            raise row.error(f"answer is {answer!r}", "write yes or no")
        return Item(
            question=row.text("question"),
            answers=(answer,),
            category=row.optional("category"),
            picture=row.optional("image_source"),
        )

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        if answers is None:
            return {"pope_accuracy": float(np.mean(scores))}
        said = [READERS[self.scorer](answer) for answer in answers]
        found = binary_metrics(said, [sample.answers[0] for sample in samples])
        usual = {"f1": "f1_score"}
        return {f"pope_{usual.get(name, name)}": value for name, value in found.items()}
