"""``mvbench``: twenty kinds of questions about short videos, 200 of each; two to five options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Item, Scorer
from vispco.tasks.loading import Row
from vispco.tasks.scorers.letters import mvbench_letter
from vispco.tasks.videos import Bounds, VideoBenchmark, lettered

KINDS = (
    *("action_sequence", "action_prediction", "action_antonym", "fine_grained_action", "unexpected_action"),
    *("object_existence", "object_interaction", "object_shuffle", "moving_direction", "action_localization"),
    *("scene_transition", "action_count", "moving_count", "moving_attribute", "state_change"),
    *(
        "fine_grained_pose",
        "character_order",
        "egocentric_navigation",
        "episodic_reasoning",
        "counterfactual_inference",
    ),
)


def lone_letter(sample: Sample, answer: str) -> float:
    return float(mvbench_letter(answer) == sample.answers[0])


@TASKS.register("mvbench")
class MVBench(VideoBenchmark):
    """Share of right options; every kind has 200 rows, so that this is the mean over kinds.

    ``config``: one kind, or several joined by "+"; default: all. Frames come from the part of the video that a row
    names (``start``, ``end``). Prompt and rule for letters are lmms-eval's, but an empty answer counts as wrong; there
    it is left out.
    """

    name: ClassVar[str] = "mvbench"
    hub = (("OpenGVLab/MVBench", "+".join(KINDS)),)
    split = "train"
    frames = 16
    columns = {name: (name,) for name in ("video", "question", "candidates", "answer")}
    optional = {"start": ("start",), "end": ("end",), "task_type": ("task_type", "task", "sub_task")}
    post_prompt = "Only give the best option.\n"
    scorers: ClassVar[dict[str, Scorer]] = {"standard": lone_letter}

    def video(self, row: Row) -> str:
        return row.text("video")

    def bounds(self, row: Row) -> Bounds | None:
        start, end = row.get("start"), row.get("end")
        if start is None or end is None:
            return None
        try:
            found = float(start), float(end)
        except (TypeError, ValueError):
            raise row.error(f"start {start!r} and end {end!r} are no seconds", "give both as numbers") from None
        if not 0 <= found[0] < found[1]:
            raise row.error(f"start {start!r} does not lie before end {end!r}", "correct them")
        return found

    def read(self, row: Row) -> Item:
        options, answer = row.texts("candidates", written=True), row.text("answer")
        if answer not in options:
            raise row.error(f"answer {answer!r} is none of the candidates", "correct it")
        return Item(
            question=row.text("question"),
            answers=("ABCDEFGHIJ"[options.index(answer)],),
            prompt=f"Question:{row.text('question')}\nOption:\n{lettered(options, '({}) {}')}\n",
            options=options,
            category=row.optional("task_type"),
            picture=self.video(row),
        )

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        """``mvbench_accuracy`` in per cent; by kind where rows say theirs."""
        found = {"mvbench_accuracy": 100 * float(scores.mean())}
        for name in sorted({sample.category for sample in samples} - {""}):
            found[f"kind/{name}"] = 100 * float(scores[[sample.category == name for sample in samples]].mean())
        return found
