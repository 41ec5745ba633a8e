"""Scenes of ``scene-vqa``: what is drawn is what is asked about, and nothing but the seed decides."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from vispco.errors import ConfigError
from vispco.tasks.base import SPLITS, make_task
from vispco.tasks.scene_vqa import GROUP_OF, GROUPS, NEW_TOKENS, clauses_right
from vispco.tasks.scenes import sprites
from vispco.tasks.scenes.drawing import draw
from vispco.tasks.scenes.grounds import ground
from vispco.tasks.scenes.layout import Scene, extent, sample_crowd, sample_scene
from vispco.tasks.scenes.questions import MAKERS, ask, full
from vispco.tasks.scenes.vocabulary import COLORS, FONTS, PLACES, SHAPES, WORDS

SCENES = [sample_scene("search", random.Random(number)) for number in range(60)]


GOLDEN = [
    ("orange 3", "", "top right"),
    ("yellow 8", "", "right"),
    ("purple heart", "", "bottom left"),
    ("orange moon", "egg", "bottom right"),
]


def boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    found = []
    for thing in scene.things:
        height, width = extent(scene.split, thing)
        found.append((thing.x - width / 2, thing.y - height / 2, thing.x + width / 2, thing.y + height / 2))
    return found


def test_a_scene_follows_from_its_seed_on_every_machine() -> None:
    scene = sample_scene("search", random.Random("golden"))
    again = sample_scene("search", random.Random("golden"))
    assert scene == again
    assert [(full(thing), thing.label, scene.place(thing)) for thing in scene.things] == GOLDEN
    assert np.array_equal(draw(scene), draw(again))


@pytest.mark.parametrize("scene", SCENES[:20], ids=range(20))
def test_things_lie_inside_the_picture_and_their_cell_and_apart(scene: Scene) -> None:
    side, cell = scene.canvas.pixels, scene.canvas.pixels / scene.canvas.cells
    for thing, (left, top, right, bottom) in zip(scene.things, boxes(scene), strict=True):
        assert 0 <= left < right <= side
        assert 0 <= top < bottom <= side
        assert thing.cell == int(thing.y // cell) * scene.canvas.cells + int(thing.x // cell)
    for one, other in combinations(boxes(scene), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("scene", SCENES[:20], ids=range(20))
def test_ink_has_the_color_that_the_scene_says_and_distractors_hide_nothing(scene: Scene) -> None:
    pixels = draw(scene).astype(float)
    assert pixels.shape == (224, 224, 3)
    for thing in scene.things:
        for part, sprite, top, left in scene.parts(thing):
            if part == "thing":
                height, width = sprite.size
                inside = pixels[top : top + height, left : left + width][sprite.ink > 0.99]
                assert np.abs(inside - np.array(thing.rgb)).max() < 4
                nearest = min(COLORS, key=lambda name: np.abs(np.array(COLORS[name]) - thing.rgb).sum())
                assert nearest == thing.color


def test_splits_share_no_font_no_shape_and_no_ground() -> None:
    for one, other in combinations(FONTS, 2):
        assert not set(FONTS[one]) & set(FONTS[other])
        assert not np.array_equal(ground(one, 0), ground(other, 0))
        for kind, name in (("shape", "star"), ("word", "lamp"), ("number", "7")):
            drawn = [{sprites.sprite(split, kind, name, v).ink.tobytes() for v in range(8)} for split in (one, other)]
            assert not drawn[0] & drawn[1]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_as_large_as_asked_and_no_two_alike(name: str) -> None:
    low, high = sprites.SIZES["shape"]
    found = [sprites.sprite("held_out", "shape", name, variant) for variant in range(6)]
    assert len({one.ink.tobytes() for one in found}) == 6
    for one in found:
        assert low * 0.7 <= max(one.size) <= high * 1.5 + 4
        assert (one.halo.sum() > one.ink.sum()).all()


# --- questions ------------------------------------------------------------------------------------


def test_every_type_can_be_asked_and_answers_are_balanced() -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(300):
        rng = random.Random(number)
        scene = sample_scene("search", rng)
        for kind in MAKERS:
            question = ask(kind, scene, rng)
            if question:
                answers[kind][question.answer] += 1
    assert set(answers) == set(MAKERS)
    best = {kind: max(found.values()) / sum(found.values()) for kind, found in answers.items()}
    assert max(best.values()) < 0.55
    # Knowing each type's commonest answer is worth little.
    assert np.mean(list(best.values())) < 0.15


@pytest.mark.parametrize("scene", SCENES, ids=range(len(SCENES)))
def test_answers_are_right(scene: Scene) -> None:
    """Recomputed here from the things alone."""
    rng = random.Random("answers")
    things = scene.things
    by_color = defaultdict(list)
    for thing in things:
        by_color[thing.color].append(thing)

    def answer(kind: str) -> tuple[str, str] | None:
        question = ask(kind, scene, rng)
        return (question.text, question.answer) if question else None

    if found := answer("count_color"):
        assert found[1] == str(len(by_color[found[0].split()[2]]))
    if found := answer("shape_of"):
        color = found[0].removesuffix("?").split()[-1]
        assert [thing.name for thing in by_color[color] if thing.kind == "shape"] == [found[1]]
    if found := answer("read_word"):
        assert [thing.name for thing in by_color[found[0].split()[3]] if thing.kind == "word"] == [found[1]]
    if found := answer("what_at"):
        place = found[0].removesuffix("?").split(" ", 3)[3].removeprefix("the ")
        assert [full(thing) for thing in things if PLACES[thing.cell] == place] == [found[1]]
    if found := answer("largest"):
        numbers = [int(thing.name) for thing in things if thing.kind == "number"]
        assert int(found[1]) == (max(numbers) if "largest" in found[0] else min(numbers))
    if found := answer("list_colors"):
        axis = "x" if "left" in found[0] else "y"
        assert found[1].split(", ") == [t.color for t in sorted(things, key=lambda t: getattr(t, axis))]
    if found := answer("steps_sum"):
        numbers = [int(thing.name) for thing in things if thing.kind == "number"]
        assert found[1].endswith(f"The sum is {sum(numbers)}.")
    if found := answer("steps_same"):
        color = found[1].split(" is ")[1].split(".")[0]
        labels = [thing.label for thing in by_color[color] if thing.kind == "shape"]
        assert found[1].endswith(f"The word under it is {labels[0]}.")
        assert len(labels) == 1
    if found := answer("beside"):
        rows = defaultdict(list)
        for thing in things:
            rows[thing.cell // 3].append(full(thing))
        assert any(found[1] in row and len(row) == 2 for row in rows.values())
    described = answer("describe")
    assert described is not None
    assert described[1].count(",") == len(things) - 1
    assert all(word in described[1] for thing in things for word in (thing.color, thing.name, thing.label))


def test_labels_and_words_are_never_the_same_twice() -> None:
    for scene in SCENES:
        words = [w for t in scene.things for w in (t.label, t.name if t.kind == "word" else "") if w]
        assert len(words) == len(set(words))
        assert set(words) <= set(WORDS)


def test_a_crowd_fills_the_picture() -> None:
    counts = [len(sample_crowd("search", random.Random(number), 16).things) for number in range(20)]
    assert np.mean(counts) > 10


# --- the task -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples() -> dict[str, list]:
    task = make_task("scene-vqa", dict.fromkeys(SPLITS, 48))
    return {split: task.samples(split) for split in SPLITS}


def test_types_are_equally_frequent_and_known(samples: dict[str, list]) -> None:
    assert Counter(sample.category for sample in samples["search"]) == dict.fromkeys(GROUP_OF, 2)
    assert all(isinstance(sample.images[0], Image.Image) for sample in samples["search"])
    assert Counter(Counter(sample.group_id for sample in samples["search"]).values()) == {4: 12}


def test_splits_ask_about_different_pictures(samples: dict[str, list]) -> None:
    pixels = [{sample.images[0].tobytes() for sample in samples[split]} for split in SPLITS]
    assert all(not one & other for one, other in combinations(pixels, 2))


def test_a_row_is_the_same_whatever_the_size(samples: dict[str, list]) -> None:
    fewer = make_task("scene-vqa", {"held_out": 10}).samples("held_out")
    assert [(s.id, s.question, s.answers) for s in fewer] == [
        (s.id, s.question, s.answers) for s in samples["held_out"][:10]
    ]


def test_right_answers_score_one_and_wrong_ones_nothing(samples: dict[str, list]) -> None:
    task = make_task("scene-vqa", {"search": 48})
    for sample in samples["search"]:
        gold = sample.answers[0]
        assert task.score(sample, gold) == task.score(sample, f" {gold.upper()}\n") == 1.0
        assert task.score(sample, "a teapot") == 0.0
        assert len(gold.split()) <= NEW_TOKENS[GROUP_OF[sample.category]]


def test_descriptions_score_by_clause() -> None:
    gold = "There is a red star over the word lamp at the top, a blue 7 in the center."
    assert clauses_right("There is a red star over the word lamp at the top, a blue 8 in the center.", gold) == 0.5
    assert clauses_right("There is a blue 7 in the center.", gold) == 0.5
    assert clauses_right(f"{gold[:-1]}, a 9 at the left, a 9 at the top.", gold) == 0.5


def test_accuracy_is_reported_by_type_and_group(samples: dict[str, list]) -> None:
    task = make_task("scene-vqa", {"search": 48})
    scores = np.array([float(sample.category in ("where", "describe")) for sample in samples["search"]])
    found = task.metrics(samples["search"], scores)
    assert found["category/where"] == 1.0
    assert found["category/under"] == 0.0
    assert found["group/sentences"] == 0.5
    assert found["group/lists"] == 0.0
    assert found["accuracy"] == pytest.approx(2 / 24)


def test_types_can_be_chosen() -> None:
    task = make_task("scene-vqa", {"search": 8}, {"kinds": ["lists", "where"]})
    assert {sample.category for sample in task.samples("search")} <= {*GROUPS["lists"], "where"}
    assert task.max_new_tokens == NEW_TOKENS["lists"]
    short = make_task("scene-vqa-short", {"search": 8})
    assert short.max_new_tokens == NEW_TOKENS["short"]
    assert short.fingerprint() != task.fingerprint()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kinds": ["read_words"]}, "unknown question type 'read_words'.*read_word"),
        ({"kinds": "where"}, "kinds = 'where' is no list"),
        ({"kind": ["where"]}, "no option 'kind'"),
    ],
)
def test_wrong_options_get_one_line(options: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_task("scene-vqa", {"search": 8}, options)
