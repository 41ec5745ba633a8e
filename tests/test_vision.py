"""What is read off vision towers, against the weights that they return themselves and by hand."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

import vispco
from vispco.errors import ModelError
from vispco.evaluation.evaluator import Evaluator
from vispco.models.families import adapter_for
from vispco.models.llava import LlavaAdapter
from vispco.models.vision import PackedWatch, PixtralWatch, VisionExtras, attention_to
from vispco.problem import Problem
from vispco.pruning.forward.relaxed import relaxed
from vispco.pruning.methods import METHODS, make_method
from vispco.pruning.needs import missing
from vispco.pruning.schedules import Step
from vispco.search.gradient.distillation import Calibration
from vispco.tasks.rendering import render_prompt
from vispco.testing import checks
from vispco.testing.methods import able
from vispco.testing.tiny import TINY


def llava(strategy: str = "default", layer: int = -2) -> Any:
    """A tiny LLaVA whose tower has three layers; features come from the last but one."""
    config = TINY["llava"].model().config.to_dict()
    config["vision_config"]["num_hidden_layers"] = 3
    config["vision_feature_layer"], config["vision_feature_select_strategy"] = layer, strategy
    torch.manual_seed(0)
    return sharpened(LlavaForConditionalGeneration(type(TINY["llava"].model().config)(**config)).eval())


def sharpened(model: Any) -> Any:
    """``model``, whose tower now attends to some patches much more than to others."""
    with torch.no_grad():
        for name, weight in model.model.vision_tower.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                weight.normal_(std=0.6)
    return model


def tower_of(model: Any, pixels: Any) -> Any:
    """What the plain tower gives with eager attention: hidden states and attention weights of all layers."""
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        found = tower(pixels, output_attentions=True, output_hidden_states=True)
    tower.set_attn_implementation("sdpa")
    return found


def read(model: Any, batch: Any) -> VisionExtras:
    with torch.no_grad():
        features, extras = adapter_for(model).encode_with_extras(batch)
        assert torch.equal(features, adapter_for(model).encode_images(batch))
    assert len(features) == len(extras)
    return extras


@pytest.mark.parametrize("layer", [-2, 2])
def test_clip_gives_its_cls_row(layer: int) -> None:
    """Counted from the end or from the embeddings, hidden state -2 of three layers leaves layer 1."""
    model, batch = llava(layer=layer), TINY["llava"].batch([(3, 2, 6)])
    plain, extras = tower_of(model, batch["pixel_values"]), read(model, batch)
    attention = plain.attentions[1].mean(dim=1)[:, 0, 1:].flatten()
    assert extras.source == "cls"
    assert torch.allclose(extras.attention, attention, atol=1e-6)
    assert float(attention.std()) > 0.01
    assert torch.allclose(extras.features, plain.hidden_states[-2][:, 1:].flatten(0, 1), atol=1e-5)
    layers = model.model.vision_tower.encoder.layers
    for keys, number in ((extras.keys, 1), (extras.last_keys, 2)):
        entering = layers[number].layer_norm1(plain.hidden_states[number])
        assert torch.allclose(keys, layers[number].self_attn.k_proj(entering)[:, 1:].flatten(0, 1), atol=1e-6)
    q, k = (getattr(layers[2].self_attn, f"{letter}_proj")(entering) for letter in "qk")
    pseudo = (q[:, :1] @ k.mT / 16**0.5).softmax(dim=-1)[:, 0, 1:]
    assert torch.allclose(extras.pseudo_attention, pseudo.flatten(), atol=1e-6)
    # One query against 17 keys in 16 dimensions, in two layers, of two pictures.
    assert extras.flops == 2 * 2 * 2 * 17 * 16


def test_clip_with_its_cls_token_among_the_visual_ones() -> None:
    model = llava(strategy="full")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    extras, plain = read(model, {"pixel_values": pixels}), tower_of(model, pixels)
    assert torch.allclose(extras.attention, plain.attentions[1].mean(dim=1)[0, 0], atol=1e-6)


def test_siglip_gives_what_patches_receive_over_cells() -> None:
    tiny = TINY["gemma3"]
    model, batch = tiny.model(), tiny.batch([(3, 2, 6)])
    extras, plain = read(model, batch), tower_of(model, batch["pixel_values"])
    received = plain.attentions[-1].mean(dim=(1, 2)).view(2, 1, 8, 8)
    assert extras.source == "received"
    assert torch.allclose(extras.attention, F.avg_pool2d(received, 2).flatten(), atol=1e-7)
    states = plain.last_hidden_state.mT.reshape(2, 16, 8, 8)
    assert torch.allclose(extras.features, F.avg_pool2d(states, 2).flatten(2).mT.flatten(0, 1), atol=1e-6)


def qwen(windows: bool) -> Any:
    """Patches are mixed by nothing but the read block's attention: the blocks before it add nothing."""
    config = TINY["qwen2_5_vl"].model().config.to_dict()
    config["vision_config"].update(depth=2, fullatt_block_indexes=[1] if windows else [0, 1])
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(type(TINY["qwen2_5_vl"].model().config)(**config)).eval()
    with torch.no_grad():
        for block in model.model.visual.blocks:
            for part in (block.attn.proj, block.mlp.down_proj):
                part.weight.zero_()
                part.bias.zero_()
    return model


def test_qwen_reads_its_last_full_block_in_the_order_of_the_picture() -> None:
    tiny = TINY["qwen2_5_vl"]
    model, batch = qwen(windows=True), tiny.batch([(3, 2, 6)])
    tower, extras = model.model.visual, read(model, batch)
    patches = tower.patch_embed(batch["pixel_values"])
    assert torch.allclose(extras.features, patches.view(24, 4, 16).mean(dim=1), atol=1e-6)
    # Rotation by hand: the first quarter of a head turns with the row, the second with the column, twice.
    q, k, _ = tower.blocks[1].attn.qkv(tower.blocks[1].norm1(patches)).view(2, 48, 3, 2, 8).unbind(dim=2)
    order = [(2 * i + y, 2 * j + x) for i in range(2) for j in range(6) for y in range(2) for x in range(2)]
    place = torch.tensor(order, dtype=torch.float)
    angle = (place[..., None] * 10000.0 ** -(torch.arange(0, 4, 2) / 4)).flatten(1).repeat(1, 2)[:, None]

    def turned(values: Any) -> Any:
        return values * angle.cos() + torch.cat([-values[..., 4:], values[..., :4]], dim=-1) * angle.sin()

    q, k = turned(q), turned(k)
    weights = (torch.einsum("pqhd,pkhd->phqk", q, k) / 8**0.5).softmax(dim=-1)
    received = weights.mean(dim=(1, 2)).view(24, 4).mean(dim=1)
    assert torch.allclose(extras.attention, received, atol=1e-6)
    assert float(received.detach().std()) > 1e-4
    assert torch.allclose(extras.keys, k.reshape(24, 4, 16).mean(dim=1), atol=1e-5)
    assert extras.flops == 2 * 2 * 2 * 48**2 * 16


def test_qwen_puts_pictures_and_videos_in_the_order_of_the_prompt() -> None:
    tiny = TINY["qwen2_5_vl"]
    model, batch = qwen(windows=True), tiny.video_batch()
    extras, embed = read(model, batch), model.model.visual.patch_embed
    video, picture = (embed(batch[key]).view(-1, 4, 16).mean(dim=1) for key in ("pixel_values_videos", "pixel_values"))
    assert torch.allclose(extras.features, torch.cat([video, picture]), atol=1e-6)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_towers_without_windows_give_what_their_last_block_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the weights of eager attention, called picture by picture; the merged features of Qwen3-VL as well."""
    tiny: Any = TINY[name]
    model, batch, seen = tiny.build(), tiny.batch([(3, 2, 6)]), []
    model.set_attn_implementation("eager")
    module = sys.modules[type(model).__module__]
    eager = module.eager_attention_forward

    def kept(*args: Any, **kwargs: Any) -> Any:
        seen.append(eager(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(module, "eager_attention_forward", kept)
    with torch.no_grad():
        features, extras = adapter_for(model).encode_with_extras(batch)
    received = torch.cat([weights.mean(dim=(0, 1, 2)) for _, weights in seen[-2:]])
    assert len(received) == 2 * 48
    assert torch.allclose(extras.attention, received.view(24, 4).mean(dim=1), atol=1e-6)
    assert float(received.std()) > 1e-3
    assert len(features) == len(extras) == 24


def test_attention_in_blocks_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(3, 11, 8, generator=generator), torch.randn(3, 9, 8, generator=generator)
    expected = (q @ k.mT / 8**0.5).softmax(dim=-1).mean(dim=(0, 1))
    monkeypatch.setattr("vispco.models.vision.BLOCK", 60)
    assert torch.allclose(attention_to(q, k), expected, atol=1e-6)


# --- how it reaches a method -----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TINY))
def test_given_extras_are_those_of_pixels(name: str) -> None:
    """Also where the tower runs in generate, and for beams, which repeat rows."""
    tiny = able(TINY[name], make_method("visionzip"))
    model, batch = tiny.model(), tiny.batch(checks.RAGGED)
    with torch.no_grad():
        features, extras = adapter_for(model).encode_with_extras(batch)
    with torch.no_grad(), vispco.prune(model, method="visionzip", schedule=Step(1, 0.4)) as session:
        model(**batch)
        kept = session.kept(1)
        model.generate(**batch, max_new_tokens=2, num_beams=2, do_sample=False)
        assert session.kept(1) == [row for row in kept for _ in range(2)]
        session.vision = extras
        model(**adapter_for(model).with_features(batch, features))
        assert session.kept(1) == kept
        session.vision = extras.take(slice(1, None))
        with pytest.raises(ModelError, match="showed nothing of these"):
            model(**adapter_for(model).with_features(batch, features))


def test_features_without_extras_get_one_line() -> None:
    tiny = TINY["llava"]
    model, batch = tiny.model(), tiny.batch([(3, 1, 5)])
    adapter = adapter_for(model)
    with torch.no_grad(), vispco.prune(model, method="vispruner", schedule=Step(1, 0.4)):
        model(**batch)  # what it showed then must not serve the next prompt
        given = adapter.with_features(batch, adapter.encode_images(batch).clone())
        model(**given)  # the tower was watched inside the block
        with pytest.raises(ModelError, match=r"'vispruner' reads the vision tower.*set session\.vision"):
            model(**given)


def test_extras_split_and_join() -> None:
    extras = read(TINY["llava"].model(), TINY["llava"].batch([(3, 3, 6)]))
    parts = extras.split([16, 0, 32])
    assert [len(part) for part in parts] == [16, 0, 32]
    joined = VisionExtras.join(parts)
    for field in fields(extras):
        value = getattr(extras, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(joined, field.name), value)


@pytest.mark.parametrize(
    "name",
    [
        "llava_next",
        "llava_onevision",
        "gemma3",
        "internvl",
        "idefics3",
        "smolvlm",
        "mistral3",
        "qwen2_5_vl",
        "gemma4",
        "glm4v",
    ],
)
def test_what_is_read_belongs_to_the_token_of_the_same_cell(name: str) -> None:
    """The pixels of one place change: of all tokens the one whose features change most is the one whose keys do.

    The tower's attention spreads the change, so its values and outputs are taken out first.
    """
    tiny: Any = TINY[name]
    model = tiny.build()
    adapter, batch = adapter_for(model), tiny.batch([(3, 1, 5)])
    pixels = batch["pixel_values"]
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            inside = "vision" in parameter or "visual" in parameter
            if inside and any(part in parameter for part in ("o_proj", "out_proj", "attn.proj", "projection_layer")):
                weight.zero_()
        features, extras = adapter.encode_with_extras(batch)
        changed = {**batch, "pixel_values": pixels.clone()}
        if pixels.ndim == 2:
            changed["pixel_values"][20:24] += 1.0
        elif name == "gemma4":
            changed["pixel_values"][0, 10] += 1.0
        else:
            changed["pixel_values"].flatten(0, -4)[0, :, 4:8, 8:12] += 1.0
        other, others = adapter.encode_with_extras(changed)
    moved = (other - features).abs().sum(dim=1)
    assert int(moved.argmax()) == int((others.keys - extras.keys).abs().sum(dim=1).argmax())
    assert int(moved.argmax()) == int((others.features - extras.features).abs().sum(dim=1).argmax())
    assert float(moved.max()) > 3 * float(moved.mean())


@pytest.mark.parametrize("name", TINY)
def test_a_middle_layer_is_read_as_the_others_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told that the layer which makes the features is the middle one, every kind of tower gives the same of both."""
    tiny = TINY[name]
    model = tiny.model()
    adapter = adapter_for(model)
    assert ("middle" in adapter.provides()) == ("vision" in adapter.provides() and model.config.model_type != "gemma4")
    if "middle" not in adapter.provides():
        return
    watch: Any = adapter.watch_vision()
    if isinstance(watch, PixtralWatch):
        watch.half = watch.attentions[0]
    elif isinstance(watch, PackedWatch):
        watch.middle_layer = [block.attn for block in watch.tower.blocks].index(watch.attention)
    else:
        watch.middle_layer = watch.layer
    monkeypatch.setattr(type(adapter), "watch_vision", lambda self: watch)
    with torch.no_grad():
        _, extras = adapter.encode_with_extras(tiny.batch([(3, 2, 6)]), middle=True)
    assert extras.middle is not None
    assert torch.equal(extras.middle, extras.received)
    if extras.source == "received":
        assert torch.equal(extras.middle, extras.attention)


# --- what a model lacks ----------------------------------------------------------------------------


def test_what_a_model_lacks_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA without a watch on its tower, as a family would be whose adapter does not tell how."""
    monkeypatch.setattr(LlavaAdapter, "watch_vision", lambda self: None)
    model = TINY["llava"].model()
    adapter = adapter_for(model)
    lacking = {name for name in METHODS if missing(make_method(name), adapter)}
    assert lacking == {"visionzip", "vispruner", "cdpruner", "prumerge", "scope", "idpruner", "pixelprune", "hiprune"}
    for name in lacking:
        with pytest.raises(ModelError) as caught, vispco.prune(model, method=name, schedule=Step(1, 0.5)):
            pass
        line = str(caught.value)
        assert "\n" not in line
        assert line.startswith(f"method {name!r} needs ")
        assert "'llava' does not give" in line
        offered = line.rsplit(": ", 1)[1].split(", ")
        assert sorted(offered) == sorted(set(METHODS) - lacking)
    with pytest.raises(ModelError, match="needs attention and keys of the vision tower"):
        with relaxed(adapter, make_method("visionzip", {"contextual": 0}), torch.ones(4)):
            pass


def test_a_text_tower_is_missed_and_the_way_out_named() -> None:
    with (
        pytest.raises(ModelError, match=r"a text tower.*set relevance: embeddings"),
        vispco.prune(TINY["llava"].model(), method="cdpruner", schedule=Step(1, 0.5)),
    ):
        pass
    with vispco.prune(TINY["llava"].model(), method="cdpruner", relevance="embeddings", schedule=Step(1, 0.5)):
        pass


# --- measured --------------------------------------------------------------------------------------


def test_the_evaluator_ranks_as_the_model_with_pixels_does(problem: Problem) -> None:
    evaluator = Evaluator(problem)
    method, schedule = make_method("visionzip"), Step(2, 0.3)
    measured = evaluator.evaluate([schedule], "search", method)[0]
    right = []
    for part in evaluator.prepared("search"):
        for sample in part.samples:
            text = [render_prompt(problem.processor, sample)]
            inputs = problem.processor(images=[list(sample.images)], text=text, return_tensors="pt")
            with torch.no_grad(), vispco.prune(problem.model, method=method, schedule=schedule):
                token = problem.model(**inputs).logits[0, -1].argmax()
            right.append(part.task.score(sample, problem.processor.tokenizer.decode([int(token)])))
    assert measured.accuracy == pytest.approx(sum(right) / len(right))


def test_the_relaxed_loss_is_the_pruned_one(problem: Problem) -> None:
    calibration = Calibration(Evaluator(problem), make_method("visionzip", {"contextual": 0}), 16, seed=0)
    schedule = Step(2, 0.3)
    ratios = torch.tensor(schedule.keep_ratio(problem.shape.layers))
    assert float(calibration.loss(0, ratios, 0.1)) == pytest.approx(calibration.pruned_loss(schedule, 1), rel=1e-3)


# --- pictures of several sizes ---------------------------------------------------------------------


def test_tokens_of_pictures_of_several_sizes_can_be_ranked_together() -> None:
    """A small picture's tokens get more for being few; what is compared has one mean over each picture."""
    extras = read(qwen(windows=True), TINY["qwen2_5_vl"].video_batch())
    assert extras.among.tolist() == [24.0] * 18 + [48.0] * 12
    frames, picture = extras.attention[:18], extras.attention[18:]
    assert frames.min() > picture.max()
    beside = extras.beside(extras.attention)
    for part in (*beside[:18].split(6), beside[18:]):
        assert part.mean().item() == pytest.approx(1 / 48)
    alike = read(TINY["llava"].model(), TINY["llava"].batch([(3, 3, 6)]))
    assert torch.equal(alike.beside(alike.attention), alike.attention)


@pytest.mark.parametrize("method", ["visionzip", "vispruner", "prumerge"])
def test_a_small_picture_beside_a_large_one_does_not_take_all(method: str) -> None:
    model, batch = qwen(windows=True), TINY["qwen2_5_vl"].batch([(3, 2, 6)])
    # The second picture loses its last half: 6 tokens beside 12.
    places = (batch["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    stay = torch.ones(batch["input_ids"].shape[1], dtype=torch.bool)
    stay[places[-6:]] = False
    ids = ("input_ids", "attention_mask", "mm_token_type_ids")
    batch = {**batch, **{name: batch[name][:, stay] for name in ids if name in batch}}
    batch["image_grid_thw"] = torch.tensor([[1, 4, 12], [1, 4, 6]])
    batch["pixel_values"] = batch["pixel_values"][:72]
    with torch.no_grad(), vispco.prune(model, method=method, schedule=Step(1, 0.5)) as session:
        model(**batch)
    of_small = sum(place >= places[12] for place in session.kept(1)[0])
    assert len(session.kept(1)[0]) == 9
    assert 1 <= of_small <= 5


def test_steps_without_a_cache_have_no_tower_to_read() -> None:
    """generate encodes pictures once: what the tower said of them is not kept for a prompt that may be another."""
    model, batch = TINY["llava"].model(), TINY["llava"].batch([(3, 1, 5)])
    with vispco.prune(model, method="visionzip", schedule=Step(1, 0.5)):
        model.generate(**batch, max_new_tokens=3, do_sample=False)
        with pytest.raises(ModelError, match="no use_cache=False"):
            model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=False)
