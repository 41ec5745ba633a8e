"""Short clips: a scene in which one thing moves and at most one comes or goes, and questions about what happens."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from vispco.tasks.scenes.layout import EDGE, Box, Canvas, Scene, Thing, extent, sample_scene
from vispco.tasks.scenes.questions import Question, bare, full, named
from vispco.tasks.scenes.vocabulary import PLACES

FRAMES = (4, 8)
# Two to four things leave room for one of them to move.
CANVAS = Canvas(things=(2, 4))
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
GAP = 2  # pixels that stay between things


@dataclass(frozen=True)
class Clip:
    """Scenes on one ground, in order. ``mover`` is the thing that moves, where it is first, ``moved`` where it is last;
    ``guest`` the one that ``event`` (``appears``, ``disappears``) is about, if there is any."""

    frames: tuple[Scene, ...]
    mover: Thing
    moved: Thing
    direction: str
    event: str = ""
    guest: Thing | None = None

    @property
    def first(self) -> Scene:
        return self.frames[0]

    @property
    def last(self) -> Scene:
        return self.frames[-1]

    @property
    def all_things(self) -> Scene:
        """Everything that is ever seen, where it is first seen: what names must tell apart."""
        extra = (self.guest,) if self.event == "appears" and self.guest else ()
        return replace(self.first, things=(*self.first.things, *extra))


def sample_clip(split: str, rng: random.Random) -> Clip:
    """A clip of 4 to 8 frames. The mover goes straight to the middle third of another place, hiding nothing."""
    while True:
        scene = sample_scene(split, rng, CANVAS)
        if len(scene.things) < 2:
            continue
        count = rng.randint(*FRAMES)
        number = rng.randrange(len(scene.things))
        direction = rng.choice(list(DIRECTIONS))
        event = rng.choice(("", "appears", "disappears"))
        others = [place for place in range(len(scene.things)) if place != number]
        guest = rng.choice(others) if event else None
        at = rng.randint(1, count - 1)
        path = _path(scene, scene.things[number], direction, count, rng)
        if path is None:
            continue
        frames = []
        for time, moved in enumerate(path):
            shown = [
                moved if place == number else thing
                for place, thing in enumerate(scene.things)
                if place != guest or (time >= at) == (event == "appears")
            ]
            frames.append(replace(scene, things=tuple(shown)))
        return Clip(
            tuple(frames), path[0], path[-1], direction, event, scene.things[guest] if guest is not None else None
        )


def _path(scene: Scene, thing: Thing, direction: str, count: int, rng: random.Random) -> list[Thing] | None:
    """The thing in each frame, one or two cells further at the end; None if there is no room."""
    cells, side = scene.canvas.cells, scene.canvas.pixels
    cell = side / cells
    right, down = DIRECTIONS[direction]
    row, column = divmod(thing.cell, cells)
    steps = [step for step in (1, 2) if 0 <= row + step * down < cells and 0 <= column + step * right < cells]
    if not steps:
        return None
    step = rng.choice(steps)
    end_x = (column + step * right + 0.5) * cell if right else thing.x
    end_y = (row + step * down + 0.5) * cell if down else thing.y
    height, width = extent(scene.split, thing)
    found = []
    for time in range(count):
        share = time / (count - 1)
        x, y = thing.x + share * (end_x - thing.x), thing.y + share * (end_y - thing.y)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        inside = min(box) >= EDGE and max(box) <= side - EDGE
        if not inside or any(_near(box, _box(scene, other)) for other in scene.things if other != thing):
            return None
        now = int(y // cell) * cells + int(x // cell)
        found.append(replace(thing, x=round(x, 1), y=round(y, 1), cell=now))
    return found


def _box(scene: Scene, thing: Thing) -> Box:
    height, width = extent(scene.split, thing)
    return thing.x - width / 2, thing.y - height / 2, thing.x + width / 2, thing.y + height / 2


def _near(one: Box, other: Box) -> bool:
    return one[0] < other[2] + GAP and other[0] < one[2] + GAP and one[1] < other[3] + GAP and other[1] < one[3] + GAP


ClipMaker = Callable[[Clip, random.Random], "tuple[str, str] | None"]


# --- questions ------------------------------------------------------------------------------------


def ask_clip(kind: str, clip: Clip, rng: random.Random) -> Question | None:
    """A question of this kind; None if the clip allows none."""
    made = MAKERS[kind](clip, rng)
    return Question(*made, kind) if made else None


def _direction(clip: Clip, rng: random.Random) -> tuple[str, str] | None:
    name = named(clip.all_things, clip.mover)
    return (f"Which way does {name} move?", clip.direction) if name else None


def _mover(clip: Clip, rng: random.Random) -> tuple[str, str]:
    return "What moves?", full(clip.mover)


def _event(clip: Clip, rng: random.Random) -> tuple[str, str] | None:
    if clip.guest is None:
        return None
    return f"What {clip.event}?", full(clip.guest)


def _place(clip: Clip, rng: random.Random) -> tuple[str, str] | None:
    name = named(clip.all_things, clip.mover)
    words, thing = rng.choice((("at the start", clip.mover), ("at the end", clip.moved)))
    return (f"Where is {name} {words}?", PLACES[thing.cell]) if name else None


def _count(clip: Clip, rng: random.Random) -> tuple[str, str]:
    words, scene = rng.choice((("at the start", clip.first), ("at the end", clip.last)))
    return f"How many things are there {words}?", str(len(scene.things))


def _still(clip: Clip, rng: random.Random) -> tuple[str, str] | None:
    """The colour of a thing that is always there: one frame is enough."""
    still = [t for t in clip.first.things if t in clip.last.things and named(clip.all_things, t) == f"the {bare(t)}"]
    if not still:
        return None
    thing = rng.choice(still)
    return f"What color is the {bare(thing)}?", thing.color


MAKERS: dict[str, ClipMaker] = {
    "direction": _direction,
    "mover": _mover,
    "event": _event,
    "place": _place,
    "count": _count,
    "still": _still,
}
