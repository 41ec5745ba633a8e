"""``mosaic-vqa``: questions with up to three hops about mosaics of easy-VQA pictures; needs no network."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vispco.errors import ConfigError
from vispco.tasks.base import TASKS, Sample, Task
from vispco.tasks.mosaic import TASK_MIX, sample_questions, sample_scene, split_pictures

if TYPE_CHECKING:
    from datasets import Dataset

QUESTIONS_PER_PICTURE = 2
MOST = 100_000  # samples of a split; they are made in memory


@TASKS.register("mosaic-vqa")
class MosaicVQA(Task):
    """Exact match on one-word answers; two questions about each mosaic form a group.

    Splits are made of disjoint easy-VQA pictures. Row ``i`` of a split is the same whatever the split's size.
    """

    name: ClassVar[str] = "mosaic-vqa"
    max_new_tokens = 1

    def __init__(self, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(sizes, options)
        for split, size in self.sizes.items():
            if size > MOST:
                raise ConfigError(f"task {self.name!r}: split {split!r} has size {size}; it makes at most {MOST:,}")

    def dataset(self, split: str) -> Dataset:
        from datasets import Dataset, Features, Image, Value
        from PIL import Image as Pillow

        size = self.sizes.get(split, 0)
        pictures = split_pictures(split)
        columns: dict[str, list[Any]] = {name: [] for name in ("id", "group_id", "image", "question", "answer", "kind")}
        for number in range((size + QUESTIONS_PER_PICTURE - 1) // QUESTIONS_PER_PICTURE):
            rng = random.Random(f"{self.name}/{self.version}/{split}/{number}")
            scene = sample_scene(pictures, rng)
            image = Pillow.fromarray(scene.pixels())
            for place, question in enumerate(sample_questions(scene, rng, TASK_MIX, QUESTIONS_PER_PICTURE)):
                columns["id"].append(f"{split}/{number}/{place}")
                columns["group_id"].append(f"{split}/{number}")
                columns["image"].append(image)
                columns["question"].append(question.text)
                columns["answer"].append(question.answer)
                columns["kind"].append(question.kind)
        features = Features({name: Image() if name == "image" else Value("string") for name in columns})
        return Dataset.from_dict({name: column[:size] for name, column in columns.items()}, features=features)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        return Sample.of(row, (row["image"],), extra={"kind": row["kind"]})

    def score(self, sample: Sample, answer: str) -> float:
        return float(answer.strip().lower() == sample.answers[0])
