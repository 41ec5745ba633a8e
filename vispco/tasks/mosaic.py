"""Mosaics of easy-VQA pictures and questions about them that need several looks at the picture.

A scene is a 2x2 arrangement of pictures from the PyPI package ``easy-vqa`` (MIT licence), each showing
one shape of one colour. Questions range from one hop ("what color is the top-left shape ?") to three
("what shape is beside the one diagonal to the red shape ?"). Everything here is deterministic: the same
seed gives the same scenes and questions on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vispco.errors import DataError

CELLS = ("top-left", "top-right", "bottom-left", "bottom-right")
COLORS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
PLURALS = {"circle": "circles", "rectangle": "rectangles", "triangle": "triangles"}
# On a 2x2 grid every relation is its own inverse: the cell index XOR this value.
RELATIONS = {"beside": 1, "stacked with": 2, "diagonal to": 3}


@dataclass(frozen=True)
class Picture:
    """One easy-VQA picture: ``pixels`` is uint8 [64, 64, 3]."""

    key: str
    color: str
    shape: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer, and the kind of reasoning it needs."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Scene:
    """Four pictures in reading order."""

    pictures: tuple[Picture, ...]

    @property
    def colors(self) -> tuple[str, ...]:
        return tuple(picture.color for picture in self.pictures)

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(picture.shape for picture in self.pictures)

    def pixels(self) -> NDArray[np.uint8]:
        """The mosaic, uint8 [128, 128, 3]."""
        tl, tr, bl, br = (picture.pixels for picture in self.pictures)
        return np.vstack([np.hstack([tl, tr]), np.hstack([bl, br])])


# --- question kinds -------------------------------------------------------------------------------

Maker = Callable[[Scene, random.Random], "Question | None"]


def _unique(values: Iterable[str]) -> list[str]:
    values = tuple(values)
    return [value for value in values if values.count(value) == 1]


def _color_at(scene: Scene, rng: random.Random) -> Question | None:
    cell = rng.randrange(4)
    return Question(f"what color is the {CELLS[cell]} shape ?", scene.colors[cell], "color_at")


def _shape_at(scene: Scene, rng: random.Random) -> Question | None:
    cell = rng.randrange(4)
    return Question(f"what shape is in the {CELLS[cell]} ?", scene.shapes[cell], "shape_at")


def _color_of(scene: Scene, rng: random.Random) -> Question | None:
    unique = _unique(scene.shapes)
    if not unique:
        return None
    shape = rng.choice(unique)
    color = scene.colors[scene.shapes.index(shape)]
    return Question(f"what color is the {shape} ?", color, "color_of")


def _shape_of(scene: Scene, rng: random.Random) -> Question | None:
    unique = _unique(scene.colors)
    if not unique:
        return None
    color = rng.choice(unique)
    return Question(f"what shape is the {color} one ?", scene.shapes[scene.colors.index(color)], "shape_of")


def _place(hops: int) -> Maker:
    def make(scene: Scene, rng: random.Random) -> Question | None:
        unique = _unique(scene.colors)
        if not unique:
            return None
        color = rng.choice(unique)
        cell = scene.colors.index(color)
        where = ""
        for _ in range(hops):
            name = rng.choice(tuple(RELATIONS))
            cell ^= RELATIONS[name]
            where += f"one {name} the "
        return Question(f"the {where}{color} shape is in the ?", CELLS[cell], f"place_{hops + 1}_hops")

    return make


def _related(attribute: str, hops: int) -> Maker:
    def make(scene: Scene, rng: random.Random) -> Question | None:
        unique = _unique(scene.colors)
        if not unique:
            return None
        color = rng.choice(unique)
        names = [rng.choice(tuple(RELATIONS)) for _ in range(hops)]
        cell = scene.colors.index(color)
        for name in names:
            cell ^= RELATIONS[name]
        if cell == scene.colors.index(color):
            return None
        where = " the one ".join(names)
        if attribute == "color":
            text, answer = f"what color is the one {where} the {color} shape ?", scene.colors[cell]
        else:
            text, answer = f"what shape is {where} the {color} shape ?", scene.shapes[cell]
        return Question(text, answer, f"{attribute}_{hops + 1}_hops")

    return make


def _count_shape(scene: Scene, rng: random.Random) -> Question | None:
    shape = rng.choice(SHAPES)
    return Question(f"how many {PLURALS[shape]} are there ?", str(scene.shapes.count(shape)), "count")


def _count_like(scene: Scene, rng: random.Random) -> Question | None:
    cell = rng.randrange(4)
    count = scene.shapes.count(scene.shapes[cell]) - 1
    return Question(f"how many others look like the {CELLS[cell]} shape ?", str(count), "count_like")


def _exists(scene: Scene, rng: random.Random) -> Question | None:
    present = set(zip(scene.colors, scene.shapes, strict=True))
    if rng.random() < 0.5:
        color, shape = rng.choice(sorted(present))
        return Question(f"is there a {color} {shape} ?", "yes", "exists")
    # A hard "no": a colour that is there with a shape that is there, but never together.
    absent = [(c, s) for c in sorted(set(scene.colors)) for s in SHAPES if (c, s) not in present]
    if not absent:
        return None
    color, shape = rng.choice(absent)
    return Question(f"is there a {color} {shape} ?", "no", "exists")


QUESTION_KINDS: dict[str, Maker] = {
    "color_at": _color_at,
    "shape_at": _shape_at,
    "color_of": _color_of,
    "shape_of": _shape_of,
    "color_2_hops": _related("color", 1),
    "shape_2_hops": _related("shape", 1),
    "color_3_hops": _related("color", 2),
    "shape_3_hops": _related("shape", 2),
    "count": _count_shape,
    "count_like": _count_like,
    "exists": _exists,
    "place_1_hops": _place(0),
    "place_2_hops": _place(1),
    "place_3_hops": _place(2),
}
ONE_HOP = ("color_at", "shape_at", "color_of", "shape_of")

# Only for training: saying where something is teaches the step between two looks.
TWO_HOPS = {
    "color_at": 0.5,
    "shape_at": 0.5,
    "place_1_hops": 1.5,
    "place_2_hops": 2.0,
    "color_2_hops": 2.0,
    "shape_2_hops": 1.0,
}

WHERE = {"place_1_hops": 3.0, "place_2_hops": 1.0, "color_at": 0.5, "shape_of": 0.5, "color_2_hops": 1.0}
MULTI_HOP = {
    "color_at": 0.3,
    "shape_at": 0.3,
    "color_of": 0.3,
    "shape_of": 0.3,
    "color_2_hops": 3.0,
    "shape_2_hops": 2.0,
    "color_3_hops": 1.5,
    "shape_3_hops": 1.0,
    "count": 0.4,
    "count_like": 0.4,
    "exists": 0.4,
    "place_2_hops": 0.3,
}
PLACES = {"place_1_hops": 0.5, "place_2_hops": 1.0, "place_3_hops": 1.0}

# Shares in the task: multi-hop questions carry half the weight, so that the picture is needed at
# several depths; yes/no questions little, so that an answer without the picture is worth little.
TASK_MIX = {
    "color_at": 1.0,
    "shape_at": 1.0,
    "color_of": 0.5,
    "shape_of": 1.0,
    "color_2_hops": 2.0,
    "shape_2_hops": 1.5,
    "color_3_hops": 1.5,
    "shape_3_hops": 1.0,
    "count": 0.5,
    "count_like": 0.5,
    "exists": 0.5,
}


def sample_question(scene: Scene, rng: random.Random, mix: dict[str, float]) -> Question:
    """Draw a question kind by ``mix`` and a question of that kind; redraw where a scene has none."""
    kinds, weights = tuple(mix), tuple(mix.values())
    while True:
        question = QUESTION_KINDS[rng.choices(kinds, weights)[0]](scene, rng)
        if question is not None:
            return question


def sample_questions(scene: Scene, rng: random.Random, mix: dict[str, float], count: int) -> list[Question]:
    """Up to ``count`` questions with different texts about one scene; some scenes allow only a few."""
    questions: dict[str, Question] = {}
    for _ in range(4 * count):
        question = sample_question(scene, rng, mix)
        questions.setdefault(question.text, question)
        if len(questions) == count:
            break
    return list(questions.values())


def sample_scene(pictures: list[Picture], rng: random.Random) -> Scene:
    return Scene(tuple(rng.choice(pictures) for _ in range(4)))


# --- pictures -------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def load_pictures(part: str) -> list[Picture]:
    """The pictures of easy-VQA's ``train`` or ``test`` part whose colour and shape its questions reveal.

    Raises:
        DataError: the package ``easy-vqa`` is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise DataError("mosaic-vqa needs the pictures of the package easy-vqa: pip install easy-vqa") from error
    from PIL import Image

    train = part == "train"
    questions = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    labels: dict[int, dict[str, str]] = {}
    for text, answer, image_id in zip(*questions, strict=True):
        words = text.rstrip("?").split()
        found = labels.setdefault(image_id, {})
        # "is there a red shape?" yes, and "is there no red shape?" no, both reveal the colour.
        revealed = (answer == "yes") != ("no" in words or "not" in words)
        named = [*words, answer] if answer not in ("yes", "no") else (words if revealed else [])
        for word in named:
            if word in COLORS:
                found["color"] = word
            elif word in SHAPES:
                found["shape"] = word
    pictures = []
    for image_id in sorted(paths):
        found = labels.get(image_id, {})
        if {"color", "shape"} <= found.keys():
            with Image.open(paths[image_id]) as image:
                pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
            pictures.append(Picture(f"{part}/{image_id}", found["color"], found["shape"], pixels))
    return pictures


def split_pictures(split: str) -> list[Picture]:
    """The pictures that scenes of ``split`` are made of; no picture serves two splits.

    Raises:
        DataError: unknown split.
    """
    train, test = load_pictures("train"), load_pictures("test")
    parts = {
        "train": train[: len(train) * 9 // 10],
        "calibration": train[len(train) * 9 // 10 :],
        "search": test[: len(test) // 2],
        "held_out": test[len(test) // 2 :],
    }
    if split not in parts:
        raise DataError(f"mosaic-vqa has no split {split!r}; it has {', '.join(parts)}")
    return parts[split]
