"""The official VisPCO code's search: golden values, direct references, and a whole run on the demo model."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import vispco
from conftest import Told, fresh
from pages import blocks
from vispco.config import parse_study
from vispco.costs import layer_flops, official_layer_macs
from vispco.errors import ConfigError, DataError, ModelError
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.prepared import Batch
from vispco.experiment.run import Run
from vispco.experiment.validation import validate
from vispco.models.families import adapter_for
from vispco.models.shapes import ModelShape
from vispco.official import relaxed as official
from vispco.official import training as official_training
from vispco.official.predictor import OfficialPolicy, RatioPredictor, make_kernel, official_counts
from vispco.official.search import OfficialOptions, OfficialSearch, hyperparameters
from vispco.official.training import (
    BUDGETS,
    Collated,
    Example,
    Hyperparameters,
    Multipliers,
    OfficialTraining,
    collate,
    examples,
    learning_rate,
)
from vispco.problem import Problem
from vispco.pruning.families import FAMILIES
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import parse_schedule
from vispco.storage.store import Store
from vispco.storage.trials import TrialLog
from vispco.testing import checks
from vispco.testing.tiny import LAYERS, TINY

ROWS = [(3, 1, 5), (1, 1, 9), (2, 2, 3)]
ATTENTIVE = [name for name in TINY if "qwen3_5" not in name]  # the others have layers without attention


# --- kernel, score, threshold, mask -----------------------------------------------------------------


def test_kernel() -> None:
    ratios = official.step_kernel(torch.tensor([4.0, 0.0]), torch.tensor([0.5, 0.2]), 8)
    assert ratios[0, 3:6].tolist() == pytest.approx([0.99998, 0.75, 0.50002], abs=5e-6)
    assert ratios[1, :2].tolist() == pytest.approx([0.6, 0.20004], abs=5e-6)  # r_0 may be below 1


def test_scores() -> None:
    """Scaled over the whole row, the sink at place 0 included; other tokens stand at ln 1000."""
    row = torch.tensor([[0.5, 0.1, 0.3, 0.1]])
    scores = official.log_scores(row, torch.tensor([[False, True, True, False]]))
    assert scores[0].tolist() == pytest.approx([math.log(1000), math.log(1e-8), math.log(0.5), math.log(1000)], 1e-5)


def test_ties_send_their_gradient_to_one_of_them() -> None:
    """The first of the least scores is the scale's own zero: no gradient reaches it, the second gets all."""
    row = torch.tensor([[0.5, 0.1, 0.1, 0.3]], requires_grad=True)
    (gradient,) = torch.autograd.grad(official.log_scores(row, torch.ones(1, 4, dtype=torch.bool))[0, 1], [row])
    assert gradient.abs().max() == 0
    (other,) = torch.autograd.grad(official.log_scores(row, torch.ones(1, 4, dtype=torch.bool))[0, 2], [row])
    assert other[0].tolist() == pytest.approx([0, -2.5e8, 2.5e8, 0], rel=1e-5)


def test_scores_thresholds_and_masks_are_in_the_models_dtype() -> None:
    """In bfloat16 most masks are others than in float32."""
    flipped = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        row = (2 * torch.randn(1, 640, generator=generator)).softmax(-1).bfloat16()
        visual = torch.arange(640)[None] < 576
        ratio = torch.rand(1, generator=generator).bfloat16()
        scores = official.log_scores(row, visual)
        tau = official.soft_threshold(scores, ratio * 576 + 64)
        mask = official.keep_mask(scores, visual, ratio)
        assert scores.dtype == tau.dtype == mask.dtype == torch.bfloat16
        wide = official.keep_mask(official.log_scores(row.float(), visual), visual, ratio.float())
        flipped += not torch.equal(mask > 0.5, wide > 0.5)
    assert flipped > 40


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_bfloat16_student_has_bfloat16_masks(family: str) -> None:
    model, batch = copy.deepcopy(TINY[family].model()).to(torch.bfloat16), TINY[family].batch(ROWS, "right")
    batch = {key: value.bfloat16() if value.is_floating_point() else value for key, value in batch.items()}
    adapter = adapter_for(model)
    visual, valid = adapter.visual_mask(batch["input_ids"], None), batch["attention_mask"].bool()
    ratios = torch.full((len(ROWS), LAYERS), 0.5)
    with torch.no_grad(), official.official_relaxed(adapter, ratios, visual, valid) as session:
        model(**batch, use_cache=False)
    assert {mask.dtype for mask in session.masks} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "idefics3"])
def test_pads_are_at_position_one(family: str) -> None:
    model, batch = TINY[family].model(), TINY[family].batch(ROWS, "right")
    adapter, seen = adapter_for(model), []
    visual, valid = adapter.visual_mask(batch["input_ids"], None), batch["attention_mask"].bool()

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["position_ids"])

    with torch.no_grad(), official.official_relaxed(adapter, torch.ones(len(ROWS), LAYERS), visual, valid):
        handle = adapter.decoder().register_forward_pre_hook(look, with_kwargs=True)
        model(**batch, use_cache=False)
        handle.remove()
    places = seen[0][-1] if seen[0].dim() == 3 else seen[0]
    assert (~valid).any()
    assert (places[~valid] == 1).all()


def test_layers_without_attention_are_refused() -> None:
    model, batch = TINY["qwen3_5"].model(), TINY["qwen3_5"].batch(ROWS, "right")
    adapter = adapter_for(model)
    visual, valid = adapter.visual_mask(batch["input_ids"], None), batch["attention_mask"].bool()
    with pytest.raises(ModelError, match="layers of another kind; use kind: lagrangian"):
        with official.official_relaxed(adapter, torch.ones(len(ROWS), LAYERS), visual, valid):
            pass


def test_threshold_and_mask_by_hand() -> None:
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    weights = [math.exp(-((j - 2) ** 2) / 5) for j in range(4)]
    tau = (4 * weights[0] + 3 * weights[1] + 2 * weights[2] + 1 * weights[3]) / sum(weights)
    assert tau == pytest.approx(2.29113, abs=1e-5)
    assert float(official.soft_threshold(scores, torch.tensor([2.0]))) == pytest.approx(tau, abs=1e-6)
    # K = r N_v + (N - N_v): two visual tokens at ratio 0.5 behind two others are three tokens of four.
    visual = torch.tensor([[True, True, False, False]])
    ranked = torch.tensor([[1.0, -3.0, 6.9, 6.9]])
    ratio = torch.tensor([0.5], requires_grad=True)
    mask = official.keep_mask(ranked, visual, ratio)
    assert mask.tolist() == [[1.0, 0.0, 1.0, 1.0]]

    def soft(r: float) -> float:
        weights = [math.exp(-((j - (2 * r + 2)) ** 2) / 5) for j in range(4)]
        tau = sum(w * s for w, s in zip(weights, [6.9, 6.9, 1.0, -3.0], strict=True)) / sum(weights)
        return sum(1 / (1 + math.exp(-(s - tau) / 0.1)) for s in (1.0, -3.0))

    (slope,) = torch.autograd.grad(mask[:, :2].sum(), [ratio])
    assert float(slope) == pytest.approx((soft(0.501) - soft(0.499)) / 0.002, rel=1e-2)


def test_ratio_one_still_drops_the_tail() -> None:
    """Oddity 26: K = N lies behind the last place."""
    scores = torch.linspace(0, -7, 8)[None]
    mask = official.keep_mask(scores, torch.ones(1, 8, dtype=torch.bool), torch.ones(1))
    assert mask[0].tolist() == [1.0] * 7 + [0.0]


# --- attention --------------------------------------------------------------------------------------


def dense_attention(logits: Any, weights: Any) -> Any:
    """[N, N] in loops and double precision."""
    size = len(weights)
    found = np.zeros((size, size))
    for query in range(size):
        e = [
            math.exp(logits[query][key] - max(logits[query])) * (1.0 if key == query else weights[key])
            for key in range(size)
        ]
        found[query] = [(value + 1e-6 / size) / (sum(e) + 1e-6) for value in e]
    return found


def test_masked_softmax_against_loops() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, 6).masked_fill(~torch.ones(6, 6).tril().bool(), torch.finfo(torch.float32).min)
    weights = torch.tensor([[1.0, 0.0, 1.0, 0.3, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]])
    found = official.masked_softmax(logits, weights)
    for sample in range(2):
        for head in range(3):
            expected = dense_attention(logits[sample, head].tolist(), weights[sample].tolist())
            assert np.abs(found[sample, head].numpy() - expected).max() <= 1e-6
    # A masked key and a future one keep eps / N of the row.
    assert found[0, 0, 2, 1] == found[0, 0, 2, 5] > 0
    assert found[0, 0, 1, 1] > 0.01  # its own key is never masked


def reference_forward(model: Any, batch: Any, ratios: torch.Tensor) -> torch.Tensor:
    """Hidden states of the official student, written out for Llama: [B, N, H] before the final norm."""
    decoder, valid = model.model.language_model, batch["attention_mask"].bool()
    visual = batch["input_ids"] == model.config.image_token_id
    features = torch.cat(list(model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output))
    hidden = decoder.embed_tokens(batch["input_ids"]).masked_scatter(visual[..., None], features)
    size = hidden.shape[1]
    seen = torch.ones(size, size).tril().bool() & valid[:, None]
    cos_sin = decoder.rotary_emb(hidden, torch.arange(size).expand(valid.shape).masked_fill(~valid, 1))
    policy = valid.float()
    attention = torch.zeros(0)
    for number, layer in enumerate(decoder.layers):
        if number:
            row = attention.mean(dim=1)[:, -1]
            low, high = row.min(1, keepdim=True).values, row.max(1, keepdim=True).values
            scores = torch.where(visual, torch.log((row - low) / (high - low + 1e-8) + 1e-8), math.log(1000))
            keep = torch.zeros_like(scores)
            for b in range(len(scores)):
                count = float(ratios[b, number]) * int(visual[b].sum()) + size - int(visual[b].sum())
                falling = sorted(scores[b].tolist(), reverse=True)
                weights = [math.exp(-((j - count) ** 2) / 5) for j in range(size)]
                tau = sum(w * s for w, s in zip(weights, falling, strict=True)) / sum(weights)
                keep[b] = (scores[b] >= tau).float()
            policy = policy * keep
        block, normed = layer.self_attn, layer.input_layernorm(hidden)
        q, k, v = (
            p(normed).view(*normed.shape[:2], -1, block.head_dim).transpose(1, 2)
            for p in (block.q_proj, block.k_proj, block.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *cos_sin)
        k, v = (torch.stack([part[:, j * 2 // 4] for j in range(4)], dim=1) for part in (k, v))
        logits = (q @ k.transpose(2, 3) / block.head_dim**0.5).masked_fill(~seen[:, None], -1e30)
        rows = zip(logits.tolist(), policy.tolist(), strict=True)
        attention = torch.tensor(
            np.array([[dense_attention(head, weights) for head in heads] for heads, weights in rows])
        ).float()
        out = (attention @ v).transpose(1, 2).flatten(2)
        hidden = hidden + block.o_proj(out)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden


def test_forward_against_a_direct_reference(tiny_llava: Any) -> None:
    """Padding on the right, so that the query row -1 is a pad token in all rows but the longest."""
    batch = TINY["llava"].batch([(3, 1, 5), (1, 1, 9), (2, 1, 3)], "right")
    batch["input_ids"][batch["attention_mask"] == 0] = 9  # the true pad token is a zero vector, which ranks nothing
    adapter = adapter_for(tiny_llava)
    visual, valid = adapter.visual_mask(batch["input_ids"], None), batch["attention_mask"].bool()
    ratios = torch.tensor([[1.0, 0.9, 0.5, 0.2], [1.0, 0.99, 0.98, 0.3], [0.9, 0.6, 0.59, 0.58]])
    with torch.no_grad():
        expected = adapter.head(reference_forward(tiny_llava, batch, ratios))
        with official.official_relaxed(adapter, ratios, visual, valid) as session:
            found = tiny_llava(**batch, use_cache=False).logits
    assert len(session.masks) == LAYERS - 1
    kept = torch.stack([(mask > 0.5) & visual for mask in session.masks]).sum(-1)
    assert (kept[-1] < visual.sum(-1)).all()
    assert (kept[0] > 0).all()
    assert not torch.equal(kept[0], kept[-1])
    assert (found - expected)[valid].abs().max() <= 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ATTENTIVE)
def test_without_masks_and_epsilon_it_is_the_plain_model(
    family: str, side: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So rotation, groups, windows, two-way pictures and padding are the model's own."""
    model, batch = TINY[family].model(), TINY[family].batch(ROWS, side)
    model.set_attn_implementation(attention)
    adapter = adapter_for(model)
    visual, valid = adapter.visual_mask(batch["input_ids"], None), batch["attention_mask"].bool()
    monkeypatch.setattr(official, "EPSILON", 0.0)
    monkeypatch.setattr(official, "keep_mask", lambda scores, *rest: torch.ones_like(scores))
    with torch.no_grad():
        plain = model(**batch, use_cache=False).logits
        with official.official_relaxed(adapter, torch.ones(len(ROWS), LAYERS), visual, valid):
            relaxed = model(**batch, use_cache=False).logits
    assert (plain - relaxed)[valid].abs().max() <= checks.TOLERANCE


@pytest.mark.parametrize("family", ATTENTIVE)
def test_leaves_no_trace_and_gradients_flow(family: str) -> None:
    model, batch = TINY[family].model(), TINY[family].batch(ROWS, "right")
    adapter = adapter_for(model)
    visual, valid = adapter.visual_mask(batch["input_ids"], None), batch["attention_mask"].bool()
    hooks, before = checks.installed_hooks(model), adapter.attention()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        plain = model(**batch).logits
    ratios = torch.full((len(ROWS), LAYERS), 0.5, requires_grad=True)
    with official.official_relaxed(adapter, ratios, visual, valid):
        with pytest.raises(ModelError, match="already inside"):
            with official.official_relaxed(adapter, ratios, visual, valid):
                pass
        loss = model(**batch, use_cache=False).logits[valid].square().mean()
        (gradient,) = torch.autograd.grad(loss, [ratios])
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 1] != 0).any()  # further on it may vanish: a mask is flat a few T from its threshold
    assert (gradient[:, 0] == 0).all()  # layer 0 prunes nothing
    with pytest.raises(KeyError), official.official_relaxed(adapter, ratios, visual, valid):
        raise KeyError
    assert adapter.attention() == before
    assert checks.installed_hooks(model) == hooks
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not official._running
    with torch.no_grad():
        assert torch.equal(plain, model(**batch).logits)


def test_decoding_is_refused(tiny_llava: Any) -> None:
    batch = TINY["llava"].batch([(3, 1, 5)])
    adapter = adapter_for(tiny_llava)
    visual, valid = adapter.visual_mask(batch["input_ids"], None), batch["attention_mask"].bool()
    with torch.no_grad(), official.official_relaxed(adapter, torch.ones(1, LAYERS), visual, valid):
        with pytest.raises(ModelError, match="use_cache must be off"):
            tiny_llava.generate(**batch, max_new_tokens=2, do_sample=False)


# --- FLOPs, predictor, counts -----------------------------------------------------------------------

QWEN_3B = ModelShape(layers=36, hidden=2048, heads=16, kv_heads=2, head_dim=128, mlp=11008)
QWEN_7B = ModelShape(layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, mlp=18944)


@pytest.mark.parametrize(("shape", "counted", "exact"), [(QWEN_3B, 3.41, 4.17), (QWEN_7B, 7.73, 9.53)])
def test_official_count(shape: ModelShape, counted: float, exact: float) -> None:
    """At 1400 tokens, in tera-multiply-adds."""
    assert shape.layers * official_layer_macs(shape, 1400) / 1e12 == pytest.approx(counted, abs=5e-3)
    assert shape.layers * layer_flops(shape, 1400) / 2e12 == pytest.approx(exact, abs=5e-3)


def test_half_of_the_tokens_by_both_counts() -> None:
    assert official_layer_macs(QWEN_3B, 700) / official_layer_macs(QWEN_3B, 1400) == pytest.approx(0.479, abs=5e-4)
    assert layer_flops(QWEN_3B, 700) / layer_flops(QWEN_3B, 1400) == pytest.approx(0.483, abs=5e-4)


def test_predictor() -> None:
    """Its size at H = 2048, and the whole forward written out with plain functions."""
    assert sum(p.numel() for p in RatioPredictor(2048, 2).parameters()) == 4_564_610
    torch.manual_seed(0)
    predictor = RatioPredictor(16, 2).eval()
    assert not predictor.entry.bias.any()
    bound = math.sqrt(6 / (16 + 8))
    assert 0.8 * bound < float(predictor.entry.weight.detach().abs().max()) <= bound
    x, budget = torch.randn(2, 5, 16), torch.tensor([0.1, 0.7])
    weights = {name: value.detach() for name, value in predictor.named_parameters()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    gelu = torch.nn.functional.gelu
    code = linear("budget.2", gelu(linear("budget.0", budget[:, None])))
    hidden = linear("entry", x)
    for block, out in ((0, 4), (1, 2)):
        name = f"blocks.{block}"
        hidden = gelu(linear(f"{name}.main", norm(f"{name}.norm", hidden))) + linear(f"{name}.skip", hidden)
        film = linear(f"films.{block}", code)
        hidden = hidden * film[:, None, :out] + film[:, None, out:]
    mean = hidden.mean(dim=1)
    expected = linear("head.6", gelu(linear("head.4", gelu(linear("head.1", norm("head.0", mean))))))
    assert (predictor(x, budget) - expected).abs().max() <= 1e-5
    # Padding is part of the mean unless it is left out.
    padded = torch.cat([x, torch.randn(2, 3, 16)], dim=1)
    valid = torch.arange(8).expand(2, -1) < 5
    assert (predictor(padded, budget) - expected).abs().max() > 1e-3
    assert (predictor(padded, budget, valid) - expected).abs().max() <= 1e-5
    predictor.train()
    assert not torch.equal(predictor(x, budget), predictor(x, budget))  # dropout


def test_predictor_flops_equal_the_counter() -> None:
    predictor = RatioPredictor(32, 3).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predictor(torch.randn(1, 7, 32), torch.tensor([0.5]))
    assert predictor.flops(7) == counter.get_total_flops()


def test_counts() -> None:
    ratios = torch.tensor([[0.5, 0.5, 0.4, 0.1], [1.0, 0.9, 0.5, 0.0]])
    # r_0 is divided out (oddity 17), and int truncates.
    assert official_counts(ratios, [10, 7]).tolist() == [[10, 10, 8, 2], [7, 6, 3, 0]]
    # In bfloat16 counts above 256 are rounded, never upwards past what is left (oddity 16).
    ones = torch.ones(1, 3, dtype=torch.bfloat16)
    assert official_counts(ones, [1001, 1003]).tolist() == [[1001, 1000, 1000], [1003, 1003, 1003]]
    assert official_counts(torch.zeros(1, 3), [5]).tolist() == [[5, 0, 0]]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_kernels(family: str) -> None:
    kernel = make_kernel(family, 8)
    outputs = torch.randn(3, kernel.size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ratios = kernel.ratios(kernel.values(outputs))
    assert ratios.shape == (3, 8)
    assert ((ratios >= 0) & (ratios <= 1)).all()
    assert (ratios.diff(dim=1) <= 1e-6).all()
    (gradient,) = torch.autograd.grad(ratios.sum(), [outputs])
    assert (gradient != 0).all()
    said = kernel.parameters(kernel.values(outputs)[0].detach())
    assert said.keys() == kernel.distributions().keys()
    if family == "step":
        assert torch.allclose(kernel.values(outputs)[:, 0], 8 * outputs[:, 0].sigmoid())
        centre, keep = torch.tensor([said["centre"]]), torch.tensor([said["keep"]])
        assert torch.allclose(official.step_kernel(centre, keep, 8)[0], ratios[0])


def test_snapped_steps_fill_their_budget_and_never_exceed_it() -> None:
    kernel, values = make_kernel("step", 8), torch.tensor([3.5, 0.4])

    def tokens(schedule: Any) -> int:
        return int(schedule.counts(np.array([64]), 8).sum())

    def make(values: torch.Tensor) -> Any:
        return kernel.schedule(values, 64, torch.float32)

    assert make(values).counts(np.array([64]), 8)[0].tolist() == [64, 64, 63, 62, 25, 24, 23, 23]
    for limit in (500, 400, 300, 200, 100):
        schedule, parameters = kernel.snap(values, make, lambda schedule, limit=limit: tokens(schedule) <= limit)
        assert limit - 5 <= tokens(schedule) <= limit
        assert make(torch.tensor(list(parameters.values()))) == schedule
        assert (parameters["centre"] == 3.5) == (limit > 255)
        assert (parameters["keep"] == 0) == (limit < 255)
    cheapest, _ = kernel.snap(values, make, lambda schedule: False)
    assert tokens(cheapest) == 64


# --- multipliers, learning rate, presets ------------------------------------------------------------


def test_multiplier_updates_by_hand() -> None:
    multipliers = Multipliers(w=1.0, sigma=100.0, alpha=2.0, beta=0.5, history=[-0.4])
    expected = [
        (-0.1, 100.0, 1 + 100 * 0.1),  # 0.25 of the one before: sigma stays
        (-0.08, 200.0, 11 + 200 * 0.08),  # 0.8 of it: sigma first, then the step with the new sigma
        (0.04, 400.0, 27 - 400 * 0.04),  # exactly beta counts; the sign does not
        (0.0, 400.0, 11.0),
        (0.0, 400.0, 11.0),  # 0 / 0 is no growth
        (0.001, 800.0, 11 - 0.8),  # anything over 0 is
    ]
    for c, sigma, w in expected:
        multipliers.update(c)
        assert multipliers.sigma == sigma
        assert multipliers.w == pytest.approx(w)
    assert multipliers.history == [-0.4, *(c for c, _, _ in expected)]


def test_stopping_rule() -> None:
    def ended(*history: float) -> bool:
        return Multipliers(1, 1, 1, 1, list(history)).converged(0.01)

    assert not ended(0.0, 0.0, 0.0, 0.0)  # four entries are not enough
    assert ended(1.0, 1.0, 0.009, -0.009, 0.0)
    assert not ended(0.0, 0.0, 0.0, 0.0, 0.01)


def test_learning_rate() -> None:
    settings = replace(hyperparameters(OfficialOptions(), "llava", "step"), warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(101)]
    assert rates[0] == 0
    assert rates[3] == pytest.approx(4e-4 * 3 / 9)
    assert rates[9] == rates[10] == max(rates) == pytest.approx(4e-4)
    assert rates[55] == pytest.approx((4e-4 + 1e-6) / 2)
    assert rates[100] == pytest.approx(1e-6)


def test_presets() -> None:
    def made(model: str = "qwen2_5_vl", family: str = "step", **options: Any) -> Hyperparameters:
        return hyperparameters(OfficialOptions(**options), model, family)

    argparse, script = made(), made(preset="script")
    assert (argparse.w, argparse.sigma, argparse.alpha, argparse.epsilon, argparse.beta) == (1, 100, 2, 0.01, 0.5)
    assert (argparse.epochs, argparse.learning_rate, argparse.warmup, argparse.batch) == (3, 4e-4, 0.01, 2)
    assert (script.w, script.sigma, script.alpha, script.epsilon, script.beta) == (1, 100, 5, 0.01, 0.5)
    assert (script.epochs, script.learning_rate, script.warmup, script.batch) == (1000, 1e-4, 0.001, 2)
    paper = made("llava", preset="paper")
    assert (paper.w, paper.sigma, paper.alpha, paper.epsilon, paper.learning_rate) == (100, 10, 10, 0.01, 5e-5)
    assert (paper.beta, paper.temperature, paper.batch) == (0.5, 0.1, 16)
    steps = made("qwen2_5_vl", "multistep", preset="paper")
    assert (steps.w, steps.sigma, steps.alpha, steps.epsilon, steps.learning_rate) == (1, 5, 10, 0.05, 1e-4)
    assert made(preset="script", epochs=12, sigma=0).epochs == 12
    assert made(preset="script", epochs=12, sigma=0).sigma == 0
    with pytest.raises(ConfigError, match=r"no row for gemma3 with family linear.*preset: script"):
        made("gemma3", "linear", preset="paper")


# --- training ---------------------------------------------------------------------------------------

SETTINGS = Hyperparameters(
    w=3.0, sigma=7.0, alpha=2.0, epsilon=0.0, beta=0.5, epochs=2, learning_rate=1e-3, min_learning_rate=1e-6,
    warmup=0.0, weight_decay=1e-4, batch=4,
)  # fmt: skip


def training_of(problem: Problem, **more: Any) -> OfficialTraining:
    settings = more.pop("settings", SETTINGS)
    return OfficialTraining(problem, make_kernel("step", 8), settings, 0, **more)


def test_samples_budgets_and_padding(problem: Problem) -> None:
    training, validation = examples(problem, seed=3, validation=0.25)
    assert (len(training), len(validation)) == (12, 4)
    ids = {int(e.prompt.rows[0]) for e in [*training, *validation]}
    assert ids == set(range(16))
    assert list(BUDGETS) == pytest.approx([0.01, *(0.05 * i for i in range(1, 20))])
    assert len(BUDGETS) == 20
    assert [e.budget for e in training] == list(BUDGETS[:12])
    assert [e.budget for e in validation] == list(BUDGETS[:4])
    assert [int(e.prompt.rows[0]) for e in examples(problem, 3, 0.25)[0]] == [int(e.prompt.rows[0]) for e in training]
    assert [int(e.prompt.rows[0]) for e in examples(problem, 4, 0.25)[0]] != [int(e.prompt.rows[0]) for e in training]

    data = collate(problem, training[:4])
    tokenizer, eos = problem.processor.tokenizer, problem.model.generation_config.eos_token_id
    samples = problem.tasks[0].samples("calibration")
    for row, example in enumerate(training[:4]):
        prompt = example.prompt.inputs["input_ids"][0].tolist()
        gold = tokenizer(samples[int(example.prompt.rows[0])].answers[0], add_special_tokens=False)["input_ids"]
        line = data.batch.inputs["input_ids"][row].tolist()
        assert line[: len(prompt) + len(gold) + 1] == [*prompt, *gold, eos]
        assert data.valid[row].tolist() == [True] * (len(prompt) + len(gold) + 1) + [False] * (
            len(line) - len(prompt) - len(gold) - 1
        )
        assert data.answers[row].nonzero()[:, 0].tolist() == list(range(len(prompt), len(prompt) + len(gold) + 1))
    assert data.n_visual.tolist() == [64] * 4
    assert data.n_text.tolist() == [example.length - 64 for example in training[:4]]
    assert not collate(problem, training[:4], answered=False).answers.any()


@pytest.mark.parametrize("family", list(TINY))
def test_samples_of_every_family_join_a_batch(family: str) -> None:
    """Grids, token types and features follow: the joined batch gives what each sample gives alone."""
    tiny, examples = TINY[family], []
    model, whole = tiny.model(), tiny.batch([(3, 1, 5), (1, 2, 9), (6, 0, 2)])
    adapter = adapter_for(model)
    pad = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    problem: Any = SimpleNamespace(adapter=adapter, model=model, processor=pad)
    for number, answer in enumerate([[11, 12], [13], [14, 15, 16]]):
        inputs = tiny.row(whole, number)
        images = "pixel_values" in inputs
        with torch.no_grad():
            features = adapter.encode_images(inputs) if images else torch.zeros(0)
        prompt = Batch(np.array([number]), adapter.with_features(inputs, torch.zeros(0)), features, [number])
        examples.append(Example(prompt, answer, [2], 0.5))

    def logits(chosen: list[Example]) -> tuple[torch.Tensor, Collated]:
        data = collate(problem, chosen)
        with torch.no_grad():
            return model(**adapter.with_features(data.batch.inputs, data.batch.features), use_cache=False).logits, data

    together, data = logits(examples)
    assert data.visual.sum(1).tolist() == [tiny.picture_tokens, 2 * tiny.picture_tokens, 0]
    for number, example in enumerate(examples):
        alone, own = logits([example])
        assert (together[number][data.answers[number]] - alone[0][own.answers[0]]).abs().max() <= checks.TOLERANCE
        assert data.answers[number].sum() == len(example.answer) + 1


def test_labels_are_the_answer_the_end_token_and_the_newline(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = problem.processor.tokenizer
    own = type(tokenizer).__call__

    def with_newline(self: Any, text: Any, *arguments: Any, **settings: Any) -> Any:
        return {"input_ids": [49]} if text == "\n" else own(self, text, *arguments, **settings)

    monkeypatch.setattr(type(tokenizer), "__call__", with_newline)
    example = examples(problem, 0, 0.25)[0][0]
    assert example.end == [problem.model.generation_config.eos_token_id, 49]
    data = collate(problem, [example])
    assert data.batch.inputs["input_ids"][data.answers].tolist() == [*example.answer, *example.end]


def test_weights_decay_and_one_dimensional_parameters_do_not(problem: Problem) -> None:
    training = training_of(problem)
    decayed, others = training._groups()
    assert (decayed["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)
    named = {id(parameter): name for name, parameter in training.predictor.named_parameters()}
    assert len(decayed["params"]) + len(others["params"]) == len(named)
    names = {named[id(parameter)] for parameter in others["params"]}
    assert all(name.endswith("bias") or "norm" in name or name == "head.0.weight" for name in names)
    assert all(name in names for name in named.values() if name.endswith("bias"))


def test_validation_prompts_have_no_answers(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    training, asked = training_of(problem), []

    def spy(problem: Problem, chosen: Any, *, answered: bool = True) -> Any:
        asked.append(answered)
        return collate(problem, chosen, answered=answered)

    monkeypatch.setattr("vispco.official.training.collate", spy)
    training.constraint()
    assert set(asked) == {False}


def test_the_budget_range_is_rounded_to_bfloat16_in_every_dtype(problem: Problem) -> None:
    training = training_of(problem, full_tflops=3.56)
    data = collate(problem, training.training[:4])
    least, most = training.bounds(data)
    for bound in (least, most):
        assert bound.dtype == torch.float32
        assert torch.equal(bound, bound.bfloat16().float())
    budgets = torch.tensor(data.budgets)
    assert torch.allclose(training.code(data, budgets), budgets, atol=1e-6)
    text = replace(data, visual=torch.zeros_like(data.visual))
    assert training.code(text, budgets).tolist() == [0.0] * 4


def test_one_sample_is_enough_and_answers_are_needed(problem: Problem) -> None:
    own = Problem(problem.study, problem.text, model=problem.model, processor=problem.processor)
    own.tasks[0].sizes["calibration"] = 1
    training, validation = examples(own, 0, 0.1)
    assert len(training) == len(validation) == 1
    sample = own.tasks[0].sample
    own.tasks[0].sample = lambda row: replace(sample(row), answers=())  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"has no answer.*lagrangian"):
        examples(own, 0, 0.1)


@pytest.mark.parametrize("shift", [False, True])
def test_loss_by_hand(problem: Problem, shift: bool) -> None:
    """KL at the answers' own places (or one earlier), the sum of target - actual, and what the step is charged."""
    training = training_of(problem, shift=shift, full_tflops=2.0)
    training.predictor.eval()
    chosen = training.training[:4]
    data = collate(problem, chosen)
    training.charged = 0
    found = float(training.loss(data).detach())
    charged = training.charged

    ratios, _ = training._ratios(data)
    ratios = ratios.detach()
    inputs = problem.adapter.with_features(data.batch.inputs, data.batch.features)
    with torch.no_grad():
        teacher = problem.model(**inputs, use_cache=False).logits.double().log_softmax(-1)
        with official.official_relaxed(problem.adapter, ratios, data.visual, data.valid):
            student = problem.model(**inputs, use_cache=False).logits.double().log_softmax(-1)
    kl, constraint = [], 0.0
    shape = problem.shape

    def cost(n: float) -> float:
        return (4 * n * 96**2 + 2 * n * n * 96 + 2 * n * 96 * 256) / training.unit

    full = sum(8 * cost(example.length) for example in training.training) / len(training.training)
    assert full == pytest.approx(2.0)
    for row, example in enumerate(chosen):
        for place in data.answers[row].nonzero()[:, 0].tolist():
            p, q = teacher[row, place - shift], student[row, place - shift]
            kl.append(float((p.exp() * (p - q)).sum()))
        text = example.length - 64
        least, most = (float(torch.tensor(8 * cost(n)).bfloat16()) for n in (text, text + 64))
        target = least + example.budget * (most - least)
        constraint += target - sum(cost(text + 64 * r) for r in ratios[row].tolist())
    expected = 1000 * sum(kl) / len(kl) - 0.1 * 3 * constraint + 7 * constraint**2
    assert found == pytest.approx(expected, rel=1e-4)
    tokens = [example.length for example in chosen]
    plain = sum(8 * layer_flops(shape, n) for n in tokens)
    assert charged == 4 * plain + 3 * 4 * training.predictor.flops(max(tokens))


def test_training_moves_towards_its_targets_and_leaves_no_trace(problem: Problem) -> None:
    """With the budget's weight of the paper's model, the mean distance from the targets falls."""
    flags = [parameter.requires_grad for parameter in problem.model.parameters()]
    settings = replace(SETTINGS, w=1.0, sigma=100.0, epochs=5, batch=2, learning_rate=1e-2)
    random = torch.random.get_rng_state()
    training = training_of(problem, settings=settings, full_tflops=3.56)
    before = training.predictor.entry.weight.detach().clone()
    training.run()
    assert torch.equal(random, torch.random.get_rng_state())
    assert [parameter.requires_grad for parameter in problem.model.parameters()] == flags
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    assert not torch.equal(before, training.predictor.entry.weight)
    history = training.multipliers.history
    assert len(history) == 6
    assert training.stopped == "epochs"
    assert min(abs(c) for c in history[-3:]) < 0.5 * abs(history[0])
    replayed = Multipliers(1.0, 100.0, 2.0, 0.5, history[:1])
    for row, c in zip(training.trajectory, history[1:], strict=True):
        replayed.update(c)
        assert (row["constraint"], row["multiplier"], row["penalty"]) == (c, replayed.w, replayed.sigma)


def test_training_stops_when_the_rule_says_so_or_when_it_diverges(problem: Problem) -> None:
    settings = replace(SETTINGS, epochs=9, epsilon=1.0, batch=16)
    training = training_of(problem, settings=settings)  # in tera-multiply-adds the demo is always within epsilon
    training.run()
    assert training.stopped == "converged"
    assert len(training.multipliers.history) == 5
    broken = training_of(problem, settings=replace(SETTINGS, epochs=3, sigma=1e38), full_tflops=1e3)
    weights = [parameter.detach().clone() for parameter in broken.predictor.parameters()]
    broken.run()
    assert broken.stopped == "diverged"
    assert len(broken.trajectory) == 1
    assert all(torch.equal(a, b) for a, b in zip(weights, broken.predictor.parameters(), strict=True))


def test_bfloat16_models_have_bfloat16_budgets(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oddity 15: the count is rounded to eight bits, as in the official code."""
    exact = training_of(problem, full_tflops=3.56)
    monkeypatch.setattr(type(problem.adapter), "dtype", lambda self: torch.bfloat16)
    training = training_of(problem, full_tflops=3.56)
    assert training.predictor.entry.weight.dtype == torch.bfloat16
    data = collate(problem, training.training[:4])
    budgets = torch.tensor(data.budgets)
    rounded, full = training.target(data, budgets.bfloat16()), exact.target(data, budgets)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded.float() / full - 1).abs().max() < 0.05


# --- the search -------------------------------------------------------------------------------------

STUDY = """
experiment: letter
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 12, search: 12, held_out: 12}}
budgets: 3
batch_size: 8
searches:
  official: {kind: vispco_official, full_tflops: 3.56, epochs: 1, batch: 6, conditioned: true}
  curve: {kind: vispco_official, family: sigmoid, epochs: 1, batch: 6, preset: script, snap: true}
"""


def run_of(problem: Problem, store: Store, text: str = STUDY, progress: Any = None) -> Run:
    return Run(fresh(problem, text), store, progress)


@pytest.fixture(scope="module")
def finished(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[str]]:
    store, told = Store(f"sqlite:///{tmp_path_factory.mktemp('official')}/a.db"), Told()
    assert run_of(problem, store, progress=told).run() == 6
    return store, told.said


def test_a_trial_per_budget(problem: Problem, finished: tuple[Store, list[str]]) -> None:
    store, said = finished
    budgets = store.require_experiment("letter").facts["budgets"]
    evaluator = Evaluator(problem)
    (part,) = evaluator.prepared("search")
    least = official_layer_macs(problem.shape, part.n_text.astype(float))
    floor = float(np.mean(least / official_layer_macs(problem.shape, (part.n_text + part.n_visual).astype(float))))
    for entry in ("official", "curve"):
        trials = store.trial_log(f"letter/{entry}").complete()
        assert [t.user_attrs["budget"] for t in trials] == sorted(budgets, reverse=True)
        for trial in trials:
            given = trial.user_attrs
            scale = given["official_budget"]
            assert floor + scale * (1 - floor) == pytest.approx(given["budget"])
            assert given["violation"] == pytest.approx(trial.values[1] / given["budget"] - 1)
            assert given["official_accounting"] == "vispco"
            assert given["stopped"] == "epochs"
            assert {"multiplier", "penalty", "loss", "official_target", "official_actual"} <= given.keys()
            if entry == "curve":
                assert trial.values[1] <= given["budget"] + 1e-9
                assert given["budget"] - trial.values[1] < 0.02
                assert FAMILIES["sigmoid"](8).parameters(parse_schedule(given["schedule"])) == trial.params
                continue
            counts = [round(ratio * 64) for ratio in given["keep_ratio"]]
            assert [ratio * 64 for ratio in given["keep_ratio"]] == pytest.approx(counts)
            assert parse_schedule(given["schedule"]).counts(np.array([64]), 8)[0].tolist() == counts
            ratios = official.step_kernel(*(torch.tensor([trial.params[n]]) for n in ("centre", "keep")), 8)
            assert official_counts(ratios, [64])[0].tolist() == counts
            assert 0 <= given["conditioned_accuracy"] <= 1
            assert 0 < given["conditioned_flops_ratio"] <= 1
        first, *others = trials
        assert first.user_attrs["propose_flops"] > max(t.user_attrs["propose_flops"] for t in others)
    assert all(t.user_attrs["propose_flops"] == 0 for t in others)
    # Target and actual are means over the calibration prompts, in the units asked for.
    first = store.trial_log("letter/official").complete()[0].user_attrs
    assert 0.5 < first["official_target"] < 3.56
    assert store.trial_log("letter/curve").complete()[0].user_attrs["official_target"] < 1e-3
    assert len([line for line in said if "full_tflops" in line]) == 1
    assert store.trajectory("letter/official").keys() == {"epochs-0", "budgets-1"}


def test_interrupted_anywhere_it_ends_the_same(
    problem: Problem, finished: tuple[Store, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = STUDY.split("  curve")[0]
    store = Store(f"sqlite:///{tmp_path}/a.db")
    train, stored, calls = OfficialTraining.run, TrialLog._add, {"trainings": 0, "trials": 0}

    def training(self: OfficialTraining, advance: Any) -> None:
        calls["trainings"] += 1
        if calls["trainings"] == 1:
            raise KeyboardInterrupt
        train(self, advance)

    def adding(self: TrialLog, *arguments: Any) -> None:
        calls["trials"] += 1
        if calls["trials"] in (1, 3):
            raise KeyboardInterrupt
        stored(self, *arguments)

    monkeypatch.setattr(OfficialTraining, "run", training)
    monkeypatch.setattr(TrialLog, "_add", adding)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_of(problem, store, text).run()
    assert run_of(problem, store, text).run() == 2
    assert run_of(problem, store, text).run() == 0
    assert calls["trainings"] == 2

    def outcome(where: Store) -> list[Any]:
        hidden = {"spent_flops", "propose_spent"}
        return [
            (t.values, t.params, {k: v for k, v in t.user_attrs.items() if k not in hidden})
            for t in where.trial_log("letter/official").complete()
        ]

    assert outcome(store) == outcome(finished[0])


def test_the_policy_runs_by_itself(problem: Problem) -> None:
    """Samples get counts of their own, whatever batch and padding they are in, and prune takes the policy."""
    torch.manual_seed(1)
    predictor = RatioPredictor(problem.shape.hidden, 2)
    with torch.no_grad():
        predictor.head[-1].weight.mul_(20)
    policy = OfficialPolicy(predictor, make_kernel("step", 8), 0.4)
    one_by_one = problem.study.model_copy(update={"batch_size": 1})
    small = Problem(one_by_one, problem.text, model=problem.model, processor=problem.processor)
    (counts,), (alone,) = Evaluator(problem).counts(policy, "search"), Evaluator(small).counts(policy, "search")
    assert counts.tolist() == alone.tolist()
    assert len({tuple(row) for row in counts.tolist()}) > 1
    found = Evaluator(problem).evaluate([policy], "search", make_method("fastv"))[0]
    assert 0 < found.flops_ratio < 1
    batch = Evaluator(problem).prepared("search")[0].batches[0]
    inputs = problem.adapter.with_features(batch.inputs, batch.features)
    with torch.no_grad(), vispco.prune(problem.model, schedule=policy) as session:
        problem.model(**inputs)
    assert session.counts is not None
    assert session.counts.tolist() == counts[batch.rows].tolist()


def test_what_does_not_fit_is_said_before_anything_runs() -> None:
    def refused(old: str, new: str) -> pytest.ExceptionInfo[ConfigError]:
        text = STUDY.replace(old, new)
        assert text != STUDY
        with pytest.raises(ConfigError) as caught:
            validate(Problem(parse_study(text), text))
        return caught

    fastv = refused("official: {kind: vispco_official,", "official: {kind: vispco_official, method: fitprune,")
    assert fastv.match(r"searches.official: method 'fitprune'.*fastv only.*lagrangian")
    assert refused("preset: script", "preset: scripts").match("searches.curve.preset")
    assert refused("preset: script", "sigm: 3").match("sigma")
    assert refused("preset: script", "validation: 1.0").match("searches.curve.validation")
    assert refused("batch: 6", "batch: 0").match("searches.official.batch")
    assert OfficialSearch.kind == "vispco_official"


def test_document_lists_every_oddity() -> None:
    page = (Path(__file__).parent.parent / "vispco/official/README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .+ \| (reproduced|mended|no matter)\b.* \|$", page, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    (text,) = blocks("docs/paper.md", "yaml", "The paper's code")
    base = STUDY.split("searches:")[0] + text
    validate(Problem(parse_study(base), base))
    assert official_training.BUDGETS[0] == 0.01
