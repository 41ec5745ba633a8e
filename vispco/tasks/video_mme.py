"""``video-mme``: three questions about each of 900 videos of seconds to an hour; four options."""

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

BEFORE = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option.\n"
)


def shared(sample: Sample, answer: str) -> float:
    """lmms-eval's shared rule for letters."""
    return float(lenient_letter(answer, sample.lettered) == sample.answers[0])


@TASKS.register("video-mme")
class VideoMME(VideoBenchmark):
    """Share of right options. The prompt is lmms-eval's, which speaks of subtitles also where there are none."""

    name: ClassVar[str] = "video-mme"
    version: ClassVar[int] = 3
    hub = (("lmms-eval/Video-MME", "videomme"), ("lmms-lab/Video-MME", "videomme"))
    columns = {name: (name,) for name in ("videoID", "question", "options", "answer")}
    optional = {name: (name,) for name in ("duration", "domain", "sub_category", "task_type", "question_id")}
    post_prompt = "\n\nAnswer with the option's letter from the given choices directly."
    scorers: ClassVar[dict[str, Scorer]] = {"standard": shared}

    def video(self, row: Row) -> str:
        return row.text("videoID")

    def read(self, row: Row) -> Item:
        options = row.texts("options", written=True)
        video = self.video(row)
        return Item(
            question=row.text("question"),
            answers=(row.text("answer").strip().upper(),),
            prompt=BEFORE + "\n".join([row.text("question"), *options]),
            options=tuple(re.sub(r"^[A-Z]\.\s*", "", option) for option in options),
            category=row.optional("task_type"),
            group=video,
            picture=video,
            extra={
                "duration": row.optional("duration"),
                "domain": row.optional("domain"),
                "id": row.optional("question_id"),
            },
        )

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        """``videomme`` in per cent; also by length, domain and kind of question."""
        found = {"videomme": 100 * float(scores.mean())}
        for kind, names in (
            ("duration", [str(sample.extra["duration"]) for sample in samples]),
            ("domain", [str(sample.extra["domain"]) for sample in samples]),
            ("task", [sample.category for sample in samples]),
        ):
            for name in sorted(set(names) - {""}):
                found[f"{kind}/{name}"] = 100 * float(scores[[other == name for other in names]].mean())
        return found
