"""The embedded task: labels, answers, splits, determinism; and the packing that trains on it."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks.train.demo.build import build_model, build_processor, vocabulary
from benchmarks.train.demo.data import pixel_values
from benchmarks.train.demo.packing import draw_questions
from vispco.errors import ConfigError, DataError
from vispco.tasks.base import SPLITS, make_task
from vispco.tasks.mosaic import (
    QUESTION_KINDS,
    TASK_MIX,
    Picture,
    Scene,
    load_pictures,
    sample_question,
    sample_scene,
    split_pictures,
)

RGB = {"red": (255, 0, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "black": (0, 0, 0), "gray": (128, 128, 128)}


def scene(*cells: str) -> Scene:
    blank = np.zeros((64, 64, 3), np.uint8)
    return Scene(tuple(Picture(cell, *cell.split(), blank) for cell in cells))  # type: ignore[arg-type, misc]


def test_labels_are_in_the_pixels() -> None:
    """The label of a picture, read from easy-VQA's questions, is the colour most pixels off the ground have."""
    for picture in load_pictures("train")[:400]:
        if picture.color in RGB:
            off = np.abs(picture.pixels.astype(int) - RGB[picture.color]).sum(-1)
            assert (off < 12).sum() >= 10, picture.key
    shapes = Counter(picture.shape for picture in load_pictures("train"))
    assert set(shapes) == {"circle", "rectangle", "triangle"}
    assert min(shapes.values()) > 900


def test_answers_by_hand() -> None:
    fixed = scene("red circle", "blue circle", "green triangle", "red rectangle")
    answers: dict[str, set[str]] = {}
    rng = random.Random(0)
    for _ in range(3000):
        question = sample_question(fixed, rng, dict.fromkeys(QUESTION_KINDS, 1.0))
        answers.setdefault(question.text, set()).add(question.answer)
    assert all(len(found) == 1 for found in answers.values())
    expected = {
        "what color is the top-left shape ?": "red",
        "what shape is in the bottom-right ?": "rectangle",
        "what color is the triangle ?": "green",
        "what shape is the blue one ?": "circle",
        "what color is the one beside the blue shape ?": "red",
        "what shape is stacked with the blue shape ?": "rectangle",
        "what shape is diagonal to the blue shape ?": "triangle",
        "what shape is beside the one diagonal to the green shape ?": "circle",
        "what color is the one stacked with the one beside the blue shape ?": "green",
        "how many circles are there ?": "2",
        "how many others look like the top-left shape ?": "1",
        "is there a red circle ?": "yes",
        "is there a blue triangle ?": "no",
        "the green shape is in the ?": "bottom-left",
        "the one beside the green shape is in the ?": "bottom-right",
    }
    for text, answer in expected.items():
        assert answers[text] == {answer}, text
    # A colour that occurs twice is never asked about.
    assert not any("red shape" in text for text in answers)


def test_splits_share_no_picture_and_no_row() -> None:
    names = ("train", *SPLITS)
    keys = {name: {picture.key for picture in split_pictures(name)} for name in names}
    assert all(not keys[a] & keys[b] for a in names for b in names if a != b)
    task = make_task("mosaic-vqa", {"search": 6, "held_out": 6, "calibration": 5})
    search, again = task.dataset("search"), make_task("mosaic-vqa", {"search": 9}).dataset("search")
    assert len(search) == 6
    for row, other in zip(search, again, strict=False):
        assert row["question"] == other["question"]
        assert np.array_equal(np.asarray(row["image"]), np.asarray(other["image"]))
    assert search["group_id"][:4] == ["search/0", "search/0", "search/1", "search/1"]
    assert len(task.samples("calibration")) == 5


def test_scoring_is_exact() -> None:
    task = make_task("mosaic-vqa", {"search": 2})
    sample = task.samples("search")[0]
    assert task.score(sample, sample.answers[0]) == 1.0
    assert task.score(sample, f" {sample.answers[0].upper()} ") == 1.0
    assert task.score(sample, "") == 0.0
    assert task.score(sample, sample.answers[0] + "s") == 0.0
    assert task.aggregate(np.array([1.0, 0.0, 0.0, 1.0]), ["a", "a", "b", "b"]) == 0.5


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="did you mean 'held_out'"):
        make_task("mosaic-vqa", {"heldout": 4})
    with pytest.raises(ConfigError, match="did you mean 'mosaic-vqa'"):
        make_task("mosaic_vqa", {"search": 4})
    with pytest.raises(ConfigError, match="at least 1"):
        make_task("mosaic-vqa", {"search": 0})
    with pytest.raises(DataError, match="no rows"):
        make_task("mosaic-vqa", {"search": 4}).samples("held_out")


def test_no_word_is_unknown_to_the_demo() -> None:
    rng, words = random.Random(1), vocabulary()
    for _ in range(2000):
        question = sample_question(sample_scene(split_pictures("train"), rng), rng, dict.fromkeys(QUESTION_KINDS, 1.0))
        assert all(word in words for word in [*question.text.split(), question.answer])
    assert set(TASK_MIX) <= set(QUESTION_KINDS)


@torch.no_grad()
def test_packed_questions_are_the_questions_asked_alone() -> None:
    rng = random.Random(2)
    scenes = [sample_scene(split_pictures("calibration"), rng) for _ in range(2)]
    model, processor, vocab = build_model(0).eval(), build_processor(), vocabulary()
    packed, kinds = draw_questions(scenes, TASK_MIX, 4, rng, vocab)
    hidden = model.model(
        input_ids=packed.input_ids,
        pixel_values=pixel_values(scenes),
        attention_mask=packed.mask,
        position_ids=packed.position_ids,
    ).last_hidden_state
    logits = model.lm_head(hidden)
    words = {index: word for word, index in vocab.items()}
    for row, one in enumerate(scenes):
        ends = [i for i, label in enumerate(packed.labels[row].tolist()) if label not in (-100, vocab["</s>"])]
        assert len(ends) == len(kinds[row])
        start = 65
        for end in ends:
            text = " ".join(words[i] for i in packed.input_ids[row, start : end + 1].tolist())
            inputs = processor(images=[one.pixels()], text=f"<image> {text}", return_tensors="pt")
            assert torch.allclose(inputs["pixel_values"], pixel_values([one]), atol=1e-6)
            alone = model(**inputs).logits[0, -1]
            assert (alone - logits[row, end]).abs().max() <= 1e-4, text
            start = end + 2
