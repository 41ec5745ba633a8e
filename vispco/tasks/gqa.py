"""``gqa``: compositional questions about scenes; questions and pictures come as two tables that are joined."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from vispco.errors import DataError
from vispco.tasks.base import TASKS, Sample
from vispco.tasks.benchmark import Benchmark, Item, Scorer
from vispco.tasks.loading import Row, Table, open_table
from vispco.tasks.prompts import SHORT
from vispco.tasks.scorers.exact import exact_match

QUESTIONS = "testdev_balanced_instructions"


def exact(sample: Sample, answer: str) -> float:
    return float(exact_match(answer, sample.answers[0]))


@TASKS.register("gqa")
class GQA(Benchmark):
    """Exact match without case and punctuation."""

    name: ClassVar[str] = "gqa"
    hub = (("lmms-lab-encoder/GQA", QUESTIONS), ("lmms-lab/GQA", QUESTIONS))
    split = "testdev"
    columns = {name: (name,) for name in ("question", "answer", "imageId")}
    post_prompt = SHORT
    scorers: ClassVar[dict[str, Scorer]] = {"standard": exact}

    def read(self, row: Row) -> Item:
        return Item(question=row.text("question"), answers=(row.text("answer"),), picture=row.text("imageId"))

    def open(self, split: str) -> Table:
        """Questions, each with the picture of the other table whose ``id`` is its ``imageId``.

        Raises:
            DataError: a table is missing, or a picture of the second.
        """
        questions = super().open(split)
        if "image" in questions.columns or "imageId" not in questions.columns:
            return questions
        sources = [
            replace(source, config=(source.config or QUESTIONS).replace("_instructions", "_images"), limit=None)
            for source in self.sources(split)
        ]
        pictures = open_table(sources, ["image"])
        if not {"id", "image"} <= set(pictures.columns):
            raise DataError(f"{pictures.name} has columns {', '.join(pictures.columns)}; pictures need id and image")
        number = {str(row["id"]): place for place, row in enumerate(pictures.rows)}
        places = []
        for row, values in enumerate(questions.rows):
            if str(values["imageId"]) not in number:
                raise questions.row(row, {}).error(
                    f"no picture {values['imageId']!r} in {pictures.name}", "fetch both tables of the same release"
                )
            places.append(number[str(values["imageId"])])
        return replace(
            questions,
            held={"image": [pictures.held["image"][place] for place in places]},
            cells=lambda row: pictures.cells(places[row]),
            columns=(*questions.columns, "image"),
        )
