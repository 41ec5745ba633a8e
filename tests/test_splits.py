"""Splits that share no picture, whatever the rows and the options say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vispco.errors import ConfigError, DataError
from vispco.evaluation.prepared import sample_key
from vispco.problem import Problem
from vispco.tasks.base import Task, make_task
from vispco.tasks.pictures import picture_keys


def rows_of(folder: Path, shown: list[list[str]], **more: Any) -> Path:
    for name in {name for row in shown for name in row}:
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(folder / name)
    rows = [
        {"image": row if len(row) > 1 else row[0], "question": f"{n}?", "answer": "a", **more}
        for n, row in enumerate(shown)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown_in(task: Task, split: str) -> set[str]:
    return {key for sample in task.samples(split) for key in picture_keys(sample)}


def test_rows_that_share_one_of_their_pictures_stay_together(tmp_path: Path) -> None:
    """Pairs (0, 1), (1, 2), (2, 3) are one unit; they are resampled together too."""
    chain = [[f"{n}.png", f"{n + 1}.png"] for n in range(6)]
    alone = [[f"x{n}.png"] for n in range(14)]
    path = rows_of(tmp_path, [*chain, *alone])
    task = make_task("vqa-json", {"search": 8, "held_out": 8}, {"path": str(path)})
    assert not shown_in(task, "search") & shown_in(task, "held_out")
    samples = [sample for split in ("search", "held_out") for sample in task.samples(split)]
    assert len({sample.group_id for sample in samples if len(sample.images) == 2}) == 1
    assert len({sample.group_id for sample in samples if len(sample.images) == 1}) == sum(
        len(sample.images) == 1 for sample in samples
    )


def test_names_of_splits_that_the_data_do_not_have(tmp_path: Path) -> None:
    """A file is one set of rows; two names for it are no two sets."""
    path = rows_of(tmp_path, [[f"{n}.png"] for n in range(20)])
    options = {"path": str(path), "split": {"search": "train", "held_out": "test"}}
    task = make_task("vqa-json", {"search": 10, "held_out": 10}, options)
    with pytest.raises(DataError, match=r"splits search \(train of the data\) and held_out \(test\) share the picture"):
        task.samples("search")


def test_gradients_are_not_taken_on_what_is_measured(tmp_path: Path) -> None:
    path = rows_of(tmp_path, [[f"{n}.png"] for n in range(20)])
    task = f"{{name: vqa-json, splits: {{search: 8, held_out: 8}}, options: {{path: {path}}}}}"
    study = (
        f"experiment: own\ntasks: [{task}]\nsearches: {{g: {{kind: lagrangian}}}}\n"
        f"calibration: {{name: vqa-json, samples: 12, options: {{path: {path}}}}}\n"
    )
    with pytest.raises(ConfigError, match=r"calibration and split \w+ of task 'vqa-json' share \d+ pictures"):
        Problem.from_text(study).check_calibration()
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = rows_of(other, [[f"{n}.png"] for n in range(12)])
    apart = study.replace(f"samples: 12, options: {{path: {path}}}", f"samples: 12, options: {{path: {elsewhere}}}")
    Problem.from_text(apart).check_calibration()


def test_samples_of_two_tasks_with_one_id_are_two_samples() -> None:
    head = "experiment: e\nsearches: {g: {kind: grid}}\n"
    splits = "splits: {search: 2, held_out: 2}"
    one = Problem.from_text(f"{head}tasks: [{{name: mosaic-vqa, {splits}}}]\n")
    two = Problem.from_text(f"{head}tasks: [{{name: mosaic-vqa, {splits}}}, {{name: scene-vqa-short, {splits}}}]\n")
    sample = one.tasks[0].samples("search")[0]
    assert sample_key(one, one.tasks[0], sample) not in {sample_key(two, task, sample) for task in two.tasks}
    assert len({sample_key(two, task, sample) for task in two.tasks}) == 2
