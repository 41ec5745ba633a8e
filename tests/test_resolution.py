"""Resolution as a share of visual tokens: every family's own terms, and pruning beside it at equal total cost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vispco
from conftest import SMALL
from test_local_models import PROCESSORS
from vispco.config import parse_study
from vispco.costs import COSTS, Setting
from vispco.errors import ConfigError
from vispco.evaluation.prepared import vision_flops
from vispco.models.resolution import rescaled, smaller
from vispco.pruning.schedules import Step, keep_all
from vispco.testing.tiny import TINY


def tokens(model: Any, processor: Any, picture: Any, share: float) -> int:
    images, sizes = rescaled(processor, [picture], share)
    text = "<boi> what" if model.config.model_type == "gemma3" else "<image> what"
    inputs = processor(images=[images], text=[text], return_tensors="pt", **sizes)
    return int(vispco.models.base.adapter_for(model).visual_mask(inputs["input_ids"], None).sum())


# Of a picture of 160 x 160 at resolutions 1, 1/2 and 1/4; cells of 8 x 8 pixels, tiles of 16 x 16 with 4 tokens.
# Qwen's and GLM's processors cap at 1600 pixels here: 40, 28.3 and 20 pixels a side are 5, 3.5 (4) and 2.5 (2) cells.
# InternVL: 4 tiles and a thumbnail; 1 tile.
EXPECTED = {
    "qwen2_5_vl": (25, 16, 4),
    "qwen3_vl": (25, 16, 4),
    "qwen3_5": (25, 16, 4),
    "glm4v": (25, 16, 4),
    "internvl": (20, 4, 4),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_tokens_at_each_resolution(name: str) -> None:
    model = TINY[name].build()
    processor = PROCESSORS[name](model)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8))
    found = tuple(tokens(model, processor, picture, share) for share in (1.0, 0.5, 0.25))
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", ["idefics3", "llava_next", "llava_onevision"])
def test_tokens_fall_with_the_resolution(name: str) -> None:
    model = TINY[name].build()
    processor = PROCESSORS[name](model)
    picture = Image.new("RGB", (160, 160), "red")
    found = [tokens(model, processor, picture, share) for share in (1.0, 0.5, 0.04)]
    assert found == sorted(found, reverse=True)
    assert found[-1] <= found[0] / 2


def test_gemma_4_has_steps_of_its_own() -> None:
    processor = SimpleNamespace(image_processor=SimpleNamespace(max_soft_tokens=280))
    for share, count in ((0.25, 70), (0.5, 140), (0.7, 140)):
        assert rescaled(processor, [], share)[1] == {"images_kwargs": {"max_soft_tokens": count}}
    with pytest.raises(ConfigError, match=r"resolution 0\.2: .* 280 visual tokens .* 70, 140, .* at least 0\.25"):
        rescaled(processor, [], 0.2)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_families_of_one_size_are_refused_in_one_line(name: str) -> None:
    processor = PROCESSORS[name](TINY[name].build())
    with pytest.raises(ConfigError, match=r"resolution 0\.5: this model makes every picture into the same number"):
        rescaled(processor, [Image.new("RGB", (64, 64))], 0.5)


def test_a_picture_keeps_its_shape() -> None:
    assert smaller(Image.new("RGB", (200, 100)), 5000).size == (100, 50)
    picture = Image.new("RGB", (7, 5))
    assert smaller(picture, 35) is picture


def test_the_share_is_of_what_the_processor_would_use() -> None:
    """A picture larger than the cap is scaled from the cap, a smaller one from its own size."""
    pictures = SimpleNamespace(
        merge_size=2,
        patch_size=14,
        temporal_patch_size=2,
        size={"shortest_edge": 56**2, "longest_edge": 28 * 28 * 1280},
    )
    images = [Image.new("RGB", size) for size in ((1920, 1080), (640, 480))]
    scaled, sizes = rescaled(SimpleNamespace(image_processor=pictures), images, 0.25)
    assert scaled[0].width * scaled[0].height == pytest.approx(28 * 28 * 320, rel=0.01)
    assert scaled[1].size == (320, 240)
    assert sizes["images_kwargs"]["size"] == {"shortest_edge": 28**2, "longest_edge": 28 * 28 * 1280}


STUDY = SMALL.replace("model: demo", "model: {name: demo-qwen, resolution: SHARE}")


def test_a_study_at_half_the_resolution() -> None:
    """The tower gets cheaper with the picture, but not with pruning: total FLOPs say so."""
    text = {share: STUDY.replace("SHARE", str(share)) for share in (1, 0.5)}
    found: dict[float, tuple[Any, float]] = {}
    for share, study in text.items():
        problem = vispco.Problem.from_text(study)
        part = vispco.Evaluator(problem).prepared("search")[0]
        setting = Setting.of(problem.adapter, vision_flops=vision_flops(problem))
        counts = keep_all().counts(part.n_visual, problem.shape.layers, None)
        total = COSTS["total_flops"]().of(setting, counts, part.n_visual, part.n_text).mean()
        pruned = Step(1, 0.5).counts(part.n_visual, problem.shape.layers, None)
        saved = COSTS["total_flops"]().of(setting, pruned, part.n_visual, part.n_text).mean()
        found[share] = part.n_visual, float(total), float(saved), setting.vision_flops * float(part.n_visual.mean())
    (whole, total, pruned, tower), (half, total_half, _, tower_half) = found[1], found[0.5]
    assert (half < 0.7 * whole).all()
    assert tower_half < 0.7 * tower
    assert total_half < pruned < total
    assert pruned > tower


def test_resolution_is_part_of_a_study_only_where_it_is_given() -> None:
    plain, whole, half = (
        parse_study(text)
        for text in (
            SMALL,
            SMALL.replace("model: demo", "model: {name: demo, resolution: 1}"),
            SMALL.replace("model: demo", "model: {name: demo, resolution: 0.5}"),
        )
    )
    assert "resolution" not in plain.identity()["model"]
    assert half.identity()["model"]["resolution"] == 0.5
    assert plain.spec_hash() == whole.spec_hash() != half.spec_hash()
    with pytest.raises(ConfigError, match="resolution"):
        parse_study(SMALL.replace("model: demo", "model: {name: demo, resolution: 2}"))
