"""Benchmarks about videos: frames of real files, rows in the benchmarks' own formats, a study to its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vispco
from test_tasks import study
from vispco.errors import ConfigError, DataError
from vispco.pruning.schedules import Step, keep_all
from vispco.tasks.base import make_task
from vispco.tasks.videos import VideoFrames

av = pytest.importorskip("av")


def write_video(path: Path, frames: int = 20, rate: int = 10) -> Path:
    """A file whose frame number n has the grey level 20 + 4 n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = Image.new("RGB", (64, 48), (20 + 4 * number,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return path


def numbers(frames: Sequence[Any]) -> list[int]:
    """Which frames these are, by their grey."""
    return [round((float(np.asarray(frame).mean()) - 20) / 4) for frame in frames]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for name in ("data/one.mp4", "data/two.mp4", "clips/three.mkv"):
        write_video(root / name)
    write_video(root / "long.mp4", 50, 4)
    for number in range(6):
        (root / "stills").mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), (20 + 4 * number,) * 3).save(root / "stills" / f"{number:03}.png")
    return root


@pytest.mark.parametrize(
    ("name", "count", "bounds", "expected"),
    [
        ("data/one.mp4", 5, None, [0, 4, 9, 14, 19]),
        ("data/one.mp4", 1, None, [0]),
        ("clips/three.mkv", 3, None, [0, 9, 19]),
        ("data/one.mp4", 2, (0.4, 1.2), [6, 10]),
        ("long.mp4", 2, None, [0, 49]),
        ("long.mp4", 3, (6.0, 12.0), [28, 36, 44]),
        ("stills", 3, None, [0, 2, 5]),
        ("stills", 8, None, [0, 0, 1, 2, 2, 3, 4, 5]),
    ],
)
def test_frames_are_those_of_the_protocol(
    videos: Path, name: str, count: int, bounds: tuple[float, float] | None, expected: list[int]
) -> None:
    frames = VideoFrames(videos / name, count, "here", bounds)
    assert len(frames) == count
    assert numbers(list(frames)) == expected
    assert numbers([frames[-1]]) == expected[-1:]


def test_what_is_no_video_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(DataError, match=r"here: cannot decode video .*x\.mp4: .*; replace the file"):
        list(VideoFrames(path, 2, "here"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        list(VideoFrames(tmp_path / "empty", 2, "here"))
    with pytest.raises(DataError, match=r"gone\.mp4"):
        VideoFrames(tmp_path / "gone.mp4", 2, "here").check()


def test_videos_need_a_package(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'vispco\[video\]'"):
        list(VideoFrames(videos / "data/one.mp4", 2, "here"))


MME = {
    "videoID": "one",
    "duration": "short",
    "domain": "Sports",
    "task_type": "Counting",
    "question": "How many?",
    "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
    "answer": "C",
}
MV = {"video": "two.mp4", "question": "What moves?", "candidates": ["a cube", "a ball"], "answer": "a ball"}
ML = {
    "video_name": "one.mp4",
    "question": "Where?\n(A) here\n(B) there\n(C) away\n(D) home",
    "answer": "B",
    "task_type": "count",
}


def written(folder: Path, rows: list[Mapping[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(name: str, folder: Path, videos: Path, rows: list[Mapping[str, Any]], **options: Any) -> Any:
    given = {"path": written(folder, rows), "video_root": str(videos), **options}
    return make_task(name, {"search": len(rows)}, given)


def test_video_mme_asks_as_lmms_eval_does(tmp_path: Path, videos: Path) -> None:
    rows = [MME, {**MME, "answer": "A", "task_type": "Order"}, {**MME, "videoID": "three", "duration": "long"}]
    task = load("video-mme", tmp_path, videos, rows, frames=4)
    samples = sorted(task.samples("search"), key=lambda sample: sample.id)
    assert samples[0].prompt == (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\nHow many?\nA. One.\nB. Two.\nC. Three.\n"
        "D. Four.\n\nAnswer with the option's letter from the given choices directly."
    )
    assert samples[0].options == ("One.", "Two.", "Three.", "Four.")
    assert [sample.group_id for sample in samples] == ["one", "one", "three"]
    assert numbers(samples[2].images) == [0, 6, 12, 19]
    assert [task.score(samples[0], answer) for answer in ("C", "(C) Three", "The answer is B", "")] == [1, 1, 0, 0]
    found = task.metrics(samples, np.array([1.0, 0.0, 1.0]))
    assert found["videomme"] == pytest.approx(200 / 3)
    assert (found["duration/short"], found["duration/long"], found["task/Order"]) == (50, 100, 0)
    assert task.fingerprint()["frames"] == 4
    assert make_task("videomme", {"search": 1}, {"path": task.options.path}).protocol()["frames"] == 32


def test_mvbench_takes_the_part_of_the_video_that_a_row_names(tmp_path: Path, videos: Path) -> None:
    rows = [MV, {**MV, "video": "stills"}, {**MV, "video": "one.mp4", "start": 0.4, "end": 1.2}]
    task = load("mvbench", tmp_path, videos, rows, frames=2)
    whole, stills, part = sorted(task.samples("search"), key=lambda sample: sample.id)
    assert whole.prompt == "Question:What moves?\nOption:\n(A) a cube\n(B) a ball\nOnly give the best option.\n"
    assert whole.answers == ("B",)
    assert [numbers(sample.images) for sample in (whole, stills, part)] == [[0, 19], [0, 5], [6, 10]]
    answers = {"B. a ball": 1, "(B)": 1, "b": 1, "Best: (B) ball": 1, "A": 0, "It is a ball": 0, "": 0}
    assert {answer: task.score(whole, answer) for answer in answers} == answers
    assert make_task("mvbench", {"search": 1}).protocol()["frames"] == 16


def test_mlvu_counts_kinds_alike(tmp_path: Path, videos: Path) -> None:
    rows = [ML, {**ML, "video_name": "two.mp4"}, {**ML, "video_name": "three.mkv", "task_type": "order"}]
    task = load("mlvu", tmp_path, videos, rows, frames=2)
    samples = sorted(task.samples("search"), key=lambda sample: sample.id)
    assert samples[0].prompt == f"{ML['question']}\nOnly give the best option.\nBest option: ("
    assert samples[0].options == ("here", "there", "away", "home")
    scores = np.array([1.0, 0.0, 1.0])
    assert task.aggregate(scores, [sample.group_id for sample in samples]) == 0.75
    assert task.metrics(samples, scores) == {"mlvu": 75, "kind/count": 50, "kind/order": 100}
    assert [task.score(samples[0], answer) for answer in ("B) there", "The answer is B", "C", "")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("video-mme", {**MME, "videoID": "nine"}, r"video 'nine' is not below .*; name the folder .* video_root"),
        ("video-mme", {**MME, "answer": "E"}, r"the right option is 'E'"),
        ("mvbench", {**MV, "answer": "a cat"}, r"answer 'a cat' is none of the candidates"),
        ("mvbench", {**MV, "start": 3, "end": 2}, r"start 3 does not lie before end 2"),
        ("mvbench", {**MV, "start": "x", "end": 2}, r"are no seconds"),
        ("mlvu", {**ML, "task_type": ""}, r"task_type is empty"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, videos: Path, name: str, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(name, tmp_path, videos, [row]).samples("search")
    assert "\n" not in str(caught.value)


def test_a_name_that_several_videos_have_is_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "two.mp4").touch()
    with pytest.raises(DataError, match="there more than once"):
        load("mvbench", tmp_path, tmp_path, [MV]).samples("search")


def test_a_study_of_videos(tmp_path: Path, videos: Path) -> None:
    """Frames are pictures of the prompt, and pruning drops tokens of all of them."""
    rows = [{**MME, "videoID": name} for name in ("one", "two", "three")]
    options = {"path": written(tmp_path, rows), "video_root": str(videos), "frames": 2, "max_new_tokens": 2}
    splits = {"calibration": 1, "search": 1, "held_out": 1}
    problem = study("llava", [{"name": "video-mme", "splits": splits, "options": options}])
    evaluator = vispco.Evaluator(problem)
    (part,) = evaluator.prepared("search")
    tokens = int(part.n_visual[0])
    whole, pruned = evaluator.evaluate([keep_all(), Step(1, 0.5)], "search")
    assert tokens == 2 * 16
    assert pruned.flops < whole.flops
    assert evaluator.counts(Step(1, 0.5), "search")[0][0].tolist() == [tokens, *[tokens // 2] * 3]
