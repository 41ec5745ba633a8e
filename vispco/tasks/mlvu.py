"""``mlvu``: questions of seven kinds about videos of minutes to hours; four options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.scorers.letters import lenient_letter
from vispco.tasks.videos import VideoBenchmark

OPTION = re.compile(r"^\s*\(?([A-H])[).:]\s*(.+?)\s*$", flags=re.MULTILINE)


def first_letter(sample: Sample, answer: str) -> float:
    return float(lenient_letter(answer, "ABCD") == sample.answers[0])


@TASKS.register("mlvu")
class MLVU(VideoBenchmark):
    """Mean over kinds of questions of the share of right options, on the dev split (``MLVU_dev``).

    A row's question holds its options, a line each. Prompt and rule for letters are lmms-eval's.
    """

    name: ClassVar[str] = "mlvu"
    version: ClassVar[int] = 3
    hub = (("sy1998/MLVU_dev", None),)
    columns = {name: (name,) for name in ("video_name", "question", "answer", "task_type")}
    post_prompt = "\nOnly give the best option.\nBest option: ("
    scorers: ClassVar[dict[str, Scorer]] = {"standard": first_letter}

    def video(self, row: Row) -> str:
        return row.text("video_name")

    def read(self, row: Row) -> Item:
        question, kind = row.text("question"), row.text("task_type")
        return Item(
            question=question,
            answers=(row.text("answer").strip().upper(),),
            options=tuple(text for _, text in OPTION.findall(question)),
            category=kind,
            group=f"{kind}/{row.place}",  # kinds count alike, and each question alike within its kind
            picture=self.video(row),
        )

    @property
    def aggregation(self) -> str:
        return "kinds"

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        """``mlvu`` in per cent, and every kind's."""
        found = {"mlvu": 100 * self.aggregate(scores, [sample.group_id for sample in samples])}
        for name in sorted({sample.category for sample in samples}):
            found[f"kind/{name}"] = 100 * float(scores[[sample.category == name for sample in samples]].mean())
        return found
