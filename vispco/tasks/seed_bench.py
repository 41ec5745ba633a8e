"""``seed-bench``, ``seed-bench-video``: questions of nine kinds about pictures, of three about videos; four options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.a_okvqa import vispco
from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Count, Item, Options, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.pictures import Pictures
from vispco.tasks.prompts import LETTER, option_lines
from vispco.tasks.scorers.letters import first_character

KINDS = (
    *("scene understanding", "instance identity", "instance attributes", "instance location", "instance counting"),
    *("spatial relation", "instance interaction", "visual reasoning", "text recognition"),
    *("action recognition", "action prediction", "procedure understanding"),
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
    data_type: ClassVar[str] = "image"

    def read(self, row: Row) -> Item | None:
        if row.text("data_type") != self.data_type:
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

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        found = {f"seed_{self.data_type}": float(np.mean(scores))}
        for name in sorted({sample.category for sample in samples} - {""}):
            found[f"kind/{name}"] = float(scores[[sample.category == name for sample in samples]].mean())
        return found


class FrameOptions(Options):
    """``frames``: at most this many of a video's frames, evenly spaced; default: all that the data set has."""

    frames: Count | None = None


@TASKS.register("seed-bench-video")
class SEEDBenchVideo(SEEDBench):
    """Share of right options (``seed_video``); the model sees frames as pictures, in their order."""

    name: ClassVar[str] = "seed-bench-video"
    data_type = "video"
    Options: ClassVar[type[Options]] = FrameOptions

    def shown(self, pictures: Pictures) -> Pictures:
        """Frames."""
        return pictures.evenly(self.options.frames) if self.options.frames else pictures

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "frames": self.options.frames}

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "frames": self.options.frames}
