"""``scene-vqa-moving``: what happens in a clip is what is asked about."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest
import torch

from vispco.errors import ConfigError
from vispco.pruning.forward.tokens import Prompt
from vispco.pruning.methods import make_method
from vispco.tasks.base import make_task
from vispco.tasks.scenes.clips import DIRECTIONS, MAKERS, Clip, ask_clip, sample_clip
from vispco.tasks.scenes.drawing import draw
from vispco.tasks.scenes.layout import extent
from vispco.tasks.scenes.questions import full
from vispco.tasks.scenes.vocabulary import PLACES

CLIPS = [sample_clip("search", random.Random(number)) for number in range(12)]


def question(kind: str, clip: Clip, seed: int = 0) -> tuple[str, str] | None:
    made = ask_clip(kind, clip, random.Random(seed))
    return (made.text, made.answer) if made else None


@pytest.mark.parametrize("clip", CLIPS, ids=range(len(CLIPS)))
def test_one_thing_moves_straight_and_hides_nothing(clip: Clip) -> None:
    assert 4 <= len(clip.frames) <= 8
    right, down = DIRECTIONS[clip.direction]
    still = set(clip.first.things) & set(clip.last.things)
    path = [[thing for thing in scene.things if thing not in still and thing != clip.guest] for scene in clip.frames]
    assert all(len(found) == 1 for found in path)
    moved = [found[0] for found in path]
    assert (moved[0], moved[-1]) == (clip.mover, clip.moved)
    for before, after in pairwise(moved):
        assert (after.x - before.x > 0, after.x - before.x < 0) == (right > 0, right < 0)
        assert (after.y - before.y > 0, after.y - before.y < 0) == (down > 0, down < 0)
    for scene in clip.frames:
        boxes = []
        for thing in scene.things:
            height, width = extent(scene.split, thing)
            boxes.append((thing.x - width / 2, thing.y - height / 2, thing.x + width / 2, thing.y + height / 2))
        assert all(min(box) >= 0 and max(box) <= 224 for box in boxes)
        for one, other in combinations(boxes, 2):
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("clip", CLIPS, ids=range(len(CLIPS)))
def test_answers_are_what_the_frames_show(clip: Clip) -> None:
    asked = question("direction", clip)
    assert asked is None or asked[1] == clip.direction
    assert question("mover", clip) == ("What moves?", full(clip.mover))
    change = len(clip.last.things) - len(clip.first.things)
    assert change == {"": 0, "appears": 1, "disappears": -1}[clip.event]
    event = question("event", clip)
    assert (event is None) == (not clip.event)
    if event and clip.guest:
        [guest] = set(clip.first.things) ^ set(clip.last.things) ^ {clip.mover, clip.moved}
        assert event == (f"What {clip.event}?", full(guest))
    for seed in range(4):
        place, count = question("place", clip, seed), question("count", clip, seed)
        assert count is not None
        scene = clip.first if count[0].endswith("start?") else clip.last
        assert count[1] == str(len(scene.things))
        if place is not None:
            thing = clip.mover if place[0].endswith("start?") else clip.moved
            assert place[1] == PLACES[int(thing.y // (224 / 3)) * 3 + int(thing.x // (224 / 3))]


def test_only_what_happens_differs_between_frames() -> None:
    clip = next(clip for clip in CLIPS if not clip.event)
    one, other = draw(clip.first).astype(int), draw(clip.last).astype(int)
    changed = (one != other).any(-1)
    left, top = min(clip.mover.x, clip.moved.x), min(clip.mover.y, clip.moved.y)
    right, bottom = max(clip.mover.x, clip.moved.x), max(clip.mover.y, clip.moved.y)
    changed[max(0, int(top) - 50) : int(bottom) + 50, max(0, int(left) - 50) : int(right) + 50] = False
    assert not changed.any()
    assert (one != other).any()


def test_rows_of_the_task_do_not_depend_on_the_size_of_a_split() -> None:
    few, more = (make_task("scene-vqa-moving", {"search": size}).samples("search") for size in (4, 6))
    assert [(s.id, s.question, s.answers) for s in few] == [(s.id, s.question, s.answers) for s in more][:4]
    assert {s.category for s in more} == set(MAKERS)
    assert [s.group_id for s in more] == ["search/0"] * 3 + ["search/1"] * 3
    assert all(4 <= len(s.images) <= 8 and s.images[0].size == (224, 224) for s in more)
    task = make_task("scene-vqa-moving", {"search": 6})
    assert task.score(more[0], f" {more[0].answers[0].upper()}. ") == 1
    assert task.score(more[0], "sideways") == 0


def test_pictures_as_frames_of_one_video() -> None:
    """Three pictures of two cells; only the second cell of the last picture changes."""
    first, same, other = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    embeddings = torch.stack([first, first, same, same, first, other])[None]
    coordinates = torch.tensor([[[picture, 0, 0, column] for picture in range(3) for column in range(2)]])
    prompt = Prompt(
        embeddings=embeddings,
        visual=torch.ones(1, 6, dtype=torch.bool),
        valid=torch.ones(1, 6, dtype=torch.bool),
        read_coordinates=lambda: coordinates,
        read_keys=lambda: [0],
    )
    as_frames, as_pictures = make_method("evs", {"frames": "pictures"}), make_method("evs")
    assert as_frames.order(prompt, 0, torch.arange(6), 6).tolist() == [0, 1, 5, 2, 3, 4]
    assert as_pictures.order(prompt, 0, torch.arange(6), 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert as_pictures.parameters() == {}
    with pytest.raises(ConfigError, match="video or pictures"):
        make_method("evs", {"frames": "both"})
