"""The shipped demo VLMs: what they are, what they can do, and that their records are their own."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import vispco
from benchmarks.train.demo import deep, qwen, train
from benchmarks.train.demo.build import build_model
from benchmarks.train.demo.data import data_hash
from benchmarks.train.demo.packing import draw_questions
from conftest import SMALL
from vispco.evaluation.evaluator import Evaluator
from vispco.models.loading import DEMOS, demo_folder, weights_hash
from vispco.problem import Problem
from vispco.pruning.families.step import StepFamily
from vispco.tasks.base import Sample
from vispco.tasks.mosaic import TASK_MIX, sample_scene, split_pictures
from vispco.tasks.rendering import render_prompt


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(Problem.from_text(SMALL.replace("held_out: 12", "held_out: 512").replace("size: 8", "size: 64")))


@pytest.mark.parametrize(
    ("name", "family", "layers"),
    [
        ("demo", "llava.modeling_llava", 8),
        ("demo-deep", "llava.modeling_llava", 26),
        ("demo-qwen", "qwen2_5_vl.modeling_qwen2_5_vl", 8),
    ],
)
def test_they_are_stock_models_of_the_promised_size(name: str, family: str, layers: int) -> None:
    model, _ = vispco.load_model(name)
    assert type(model).__module__ == f"transformers.models.{family}"
    text = model.config.text_config
    assert (text.num_hidden_layers, text.hidden_size) == (layers, 96)
    assert (demo_folder(name) / "model.safetensors").stat().st_size <= 8_000_000
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_deep_one_has_a_grid_of_the_papers_size() -> None:
    assert len(list(StepFamily(deep.DEEP_LAYERS).dense_grid())) == 501


def test_accuracy_with_and_without_the_picture(evaluator: Evaluator) -> None:
    assert evaluator.unpruned("held_out").accuracy >= 0.80
    assert evaluator.no_image("held_out").accuracy <= 0.45


def test_every_kind_of_question_is_learned(evaluator: Evaluator) -> None:
    """No kind may hide behind the mean: each is well above what the question alone gives."""
    plain, blind = evaluator.unpruned("held_out"), evaluator.no_image("held_out")
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    samples = evaluator.prepared("held_out")[0].samples
    for sample, a, b in zip(samples, plain.scores["mosaic-vqa"], blind.scores["mosaic-vqa"], strict=True):
        kinds[sample.extra["kind"]].append((a, b))
    for kind, pairs in kinds.items():
        accuracy = sum(a for a, _ in pairs) / len(pairs)
        assert accuracy >= 0.6, (kind, accuracy)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo-deep", "demo-qwen"])
def test_the_other_demos_on_held_out_mosaics(name: str) -> None:
    """Right far more often than without the picture, and the picture's tokens are needed behind the first layers."""
    text = SMALL.replace("model: demo", f"model: {name}").replace("held_out: 12", "held_out: 128")
    evaluator = Evaluator(Problem.from_text(text.replace("size: 8", "size: 64")))
    plain, blind = evaluator.unpruned("held_out").accuracy, evaluator.no_image("held_out").accuracy
    assert plain >= 0.70
    assert blind <= 0.45
    none_left = evaluator.evaluate([vispco.Step(layer=1, keep=0.0)], "held_out")[0]
    assert none_left.accuracy <= plain - 0.2


@torch.no_grad()
def test_growing_changes_no_answer() -> None:
    """The deep demo before training computes what the demo computes, with 18 layers more, and can learn in them."""
    demo, grown = train.demo("cpu"), deep.build_deep_model(0).eval()
    deep.grow(grown, demo)
    rng = random.Random(4)
    scenes = [sample_scene(split_pictures("calibration"), rng) for _ in range(2)]
    family = train.family_of(demo)
    packed, _ = draw_questions(scenes, TASK_MIX, 4, rng, family.vocabulary, family.prefix)
    hidden = [
        model.model(
            input_ids=packed.input_ids,
            attention_mask=packed.mask,
            position_ids=packed.position_ids,
            **family.pictures(scenes, "cpu"),
        ).last_hidden_state
        for model in (demo, grown)
    ]
    assert torch.allclose(*hidden, atol=1e-6)
    layers = grown.model.language_model.layers
    new = [number for number in range(deep.DEEP_LAYERS) if number not in deep.places()]
    assert len(new) == 18
    assert all(layers[number].mlp.up_proj.weight.abs().max() > 0 for number in new)


@torch.no_grad()
def test_packed_questions_are_asked_alone_in_qwen_too() -> None:
    """Pixels, token ids, three rows of positions and logits are those of the processor and of the model itself."""
    rng = random.Random(5)
    scenes = [sample_scene(split_pictures("calibration"), rng) for _ in range(2)]
    model, processor = qwen.build_model(0), qwen.build_processor()
    qwen.carry_decoder(model, train.demo("cpu"))
    family, vocab = train.family_of(model.eval()), qwen.qwen_vocabulary()
    packed, kinds = draw_questions(scenes, TASK_MIX, 4, rng, vocab, family.prefix)
    pictures = family.pictures(scenes, "cpu")
    pixels = pictures["pixel_values"].view(2, 256, -1)
    outputs = model.model(
        input_ids=packed.input_ids, attention_mask=packed.mask, position_ids=packed.position_ids, **pictures
    )
    logits = model.lm_head(outputs.last_hidden_state)
    words = {index: word for word, index in vocab.items()}
    start = len(family.prefix.ids)
    for row, one in enumerate(scenes):
        labels = packed.labels[row].tolist()
        ends = [i for i, label in enumerate(labels) if label not in (-100, vocab["<|im_end|>"])]
        assert len(ends) == len(kinds[row])
        at = start
        for end in ends:
            asked = slice(at, end + 1)
            text = " ".join(words[i] for i in packed.input_ids[row, asked].tolist())
            prompt = render_prompt(processor, Sample("", "", (one.pixels(),), text, ()))
            inputs = processor(images=[one.pixels()], text=[prompt], return_tensors="pt")
            assert torch.allclose(inputs["pixel_values"], pixels[row], atol=1e-6)
            assert inputs["image_grid_thw"].tolist() == [[1, 16, 16]]
            assert inputs["input_ids"][0].tolist() == [*family.prefix.ids, *packed.input_ids[row, asked].tolist()]
            positions, _ = model.model.get_rope_index(
                inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"]
            )
            expected = torch.cat([packed.position_ids[:, row, :start], packed.position_ids[:, row, asked]], dim=1)
            assert torch.equal(positions[:, 0], expected)
            alone = model(**inputs).logits[0, -1]
            assert (alone - logits[row, end]).abs().max() <= 1e-4, text
            at = end + 2


@pytest.mark.slow
@pytest.mark.parametrize("build", [build_model, qwen.build_model], ids=["llava", "qwen"])
@pytest.mark.parametrize("mix", [None, TASK_MIX], ids=["see", "questions"])
def test_training_resumes_where_it_was_stopped(
    mix: dict[str, float] | None, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 2 of 3 and started again: the weights of a run that was never stopped."""
    monkeypatch.setattr(train, "REPORT_EVERY", 1)
    monkeypatch.setattr(train, "VALIDATION_SCENES", 64)
    second = build is not build_model
    place_weight = 0.1 if second == (mix is None) else 0.0
    stage = train.Stage("s", 3, 2, 1e-3, mix, 2, place_weight=place_weight, teacher_weight=float(second), evenly=second)

    def run(folder: Path, stop: int | None = None) -> Any:
        folder.mkdir(exist_ok=True)
        model: Any = build(0).train()
        drawn = train.draw_scenes

        def draw(batch: int, rng: Any) -> Any:
            nonlocal stop
            if stop == 0:
                raise KeyboardInterrupt
            stop = None if stop is None else stop - 1
            return drawn(batch, rng)

        with monkeypatch.context() as patch:
            patch.setattr(train, "draw_scenes", draw)
            train.run_stage(model, stage, 0, folder, "cpu", [])
        return model.state_dict()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=2)
    whole, resumed = run(tmp_path / "a"), run(tmp_path / "b")
    changed = [name for name, value in build(0).state_dict().items() if not torch.equal(value, whole[name])]
    assert changed
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("name", list(DEMOS))
def test_the_training_record(name: str) -> None:
    record: dict[str, Any] = json.loads((demo_folder(name) / "training.json").read_text())
    assert record["data_sha256"] == data_hash()
    assert {"seed", "stages", "torch"} <= record.keys()
    assert {"color_3_hops", "exists", "count_like", "mean"} <= record["accuracy_on_calibration_pictures"].keys()
    if name != "demo":
        assert record["starts_from"] == {"model": "demo", "weights": weights_hash(train.demo("cpu"))}
