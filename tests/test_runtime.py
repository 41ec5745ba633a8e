"""What the conformance suites do not reach: videos, long prompts, windows, odd ways to generate, refusals."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PixtralVisionConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.cache_utils import DynamicSlidingWindowLayer

import vispco
from conftest import make_batch
from vispco.errors import ModelError, ScheduleError
from vispco.models.families import adapter_for
from vispco.models.grids import Grid
from vispco.pruning.cache import Kept, PrunedLayer
from vispco.pruning.forward.shared import SharedPrefill
from vispco.pruning.refusals import refuse_uncuttable
from vispco.pruning.schedules import Ratios, Step, keep_count
from vispco.testing import checks
from vispco.testing.tiny import LAYERS, TINY

VIDEOS = ["llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["fastv", "fitprune", "sparsevlm", "random", "stride"])
@pytest.mark.parametrize("name", VIDEOS)
def test_video_and_picture_in_one_prompt(name: str, method: str, side: str) -> None:
    tiny: Any = TINY[name]
    batch, chosen = tiny.video_batch(side), vispco.make_method(method)
    schedule = Ratios([1, 0.8, 0.4, 0.1])
    checks.check_keep_one(tiny.model(), batch, chosen)
    checks.check_dropping(tiny.model(), batch, chosen, schedule)
    if side == "left":
        checks.check_generation(tiny, batch, chosen, schedule)


@pytest.mark.parametrize("name", VIDEOS)
def test_features_and_coordinates_of_a_video(name: str) -> None:
    tiny: Any = TINY[name]
    model, batch = tiny.model(), tiny.video_batch()
    adapter = adapter_for(model)
    visual = adapter.visual_mask(batch["input_ids"], None)
    with torch.no_grad():
        given = adapter.with_features(batch, adapter.encode_images(batch))
        assert torch.equal(model(**given).logits, model(**batch).logits)
    places = adapter.coordinates(batch, visual)[0, visual[0]]
    video, picture = places[: -tiny.picture_tokens], places[-tiny.picture_tokens :]
    onevision = name == "llava_onevision"
    assert len(set(map(tuple, video.tolist()))) == len(video) == (3 * 4 + 1 if onevision else 18)
    assert video.amax(0).tolist() == [0, 2, 1, 2]  # the newline behind OneVision's 2 x 2 cells is in column 2
    assert picture.amax(0).tolist() == ([2, 0, 2, 4] if onevision else [1, 0, 1, 5])
    # ``generate`` gives the model features instead of pixels, and no table of sizes.
    kept = []
    with torch.no_grad(), vispco.prune(model, method="pool", schedule=Ratios([1, 0.5, 0.3, 0.1])) as session:
        for run in (lambda: model(**batch), lambda: model.generate(**batch, max_new_tokens=1)):
            run()
            kept.append([session.kept(layer) for layer in range(LAYERS)])
    assert kept[0] == kept[1]


def test_features_without_their_grids_are_one_row_of_cells() -> None:
    adapter = adapter_for(TINY["qwen2_5_vl"].model())
    assert adapter.grids({}, [5, 7]) == [Grid(1, 1, 5), Grid(1, 1, 7)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_several_thousand_visual_tokens(name: str) -> None:
    """Many pictures in one row, longer than any table or block inside; dropping still equals masking."""
    tiny = TINY[name]
    pictures = 4096 // tiny.picture_tokens
    batch = tiny.batch([(3, pictures, 5)])
    assert int(adapter_for(tiny.model()).visual_mask(batch["input_ids"], None).sum()) >= 4000
    with torch.no_grad(), vispco.prune(tiny.model(), method="fastv", schedule=Step(2, 0.1)) as session:
        logits = tiny.model()(**batch, use_cache=False, logits_to_keep=1).logits
    kept = [session.kept(layer) for layer in range(LAYERS)]
    with torch.no_grad(), checks.hidden_from(tiny.model(), batch, kept):
        reference = tiny.model()(**batch, use_cache=False, logits_to_keep=1).logits
    assert float((logits - reference).abs().max()) <= 1e-3


@pytest.mark.parametrize("method", ["fastv", "fitprune", "sparsevlm", "random"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gemma_with_a_prompt_several_windows_long(method: str, attention: str) -> None:
    """Window 12; prompt of 90 tokens, cut to about 40; 16 new tokens, so that the window passes the prompt's end."""
    tiny = TINY["gemma3"]
    tiny.model().set_attn_implementation(attention)
    try:
        batch = tiny.batch([(9, 3, 20), (2, 4, 11), (30, 0, 5)])
        assert batch["input_ids"].shape[1] > 5 * 12
        for schedule in (Ratios([1, 0.7, 0.4, 0.2]), Step(1, 0.05), Step(3, 0.0)):
            checks.check_generation(tiny, batch, vispco.make_method(method), schedule, steps=16)
    finally:
        tiny.model().set_attn_implementation("sdpa")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@torch.no_grad()
def test_no_answer_is_read_behind_a_picture_that_may_be_gone(name: str) -> None:
    """The last token's row would be empty, and its logits those of nothing."""
    tiny = TINY[name]
    model, said = (
        tiny.model(),
        "ends with a visual token, which the schedule may drop, .*; put text after the picture.*",
    )
    batch, text_behind = tiny.batch([(4, 1, 0)]), tiny.batch([(4, 1, 1)])
    settings: dict[str, Any] = {"max_new_tokens": 3, "suppress_tokens": [4, 5]}
    plain = model.generate(**batch, **settings)
    with vispco.prune(model, method="random", schedule=Step(1, 0.5)):
        for how in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"do_sample": True}):
            with pytest.raises(ModelError, match=f"^(the prompt|prompt 1 of 2) {said}$"):
                model.generate(**batch, **settings, **how)
        with pytest.raises(ModelError, match=f"^prompt 2 of 3 {said}"):
            model(**tiny.batch([(3, 1, 5), (4, 1, 0), (2, 2, 0)]), logits_to_keep=1)
        model(**tiny.batch([(3, 1, 5), (6, 0, 2)]), logits_to_keep=1)
        model.generate(**text_behind, **settings)
        model(**batch)  # all rows are asked for; those of dropped tokens are zero, as documented
    with vispco.prune(model, method="random", schedule=Step(1, 1.0), gather_always=True):
        assert torch.equal(model.generate(**batch, **settings), plain)
    shared = SharedPrefill(adapter_for(model), vispco.make_method("random"), np.array([[[8, 8, 8, 0]], [[8] * 4]]))
    with pytest.raises(ModelError, match=f"^the prompt {said}"):
        list(shared.logits({**tiny.batch([(4, 1, 0)])}))


@pytest.mark.parametrize("method", ["fastv", "random"])
@torch.no_grad()
def test_a_loss_is_that_of_the_masked_model_or_refused(method: str, tiny_llava: Any) -> None:
    """A label behind a dropped token would be foretold by nothing."""
    batch = make_batch([(3, 1, 5), (1, 1, 9)])
    answers = batch["input_ids"].clone()
    answers[:, :-4] = -100
    text = batch["input_ids"].masked_fill(adapter_for(tiny_llava).visual_mask(batch["input_ids"], None), -100)
    with vispco.prune(tiny_llava, method=method, schedule=Ratios([1, 0.5, 0.5, 0.25])) as session:
        loss = tiny_llava(**batch, labels=answers).loss
        kept = [session.kept(layer) for layer in range(LAYERS)]
        with pytest.raises(ModelError, match=r"^\d+ labels stand after visual tokens that were dropped, .* -100"):
            tiny_llava(**batch, labels=batch["input_ids"])
        visual = adapter_for(tiny_llava).visual_mask(batch["input_ids"], None)
        gone = sum(int(row.nonzero()[-1]) not in left for row, left in zip(visual, kept[-1], strict=True))
        assert gone, "else nothing is shown"
        with pytest.raises(ModelError, match=f"^{gone} labels stand after"):
            tiny_llava(**batch, labels=text)
    with vispco.prune(tiny_llava, method=method, schedule=Step(1, 1.0), gather_always=True):
        assert float((tiny_llava(**batch, labels=text).loss).abs()) > 0
    with checks.hidden_from(tiny_llava, batch, kept):
        assert float((loss - tiny_llava(**batch, labels=answers).loss).abs()) <= 1e-4


@torch.no_grad()
def test_without_a_cache_every_step_is_a_prefill(tiny_llava: Any) -> None:
    batch, tiny = make_batch([(3, 1, 5)]), TINY["llava"]
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [4, 5]}
    with vispco.prune(tiny_llava, method="fastv", schedule=Step(1, 0.25)) as session:
        found = tiny_llava.generate(**batch, **settings, use_cache=False)[:, batch["input_ids"].shape[1] :]
        assert session.prefills == 4
        for step in range(4):
            longer = tiny.extend(batch, found[:, :step]) if step else batch
            logits = tiny_llava(**longer, use_cache=False).logits[0, -1]
            logits[[2, 4, 5]] = -torch.inf  # the end token too
            assert int(logits.argmax()) == int(found[0, step])


class PerSample:
    """A policy that reads the prompt: samples with louder embeddings keep more."""

    def counts(self, n_visual: Any, layers: int, context: Any = None) -> Any:
        assert context is not None
        loud = context.embeddings.norm(dim=-1).mean(dim=1).numpy()
        keep = np.where(loud > np.median(loud), 0.75, 0.25)
        kept = (n_visual * keep).astype(np.int64)
        return np.stack([n_visual, *[kept] * (layers - 1)], axis=1)


def test_a_policy_may_give_every_sample_its_own_schedule(tiny_llava: Any) -> None:
    batch = make_batch([(3, 1, 5), (1, 1, 9), (2, 1, 3)])
    with torch.no_grad(), vispco.prune(tiny_llava, schedule=PerSample()) as session:
        logits = tiny_llava(**batch, use_cache=False).logits
    assert session.counts is not None
    assert set(session.counts[:, 1].tolist()) == {4, 12}
    kept = [session.kept(layer) for layer in range(LAYERS)]
    with torch.no_grad(), checks.hidden_from(tiny_llava, batch, kept):
        reference = tiny_llava(**batch, use_cache=False).logits
    where = checks.text_places(tiny_llava, batch)
    assert float((logits - reference)[where].abs().max()) <= 1e-4


@pytest.mark.parametrize(
    "bad",
    [lambda n: np.zeros((len(n), 3)), lambda n: np.stack([n - 3, n, n, n], 1), lambda n: np.stack([n - 90] * 4, 1)],
)
def test_policies_that_break_the_contract_are_refused(tiny_llava: Any, bad: Any) -> None:
    class Bad:
        def counts(self, n_visual: Any, layers: int, context: Any = None) -> Any:
            return bad(n_visual)

    with pytest.raises(ScheduleError, match="never rising over layers"), vispco.prune(tiny_llava, schedule=Bad()):
        tiny_llava(**make_batch([(3, 1, 5)]))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}])
def test_beams_and_samples_share_their_prompts_tokens(name: str, how: dict[str, Any]) -> None:
    """At keep 1 with every gather active the sequences are the plain model's; pruned, beams score as recomputed."""
    tiny = TINY[name]
    model, batch = tiny.model(), tiny.batch([(3, 1, 5), (1, 1, 9)])

    def generate() -> Any:
        torch.manual_seed(0)
        return model.generate(**batch, max_new_tokens=6, suppress_tokens=[4, 5], **how)

    plain = generate()
    with vispco.prune(model, schedule=Step(1, 1.0), gather_always=True):
        assert torch.equal(generate(), plain)
    with vispco.prune(model, schedule=Step(1, 0.25)) as session:
        generate()
    assert session.counts is not None
    assert session.counts[:, 1].tolist() == [keep_count(0.25, tiny.picture_tokens)] * len(session.counts)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_decoding_by_hand_without_positions(name: str) -> None:
    """A cache from a pruned prefill, continued token by token and several at once, also when layer 0 was cut."""
    tiny = TINY[name]
    model, batch = tiny.model(), tiny.batch([(3, 1, 5)])
    prompt = {key: value for key, value in batch.items() if key != "attention_mask"}
    new = torch.tensor([[11, 12, 13]])
    for method, schedule in (("fastv", Step(1, 0.25)), ("random", Ratios([0.5, 0.5, 0.25, 0]))):
        found = []
        for parts in ([1, 1, 1], [2, 1]):
            with torch.no_grad(), vispco.prune(model, method=method, schedule=schedule) as session:
                out, logits, at = model(**prompt), [], 0
                for size in parts:
                    out = model(input_ids=new[:, at : at + size], past_key_values=out.past_key_values)
                    logits.append(out.logits)
                    at += size
            found.append(torch.cat(logits, 1))
        kept = [session.kept(layer) for layer in range(LAYERS)]
        longer = tiny.extend(batch, new)
        with torch.no_grad(), checks.hidden_from(model, longer, kept):
            reference = model(**longer, use_cache=False).logits[:, -3:]
        for logits in found:
            assert float((logits - reference).abs().max()) <= 1e-4


def test_two_conversations_may_decode_in_turn(tiny_llava: Any) -> None:
    """Each cache keeps its own tokens, whichever was prefilled last."""
    batches = [make_batch([(3, 1, 5)], seed=seed) for seed in (0, 1)]

    def step(caches: list[Any], number: int) -> torch.Tensor:
        return tiny_llava(input_ids=torch.tensor([[11]]), past_key_values=caches[number]).logits

    with torch.no_grad(), vispco.prune(tiny_llava, schedule=Step(1, 0.25)):
        alone = [step([tiny_llava(**batch).past_key_values], 0) for batch in batches]
        caches = [tiny_llava(**batch).past_key_values for batch in batches]
        assert torch.equal(step(caches, 0), alone[0])
        assert torch.equal(step(caches, 1), alone[1])


def test_embeddings_instead_of_ids(tiny_llava: Any) -> None:
    batch = make_batch([(3, 1, 5)])
    embedded = {
        "inputs_embeds": tiny_llava.get_input_embeddings()(batch["input_ids"]),
        "attention_mask": batch["attention_mask"],
        "pixel_values": batch["pixel_values"],
    }
    with torch.no_grad(), vispco.prune(tiny_llava, schedule=Step(1, 0.25)):
        assert torch.equal(tiny_llava(**embedded).logits, tiny_llava(**batch).logits)


def test_embeddings_with_features_in_them_are_warned_about(tiny_llava: Any) -> None:
    batch = make_batch([(3, 1, 5)])
    merged = tiny_llava.get_input_embeddings()(batch["input_ids"])
    merged[batch["input_ids"] == tiny_llava.config.image_token_id] += 1
    given = {"inputs_embeds": merged, "attention_mask": batch["attention_mask"]}
    with torch.no_grad(), vispco.prune(tiny_llava, schedule=Step(1, 0.25)):
        with pytest.warns(UserWarning, match="nothing is pruned.*input_ids"):
            tiny_llava(**given)


def test_sample_keys_are_those_of_rows(tiny_llava: Any) -> None:
    one = make_batch([(3, 1, 5)])
    batch = {name: torch.cat([values] * 4) for name, values in one.items()}
    with torch.no_grad(), vispco.prune(tiny_llava, method="random", schedule=Step(1, 0.5)) as session:
        tiny_llava(**batch)
        assert len(set(map(tuple, session.kept(1)))) == 1, "rows with equal tokens are one sample"
        session.sample_keys = [1, 2]
        tiny_llava(**batch)
        first, beside, second, last = session.kept(1)
        assert first == beside != second == last
        session.sample_keys = [1, 2, 3]
        with pytest.raises(ModelError, match="3 sample_keys for a batch of 4 rows"):
            tiny_llava(**batch)


def test_hidden_states_have_the_lengths_that_layers_worked_on(tiny_llava: Any) -> None:
    batch = make_batch([(3, 1, 5)])
    with torch.no_grad(), vispco.prune(tiny_llava, schedule=Step(1, 0.25)):
        out = tiny_llava(**batch, output_hidden_states=True)
    length = batch["input_ids"].shape[1]
    assert [hidden.shape[1] for hidden in out.hidden_states] == [length, length, *[length - 12] * 3]
    assert out.logits.shape[1] == length


def test_bfloat16_runs_and_stays_near(tiny_llava: Any) -> None:
    model = TINY["llava"].build().to(torch.bfloat16)
    batch = make_batch([(3, 1, 5), (1, 1, 9)])
    with torch.no_grad(), vispco.prune(model, method="fitprune", schedule=Step(1, 0.5)) as session:
        logits = model(**{**batch, "pixel_values": batch["pixel_values"].bfloat16()}).logits
    with torch.no_grad(), vispco.prune(tiny_llava, method="fitprune", schedule=Step(1, 0.5)) as exact:
        reference = tiny_llava(**batch).logits
    assert logits.dtype == torch.bfloat16
    assert len(set(session.kept(1)[0]) & set(exact.kept(1)[0])) >= 6
    assert float((logits.float() - reference)[:, -1].abs().mean()) < 0.5


def test_refusals(tiny_llava: Any) -> None:
    batch = make_batch([(3, 1, 5)])
    with pytest.raises(ScheduleError, match="layers 0 to 3"), vispco.prune(tiny_llava, schedule=Step(4, 0.5)):
        pass
    with pytest.raises(ScheduleError, match="prune needs schedule="), vispco.prune(tiny_llava):
        pass
    with vispco.prune(tiny_llava, schedule=Step(1, 0.5)):
        with pytest.raises(ModelError, match="already inside"), vispco.prune(tiny_llava, schedule=Step(1, 0.5)):
            pass
    with (
        pytest.raises(ModelError, match=r"'Linear'; known families: gemma3, gemma4, .*docs/extending.md"),
        vispco.prune(torch.nn.Linear(1, 1), schedule=Step(1, 1)),
    ):
        pass
    with vispco.prune(tiny_llava, schedule=Step(1, 0.5)), torch.no_grad():
        with pytest.raises(ModelError, match="StaticCache has a fixed size"):
            tiny_llava.generate(**batch, max_new_tokens=2, cache_implementation="static")
        cache = tiny_llava(input_ids=torch.tensor([[9, 9]])).past_key_values
        with pytest.raises(ModelError, match="visual tokens arrive after a filled cache"):
            tiny_llava(**{**batch, "attention_mask": None}, past_key_values=cache)


def test_flash_attention_does_not_see_past_a_window() -> None:
    """No flash kernel here; what is refused, and why, does not need one."""
    adapter = adapter_for(TINY["gemma3"].model())
    with pytest.raises(ModelError, match="count a sliding window in cache entries"):
        refuse_uncuttable(adapter, "flash_attention_2", None, 13)
    refuse_uncuttable(adapter, "flash_attention_2", None, 12)
    with pytest.raises(ModelError, match="'flex_attention' is not supported"):
        refuse_uncuttable(adapter, "flex_attention", None, 5)
    layer = PrunedLayer(DynamicSlidingWindowLayer(sliding_window=12))
    layer.kept = Kept(torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool), 8, torch.tensor(2))
    layer.length = 11
    assert layer.mask(None, 1, "flash_attention_2", torch.zeros(1, 1, 4)) is None
    layer.length = 12
    with pytest.raises(ModelError, match="at place 13 they would see past the window of 12"):
        layer.mask(None, 1, "flash_attention_2", torch.zeros(1, 1, 4))


def test_packed_rows_are_refused(tiny_llava: Any) -> None:
    """Two prompts in one row: their positions begin again."""
    batch = make_batch([(3, 1, 5)])
    length = batch["input_ids"].shape[1]
    one = {key: value[:1] for key, value in batch.items() if key != "attention_mask"}
    positions = torch.cat([torch.arange(length // 2), torch.arange(length - length // 2)])[None]
    with torch.no_grad(), vispco.prune(tiny_llava, schedule=Step(1, 0.5)):
        tiny_llava(**one, position_ids=torch.arange(length)[None])
        with pytest.raises(ModelError, match="holds several prompts"):
            tiny_llava(**one, position_ids=positions)


def test_a_loss_outside_of_the_model_is_warned_of(tiny_llava: Any) -> None:
    with vispco.prune(tiny_llava.train(), schedule=Step(1, 0.5)), pytest.warns(UserWarning, match="label smoothing"):
        tiny_llava(**make_batch([(3, 1, 5)]))
    tiny_llava.eval()


def test_the_cells_of_pictures_follow_their_tower() -> None:
    """SigLIP has no CLS token among its features; what a Pixtral tower made of a picture LLaVA does not say."""
    model = TINY["llava"].build()
    model.config.vision_feature_select_strategy = "full"
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    adapter = adapter_for(model)
    assert adapter.grids({}, [side * side + 1]) == [Grid(1, 1, side * side + 1)]
    model.model.vision_tower = SiglipVisionModel(
        SiglipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    assert adapter.grids({}, [side * side] * 2) == [Grid(1, side, side)] * 2
    model.config.vision_config = PixtralVisionConfig()
    with pytest.raises(ModelError, match="a Pixtral tower makes another grid"):
        adapter.grids({}, [side * side])


@pytest.mark.parametrize("name", [name for name in TINY if name.startswith("qwen3_5")])
def test_a_pruned_cache_with_recurrent_states_is_not_cropped(name: str) -> None:
    """What a recurrence has read cannot be taken back; a copy made before goes on as if nothing had followed."""
    tiny: Any = TINY[name]
    model, batch = tiny.model(), tiny.batch([(3, 1, 5)])
    new = torch.tensor([[7], [8]])
    with torch.no_grad(), vispco.prune(model, method="random", schedule=Step(1, 0.5)):
        cache = model(**batch, use_cache=True).past_key_values
        kept = copy.deepcopy(cache)
        expected = model(input_ids=new[:1], past_key_values=copy.deepcopy(cache)).logits
        cache.activate_past_recording()
        model(input_ids=new[1:], past_key_values=cache)
        with pytest.raises(ModelError, match=r"crop\(-1\) cannot take back"):
            cache.crop(-1)
        assert torch.allclose(model(input_ids=new[:1], past_key_values=kept).logits, expected, atol=1e-5)
