"""Checkpoints that are damaged, incomplete or hostile: refused in one line that says what, never measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import vispco
from vispco.errors import ModelError
from vispco.evaluation.prepared import prepare
from vispco.models.loading import demo_folder
from vispco.models.templates import render_chat
from vispco.problem import Problem
from vispco.testing.tiny import TINY

WEIGHTS = "model.safetensors"


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: size(len(data))])

    return edit


def missing_shard(folder: Path) -> None:
    names = list(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    places = {name: f"model-0000{1 + (name == names[0])}-of-00002.safetensors" for name in names}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def configured(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        found["text_config"].update(values)
        (folder / "config.json").write_text(json.dumps(found))

    return edit


def drop(*parts: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return change


def other_shape(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if name.endswith("layers.0.mlp.down_proj.weight"))
    weights[name] = weights[name][:1].clone()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one weight missing": (
        edit_weights(drop("layers.0.mlp.down_proj")),
        r"has no weights for \S*layers.0.mlp.down_proj.weight, which would be random",
    ),
    "a projector missing": (edit_weights(drop("projector")), r"has no weights for \S*projector\S*, .* and 1 more,"),
    "the head missing": (edit_weights(drop("lm_head")), "has no weights for lm_head.weight"),
    "more layers than weights": (configured(num_hidden_layers=9), r"no weights for \S*layers.8\S*, .* and 6 more"),
    "other shape": (edit_weights(other_shape), r"wrong shape for \S*layers.0.mlp.down_proj.weight"),
    "other width": (configured(intermediate_size=128), "wrong shape for"),
    "pickle": (pickled, "safetensors files only, never from pickles"),
    "half": (cut(lambda size: size // 2), r"damaged or not complete .*copy or download the file again"),
    "last byte": (cut(lambda size: size - 1), "damaged or not complete"),
    "empty": (cut(lambda size: 0), "damaged or not complete"),
    "header alone": (cut(lambda size: 8), "damaged or not complete"),
    "not safetensors": (write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), "damaged or not complete"),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors"),
    "no configuration": (write("config.json", "{"), "cannot load model"),
    "text for a number": (configured(hidden_size="wide"), "cannot load model"),
    "no layers": (configured(num_hidden_layers=-1), "has no decoder layers"),
    "no heads": (configured(num_attention_heads=0), "cannot load model"),
    "broken tokenizer": (write("tokenizer.json", "{}"), "cannot load model"),
    "empty tokenizer": (write("tokenizer.json", ""), "cannot load model"),
    "broken processor": (write("processor_config.json", "[1]"), "cannot load model"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    damage, words = DAMAGES[name]
    shutil.copytree(demo_folder(), tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ModelError, match=words) as refused:
        vispco.load_model(str(tmp_path / "m"))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_pickles_are_not_read_even_when_asked_for(tmp_path: Path) -> None:
    shutil.copytree(demo_folder(), tmp_path / "m")
    pickled(tmp_path / "m")
    with pytest.raises(ModelError, match="safetensors files only"):
        vispco.load_model(str(tmp_path / "m"), use_safetensors=False)


@pytest.mark.parametrize("name", sorted(TINY))
def test_what_transformers_saves_of_each_family_is_complete(name: str, tmp_path: Path) -> None:
    """Tied weights, and buffers that are made anew, do not count as missing."""
    from vispco.models.loading import _check_complete

    TINY[name].model().save_pretrained(tmp_path)
    _, loaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path, output_loading_info=True, ignore_mismatched_sizes=True
    )
    _check_complete(name, loaded)


@pytest.mark.parametrize(
    "dtype", ["float12", "nn", "Tensor", "int8", "bool", "complex64", "float8_e4m3fn", "", "32", "é"]
)
def test_only_names_of_number_formats_that_a_model_runs_in(dtype: str) -> None:
    with pytest.raises(ModelError, match=f"unknown dtype {dtype!r}"):
        vispco.load_model("demo", dtype=dtype)


TEMPLATES = {
    "syntax": ("{% for m in %}", "TemplateSyntaxError"),
    "undefined": ("{{ nothing.at.all }}", "UndefinedError"),
    "refusal": ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
    "zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "types": ("{{ messages + 1 }}", "TypeError"),
    "unsafe": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "range": ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError"),
    "endless": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "does not end within",
    ),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "no file": ("{% include 'secret' %}", "cannot be used"),
    "empty": ("", "makes no prompt"),
    "blank": ("  \n ", "makes no prompt"),
    "long": ("{{ 'a' * 50000000 }}", "makes no prompt of a question, but 50,000,000 characters"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_broken_or_hostile_chat_template_is_one_line(name: str) -> None:
    template, words = TEMPLATES[name]
    _, processor = vispco.load_model("demo")
    processor.chat_template = template
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    with pytest.raises(ModelError, match=words) as refused:
        render_chat(processor, messages)
    assert "\n" not in str(refused.value)
    assert "chat_template.jinja" in str(refused.value)


def test_a_broken_template_ends_a_study_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(demo_folder(), tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages[7].content }}")
    tasks = "tasks: [{name: mosaic-vqa, splits: {calibration: 2, search: 2, held_out: 2}}]"
    text = f"experiment: x\nmodel: {tmp_path}/m\n{tasks}\nsearches: {{grid: {{kind: grid}}}}\n"
    problem = Problem.from_text(text)
    with pytest.raises(ModelError, match="chat template cannot be used: UndefinedError"):
        prepare(problem, problem.tasks[0], "search")
