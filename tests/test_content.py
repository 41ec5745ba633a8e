"""Weights, settings and data are told apart by their content, whatever their names: a change is refused and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vispco.errors import ConfigError, StorageError, listed
from vispco.evaluation.content import changes, merged, picture_key, weights_checksum
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.ray_workers import identity, samples_identity
from vispco.experiment.progress import Silent
from vispco.experiment.run import Run
from vispco.models.loading import demo_folder, weights_hash
from vispco.problem import Problem
from vispco.storage.copying import copy_experiments
from vispco.storage.store import Store
from vispco.tasks.base import SPLITS

STUDY = """
experiment: own
model: model
tasks:
  - name: vqa-json
    splits: {calibration: 2, search: 4, held_out: 4}
    options: {path: data.json, image_root: pictures}
budgets: 2
batch_size: 4
searches:
  random: {kind: random, trials: 1}
  gradients: {kind: vispco_official, epochs: 1}
"""
ROWS = 10


def write_data(folder: Path) -> None:
    (folder / "pictures").mkdir()
    rows = []
    for number in range(ROWS):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": f"what color is shape {number}", "answer": "red"})
    (folder / "data.json").write_text(json.dumps(rows))


def numbers(split: str) -> list[int]:
    """Rows of a split."""
    found: list[int] = json.loads(Path("splits.json").read_text())[split]
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, data and a database that holds the experiment's finished run."""
    folder = tmp_path_factory.mktemp("content")
    shutil.copytree(demo_folder(), folder / "model")
    write_data(folder)
    (folder / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        problem = Problem.from_yaml("study.yaml")
        Run(problem, Store("sqlite:///a.db")).run(["random"])
        splits = {
            split: [int(sample.question.split()[-1]) for sample in problem.tasks[0].samples(split)] for split in SPLITS
        }
        Path("splits.json").write_text(json.dumps(splits))
    return folder


@pytest.fixture
def copied(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(measured, folder)
    monkeypatch.chdir(folder)
    return folder


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def again(only: str = "random", **settings: Any) -> int:
    return Run(Problem.from_yaml("study.yaml"), Store("sqlite:///a.db")).run([only], **settings)


# --- changes under the same name, each with the words that name it -----------------------------------


def edit_json(path: str, change: Callable[[Any], None]) -> Callable[[], None]:
    def edit() -> None:
        found = json.loads(Path(path).read_text())
        change(found)
        Path(path).write_text(json.dumps(found))

    return edit


def change_weight() -> None:
    path = "model/model.safetensors"
    weights = load_file(path)
    name = max(weights, key=lambda key: weights[key].numel())
    weights[name].view(-1)[5] += 1
    save_file(weights, path, metadata={"format": "pt"})


def swap_pictures() -> None:
    """Of one batch: the sums over its features stay the same."""
    first, second = (f"pictures/{number}.png" for number in numbers("search")[:2])
    shutil.move(first, "pictures/x.png")
    shutil.move(second, first)
    shutil.move("pictures/x.png", second)


def one_pixel(split: str) -> Callable[[], None]:
    def edit() -> None:
        path = f"pictures/{numbers(split)[0]}.png"
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(path)

    return edit


def other_vocabulary() -> None:
    path = Path("model/tokenizer.json")
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    first, second = [word for word in vocabulary if word.isalpha() and word not in ("what", "color", "shape")][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(found))


def add_template() -> None:
    template = "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}"
    template += "please {{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    Path("model/chat_template.jinja").write_text(template)


def set_in(split: str, key: str, value: str) -> Callable[[], None]:
    def change(rows: Any) -> None:
        rows[numbers(split)[0]][key] = value

    return edit_json("data.json", change)


IMAGES = "model/processor_config.json"
CHANGES: dict[str, tuple[Callable[[], None], str]] = {
    "one weight": (change_weight, "weights of the model"),
    "rope_theta": (
        edit_json(
            "model/config.json", lambda c: c["text_config"].setdefault("rope_parameters", {}).update(rope_theta=5e5)
        ),
        r"rope_theta of the configuration \(10000.0 there, 500000.0 here\)",
    ),
    "norm": (
        edit_json("model/config.json", lambda c: c["text_config"].update(rms_norm_eps=0.5)),
        r"text_config.rms_norm_eps of the configuration",
    ),
    "feature layer": (
        edit_json("model/config.json", lambda c: c.update(vision_feature_layer=-2)),
        r"vision_feature_layer of the configuration",
    ),
    "end of an answer": (
        edit_json("model/generation_config.json", lambda c: c.update(eos_token_id=7)),
        "stop of the generation",
    ),
    "repetition penalty": (
        edit_json("model/generation_config.json", lambda c: c.update(repetition_penalty=3.0)),
        "repetition_penalty of the generation",
    ),
    "picture mean": (
        edit_json(IMAGES, lambda c: c["image_processor"].update(image_mean=[0.1, 0.1, 0.1])),
        "pictures.image_mean of the processor",
    ),
    "vocabulary": (other_vocabulary, "vocabulary of the processor"),
    "chat template": (add_template, "prompts of task 'vqa-json', split 'search'"),
    "answer": (set_in("search", "answer", "blue"), "answers of task 'vqa-json', split 'search'"),
    "held-out answer": (set_in("held_out", "answer", "blue"), "answers of task 'vqa-json', split 'held_out'"),
    "calibration answer": (
        set_in("calibration", "answer", "blue"),
        "answers of task 'vqa-json', split 'calibration'",
    ),
    "question": (set_in("search", "question", "what shape is it"), "questions of task 'vqa-json', split 'search'"),
    "pictures exchanged": (swap_pictures, "pictures of task 'vqa-json', split 'search'"),
    "one pixel": (one_pixel("search"), "pictures of task 'vqa-json', split 'search'"),
    "held-out pixel": (one_pixel("held_out"), "pictures of task 'vqa-json', split 'held_out'"),
    "calibration pixel": (one_pixel("calibration"), "pictures of task 'vqa-json', split 'calibration'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_under_its_old_name_is_refused_and_named(name: str, copied: Path) -> None:
    change, words = CHANGES[name]
    store = Store("sqlite:///a.db")
    before = store.require_experiment("own"), store.linked("own", "reference")
    change()
    with pytest.raises(ConfigError, match=words) as refused:
        again()
    text = str(refused.value)
    assert "\n" not in text
    assert "another experiment name" in text
    assert "--fresh" in text
    assert (store.require_experiment("own"), store.linked("own", "reference")) == before


def test_what_did_not_change_is_finished_wherever_it_is(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert again() == 0
    # Pictures stored in another way, and another place.
    for number in range(ROWS):
        path = f"pictures/{number}.png"
        Image.open(path).save(path, compress_level=1)
    assert again() == 0
    moved = shutil.copytree(copied, copied.parent / "elsewhere")
    monkeypatch.chdir(moved)
    assert again() == 0


@pytest.mark.parametrize("name", ["pictures exchanged", "rope_theta", "one weight"])
def test_the_ways_out_measure_anew(name: str, copied: Path) -> None:
    """Nothing of the earlier content is taken from the cache, under another name or after --fresh."""
    store = Store("sqlite:///a.db")
    old = set(store.linked("own", "reference").values())
    CHANGES[name][0]()
    Path("study.yaml").write_text(Path("study.yaml").read_text().replace("experiment: own", "experiment: new"))
    again()
    new = {key: value for key, value in store.linked("new", "reference").items() if key[1] == "search"}
    assert not set(new.values()) & old
    Path("study.yaml").write_text(Path("study.yaml").read_text().replace("experiment: new", "experiment: own"))
    again(fresh=True)
    assert {k: v for k, v in store.linked("own", "reference").items() if k[1] == "search"} == new


def test_an_experiment_of_before_gets_its_content_at_its_next_run_and_is_said_to_be_unverified(copied: Path) -> None:
    store, said = Store("sqlite:///a.db"), Said()
    stored = store.require_experiment("own")
    content = stored.identity.pop("content")
    kept = {"spec_text": stored.spec_text, "spec_hash": stored.spec_hash, "provenance": stored.provenance}
    store.save_experiment("own", identity=stored.identity, **kept)
    assert Run(Problem.from_yaml("study.yaml"), store, said).run(["random"]) == 0
    assert [line for line in said.lines if "cannot be verified" in line]
    assert store.require_experiment("own").identity["content"] == content
    said.lines.clear()
    assert Run(Problem.from_yaml("study.yaml"), store, said).run(["random"]) == 0
    (line,) = said.lines
    assert "tokenizer does not know" in line


def test_a_copy_refuses_another_content_and_takes_over_what_was_not_known(copied: Path) -> None:
    source, other = Store("sqlite:///a.db"), Store("sqlite:///b.db")
    copy_experiments(source, other)
    stored = other.require_experiment("own")
    content = stored.identity.pop("content")
    kept = {"spec_text": stored.spec_text, "spec_hash": stored.spec_hash, "provenance": stored.provenance}
    other.save_experiment("own", identity=stored.identity, **kept)
    copy_experiments(source, other)
    assert other.require_experiment("own").identity["content"] == content
    changed = {**content, "model": {**content["model"], "weights": "another"}}
    other.save_experiment("own", identity={**stored.identity, "content": changed}, **kept)
    with pytest.raises(StorageError, match="its weights of the model"):
        copy_experiments(source, other)


def test_workers_with_other_settings_or_pictures_are_found(copied: Path) -> None:
    def told() -> tuple[dict[str, str], str]:
        evaluator = Evaluator(Problem.from_yaml("study.yaml"))
        return identity(evaluator.runner), samples_identity(evaluator.prepared("search")[0])

    before, samples = told()
    swap_pictures()
    assert told()[0] == before
    assert told()[1] != samples
    swap_pictures()
    CHANGES["rope_theta"][0]()
    after, same = told()
    assert same == samples
    assert {key for key in before if before[key] != after[key]} == {"configuration of the model"}


# --- the parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 8, 1000])
def test_every_element_of_a_tensor_counts(dtype: torch.dtype, size: int) -> None:
    def checksum(values: torch.Tensor) -> str:
        module = torch.nn.Module()
        module.register_buffer("values", values)
        return weights_checksum(module)

    values = (torch.arange(size) % 2).to(dtype)
    for at in {0, size // 2, size - 1}:
        changed = values.clone()
        changed[at] = 1 - changed[at] if dtype != torch.bool else ~changed[at]
        assert checksum(changed) != checksum(values)
    if size > 1:
        assert checksum(values.roll(1)) != checksum(values)
        assert checksum(values[:-1]) != checksum(values)
    assert checksum(values.clone()) == checksum(values)


def test_one_row_of_a_large_matrix_counts_where_a_sample_of_it_would_miss_it() -> None:
    model = torch.nn.Embedding(40_000, 512)
    before = weights_checksum(model), weights_hash(model)
    with torch.no_grad():
        model.weight[1, 1:100] += 1
    assert weights_checksum(model) != before[0]
    assert weights_hash(model) == before[1]  # why this is not enough


def test_pictures_are_known_by_size_and_pixels() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    key = picture_key(Image.fromarray(pixels))
    assert picture_key(pixels) == key
    assert picture_key(pixels.reshape(4, 2, 3)) != key
    assert picture_key([pixels, pixels]) != picture_key([pixels])


def test_only_what_both_know_is_compared() -> None:
    before = {"model": {"weights": "a"}, "configuration": {"x": "1", "gone": "2"}}
    now = {
        "model": {"weights": "a"},
        "configuration": {"x": "1", "new": "3"},
        "task 't', split 'search'": {"answers": "b"},
    }
    assert changes(before, now) == []
    assert merged(before, now)["configuration"] == {"x": "1", "gone": "2", "new": "3"}
    assert changes(before, {"configuration": {"x": "5"}}) == ["x of the configuration (1 there, 5 here)"]
    assert listed(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"
