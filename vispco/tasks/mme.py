"""``mme``: two yes/no questions about each picture, in ten categories of perception and four of cognition."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.aggregation import MEAN
from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.prompts import SHORT
from vispco.tasks.scorers.vispco import yes_no_match
from vispco.tasks.scorers.yes_no import mme_answer, mme_points

COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def right(sample: Sample, answer: str) -> float:
    return float(mme_answer(answer) == sample.answers[0])


def vispco(sample: Sample, answer: str) -> float:
    return float(yes_no_match(answer, sample.answers[0]))


@TASKS.register("mme")
class MME(Benchmark):
    """The share of all points: accuracy plus accuracy+, which asks that both questions about a picture are right.

    1 is 2,800 points on the whole benchmark; :meth:`metrics` gives perception (2,000) and cognition (800).
    ``scorer: vispco`` is plain accuracy over questions.
    """

    name: ClassVar[str] = "mme"
    hub = (("lmms-lab-encoder/MME", None), ("lmms-lab/MME", None))
    columns = {name: (name,) for name in ("question", "answer", "category", "question_id")}
    post_prompt = SHORT
    whole = True
    scorers: ClassVar[dict[str, Scorer]] = {"standard": right, "vispco": vispco}

    def read(self, row: Row) -> Item:
        answer, category = row.text("answer").strip().lower(), row.text("category")
        if answer not in ("yes", "no"):
            raise row.error(f"answer is {answer!r}", "write Yes or No")
        question = row.text("question").strip()
        return Item(
            question=question,
            answers=(answer,),
            prompt=question.replace(" Please answer yes or no.", ""),
            category=category,
            # An id alone may occur in two categories.
            group=f"{category}/{row.text('question_id')}",
            extra={"id": row.optional("question_id")},
        )

    def group_size(self, sample: Sample) -> int:
        return 2

    @property
    def aggregation(self) -> str:
        return MEAN if self.scorer == "vispco" else "pairs"

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        points = _points(scores, [sample.group_id for sample in samples])
        cognition = [value for name, value in points.items() if name in COGNITION]
        return {
            "mme_perception_score": sum(points.values()) - sum(cognition),
            "mme_cognition_score": float(sum(cognition)),
            "accuracy": float(np.mean(scores)),
            **{f"category/{name}": value for name, value in sorted(points.items())},
        }


def _points(scores: NDArray[np.float64], groups: Sequence[str]) -> dict[str, float]:
    """Points of each category, at most :data:`MOST`; a group's name begins with its category."""
    pairs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score, group in zip(scores.tolist(), groups, strict=True):
        pairs[group.split("/", 1)[0]][group].append(score)
    return {category: mme_points(list(found.values())) for category, found in pairs.items()}
