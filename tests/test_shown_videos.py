"""``show: video``: frames reach the model through its own video processor, and methods see them as frames."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vispco
from processors import PROCESSORS, llava
from test_videos import MME, write_video, written
from vispco.config import parse_study
from vispco.errors import ConfigError, DataError
from vispco.evaluation.plain import SPLIT, evaluate_plain, plain_task
from vispco.evaluation.showing import video_arguments
from vispco.pruning.schedules import Step, keep_all
from vispco.survivors import survivors
from vispco.tasks.base import FrameTimes, Sample, make_task
from vispco.tasks.rendering import render_prompt
from vispco.tasks.videos import VideoFrames
from vispco.testing.tiny import TINY

pytest.importorskip("torchvision")
WITHOUT = ("llava", "llava_next", "gemma3", "idefics3", "mistral3")
FRAMES_AS_PICTURES = ("internvl", "smolvlm", "gemma4")
NAMES = [
    name if name in ("qwen2_5_vl", "qwen3_vl") else pytest.param(name, marks=pytest.mark.slow)
    for name in TINY
    if name not in WITHOUT
]
STUDY = """
experiment: clips
model: demo
method: METHOD
budgets: 3
batch_size: 2
tasks: [{name: scene-vqa-moving, splits: {search: 3, held_out: 3}, options: {show: video}}]
searches: {grid: {kind: grid}}
"""


@cache
def loaded(name: str) -> tuple[Any, Any]:
    model = TINY[name].build()
    return model, PROCESSORS[name](model)


def problem_of(name: str, text: str = STUDY, method: str = "evs") -> vispco.Problem:
    model, processor = loaded(name)
    text = text.replace("METHOD", method)
    return vispco.Problem(parse_study(text), text, model=model, processor=processor)


@pytest.mark.parametrize("name", NAMES)
def test_videos_are_measured_as_the_plain_model_reads_them(name: str) -> None:
    problem = problem_of(name)
    evaluator = vispco.Evaluator(problem)
    (part,) = evaluator.prepared("search")
    batch = part.batches[0]
    samples = [part.samples[row] for row in batch.rows]
    shown = video_arguments(samples, [list(sample.images) for sample in samples])
    text = [render_prompt(problem.processor, sample) for sample in samples]
    inputs = problem.processor(text=text, return_tensors="pt", padding=True, padding_side="left", **shown)
    with torch.no_grad():
        plain = problem.model(**inputs).logits[:, -1]
        given = problem.model(**problem.adapter.with_features(batch.inputs, batch.features)).logits[:, -1]
    assert torch.allclose(plain, given, atol=1e-5)
    for method in ("evs", "vidcom2"):
        chosen = vispco.make_method(method)
        whole, pruned = evaluator.evaluate([keep_all(), Step(1, 0.5)], "search", chosen)
        assert whole.flops_ratio == 1
        assert 0.4 < pruned.flops_ratio < 1
        assert pruned.keep_ratio[1] == pytest.approx(0.5, abs=0.03)


def test_a_plain_evaluation_shows_videos_too() -> None:
    """What ``vispco eval`` runs: the same visual tokens as in a study."""
    task = plain_task("scene-vqa-moving", {"show": "video"}, 3)
    found = evaluate_plain({"name": "demo"}, task, schedule="step(layer=1, keep=0.5)", loaded=loaded("qwen3_vl"))
    processor = loaded("qwen3_vl")[1]
    tokens = 0
    for sample in task.samples(SPLIT):
        shown = video_arguments([sample], [list(sample.images)])
        inputs = processor(text=[render_prompt(processor, sample)], return_tensors="pt", **shown)
        tokens += int((inputs["input_ids"] == processor.video_token_id).sum())
    assert found.costs["visual_tokens"] == pytest.approx(tokens / 3)


@pytest.mark.parametrize("name", NAMES)
def test_frames_that_repeat_are_dropped_first(name: str) -> None:
    """Four frames of one picture, four of another: EVS keeps the first of each where only two may stay."""
    problem = problem_of(name)
    model, processor = loaded(name)
    generator = np.random.default_rng(0)
    one, other = (Image.fromarray(generator.integers(0, 255, (48, 48, 3), dtype=np.uint8)) for _ in range(2))
    sample = Sample("1", "1", [one] * 4 + [other] * 4, "what color is it", (), show="video")
    inputs = processor(
        text=[render_prompt(processor, sample)], return_tensors="pt", **video_arguments([sample], [sample.images])
    )
    visual = problem.adapter.visual_mask(inputs["input_ids"], None)
    places = problem.adapter.coordinates(dict(inputs), visual)[0][visual[0]]
    as_pictures = name in FRAMES_AS_PICTURES
    assert (int(places[:, 1].max()) == 0) == as_pictures
    frame_of = places[:, 0 if as_pictures else 1]
    count = int(frame_of.max()) + 1
    method = vispco.make_method("evs", {"frames": "pictures"} if as_pictures else {})
    with torch.no_grad(), vispco.prune(model, method=method, schedule=Step(1, 2 / count)) as session:
        model(**inputs)
    kept = {*session.kept(1)[0]}
    numbered = zip(visual[0].nonzero()[:, 0].tolist(), frame_of.tolist(), strict=True)
    frames = {frame for place, frame in numbered if place in kept}
    # The end of a video of LLaVA-OneVision is a token without one before it.
    assert frames - {count - 1} == {0, count // 2}


def test_the_times_of_frames_reach_the_processor(tmp_path: Path) -> None:
    """20 frames at 10 a second, of which 4 are shown: two a second, so a second for each pair of frames."""
    path = write_video(tmp_path / "one.mp4")
    frames = VideoFrames(path, 4, "here")
    assert frames.times() == FrameTimes(10, (0, 6, 12, 19), 20)
    assert VideoFrames(path, 2, "here", (0.4, 1.2)).times() == FrameTimes(10, (6, 10), 8)
    _, processor = loaded("qwen2_5_vl")
    sample = Sample("1", "1", frames, "what", (), show="video")
    inputs = processor(
        text=[render_prompt(processor, sample)], return_tensors="pt", **video_arguments([sample], [list(frames)])
    )
    assert [float(seconds) for seconds in inputs["second_per_grid_ts"]] == [1.0]
    assert inputs["video_grid_thw"][0, 0] == 2
    pictures = Sample("2", "2", [Image.new("RGB", (8, 8))] * 3, "what", ())
    assert pictures.frame_times == FrameTimes(1, (0, 1, 2), 3)


def test_what_cannot_be_shown_as_a_video_is_one_line(tmp_path: Path) -> None:
    model = TINY["llava"].build()
    text = STUDY.replace("METHOD", "evs")
    problem = vispco.Problem(parse_study(text), text, model=model, processor=llava(model))
    with pytest.raises(ConfigError, match=r"'scene-vqa-moving': show: video: .* \(LlavaProcessor\) takes no videos"):
        vispco.Evaluator(problem).prepared("search")
    with pytest.raises(ConfigError, match="show: 'both'; it is pictures or video"):
        make_task("scene-vqa-moving", {"search": 1}, {"show": "both"})
    with pytest.raises(ConfigError, match="max_pixels are for pictures"):
        make_task("video-mme", {"search": 1}, {"show": "video", "max_pixels": 400})
    with pytest.raises(ConfigError, match="resolution is for pictures"):
        vispco.Evaluator(problem_of("qwen3_vl", STUDY.replace("demo", "{name: demo, resolution: 0.5}"))).prepared(
            "search"
        )
    write = tmp_path / "stills"
    write.mkdir()
    for number, size in enumerate(((32, 32), (48, 48))):
        Image.new("RGB", size).save(write / f"{number}.png")
    options = {"path": written(tmp_path, [{**MME, "videoID": "stills"}]), "video_root": str(tmp_path), "frames": 2}
    tasks = [make_task("video-mme", {"search": 1}, {**options, "show": "video"})]
    model, processor = loaded("qwen3_vl")
    uneven = vispco.Problem(
        parse_study(STUDY.replace("METHOD", "evs")), "", model=model, processor=processor, tasks=tasks
    )
    with pytest.raises(DataError, match="frames of its video differ in size"):
        vispco.Evaluator(uneven).prepared("search")


def test_results_of_pictures_keep_their_identity() -> None:
    pictures, video = (make_task("scene-vqa-moving", {"search": 1}, options) for options in ({}, {"show": "video"}))
    assert "show" not in pictures.fingerprint()
    assert video.fingerprint() == {**pictures.fingerprint(), "show": "video"}


def test_frames_of_a_video_are_drawn() -> None:
    problem = problem_of("qwen3_vl")
    sample = problem.tasks[0].samples("held_out")[0]
    found = survivors(problem, sample, vispco.make_method("evs"), Step(1, 0.5))
    merged = -(-len(sample.images) // 2)
    assert len(found.pictures) == merged
    assert all(len(views) == merged for views in found.kept.values())
    assert found.kept[1][0].all()  # EVS keeps the first frame whole
    assert sum(int(view.sum()) for view in found.kept[1]) == round(found.kept[0][0].size * merged * 0.5)


@pytest.mark.slow
def test_a_study_of_videos_to_its_report(tmp_path: Path, cli: Any) -> None:
    """A folder of a small random Qwen3-VL on files and on the embedded testbed's clips."""
    model = TINY["qwen3_vl"].build()
    processor = PROCESSORS["qwen3_vl"](model)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    names = [f"v{number}" for number in range(8)]
    for name in names:
        write_video(tmp_path / "videos" / f"{name}.mp4")
    options = {
        "path": written(tmp_path, [{**MME, "videoID": name} for name in names]),
        "video_root": str(tmp_path / "videos"),
        "frames": 4,
        "max_new_tokens": 2,
        "show": "video",
    }
    splits = {"search": 4, "held_out": 4}
    study = {
        "experiment": "videos",
        "model": str(tmp_path / "model"),
        "method": "vidcom2",
        "budgets": 3,
        "tasks": [
            {"name": "video-mme", "splits": splits, "options": options},
            {"name": "scene-vqa-moving", "splits": splits, "options": {"show": "video"}},
        ],
        "searches": {"grid": {"kind": "grid"}, "evs": {"kind": "random", "trials": 8, "method": "evs"}},
    }
    path = tmp_path / "videos.yaml"
    path.write_text(json.dumps(study))
    storage = ("--storage", f"sqlite:///{tmp_path}/videos.db")
    for command in (
        ("validate", path),
        ("run", path, *storage),
        ("report", "videos", "-o", tmp_path / "videos.html", *storage),
        ("export", "videos", "--budget", "0.7", "-o", tmp_path / "best.json", *storage),
        ("eval", path, "--schedule", tmp_path / "best.json", "--json"),
        ("tokens", path, "--schedule", tmp_path / "best.json", "-o", tmp_path / "tokens.png"),
    ):
        code, _, errors = cli(*command)
        assert code == 0, (command[0], errors)
    assert "scene-vqa-moving" in (tmp_path / "videos.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "best.json").read_text())["flops_ratio"] <= 0.7
    assert (tmp_path / "tokens.png").stat().st_size > 1000
