"""A scene: which things are where. It is drawn by :mod:`vispco.tasks.scenes.drawing`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from vispco.tasks.scenes.grounds import DISTRACTORS, GROUNDS
from vispco.tasks.scenes.sprites import VARIANTS, Sprite, sprite
from vispco.tasks.scenes.vocabulary import COLORS, NUMBERS, PLACES, SHAPES, WORDS

LABEL_GAP = 1
EDGE = 2
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Canvas:
    """Side of the picture in pixels, cells a side (each thing has a cell of its own), and how many things there are."""

    pixels: int = 224
    cells: int = 3
    things: tuple[int, int] = (3, 6)
    distractors: tuple[int, int] = (3, 7)


@dataclass(frozen=True)
class Thing:
    """A shape, a number or a word. ``x``, ``y``: pixels, centre of the thing together with its label.

    ``label``: a word written under a shape. ``rgb``: this thing's own shade of ``color``.
    """

    kind: str
    name: str
    color: str
    rgb: tuple[int, int, int]
    variant: int
    x: float
    y: float
    cell: int
    label: str = ""
    label_variant: int = 0


@dataclass(frozen=True)
class Blot:
    """A distractor and where its upper left corner lies."""

    number: int
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """Things in reading order of their cells, on a crop of a ground."""

    split: str
    canvas: Canvas
    ground: tuple[int, int, int, int]  # number, offsets, one of 8 turns and mirrorings
    things: tuple[Thing, ...]
    blots: tuple[Blot, ...]
    dark_labels: bool

    def place(self, thing: Thing) -> str:
        return PLACES[thing.cell]

    def parts(self, thing: Thing) -> Iterator[tuple[str, Sprite, int, int]]:
        """The thing and its label as they are drawn: part (``thing``, ``label``), sprite, top, left."""
        return parts(self.split, thing)


def parts(split: str, thing: Thing) -> Iterator[tuple[str, Sprite, int, int]]:
    body = sprite(split, thing.kind, thing.name, thing.variant)
    height, width = body.size
    if not thing.label:
        yield "thing", body, round(thing.y - height / 2), round(thing.x - width / 2)
        return
    label = sprite(split, "label", thing.label, thing.label_variant)
    top = thing.y - (height + LABEL_GAP + label.size[0]) / 2
    yield "thing", body, round(top), round(thing.x - width / 2)
    yield "label", label, round(top) + height + LABEL_GAP, round(thing.x - label.size[1] / 2)


def extent(split: str, thing: Thing) -> tuple[int, int]:
    """Height and width of a thing with its label, pixels."""
    body = sprite(split, thing.kind, thing.name, thing.variant).size
    if not thing.label:
        return body
    label = sprite(split, "label", thing.label, thing.label_variant).size
    return body[0] + LABEL_GAP + label[0], max(body[1], label[1])


def _box(split: str, thing: Thing, x: float, y: float) -> Box:
    height, width = extent(split, thing)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: Box, other: Box, gap: float = 2) -> bool:
    return one[0] < other[2] + gap and other[0] < one[2] + gap and one[1] < other[3] + gap and other[1] < one[3] + gap


def _thing(split: str, rng: random.Random, colors: list[str], words: list[str], cell: int) -> Thing:
    kind = rng.choices(("shape", "number", "word"), (0.48, 0.22, 0.30))[0]
    name = words.pop() if kind == "word" else rng.choice(SHAPES if kind == "shape" else NUMBERS)
    color = rng.choice(colors)
    light = rng.uniform(0.88, 1.06)
    rgb = tuple(max(0, min(255, round(part * light + rng.uniform(-12, 12)))) for part in COLORS[color])
    label = words.pop() if kind == "shape" and rng.random() < 0.6 else ""
    variants = VARIANTS[split]
    return Thing(
        kind, name, color, (rgb[0], rgb[1], rgb[2]), rng.randrange(variants), 0, 0, cell, label, rng.randrange(variants)
    )


def _at(thing: Thing, x: float, y: float) -> Thing:
    return Thing(
        *(thing.kind, thing.name, thing.color, thing.rgb, thing.variant),
        *(round(x, 1), round(y, 1), thing.cell, thing.label, thing.label_variant),
    )


def sample_scene(split: str, rng: random.Random, canvas: Canvas = Canvas()) -> Scene:
    """A scene whose things lie in cells of their own, well inside them, so that places have one name."""
    colors = rng.sample(list(COLORS), rng.randint(2, len(COLORS)))
    words = rng.sample(WORDS, len(WORDS))
    count = rng.randint(*canvas.things)
    cell_pixels = canvas.pixels / canvas.cells
    placed: list[Thing] = []
    boxes: list[Box] = []
    for cell in sorted(rng.sample(range(canvas.cells**2), count)):
        thing = _thing(split, rng, colors, words, cell)
        height, width = extent(split, thing)
        row, column = divmod(cell, canvas.cells)
        middle = ((column + 0.5) * cell_pixels, (row + 0.5) * cell_pixels)
        for attempt in range(12):
            reach = cell_pixels / 2 - 8 if attempt < 11 else 0
            x, y = (center + rng.uniform(-reach, reach) for center in middle)
            x = min(max(x, EDGE + width / 2), canvas.pixels - EDGE - width / 2)
            y = min(max(y, EDGE + height / 2), canvas.pixels - EDGE - height / 2)
            box = _box(split, thing, x, y)
            if not any(_overlap(box, other) for other in boxes):
                break
        else:
            continue
        placed.append(_at(thing, x, y))
        boxes.append(box)
    return _finish(split, rng, canvas, placed, boxes)


def sample_crowd(split: str, rng: random.Random, count: int, canvas: Canvas = Canvas()) -> Scene:
    """A scene with up to ``count`` things anywhere: many patches to learn from, no unambiguous places."""
    words = rng.sample(WORDS, len(WORDS)) + rng.sample(WORDS, len(WORDS))
    placed: list[Thing] = []
    boxes: list[Box] = []
    for _ in range(count):
        thing = _thing(split, rng, list(COLORS), words, 0)
        height, width = extent(split, thing)
        for _ in range(8):
            x = rng.uniform(EDGE + width / 2, canvas.pixels - EDGE - width / 2)
            y = rng.uniform(EDGE + height / 2, canvas.pixels - EDGE - height / 2)
            box = _box(split, thing, x, y)
            if not any(_overlap(box, other) for other in boxes):
                placed.append(_at(thing, x, y))
                boxes.append(box)
                break
    return _finish(split, rng, canvas, placed, boxes)


def _finish(split: str, rng: random.Random, canvas: Canvas, placed: list[Thing], boxes: list[Box]) -> Scene:
    from vispco.tasks.scenes.grounds import GROUND_PIXELS, distractor

    blots = []
    for _ in range(rng.randint(*canvas.distractors)):
        number = rng.randrange(DISTRACTORS[split])
        height, width = distractor(split, number)[1].shape
        for _ in range(10):
            x, y = rng.randrange(canvas.pixels - width), rng.randrange(canvas.pixels - height)
            box = (float(x), float(y), float(x + width), float(y + height))
            if not any(_overlap(box, other) for other in boxes):
                blots.append(Blot(number, x, y))
                boxes.append(box)
                break
    room = GROUND_PIXELS - canvas.pixels
    ground = (rng.randrange(GROUNDS[split]), rng.randint(0, room), rng.randint(0, room), rng.randrange(8))
    return Scene(split, canvas, ground, tuple(placed), tuple(blots), rng.random() < 0.5)
