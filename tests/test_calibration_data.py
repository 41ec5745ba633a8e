"""Data for gradients: the study's calibration block, LLaVA-Instruct files, draws and sizes by area."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import SMALL, fresh
from vispco.config import CostConfig, content_hash, parse_study
from vispco.errors import ConfigError, DataError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import prepare
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.problem import Problem
from vispco.pruning.methods import make_method
from vispco.search.gradient.distillation import Calibration
from vispco.storage.store import Store
from vispco.tasks import areas
from vispco.tasks.base import Sample, make_task


def conversation(number: int, image: str | None, question: str = "<image>\nWhat is it?") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"Thing {number}."}]
    row = {"id": str(number), "conversations": [*turns, {"from": "human", "value": "And now?"}]}
    return row if image is None else {**row, "image": image}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures, most of them small, two of them larger than all bounds; JPEG, PNG, grey, palette, transparent."""
    folder = tmp_path_factory.mktemp("llava")
    rng = random.Random(0)
    (folder / "pictures").mkdir()
    rows = []
    for number in range(120):
        side = 20 + int(180 * (number / 119) ** 3)
        width, height = (side, side * 2) if number % 3 else (side + rng.randrange(9), side)
        mode = ("RGB", "L", "RGBA", "P")[number % 4]
        name = f"pictures/{number:03}.{'jpg' if mode in ('RGB', 'L') else 'png'}"
        Image.new(mode, (width, height), number % 200).save(folder / name)
        rows.append(conversation(number, name))
        if number % 5 == 0:
            rows.append(conversation(number, name, "Where is it? <image>"))
    rows += [conversation(900, None, "No picture here"), {**conversation(901, None), "image": None}]
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


def drawn(data: Path, count: int, **options: Any) -> list[Sample]:
    given = {"file": str(data / "data.json"), **options}
    return make_task("llava-instruct", {"calibration": count}, given).samples("calibration")


def sizes(samples: list[Sample]) -> list[int]:
    return [sample.extra["size"][0] * sample.extra["size"][1] for sample in samples]


# --- drawing -----------------------------------------------------------------------------------------


def test_prompts_are_first_turns_of_distinct_pictures(data: Path) -> None:
    samples = drawn(data, 120)
    assert len({sample.group_id for sample in samples}) == len({sample.id for sample in samples}) == 120
    assert {sample.question for sample in samples} == {"What is it?", "Where is it?"}
    assert Counter(sample.question for sample in samples)["Where is it?"] < 24  # of 24 pictures that have both
    for sample in samples[:8]:
        number = int(sample.id.split("/")[0])
        assert sample.answers == (f"Thing {number}.",)
        (picture,) = sample.images
        assert picture.mode == "RGB"
        assert picture.size == sample.extra["size"] == Image.open(data / sample.group_id).size


@pytest.mark.parametrize("sampling", ["uniform", "area", "quantile"])
def test_draws_follow_from_seed_and_content_alone(data: Path, tmp_path: Path, sampling: str) -> None:
    options = {"sampling": sampling, "resize": "official", "min_area": 400, "max_area": 80_000, "bins": 5}
    first = drawn(data, 30, **options)
    assert [s.id for s in first] == [s.id for s in drawn(data, 30, **options)]
    rows = json.loads((data / "data.json").read_text())
    random.Random(3).shuffle(rows)
    rows += rows[:7]  # repeated rows are one row
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    moved = drawn(data, 30, **options, file=str(tmp_path / "other.jsonl"), images=str(data))
    assert [(s.id, s.extra) for s in moved] == [(s.id, s.extra) for s in first]
    assert {s.id for s in drawn(data, 30, seed=1, **options)} != {s.id for s in first}


def test_lines_end_where_json_says(data: Path, tmp_path: Path) -> None:
    """U+2028 ends a line for Python, not in JSON."""
    row = conversation(1, "pictures/001.jpg", "One\u2028line")
    (tmp_path / "a.jsonl").write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode())
    assert drawn(data, 1, file=str(tmp_path / "a.jsonl"), images=str(data))[0].question == "One\u2028line"


def test_uniform_draws_take_every_picture_equally_often(data: Path) -> None:
    keys = [f"{i}.jpg" for i in range(40)]
    seen = Counter(index for seed in range(2000) for index in areas.draw_uniform(keys, 10, seed))
    # Binomial(2000, 1/4): standard deviation 19.4.
    assert all(abs(seen[i] - 500) < 5 * 19.4 for i in range(40))


def test_area_draws_are_flat_where_uniform_ones_are_not(data: Path) -> None:
    def histogram(sampling: str) -> list[int]:
        found = drawn(data, 40, sampling=sampling, min_area=400, max_area=80_400, bins=5)
        return np.histogram(sizes(found), bins=5, range=(400, 80_400))[0].tolist()

    known = [a * b for a, b in (Image.open(p).size for p in (data / "pictures").iterdir())]
    there = np.histogram(known, bins=5, range=(400, 80_400))[0].tolist()
    assert there[0] > 60  # most pictures are small
    flat = histogram("area")
    assert sum(flat) == 40
    short = [drawn == has for drawn, has in zip(flat, there, strict=True)]
    for count, emptied in zip(flat, short, strict=True):
        assert count >= max(flat) - 1 or emptied  # equal shares, but for bins that have no more
    assert max(histogram("uniform")) > max(flat) + 5


def test_quantile_draws_take_one_of_each_stratum(data: Path) -> None:
    known = [2**i for i in range(30)]
    keys = [str(i) for i in range(30)]
    for seed in range(5):
        assert sorted(i // 3 for i in areas.draw_by_quantile(keys, known, 10, seed)) == list(range(10))
    both = [{i % 3 for i in areas.draw_by_quantile(keys, known, 10, seed)} for seed in range(5)]
    assert set.union(*both) == {0, 1, 2}
    assert sorted(areas.draw_by_quantile(keys, known, 30, 0)) == list(range(30))


def test_bins_of_areas() -> None:
    keys = [str(i) for i in range(6)]
    known = [10, 10, 10, 100, 55, 5]
    assert areas.draw_by_area(keys, known, 9, 0, low=10, high=100, bins=1).__len__() == 5
    for seed in range(9):
        three = areas.draw_by_area(keys, known, 3, seed, low=10, high=100, bins=9)
        assert {3, 4} < set(three)
        assert {5} & set(three) == set()
    assert sorted(areas.draw_by_area(keys, known, 9, 0, low=10, high=10)) == [0, 1, 2]
    # A bin that is drawn from once more than others is not always the same one.
    extra = {
        known[areas.draw_by_area(keys, [1, 1, 5, 5, 9, 9], 4, seed, low=0, high=9, bins=3)[3]] for seed in range(20)
    }
    assert len(extra) > 1


# --- resizing ----------------------------------------------------------------------------------------


def test_official_sizes_are_evenly_spaced_in_the_order_of_areas(data: Path) -> None:
    before = {s.group_id: sizes([s])[0] for s in drawn(data, 60)}
    after = {s.group_id: s for s in drawn(data, 60, resize="official")}
    order = sorted(after, key=lambda name: sizes([after[name]])[0])
    assert [before[name] for name in order] == sorted(before.values())
    wanted = np.linspace(400, 1024 * 1024, 60)
    for name, area in zip(order, wanted, strict=True):
        width, height = after[name].extra["size"]
        original = Image.open(data / name).size
        assert (width, height) == areas.official_size(*original, area)
        assert width * height <= area
        if area > 10_000:
            assert width * height > 0.97 * area
            assert width / height == pytest.approx(original[0] / original[1], rel=0.03)
    name = order[5]
    (picture,) = after[name].images
    expected = Image.open(data / name).convert("RGB").resize(after[name].extra["size"], Image.Resampling.LANCZOS)
    assert picture.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    # By the formula of the official code's calculate_target_size, worked by hand; it fails on the last.
    [
        ((640, 480), 1024 * 1024, (1181, 886)),
        ((480, 640), 400, (17, 22)),
        ((7, 7), 401, (20, 20)),
        ((900, 1), 400, (900, 1)),
    ],
)
def test_official_size(size: tuple[int, int], area: float, expected: tuple[int, int]) -> None:
    assert areas.official_size(*size, area) == expected


def test_ties_are_broken_by_the_seed_not_by_the_list() -> None:
    keys = [f"{i}.jpg" for i in range(50)]
    first = areas.even_areas(keys, [307_200] * 50, 0)
    assert sorted(first) == pytest.approx(np.linspace(400, 1024 * 1024, 50))
    again = areas.even_areas(keys[::-1], [307_200] * 50, 0)
    assert again[::-1] == first != areas.even_areas(keys, [307_200] * 50, 1)
    assert areas.even_areas(["a"], [7], 0) == [400.0]


# --- mistakes ----------------------------------------------------------------------------------------


def refused(data: Path, tmp_path: Path, rows: Any, name: str = "bad.json", **options: Any) -> str:
    (tmp_path / name).write_text(rows if isinstance(rows, str) else json.dumps(rows))
    with pytest.raises(DataError) as error:
        drawn(data, 1, file=str(tmp_path / name), images=str(data), **options)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    return str(error.value)


def test_bad_rows_are_named(data: Path, tmp_path: Path) -> None:
    good = conversation(1, "pictures/001.jpg")

    def bad(**changed: Any) -> str:
        return refused(data, tmp_path, [good, {**good, **changed}])

    assert "row 1: the conversation is empty" in bad(conversations=[])
    assert "row 1: the first human turn has no text" in bad(conversations=[{"from": "human", "value": " <image>\n"}])
    assert "no turn is from 'human', they are from gpt" in bad(conversations=[{"from": "gpt", "value": "x"}])
    assert "a turn is {'role': 'user'}; turns have from" in bad(conversations=[{"role": "user"}])
    assert "image is ['a', 'b']; it must be the path of one picture" in bad(image=["a", "b"])
    assert "row 0 has question, image; rows have id, image and conversations" in refused(
        data, tmp_path, [{"question": "?", "image": "x"}]
    )
    assert "row 0 has str" in refused(data, tmp_path, ["x"])
    assert "no row with a picture" in refused(data, tmp_path, [conversation(1, None)])
    assert "holds one dict, not a list" in refused(data, tmp_path, {"a": [good]})
    assert "is no JSON" in refused(data, tmp_path, json.dumps(good) + "\n" + json.dumps(good))
    assert "line 2 is no JSON" in refused(data, tmp_path, json.dumps(good) + "\n{", "bad.jsonl")
    (tmp_path / "latin.json").write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match=r"cannot read .*latin.json"):
        drawn(data, 1, file=str(tmp_path / "latin.json"))
    with pytest.raises(DataError, match=r"cannot read .*: No such file.*calibration.options.file"):
        drawn(data, 1, file=str(tmp_path / "none.json"))


def test_missing_and_broken_pictures_are_named(data: Path, tmp_path: Path) -> None:
    rows = [conversation(1, "pictures/001.jpg"), conversation(2, "gone.jpg"), conversation(3, "away.png")]
    message = refused(data, tmp_path, rows)
    assert "2 of 3 pictures are missing" in message
    assert "'away.png'; set calibration.options.images" in message
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n????")
    (tmp_path / "b.json").write_text(json.dumps([conversation(1, "broken.png")]))
    with pytest.raises(DataError, match=r"cannot read picture .*broken.png"):
        drawn(data, 1, file=str(tmp_path / "b.json"))
    whole = (data / "pictures/119.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.json").write_text(json.dumps([conversation(1, "cut.png")]))
    (sample,) = drawn(data, 1, file=str(tmp_path / "c.json"))  # its head is whole
    with pytest.raises(DataError, match=r"cannot read picture .*cut.png"):
        list(sample.images)


def test_more_samples_than_pictures(data: Path) -> None:
    with pytest.raises(DataError, match=r"121 samples are asked for, but it has 120 pictures"):
        drawn(data, 121)
    with pytest.raises(DataError, match=r"but \d+ of its 120 pictures have an area from 9000 to 9500 \(they have"):
        drawn(data, 100, sampling="area", min_area=9000, max_area=9500)
    assert drawn(data, 3, sampling="area", min_area=9000, max_area=20_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samplng": "area"}, r"no option 'samplng'; did you mean 'sampling'"),
        ({"sampling": "areas"}, r"sampling = 'areas'"),
        ({"resize": "lanczos"}, r"resize = 'lanczos'"),
        ({"min_area": 9, "max_area": 8}, r"max_area is 8; it must not be less than min_area, 9"),
        ({"file": None}, r"file = None"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task("llava-instruct", {"calibration": 1}, {"file": "x.json", **options})
    with pytest.raises(ConfigError, match="needs option 'file'"):
        make_task("llava-instruct", {"calibration": 1})


# --- in a study --------------------------------------------------------------------------------------


def with_block(block: str, text: str = SMALL) -> str:
    return text.replace("budgets: 3", f"budgets: 3\ncalibration: {block}")


def test_studies_without_a_block_keep_their_identity(problem: Problem) -> None:
    dump = problem.study.model_dump(
        mode="json", exclude={"purpose", "memory_mib", "anytime", "target", "profile", "plugins"}
    )
    assert dump["model"].pop("resolution") == 1
    assert dump["model"].pop("adapter") is None
    assert dump["model"].pop("quantization") is None
    assert dump.pop("cost") == CostConfig().model_dump(mode="json")
    assert dump.pop("limits") == {}
    assert dump.pop("calibration") is None
    assert dump.pop("resolution") is None
    assert dump.pop("score") == "task"
    assert problem.study.spec_hash() == content_hash(dump)
    assert problem.calibration_tasks is problem.tasks
    other = parse_study(with_block("{name: mosaic-vqa, samples: 16}"))
    assert other.spec_hash() != problem.study.spec_hash()
    assert other.identity()["calibration"]["samples"] == 16
    more = parse_study(with_block("{name: mosaic-vqa, samples: 17, split: calibration}"))
    assert len({other.spec_hash(), more.spec_hash(), problem.study.spec_hash()}) == 3
    text = Problem(other).portable_text
    assert parse_study(text).spec_hash() == other.spec_hash()


def test_any_task_gives_its_own_calibration_split(problem: Problem) -> None:
    text = with_block("{name: mosaic-vqa, samples: 24}").replace("{calibration: 16, search", "{search")
    own = fresh(problem, text)
    (task,) = own.calibration_tasks
    longer = [sample.id for sample in task.samples("calibration")]
    assert len(longer) == 24
    assert longer[:16] == [sample.id for sample in problem.tasks[0].samples("calibration")]
    whole = Calibration(Evaluator(own), make_method("fastv"), 8, seed=0)
    assert sum(len(micro.batch.rows) for micro in whole.micros) == 24


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{name: mosaic-vqa, samples: 8, split: search}", r"split = 'search': schedules are chosen or judged there"),
        ("{name: mosaic-vqa, samples: 8, split: train}", r"split = 'train': a task's own data"),
        ("{name: mosaic-vqa, samples: 0}", "greater than or equal to 1"),
        ("{name: mosaic-vqa}", "'calibration.samples' is missing"),
        ("{name: mosaic-vqa, sample: 8, samples: 8}", r"'calibration.sample'; did you mean 'samples'"),
        ("{name: llava-instruckt, samples: 8}", r"unknown task 'llava-instruckt'; did you mean 'llava-instruct'"),
        ("{name: llava-instruct, samples: 8}", r"needs option 'file'"),
    ],
)
def test_wrong_blocks_are_refused_before_anything_runs(block: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Problem(parse_study(with_block(block)))


def test_llava_instruct_is_for_gradients_only() -> None:
    text = SMALL.replace("mosaic-vqa,", "llava-instruct, options: {file: x.json},")
    with pytest.raises(ConfigError, match=r"no split 'search': its answers cannot be scored.*calibration:"):
        Problem(parse_study(text))
    task = make_task("llava-instruct", {"calibration": 1}, {"file": "x.json"})
    with pytest.raises(ConfigError, match="cannot score"):
        task.score(Sample("a", "a", (), "?", ()), "x")


def test_a_study_learns_from_other_data_than_its_tasks(problem: Problem, data: Path, tmp_path: Path) -> None:
    """From the file to the trials: the model sees these pictures, losses differ, another block is refused."""
    options = f"{{file: {data}/data.json, sampling: quantile, resize: official, max_area: 20000, max_new_tokens: 1}}"
    block = f"{{name: llava-instruct, samples: 16, options: {options}}}"
    text = with_block(block).replace("budgets: 3", "budgets: [0.5]").split("  grid:")[0]
    text += "  lagrangian: {kind: lagrangian, dual_steps: 1, primal_steps: 2, batch: 8, check: 0}\n"
    store = Store(f"sqlite:///{tmp_path}/a.db")

    own = fresh(problem, text)
    validate(own)
    part = prepare(own, own.calibration_tasks[0], "calibration", batch_size=8)
    assert set(part.n_visual.tolist()) == {64}
    assert part.digest != prepare(problem, problem.tasks[0], "calibration", batch_size=8).digest
    assert Run(own, store).run() == 1
    assert Run(fresh(problem, text), store).run() == 0
    plain = text.replace(f"calibration: {block}\n", "")
    assert plain != text
    elsewhere = Store(f"sqlite:///{tmp_path}/b.db")
    assert Run(fresh(problem, plain), elsewhere).run() == 1
    losses = [[row["loss"] for row in s.trajectory("small/lagrangian")["budget-0"]] for s in (store, elsewhere)]
    assert losses[0] != losses[1]
    for changed, at in ((plain, store), (text, elsewhere), (text.replace("samples: 16", "samples: 15"), store)):
        with pytest.raises(ConfigError, match=r"another 'calibration'.*--fresh"):
            Run(fresh(problem, changed), at).run()
