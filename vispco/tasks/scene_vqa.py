"""``scene-vqa``: small things on cluttered grounds, and questions of many kinds about them; needs no network.

Most of a picture is ground, so that few of its tokens matter, and which ones depends on the question.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vispco.config import Frozen
from vispco.errors import ConfigError
from vispco.registry import suggest
from vispco.tasks.base import TASKS, Sample, Task
from vispco.tasks.scenes.drawing import draw
from vispco.tasks.scenes.layout import Scene, sample_scene
from vispco.tasks.scenes.questions import LISTS, SENTENCES, SHORT, STEPS, Question, ask

if TYPE_CHECKING:
    from datasets import Dataset

GROUPS = {"short": tuple(SHORT), "lists": tuple(LISTS), "sentences": tuple(SENTENCES), "steps": tuple(STEPS)}
GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
# Longest answers, with some room.
NEW_TOKENS = {"short": 10, "lists": 40, "sentences": 64, "steps": 56}
QUESTIONS_PER_PICTURE = 4
LARGEST_DESCRIPTION = 4


class SceneOptions(Frozen):
    """``kinds``: question types or groups of them (short, lists, sentences, steps) to ask; none for all."""

    kinds: tuple[str, ...] = ()


class SceneTask(Task):
    """Questions of equally frequent types, four about each picture; they form a group.

    Splits have fonts, drawings of shapes, grounds and distractors of their own. Row ``i`` of a split is the same
    whatever the split's size. The score is exact match, but for case, spaces and a final full stop; descriptions
    score the share of their clauses that are right. A sample's type is its ``category``.
    """

    asked: ClassVar[tuple[str, ...]]

    def __init__(self, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(sizes)
        unknown = next((name for name in options or {} if name not in SceneOptions.model_fields), None)
        if unknown is not None:
            raise ConfigError(f"task {self.name!r} has no option {unknown!r}; it has kinds")
        names = (options or {}).get("kinds", ())
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"task {self.name!r}: kinds = {names!r} is no list of names; write kinds: [read_word]")
        self.kinds = self._chosen(names) or self.asked
        self.max_new_tokens = max(NEW_TOKENS[GROUP_OF[kind]] for kind in self.kinds)

    def _chosen(self, names: Sequence[str]) -> tuple[str, ...]:
        for name in names:
            if name not in GROUPS and name not in GROUP_OF:
                raise ConfigError(f"unknown question type {name!r}; {suggest(name, [*GROUPS, *GROUP_OF])}")
        return tuple(dict.fromkeys(kind for name in names for kind in GROUPS.get(name, (name,))))

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "kinds": list(self.kinds)}

    def pictures(self, split: str) -> list[tuple[Scene, list[Question]]]:
        """The scenes of ``split``, each with its questions.

        Types take turns in an order that is shuffled anew whenever all have been asked; a scene that does not allow
        the types whose turn it is is drawn again.
        """
        size = self.sizes.get(split, 0)
        order = random.Random(f"scene-vqa/{self.version}/{split}/order")
        turns = (kind for _ in iter(int, 1) for kind in order.sample(self.kinds, len(self.kinds)))
        found: list[tuple[Scene, list[Question]]] = []
        while len(found) * QUESTIONS_PER_PICTURE < size:
            rng = random.Random(f"scene-vqa/{self.version}/{split}/{len(found)}")
            found.append(_scene_with(list(islice(turns, QUESTIONS_PER_PICTURE)), split, rng))
        return found

    def dataset(self, split: str) -> Dataset:
        from datasets import Dataset, Features, Image, Value
        from PIL import Image as Pillow

        columns: dict[str, list[Any]] = {name: [] for name in ("id", "group_id", "image", "question", "answer", "kind")}
        for number, (scene, questions) in enumerate(self.pictures(split)):
            written = io.BytesIO()
            Pillow.fromarray(draw(scene)).save(written, "png", compress_level=1)
            image = {"bytes": written.getvalue(), "path": None}  # as a data set would keep it, but only once
            for place, question in enumerate(questions):
                columns["id"].append(f"{split}/{number}/{place}/{question.kind}")
                columns["group_id"].append(f"{split}/{number}")
                columns["image"].append(image)
                columns["question"].append(question.text)
                columns["answer"].append(question.answer)
                columns["kind"].append(question.kind)
        features = Features({name: Image() if name == "image" else Value("string") for name in columns})
        size = self.sizes.get(split, 0)
        return Dataset.from_dict({name: column[:size] for name, column in columns.items()}, features=features)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        return Sample.of(row, (row["image"],), category=row["kind"])

    def score(self, sample: Sample, answer: str) -> float:
        gold = sample.answers[0]
        if sample.category == "describe":
            return clauses_right(answer, gold)
        return float(plain(answer) == plain(gold))

    def metrics(
        self, samples: Sequence[Sample], scores: NDArray[np.float64], answers: Sequence[str] | None = None
    ) -> dict[str, float]:
        kinds = np.array([sample.category for sample in samples])
        groups = np.array([GROUP_OF[kind] for kind in kinds])
        return {
            "accuracy": float(np.mean(scores)),
            **{f"group/{name}": float(scores[groups == name].mean()) for name in GROUPS if name in groups},
            **{f"category/{name}": float(scores[kinds == name].mean()) for name in GROUP_OF if name in kinds},
        }


def _scene_with(kinds: Sequence[str], split: str, rng: random.Random) -> tuple[Scene, list[Question]]:
    while True:
        scene = sample_scene(split, rng)
        if "describe" in kinds and len(scene.things) > LARGEST_DESCRIPTION:
            continue
        questions = [question for kind in kinds if (question := ask(kind, scene, rng))]
        if len({question.text for question in questions}) == len(kinds):
            return scene, questions


def plain(text: str) -> str:
    """Lower case, single spaces, no final full stop."""
    return " ".join(text.lower().split()).removesuffix(".")


def clauses_right(answer: str, gold: str) -> float:
    """Share of the clauses of a description that are right; one too many counts as one wrong.

    >>> clauses_right("There is a red 7 at the top, a pink hat at the left.", "There is a red 7 at the top.")
    0.5
    """
    said, wanted = (plain(text).removeprefix("there is ").split(", ") for text in (answer, gold))
    return len(set(said) & set(wanted)) / max(len(said), len(wanted))


@TASKS.register("scene-vqa")
class SceneVQA(SceneTask):
    """All types of questions."""

    name: ClassVar[str] = "scene-vqa"
    asked = tuple(GROUP_OF)


@TASKS.register("scene-vqa-short")
class SceneShort(SceneTask):
    """Answers of a few words: colours, shapes, words, numbers, places, counts and comparisons."""

    name: ClassVar[str] = "scene-vqa-short"
    asked = GROUPS["short"]


@TASKS.register("scene-vqa-lists")
class SceneLists(SceneTask):
    """Colours, shapes, words or things in order."""

    name: ClassVar[str] = "scene-vqa-lists"
    asked = GROUPS["lists"]


@TASKS.register("scene-vqa-sentences")
class SceneSentences(SceneTask):
    """Descriptions of a picture or of one thing in it."""

    name: ClassVar[str] = "scene-vqa-sentences"
    asked = GROUPS["sentences"]


@TASKS.register("scene-vqa-steps")
class SceneSteps(SceneTask):
    """Questions of several steps, with answers that name each."""

    name: ClassVar[str] = "scene-vqa-steps"
    asked = GROUPS["steps"]
