"""Questions about scenes. Every maker gives a question with one right answer, or None where the scene has none."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vispco.tasks.scenes.layout import Scene, Thing
from vispco.tasks.scenes.vocabulary import PLACES

# Things are put in order only where neighbours differ by this many pixels.
CLEAR_PIXELS = 9
STEP_BY_STEP = "Think step by step."


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    kind: str


Maker = Callable[[Scene, random.Random], "tuple[str, str] | None"]


def full(thing: Thing) -> str:
    """The thing with its colour, as answers name it.

    >>> full(Thing("number", "7", "red", (214, 40, 40), 0, 0, 0, 0))
    'red 7'
    """
    return f"{thing.color} {thing.name}"


def bare(thing: Thing) -> str:
    """The thing without its colour, as questions name it."""
    return {"shape": thing.name, "number": f"number {thing.name}", "word": f'word "{thing.name}"'}[thing.kind]


def named(scene: Scene, thing: Thing) -> str | None:
    """The shortest name that only this thing has; None if there is none."""
    alike = [other for other in scene.things if other.kind == thing.kind and other.name == thing.name]
    if len(alike) == 1:
        return f"the {bare(thing)}"
    if sum(other.color == thing.color for other in alike) == 1:
        return f"the {thing.color} {bare(thing)}"
    return None


def an(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def where(thing: Thing) -> str:
    place = PLACES[thing.cell]
    return "in the center" if place == "center" else f"at the {place}"


def _of(scene: Scene, *kinds: str) -> list[Thing]:
    return [thing for thing in scene.things if thing.kind in kinds]


def _only(things: Sequence[Thing]) -> list[Thing]:
    """Those whose colour no other of ``things`` has."""
    counts = Counter(thing.color for thing in things)
    return [thing for thing in things if counts[thing.color] == 1]


def _only_name(things: Sequence[Thing]) -> list[Thing]:
    counts = Counter((thing.kind, thing.name) for thing in things)
    return [thing for thing in things if counts[thing.kind, thing.name] == 1]


def _pick(things: Sequence[Thing], rng: random.Random) -> Thing | None:
    return rng.choice(things) if things else None


def _in_order(things: Sequence[Thing], axis: str) -> list[Thing] | None:
    """Sorted along ``axis``; None if two are too close to tell."""
    ordered = sorted(things, key=lambda thing: getattr(thing, axis))
    places = [getattr(thing, axis) for thing in ordered]
    clear = all(after - before >= CLEAR_PIXELS for before, after in pairwise(places))
    return ordered if clear and len(ordered) > 1 else None


# --- short answers --------------------------------------------------------------------------------


def _color_of(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = _pick(_only_name(scene.things), rng)
    return (f"What color is the {bare(thing)}?", thing.color) if thing else None


def _shape_of(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = _pick(_only(_of(scene, "shape")), rng)
    return (f"Which shape is {thing.color}?", thing.name) if thing else None


def _read_word(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = _pick(_only(_of(scene, "word")), rng)
    return (f"What does the {thing.color} word say?", thing.name) if thing else None


def _read_number(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = _pick(_only(_of(scene, "number")), rng)
    return (f"What is the {thing.color} number?", thing.name) if thing else None


def _under(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = _pick([thing for thing in _of(scene, "shape") if thing.label and named(scene, thing)], rng)
    return (f"What is written under {named(scene, thing)}?", thing.label) if thing else None


def _above(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = _pick([thing for thing in _of(scene, "shape") if thing.label], rng)
    return (f'Which shape is above the word "{thing.label}"?', full(thing)) if thing else None


def _where(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = _pick([thing for thing in scene.things if named(scene, thing)], rng)
    return (f"Where is {named(scene, thing)}?", PLACES[thing.cell]) if thing else None


def _what_at(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = rng.choice(scene.things)
    return f"What is {where(thing)}?", full(thing)


def _count(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    wanted = rng.randint(0, 4)
    kinds = [kind for kind in ("shape", "number", "word") if len(_of(scene, kind)) == wanted]
    if not kinds:
        return None
    kind = rng.choice(kinds)
    if kind == "word":
        return "How many colored words are there?", str(wanted)
    return f"How many {kind}s are there?", str(wanted)


def _count_color(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    wanted = rng.randint(1, 4)
    counts = Counter(thing.color for thing in scene.things)
    colors = sorted(color for color, count in counts.items() if count == wanted)
    return (f"How many {rng.choice(colors)} things are there?", str(wanted)) if colors else None


def _beside(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """The one other thing of the same row."""
    cells = scene.canvas.cells
    rows: dict[int, list[Thing]] = {}
    for thing in scene.things:
        rows.setdefault(thing.cell // cells, []).append(thing)
    pairs = [
        (one, other) for row in rows.values() if len(row) == 2 for one, other in (row, row[::-1]) if named(scene, one)
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    side = "right" if other.cell > one.cell else "left"
    return f"What is to the {side} of {named(scene, one)}?", full(other)


def _same_color(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    counts = Counter(thing.color for thing in scene.things)
    pairs = [
        (one, other)
        for one in scene.things
        for other in scene.things
        if one is not other and one.color == other.color and counts[one.color] == 2
        if named(scene, one) == f"the {bare(one)}"
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    return f"What has the same color as the {bare(one)}?", f"the {bare(other)}"


def _compare(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    things = [thing for thing in scene.things if named(scene, thing)]
    if len(things) < 2:
        return None
    one, other = rng.sample(things, 2)
    word, axis = rng.choice((("higher", "y"), ("lower", "y"), ("further left", "x"), ("further right", "x")))
    if abs(getattr(one, axis) - getattr(other, axis)) < CLEAR_PIXELS:
        return None
    first = getattr(one, axis) < getattr(other, axis)
    winner = one if first == (word in ("higher", "further left")) else other
    return f"Which is {word}, {named(scene, one)} or {named(scene, other)}?", str(named(scene, winner))


def _largest(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    numbers = sorted({int(thing.name) for thing in _of(scene, "number")})
    if len(numbers) < 2:
        return None
    word, answer = rng.choice((("largest", numbers[-1]), ("smallest", numbers[0])))
    return f"What is the {word} number?", str(answer)


# --- lists ----------------------------------------------------------------------------------------


def _list_colors(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    axis, words = rng.choice((("x", "from left to right"), ("y", "from top to bottom")))
    ordered = _in_order(scene.things, axis)
    if ordered is None:
        return None
    return f"List the colors of all things {words}.", ", ".join(thing.color for thing in ordered)


def _list_shapes(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    axis, words = rng.choice((("x", "from left to right"), ("y", "from top to bottom")))
    ordered = _in_order(_of(scene, "shape"), axis)
    return (f"List the shapes {words}.", ", ".join(thing.name for thing in ordered)) if ordered else None


def _list_words(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    words = [thing.label or thing.name for thing in scene.things if thing.label or thing.kind == "word"]
    return ("Read all words, row by row.", ", ".join(words)) if len(words) > 1 else None


def _list_things(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    return "List all things, row by row.", ", ".join(full(thing) for thing in scene.things)


# --- sentences ------------------------------------------------------------------------------------


def _describe(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    clauses = [
        f"{an(full(thing))}{f' over the word {thing.label}' if thing.label else ''} {where(thing)}"
        for thing in scene.things
    ]
    return "Describe the picture in one sentence.", f"There is {', '.join(clauses)}."


def _describe_one(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    things = [thing for thing in _only_name(scene.things) if thing.kind == "shape"]
    thing = _pick(things, rng)
    if thing is None:
        return None
    under = f"the word {thing.label}" if thing.label else "nothing"
    return (
        f"Describe the {thing.name} in one sentence.",
        f"The {thing.name} is {thing.color}, is {where(thing)} and has {under} under it.",
    )


# --- several steps --------------------------------------------------------------------------------


def _steps_sum(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    numbers = [thing.name for thing in _of(scene, "number")]
    if not 2 <= len(numbers) <= 3:
        return None
    total = sum(map(int, numbers))
    listed = " and ".join((", ".join(numbers[:-1]), numbers[-1]))
    return f"What is the sum of the numbers? {STEP_BY_STEP}", f"The numbers are {listed}. The sum is {total}."


def _steps_count(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    kind = rng.choice(("shape", "number", "word"))
    things = _of(scene, kind)
    if not things:
        return None
    noun = "colored word" if kind == "word" else kind
    counted = ", ".join(f"{number} {full(thing)}" for number, thing in enumerate(things, 1))
    return f"Count the {noun}s one by one.", f"{counted}. The count is {len(things)}."


def _steps_same(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    shapes = _only([thing for thing in scene.things if thing.kind == "shape"])
    labelled = {thing.color: thing for thing in shapes if thing.label}
    others = [t for t in _of(scene, "number", "word") if t.color in labelled and named(scene, t) == f"the {bare(t)}"]
    thing = _pick(others, rng)
    if thing is None:
        return None
    shape = labelled[thing.color]
    return (
        f"What is written under the shape with the color of the {bare(thing)}? {STEP_BY_STEP}",
        f"The {bare(thing)} is {thing.color}. The {thing.color} shape is {an(shape.name)}. "
        f"The word under it is {shape.label}.",
    )


def _steps_place(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    numbers = _of(scene, "number")
    values = sorted({int(thing.name) for thing in numbers})
    if len(values) < 2:
        return None
    largest = [thing for thing in numbers if int(thing.name) == values[-1]]
    if len(largest) > 1:
        return None
    listed = " and ".join(thing.name for thing in numbers)
    return (
        f"Where is the largest number? {STEP_BY_STEP}",
        f"The numbers are {listed}. The largest is {values[-1]}. It is {where(largest[0])}.",
    )


SHORT: dict[str, Maker] = {
    "color_of": _color_of,
    "shape_of": _shape_of,
    "read_word": _read_word,
    "read_number": _read_number,
    "under": _under,
    "above": _above,
    "where": _where,
    "what_at": _what_at,
    "count": _count,
    "count_color": _count_color,
    "beside": _beside,
    "same_color": _same_color,
    "compare": _compare,
    "largest": _largest,
}
LISTS: dict[str, Maker] = {
    "list_colors": _list_colors,
    "list_shapes": _list_shapes,
    "list_words": _list_words,
    "list_things": _list_things,
}
SENTENCES: dict[str, Maker] = {"describe": _describe, "describe_one": _describe_one}
STEPS: dict[str, Maker] = {
    "steps_sum": _steps_sum,
    "steps_count": _steps_count,
    "steps_same": _steps_same,
    "steps_place": _steps_place,
}
MAKERS: dict[str, Maker] = {**SHORT, **LISTS, **SENTENCES, **STEPS}


def ask(kind: str, scene: Scene, rng: random.Random) -> Question | None:
    """A question of this kind; None if the scene allows none."""
    made = MAKERS[kind](scene, rng)
    return Question(*made, kind) if made else None
