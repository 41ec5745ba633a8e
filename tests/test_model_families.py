"""The conformance suite on every built-in model family, and what is special to each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4VisionConfig,
    Qwen3VLForConditionalGeneration,
)

import vispco
from vispco.errors import ModelError
from vispco.models.families import ADAPTERS, adapter_for, register_builtin
from vispco.models.grids import Grid
from vispco.pruning.schedules import Ratios, Step
from vispco.testing import AdapterConformance, checks
from vispco.testing.tiny import IMAGE, LAYERS, TEXT, TINY

# Their decoders are those of LLaVA or Qwen2.5-VL; what is their own are pictures and places. In the fast tests a
# decoder of each kind stands for the others: plain, three-axis positions, features between layers, sliding windows.
LIKE_ANOTHER = ("fastv",)


class TestLlava(AdapterConformance):
    tiny = TINY["llava"]


@pytest.mark.slow
class TestLlavaNext(AdapterConformance):
    tiny = TINY["llava_next"]
    methods = LIKE_ANOTHER


@pytest.mark.slow
class TestLlavaOnevision(AdapterConformance):
    tiny = TINY["llava_onevision"]
    methods = LIKE_ANOTHER


@pytest.mark.slow
class TestQwen2VL(AdapterConformance):
    tiny = TINY["qwen2_vl"]
    methods = LIKE_ANOTHER


class TestQwen25VL(AdapterConformance):
    tiny = TINY["qwen2_5_vl"]


class TestQwen3VL(AdapterConformance):
    tiny = TINY["qwen3_vl"]


@pytest.mark.slow
class TestQwen3VLMoe(AdapterConformance):
    tiny = TINY["qwen3_vl_moe"]
    methods = LIKE_ANOTHER


@pytest.mark.slow
class TestQwen35(AdapterConformance):
    tiny = TINY["qwen3_5"]
    methods = ("random",)


@pytest.mark.slow
class TestQwen35Moe(AdapterConformance):
    tiny = TINY["qwen3_5_moe"]
    methods = ("random",)


class TestGemma3(AdapterConformance):
    tiny = TINY["gemma3"]


@pytest.mark.slow
class TestGemma4(AdapterConformance):
    tiny = TINY["gemma4"]
    methods = ("fastv", "sparsevlm")


@pytest.mark.slow
class TestInternVL(AdapterConformance):
    tiny = TINY["internvl"]
    methods = LIKE_ANOTHER


@pytest.mark.slow
class TestIdefics3(AdapterConformance):
    tiny = TINY["idefics3"]
    methods = LIKE_ANOTHER


@pytest.mark.slow
class TestSmolVLM(AdapterConformance):
    tiny = TINY["smolvlm"]
    methods = LIKE_ANOTHER


@pytest.mark.slow
class TestMistral3(AdapterConformance):
    tiny = TINY["mistral3"]
    methods = LIKE_ANOTHER


@pytest.mark.slow
class TestGlm4v(AdapterConformance):
    tiny = TINY["glm4v"]
    methods = ("fastv", "sparsevlm")


@pytest.mark.slow
class TestGlm46V(AdapterConformance):
    tiny = TINY["glm46v"]
    methods = LIKE_ANOTHER


@pytest.mark.slow
class TestGlm4vMoe(AdapterConformance):
    tiny = TINY["glm4v_moe"]
    methods = LIKE_ANOTHER


@pytest.mark.parametrize("name", list(TINY))
def test_a_tiny_model_looks_at_its_pictures(name: str) -> None:
    """What the suites prove of a model that ignores pictures, or sees all alike, would be worth nothing."""
    tiny = TINY[name]
    model, batch = tiny.model(), tiny.batch([(3, 1, 5), (3, 1, 5)])
    batch["input_ids"][1] = batch["input_ids"][0]
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
        features = adapter_for(model).encode_images(batch)[:, :32]
    assert float((logits[0] - logits[1]).abs().max()) > 0.1
    assert float(features.std(dim=0).mean()) > 0.05


def test_families_are_documented() -> None:
    register_builtin()
    page = (Path(__file__).parent.parent / "docs/own.md").read_text()
    assert len(TINY) == sum(len(ADAPTERS[name].model_types) for name in ADAPTERS)
    for name in ADAPTERS:
        for said in (*ADAPTERS[name].model_types, *ADAPTERS[name].examples):
            assert f"`{said}`" in page, said


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "why"), [("gemma3n", "four streams side by side"), ("nemotron_h_omni", "Mamba blocks or experts")]
)
def test_families_that_cannot_be_cut_are_refused_in_one_line(family: str, why: str) -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type=family))
    with pytest.raises(ModelError, match=f"model family '{family}' is not served: .*{why}.*; use ") as caught:
        adapter_for(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shared", "wide", "message"),
    [
        (2, 8, "its last 2 of 4 layers reuse keys .* and every layer has an input of its own for each token .8 wide."),
        (2, 0, "its last 2 of 4 layers reuse keys and values and run on the last token only, which"),
        (0, 256, "not served: every layer has an input of its own for each token .256 wide., which"),
    ],
)
def test_a_gemma_4_of_the_small_kind_is_refused_in_one_line(shared: int, wide: int, message: str) -> None:
    """E2B and E4B have both; without shared keys, an input for every layer is the text class's own default."""
    kinds = ["sliding_attention", "full_attention"] * 2
    own = {"num_kv_shared_layers": shared, "hidden_size_per_layer_input": wide, "layer_types": kinds}
    text = Gemma4TextConfig(**TEXT, head_dim=8, **own)
    vision = Gemma4VisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    with torch.device("meta"):
        model = Gemma4ForConditionalGeneration(Gemma4Config(text_config=text, vision_config=vision, audio_config=None))
    with pytest.raises(ModelError, match=f"{message}.*; use gemma-4-26B-A4B or gemma-4-31B") as caught:
        adapter_for(model)
    assert "\n" not in str(caught.value)


# --- sizes of published models ---------------------------------------------------------------------

# Vision sizes as published, a picture's size (height, width) or None, and its grids: (rows, columns) of each view.
# Token counts that are known: 576 (LLaVA-1.5), 2,928 at most (LLaVA-NeXT: 576 + 48 x 48 + 48 newlines), 7,371
# (LLaVA-OneVision: 729 + 81 x 81 + 81), 256 (Gemma 3; InternVL, a tile), 169 (Idefics3), 81 (SmolVLM2).
CLIP = {"vision_config": {"image_size": 336, "patch_size": 14}}
SIGLIP = {"vision_config": {"image_size": 384, "patch_size": 14}}
PUBLISHED: list[tuple[str, dict[str, Any], tuple[int, int] | None, list[tuple[int, int]], int]] = [
    ("llava", CLIP, None, [(24, 24)], 576),
    ("llava_next", CLIP, (672, 672), [(24, 24), (48, 48)], 2928),
    ("llava_next", CLIP, (480, 640), [(24, 24), (36, 48)], 576 + 36 * 49),
    ("llava_next", CLIP, (336, 672), [(24, 24), (24, 48)], 576 + 24 * 49),
    ("llava_onevision", SIGLIP, (480, 640), [(27, 27), (40, 54)], 729 + 40 * 55),
    ("llava_onevision", SIGLIP, (2304, 2304), [(27, 27), (81, 81)], 7371),
    ("gemma3", {"mm_tokens_per_image": 256}, None, [(16, 16)], 256),
    ("internvl", {"vision_config": {"image_size": 448, "patch_size": 14}}, None, [(16, 16)] * 3, 3 * 256),
    ("idefics3", {"vision_config": {"image_size": 364, "patch_size": 14}, "scale_factor": 2}, None, [(13, 13)], 169),
    ("smolvlm", {**SIGLIP, "scale_factor": 3}, None, [(9, 9)], 81),
]


@pytest.mark.parametrize(("name", "vision", "size", "grids", "tokens"), PUBLISHED)
def test_grids_of_published_sizes(name: str, vision: Any, size: Any, grids: Any, tokens: int) -> None:
    config = type(TINY[name].model().config)(**vision)
    config.get_text_config().num_hidden_layers = 1
    with torch.device("meta"):
        adapter = adapter_for(type(TINY[name].model())(config))
    inputs = {"input_ids": torch.full((1, tokens), adapter.visual_token_ids()[0])}
    if size is not None:
        inputs["image_sizes"] = torch.tensor([size])
    views = adapter.views(inputs, adapter.visual_mask(inputs["input_ids"], None))
    assert [(view.rows, view.columns) for view in views] == grids
    assert sum(view.tokens for view in views) == tokens


# --- newlines: LLaVA-NeXT and LLaVA-OneVision -----------------------------------------------------

SIZES = [
    (20, 32),
    (32, 20),
    (64, 10),
    (10, 64),
    (33, 31),
    (16, 16),
    (7, 100),
    (100, 99),
    (48, 30),
    (1, 1),
    (200, 1),
    (1, 200),
]


def llava_with(name: str, sizes: list[tuple[int, int]], **config: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model and a prompt of pictures of ``sizes`` (height, width), text between them."""
    model = TINY[name].build()
    for key, value in config.items():
        setattr(model.config, key, value)
    side, generator = model.config.vision_config.image_size, torch.Generator().manual_seed(0)
    pixels = torch.randn(len(sizes), 5, 3, side, side, generator=generator)
    batch = {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
    with torch.no_grad():
        features = model.get_image_features(**batch).pooler_output
    parts = [torch.cat([torch.full((len(part),), IMAGE), torch.tensor([9, 9])]) for part in features]
    ids = torch.cat(parts)[None]
    return model, {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("most", ["anyres_max_9", "anyres_max_1", "anyres_max_2"])
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_newlines_are_where_the_model_puts_them(name: str, most: str) -> None:
    """Pictures of many sizes: as many places as features; the column behind the last one is the newline, only there."""
    model, batch = llava_with(name, SIZES, vision_aspect_ratio=most)
    adapter = adapter_for(model)
    visual = adapter.visual_mask(batch["input_ids"], None)
    views = adapter.views(batch, visual)
    assert sum(view.view == 0 for view in views) == len(SIZES)
    with torch.no_grad():
        features = adapter.encode_images(batch)
    assert sum(view.tokens for view in views) == len(features) == int(visual.sum())
    places = adapter.coordinates(batch, visual)[visual]
    columns = torch.tensor([view.columns for view in views])[places[:, 0]]
    newline = (features == model.model.image_newline).all(dim=1)
    assert torch.equal(places[:, 3] == columns, newline)
    assert len(set(map(tuple, places.tolist()))) == len(places)
    # What ``generate`` leaves gives the same grids.
    with torch.no_grad():
        left = {"mm_encoder_outputs": {"image": model.get_image_features(batch["pixel_values"], batch["image_sizes"])}}
    assert adapter.views({"input_ids": batch["input_ids"], **left}, visual) == views
    if most != "anyres_max_9" and name == "llava_onevision":
        limit = int(most[-1]) * 9
        assert all(view.rows * view.columns <= 1.21 * limit for view in views if view.view)


def test_several_pictures_of_onevision_are_thumbnails() -> None:
    model = TINY["llava_onevision"].build()
    adapter = adapter_for(model)
    pixels = torch.randn(3, 3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    sizes, together = torch.tensor([(24, 30), (24, 24), (30, 24)]), torch.tensor([1, 2])
    rows = [
        torch.full((24,), IMAGE),
        torch.cat([torch.full((10,), IMAGE), torch.tensor([9]), torch.full((10,), IMAGE)]),
    ]
    batch = {
        **TINY["llava_onevision"].pad([torch.cat([row, torch.tensor([9, 9])]) for row in rows], "left"),
        "pixel_values": pixels,
        "image_sizes": sizes,
        "batch_num_images": together,
    }
    visual = adapter.visual_mask(batch["input_ids"], None)
    alone = [Grid(1, 3, 3), Grid(1, 3, 4, row_end=True, view=1)]
    assert adapter.views(batch, visual) == [*alone, *[Grid(1, 3, 3, end=True)] * 2]
    checks.check_dropping(model, batch, vispco.make_method("fastv"), Ratios([1, 0.8, 0.4, 0.1]))
    with torch.no_grad(), vispco.prune(model, method="pool", schedule=Step(1, 0.5)) as session:
        model(**batch)
        kept = session.kept(1)
        model.generate(**batch, max_new_tokens=1)
    assert session.kept(1) == kept


# --- deepstack: Qwen3-VL --------------------------------------------------------------------------


def qwen3_with(indexes: list[int]) -> Any:
    """Features of vision layers ``indexes`` are added behind the decoder's first ``len(indexes)`` layers."""
    config = TINY["qwen3_vl"].build().config
    config.vision_config.depth = max(indexes) + 1
    config.vision_config.deepstack_visual_indexes = indexes
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config).eval()


@pytest.mark.parametrize("method", ["fastv", "random"])
@pytest.mark.parametrize("indexes", [[0, 2, 1], [0, 1, 2, 3]])
def test_deepstack_behind_any_layers(indexes: list[int], method: str) -> None:
    """Also behind the last layer, and where tokens are cut before, between and behind such layers."""
    model, tiny, chosen = qwen3_with(indexes), TINY["qwen3_vl"], vispco.make_method(method)
    policies = [Step(1, 0.5), Ratios([1, 0.75, 0.5, 0.25]), Step(3, 0.0), Step(2, 0.0)]
    if method == "random":
        policies += [Ratios([0.5, 0.4, 0.3, 0.2]), Step(0, 0.0)]
    for rows in (checks.RAGGED, [(4, 1, 0), (2, 2, 0)]):
        batch = tiny.batch(rows)
        checks.check_keep_one(model, batch, chosen)
        for policy in policies:
            checks.check_dropping(model, batch, chosen, policy)
    checks.check_sharing(model, tiny.batch(checks.RAGGED), chosen, policies)
    if checks.has_relaxed(model, chosen):
        checks.check_relaxed(model, tiny.batch(checks.RAGGED), chosen, policies[1])


def test_deepstack_is_the_models_own_to_the_bit() -> None:
    model, batch = qwen3_with([0, 1, 2, 3]), TINY["qwen3_vl"].batch(checks.RAGGED)
    with torch.no_grad():
        plain = model(**batch).logits
        with vispco.prune(model, method="fastv", schedule=Step(1, 1.0)):
            assert torch.equal(model(**batch).logits, plain)
        # It matters: without it the logits are others.
        features = adapter_for(model).encode_images(batch)
        features[:, TEXT["hidden_size"] :] = 0
        without = model(**adapter_for(model).with_features(batch, features)).logits
    assert float((without - plain).abs().max()) > 0.1


def test_dropped_tokens_leave_the_last_row_of_deepstack_features() -> None:
    """Features of one kept token change; logits change. Of a dropped one; they do not."""
    model, batch = TINY["qwen3_vl"].model(), TINY["qwen3_vl"].batch(checks.ONE)
    adapter = adapter_for(model)
    with torch.no_grad(), vispco.prune(model, method="random", schedule=Step(1, 0.5)) as session:
        features = adapter.encode_images(batch)
        plain = model(**adapter.with_features(batch, features)).logits[:, -1]
        visual = adapter.visual_mask(batch["input_ids"], None)[0].nonzero()[:, 0].tolist()
        for row, place in enumerate(visual):
            changed = features.clone()
            changed[row, 2 * TEXT["hidden_size"] :] += 1.0  # what is added behind layer 1
            logits = model(**adapter.with_features(batch, changed)).logits[:, -1]
            assert torch.equal(logits, plain) == (place not in session.kept(1)[0])


# --- tiles: InternVL, Idefics3 --------------------------------------------------------------------


def test_tiles_are_pictures_of_their_own() -> None:
    for name in ("internvl", "idefics3", "smolvlm"):
        tiny = TINY[name]
        adapter, batch = adapter_for(tiny.model()), tiny.batch([(1, 2, 3), (2, 1, 0)])
        visual = adapter.visual_mask(batch["input_ids"], None)
        assert [view[:3] for view in adapter.views(batch, visual)] == [(1, 2, 2)] * 9
        places = adapter.coordinates(batch, visual)
        assert [len(set(map(tuple, places[row, visual[row]].tolist()))) for row in range(2)] == [24, 12]
        # The second row's missing tiles, which Idefics3 fills up with zeros, are not among the pictures.
        seen = adapter.seen(batch)
        assert seen is not None
        assert len(seen) == 9
        assert bool(seen.flatten(1).any(dim=1).all())


def test_layers_of_the_tiny_models() -> None:
    assert {adapter_for(tiny.model()).shape().layers for tiny in TINY.values()} == {LAYERS}
