"""``scene-vqa-moving``: clips of 4 to 8 frames of ``scene-vqa``'s things, and questions about what happens in them."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from vispco.errors import ConfigError
from vispco.tasks.base import TASKS, Sample, Show, Task
from vispco.tasks.scene_vqa import plain
from vispco.tasks.scenes.clips import MAKERS, Clip, ask_clip, sample_clip
from vispco.tasks.scenes.drawing import draw
from vispco.tasks.scenes.questions import Question

if TYPE_CHECKING:
    from datasets import Dataset

QUESTIONS_PER_CLIP = 3


@TASKS.register("scene-vqa-moving")
class SceneMoving(Task):
    """Exact match on short answers; three questions of different types about each clip form a group.

    Frames are given as the pictures of a sample, in order, or with the option ``show: video`` as a video of one frame a
    second, to models whose processor takes videos. Fonts, drawings and grounds of a split are
    those of ``scene-vqa``; row ``i`` of a split is the same whatever the split's size.
    """

    name: ClassVar[str] = "scene-vqa-moving"
    max_new_tokens = 10

    def __init__(self, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> None:
        rest = dict(options or {})
        show = rest.pop("show", "pictures")
        super().__init__(sizes, rest)
        if show not in get_args(Show):
            raise ConfigError(f"task {self.name!r} got show: {show!r}; it is pictures or video")
        self.show = show

    def clips(self, split: str) -> list[tuple[Clip, list[Question]]]:
        """The clips of ``split``, each with its questions; types take turns as in ``scene-vqa``."""
        kinds = list(MAKERS)
        found: list[tuple[Clip, list[Question]]] = []
        while len(found) * QUESTIONS_PER_CLIP < self.sizes.get(split, 0):
            rng = random.Random(f"{self.name}/{self.version}/{split}/{len(found)}")
            wanted = [kinds[(len(found) * QUESTIONS_PER_CLIP + place) % len(kinds)] for place in range(3)]
            questions: list[Question] = []
            while len(questions) < len(wanted):
                clip = sample_clip(split, rng)
                questions = [question for kind in wanted if (question := ask_clip(kind, clip, rng))]
            found.append((clip, questions))
        return found

    def dataset(self, split: str) -> Dataset:
        from datasets import Dataset, Features, Image, Sequence, Value
        from PIL import Image as Pillow

        columns: dict[str, list[Any]] = {
            name: [] for name in ("id", "group_id", "frames", "question", "answer", "kind")
        }
        for number, (clip, questions) in enumerate(self.clips(split)):
            frames = []
            for scene in clip.frames:
                written = io.BytesIO()
                Pillow.fromarray(draw(scene)).save(written, "png", compress_level=1)
                frames.append({"bytes": written.getvalue(), "path": None})
            for question in questions:
                columns["id"].append(f"{split}/{number}/{question.kind}")
                columns["group_id"].append(f"{split}/{number}")
                columns["frames"].append(frames)
                columns["question"].append(question.text)
                columns["answer"].append(question.answer)
                columns["kind"].append(question.kind)
        features = Features({name: Sequence(Image()) if name == "frames" else Value("string") for name in columns})
        size = self.sizes.get(split, 0)
        return Dataset.from_dict({name: column[:size] for name, column in columns.items()}, features=features)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        return Sample.of(row, tuple(row["frames"]), category=row["kind"], show=self.show)

    def score(self, sample: Sample, answer: str) -> float:
        return float(plain(answer) == plain(sample.answers[0]))

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        kinds = np.array([sample.category for sample in samples])
        return {
            "accuracy": float(np.mean(scores)),
            **{f"category/{name}": float(scores[kinds == name].mean()) for name in MAKERS if name in kinds},
        }
