"""Resolution as a share of visual tokens: every family's own terms, and pruning beside it at equal total cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vispco
from conftest import SMALL
from pages import blocks
from processors import PROCESSORS
from vispco.analysis.comparison import Comparison
from vispco.analysis.layers import layer_record
from vispco.analysis.pricing import Pricing
from vispco.analysis.repriced import Repriced
from vispco.config import parse_study
from vispco.costs import COSTS, Setting, prefill_flops, unpruned_flops
from vispco.errors import ConfigError, ModelError, ScheduleError
from vispco.evaluation.prepared import vision_flops
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.exporting import export_schedule
from vispco.models.grids import Grid, fixed_grids
from vispco.models.resolution import rescaled, smaller
from vispco.pruning.families import FAMILIES
from vispco.pruning.families.step import StepFamily
from vispco.pruning.schedules import AtResolution, Schedule, Step, keep_all, parse_schedule, resolution_of
from vispco.storage.store import Store
from vispco.testing.tiny import TINY


def tokens(model: Any, processor: Any, picture: Any, share: float) -> int:
    images, sizes = rescaled(processor, [picture], share)
    text = "<boi> what" if model.config.model_type == "gemma3" else "<image> what"
    inputs = processor(images=[images], text=[text], return_tensors="pt", **sizes)
    return int(vispco.adapter_for(model).visual_mask(inputs["input_ids"], None).sum())


# Of a picture of 160 x 160 at resolutions 1, 1/2 and 1/4; cells of 8 x 8 pixels, tiles of 16 x 16 with 4 tokens.
# Qwen's and GLM's processors cap at 1600 pixels here: 40, 28.3 and 20 pixels a side are 5, 3.5 (4) and 2.5 (2) cells.
# InternVL: 4 tiles and a thumbnail; 1 tile. LLaVA scales to 4 cells a side: 2.8 (3) and 2.
EXPECTED = {
    "qwen2_5_vl": (25, 16, 4),
    "qwen3_vl": (25, 16, 4),
    "qwen3_5": (25, 16, 4),
    "glm4v": (25, 16, 4),
    "internvl": (20, 4, 4),
    "llava": (16, 9, 4),
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


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_a_smaller_picture_of_a_llava_has_interpolated_positions(strategy: str) -> None:
    """What the evaluator reads is what transformers gives; a model of whole pictures never sees the difference."""
    model = TINY["llava"].build()
    model.config.vision_feature_select_strategy = strategy
    processor = PROCESSORS["llava"](model)
    processor.vision_feature_select_strategy = strategy
    adapter = vispco.adapter_for(model)
    images, sizes = rescaled(processor, [Image.effect_noise((160, 120), 64)], 0.5)
    inputs = processor(images=[images], text=["<image> what"], return_tensors="pt", **sizes)
    features = adapter.encode_images(inputs)
    expected = model.get_image_features(inputs["pixel_values"], interpolate_pos_encoding=True)
    assert torch.equal(features, expected.pooler_output[0])
    visual = adapter.visual_mask(inputs["input_ids"], None)
    cells = 9 + (strategy == "full")
    assert len(features) == int(visual.sum()) == cells
    with pytest.raises(ValueError, match="doesn't match model"):
        model.generate(**inputs, max_new_tokens=1)
    given = {**inputs, "mm_encoder_outputs": {"image": expected}}
    del given["pixel_values"]
    with vispco.prune(model, method="random", schedule="step(layer=1, keep=0.5)"):
        model.generate(**given, max_new_tokens=2)
    if strategy == "default":
        for seen in (inputs, given):
            assert torch.equal(adapter.coordinates(seen, visual)[visual][:, 2:], Grid(1, 3, 3).places()[:, 1:])


def test_what_is_cut_off_around_a_picture_stays_cut_off() -> None:
    """SigLIP scales to a square; CLIP scales the shorter edge, here to more than it keeps, and cuts."""
    picture = Image.new("RGB", (336, 336))
    clip = SimpleNamespace(size={"shortest_edge": 384}, crop_size={"height": 336, "width": 336}, do_center_crop=True)
    siglip = SimpleNamespace(size={"height": 384, "width": 384})
    kind = type("LlavaProcessor", (SimpleNamespace,), {})
    _, sizes = rescaled(kind(image_processor=clip, patch_size=14), [picture], 0.25)
    assert sizes["images_kwargs"] == {"size": {"shortest_edge": 192}, "crop_size": {"height": 168, "width": 168}}
    _, sizes = rescaled(kind(image_processor=siglip, patch_size=16), [picture], 0.25)
    assert sizes["images_kwargs"] == {"size": {"height": 192, "width": 192}}


def test_pictures_side_by_side_are_told_apart_or_refused() -> None:
    whole, small = Grid(1, 4, 4), Grid(1, 3, 3)
    assert fixed_grids([16, 32, 9], 16) == [whole, whole, whole, small]
    assert fixed_grids([6], 6) == [Grid(1, 1, 6)]
    for run in (18, 20, 25):
        with pytest.raises(ModelError, match=f"{run} visual tokens .* put text between"):
            fixed_grids([run], 16)


def test_smaller_pictures_of_a_llava_stand_apart() -> None:
    """Four of 2 x 2 cells side by side would look like one of 4 x 4."""
    model = TINY["llava"].build()
    processor, adapter = PROCESSORS["llava"](model), vispco.adapter_for(model)
    images, sizes = rescaled(processor, [Image.effect_noise((64, 64), 64)] * 4, 0.25)

    def encoded(text: str, **kwargs: Any) -> int:
        return len(adapter.encode_images(processor(images=[images], text=[text], return_tensors="pt", **kwargs)))

    assert encoded("<image> a <image> a <image> a <image> what", **sizes) == 16
    assert encoded("<image><image><image><image> what") == 64
    with pytest.raises(ModelError, match="16 visual tokens of smaller pictures, of 4 each, stand side by side"):
        encoded("<image><image><image><image> what", **sizes)
    processor.image_processor.do_resize = False
    with pytest.raises(ConfigError, match="the same number of visual tokens"):
        rescaled(processor, images, 0.25)


def test_a_family_of_one_size_is_refused_in_one_line() -> None:
    processor = PROCESSORS["gemma3"](TINY["gemma3"].build())
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


SEARCHED = """
experiment: searched
model: demo-qwen
tasks:
  - {name: mosaic-vqa, splits: {calibration: 1, search: 12, held_out: 12}}
budgets: 3
batch_size: 8
resolution: [0.5, 1.0, 0.25]
searches:
  grid: {kind: grid, family: few}
  tpe: {kind: tpe, trials: 14, enqueue: ["step(layer=2, keep=0.5, resolution=0.5)"]}
  random: {kind: random, trials: 6, resolution: [0.5]}
  nsga2: {kind: nsga2, trials: 6, population: 2}
  whole: {kind: random, trials: 2, resolution: [1.0]}
"""


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    """The step family with a grid of three points."""

    class Few(StepFamily):
        name = "few"

        def dense_grid(self) -> Iterator[Schedule]:
            yield from (Step(1, 0.5), Step(2, 0.0), Step(1, 1.0))

    FAMILIES.register("few")(Few)
    yield
    del FAMILIES._classes["few"]


@pytest.fixture(scope="module")
def searched(few: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('resolution')}/x.db")
    Run(vispco.Problem.from_text(SEARCHED), store).run()
    return store


def test_the_grid_has_every_schedule_at_every_resolution(searched: Store) -> None:
    trials = searched.trial_log("searched/grid").complete()
    inner = ("step(layer=1, keep=0.5", "step(layer=2, keep=0.0", "step(layer=1, keep=1.0")
    ends = (")", ", resolution=0.5)", ", resolution=0.25)")
    assert [trial.user_attrs["schedule"] for trial in trials] == [text + end for end in ends for text in inner]
    assert [trial.params["resolution"] for trial in trials] == [1.0] * 3 + [0.5] * 3 + [0.25] * 3


def test_samplers_draw_the_resolution(searched: Store) -> None:
    drawn = {entry: searched.trial_log(f"searched/{entry}").complete() for entry in ("tpe", "random", "nsga2", "whole")}
    assert drawn["tpe"][0].user_attrs["schedule"] == "step(layer=2, keep=0.5, resolution=0.5)"
    assert {trial.params["resolution"] for trial in drawn["tpe"]} == {1.0, 0.5, 0.25}
    assert len({trial.params["resolution"] for trial in drawn["nsga2"]}) > 1
    assert {trial.params["resolution"] for trial in drawn["random"]} == {0.5}
    assert all("resolution" not in trial.params for trial in drawn["whole"])


def test_what_is_measured_is_the_model_on_smaller_pictures(searched: Store) -> None:
    """Score, counts and FLOPs are those of a study with small pictures only; shares are of the whole pictures."""
    by_text = {t.user_attrs["schedule"]: t for t in searched.trial_log("searched/grid").complete()}
    small = vispco.Evaluator(
        vispco.Problem.from_text(STUDY.replace("SHARE", "0.5").replace("calibration: 16", "calibration: 1"))
    )
    whole = vispco.Evaluator(
        vispco.Problem.from_text(STUDY.replace("SHARE", "1").replace("calibration: 16", "calibration: 1"))
    )
    schedules = [Step(1, 0.5), Step(2, 0.0), Step(1, 1.0)]
    for schedule, expected in zip(schedules, small.evaluate(schedules, "search"), strict=True):
        trial = by_text[AtResolution(schedule, 0.5).text()]
        assert trial.values[0] == expected.accuracy
        assert trial.user_attrs["charged_flops"] == expected.flops
        assert trial.user_attrs["keep_ratio"] == list(expected.keep_ratio)
        assert trial.user_attrs["evaluation"] != expected.id
        (part,), (counts,) = whole.prepared("search"), small.counts(schedule, "search")
        (few,) = small.prepared("search")
        shape = small.problem.shape
        pruned = prefill_flops(shape, counts, few.n_visual, few.n_text, small.problem.default_method)
        assert trial.values[1] == (pruned / unpruned_flops(shape, part.n_visual, part.n_text)).mean()
    assert by_text["step(layer=1, keep=1.0, resolution=0.5)"].values[1] < 0.7


def test_the_parts_of_a_price_are_those_of_its_own_pictures() -> None:
    evaluator = vispco.Evaluator(vispco.Problem.from_text(SEARCHED.replace("few", "step")))
    small, whole = (AtResolution(Step(1, 0.5), share) for share in (0.5, 1.0))
    parts = evaluator.prices(small, [4, 12])
    assert sum(parts) == evaluator.price(small) == evaluator.evaluate([small], "search")[0].flops
    assert all(0 < part < more for part, more in zip(parts, evaluator.prices(whole, [4, 12]), strict=True))


def test_other_costs_count_the_tower_at_its_resolution(searched: Store) -> None:
    comparison = Comparison(searched, "searched")
    pricing = Pricing(comparison)
    grid = next(search for search in comparison.searches if search.name == "grid")
    at = {trial.user_attrs["schedule"]: pricing.of("total_flops", grid, trial) for trial in grid.trials}
    problem = vispco.Problem.from_text(STUDY.replace("SHARE", "0.5"))
    part = vispco.Evaluator(problem).prepared("search")[0]
    setting = Setting.of(
        problem.adapter, vision_flops=vision_flops(problem), answer_tokens=16, method=problem.default_method
    )
    counts = Step(1, 0.5).counts(part.n_visual, problem.shape.layers)
    expected = COSTS["total_flops"]().of(setting, counts, part.n_visual, part.n_text).mean()
    price = at["step(layer=1, keep=0.5, resolution=0.5)"]
    assert price is not None
    assert price.absolute == pytest.approx(expected, rel=1e-9)
    assert price.share == pytest.approx(expected / pricing.unpruned("total_flops"), rel=0.02)
    assert at["step(layer=1, keep=1.0)"].share == 1.0
    assert Repriced(searched, "searched", "total_flops").facts["floor"] < 1


def test_what_is_shown_as_kept_is_of_the_whole_picture(searched: Store) -> None:
    """Smaller pictures have fewer tokens, also where none is pruned; a file has the schedule's own ratios."""
    comparison = Comparison(searched, "searched")
    grid = next(search for search in comparison.searches if search.name == "grid")
    kept = {trial.user_attrs["schedule"]: comparison.kept(grid, trial) for trial in grid.trials}
    whole, small = (kept[f"step(layer=1, keep=1.0{end})"] for end in ("", ", resolution=0.5"))
    assert whole[0] == 1.0
    assert whole[0] > small[0] == small[-1] > 0
    shown = [point for search in comparison.to_dict()["searches"] for point in search["front"]]
    assert all(point["keep_ratio"][0] < 1 for point in shown if "resolution=" in point["schedule"])
    told = [row for entry in layer_record(comparison)["learned"] for row in entry["rows"] if row["keep_ratio"]]
    assert all(row["keep_ratio"][0] < 1 for row in told if "resolution=" in str(row["schedules"]))
    assert export_schedule(comparison, 0.2)["keep_ratio"][0] == 1.0


def test_a_second_run_adds_nothing_and_an_export_names_the_resolution(searched: Store) -> None:
    assert Run(vispco.Problem.from_text(SEARCHED), searched).run() == 0
    comparison = Comparison(searched, "searched")
    assert any(
        "resolution=" in point["schedule"] for search in comparison.to_dict()["searches"] for point in search["front"]
    )
    exported = export_schedule(comparison, 0.2)
    share = resolution_of(parse_schedule(exported["schedule"]))
    assert share in (0.5, 0.25)
    assert exported["accuracy_held_out"] is not None


def test_smaller_pictures_are_made_by_the_user() -> None:
    model, _ = vispco.load_model("demo-qwen")
    with (
        pytest.raises(ScheduleError, match=r"for smaller pictures.* vispco\.rescaled\(processor, images, 0\.5\)"),
        vispco.prune(model, schedule="step(layer=2, keep=0.5, resolution=0.5)"),
    ):
        pass
    with (
        pytest.warns(UserWarning, match="no prompt"),
        vispco.prune(model, schedule="step(layer=2, keep=0.5, resolution=1)"),
    ):
        pass


def test_text_of_a_resolution() -> None:
    for text in ("step(layer=2, keep=0.5, resolution=0.5)", "ratios(1.0, 0.5, resolution=0.25)"):
        assert parse_schedule(text).text() == text
    assert parse_schedule("step(2, 0.5, resolution=0.5)") == AtResolution(Step(2, 0.5), 0.5)
    for wrong in ("0", "1.5", "'half'", "(0.5, 1.0)", "True"):
        with pytest.raises(ScheduleError, match="resolution is"):
            parse_schedule(f"step(layer=2, keep=0.5, resolution={wrong})")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: tpe, trials: 14", "kind: lagrangian"), "searches.tpe: kind 'lagrangian' cannot search the resolution"),
        (("family: few", "race: {}"), "searches.grid: a race compares schedules on equal prompts"),
        (("model: demo-qwen", "model: {name: demo-qwen, resolution: 0.5}"), "give one of the two"),
        (("[0.5, 1.0, 0.25]", "[0.5, 0.5]"), "resolutions repeat"),
        (("[0.5, 1.0, 0.25]", "[0.0]"), "resolution.0 = 0.0"),
    ],
)
def test_resolutions_that_cannot_be_searched(few: None, change: tuple[str, str], message: str) -> None:
    text = SEARCHED.replace(*change).replace(', enqueue: ["step(layer=2, keep=0.5, resolution=0.5)"]', "")
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(vispco.Problem.from_text(text))


def test_a_study_without_resolutions_is_what_it_was() -> None:
    plain, searched = parse_study(SMALL), parse_study(SMALL.replace("budgets: 3", "budgets: 3\nresolution: [1.0, 0.5]"))
    assert "resolution" not in plain.identity()
    assert "resolution" not in plain.searches["grid"].model_dump()
    assert searched.identity()["resolution"] == [1.0, 0.5]
    assert plain.spec_hash() != searched.spec_hash()


def test_the_models_page_runs() -> None:
    (code,) = blocks("docs/own.md", "python")
    exec(compile(code, "docs/own.md", "exec"), {})
