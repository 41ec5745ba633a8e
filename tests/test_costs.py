"""FLOPs against torch's counter on the physically pruned forward, and by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vispco
from conftest import make_batch
from vispco.costs import flops_ratio, kv_cache_bytes, layer_flops, prefill_flops, shared_flops, unpruned_flops
from vispco.costs.flops import decode_flops
from vispco.models.families import adapter_for
from vispco.models.shapes import ModelShape
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Ratios, Step, keep_count, ratio_counts
from vispco.testing.checks import counted_flops
from vispco.testing.tiny import TINY


def random_schedule(rng: random.Random, layers: int) -> Ratios:
    steps = sorted((rng.choice([0.0, 1.0, rng.random(), rng.random()]) for _ in range(layers - 1)), reverse=True)
    return Ratios([1.0, *steps])


@pytest.mark.parametrize("method", ["fastv", "fitprune", "sparsevlm", "random", "stride", "pool"])
def test_flops_equal_the_counter(tiny_llava: Any, method: str) -> None:
    tiny_llava.set_attn_implementation("sdpa")
    shape = adapter_for(tiny_llava).shape()
    rng = random.Random(method)
    chosen = make_method(method)
    for _ in range(20):
        before, after, images = rng.randint(1, 6), rng.randint(1, 9), rng.randint(1, 2)
        batch = make_batch([(before, images, after)])
        schedule = random_schedule(rng, shape.layers)
        n_visual, n_text = np.array([16 * images]), np.array([before + images - 1 + after])
        counts = schedule.counts(n_visual, shape.layers)
        with vispco.prune(tiny_llava, method=chosen, schedule=schedule):
            measured = counted_flops(tiny_llava, batch)
        assert prefill_flops(shape, counts, n_visual, n_text, chosen).tolist() == [measured], str(schedule)
    assert unpruned_flops(shape, n_visual, n_text).tolist() == [counted_flops(tiny_llava, batch)]


def test_by_hand() -> None:
    shape = ModelShape(layers=2, hidden=8, heads=4, kv_heads=2, head_dim=2, mlp=16)
    per_token = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16)
    assert layer_flops(shape, 10) == 10 * per_token + 4 * 100 * 8
    counts = np.array([[6, 3]])
    text, visual = np.array([4]), np.array([6])
    fastv = make_method("fastv")
    assert prefill_flops(shape, counts, visual, text, fastv).tolist() == [
        layer_flops(shape, 10) + layer_flops(shape, 7) + 2 * 8 * 10
    ]
    assert kv_cache_bytes(shape, counts, text, 2).tolist() == [2 * 4 * 2 * (10 + 7)]


def test_ratio_is_one_without_pruning_and_a_mean_of_samples() -> None:
    shape = ModelShape(layers=3, hidden=8, heads=4, kv_heads=2, head_dim=2, mlp=16)
    visual, text = np.array([16, 32]), np.array([5, 9])
    fastv = make_method("fastv")
    assert flops_ratio(shape, Step(1, 1.0).counts(visual, 3), visual, text, fastv) == 1.0
    schedule = Step(1, 0.5)
    each = [
        flops_ratio(shape, schedule.counts(visual[i : i + 1], 3), visual[i : i + 1], text[i : i + 1], fastv)
        for i in range(2)
    ]
    assert flops_ratio(shape, schedule.counts(visual, 3), visual, text, fastv) == pytest.approx(np.mean(each))


def test_fastv_published_share() -> None:
    """K=3, R=50 % on LLaVA-1.5-7B with 35 + 576 tokens: FastV prints 57 % with its own count (2 MLP matmuls)."""
    tokens = [611] * 3 + [35 + keep_count(0.5, 576)] * 29
    own = sum(4 * n * 4096**2 + 2 * n * n * 4096 + 2 * n * 4096 * 11008 for n in tokens)
    full = 32 * (4 * 611 * 4096**2 + 2 * 611**2 * 4096 + 2 * 611 * 4096 * 11008)
    assert round(100 * own / full) == 57


@given(ratio=st.floats(0, 1), n=st.integers(0, 5000))
def test_keep_count(ratio: float, n: int) -> None:
    kept = keep_count(ratio, n)
    assert 0 <= kept <= n
    assert abs(kept - ratio * n) <= 0.5 or kept == 1
    assert (kept == 0) == (n == 0 or ratio == 0)
    assert keep_count(1.0, n) == n


@given(
    ratios=st.lists(st.floats(0, 1), min_size=1, max_size=8), n=st.lists(st.integers(0, 600), min_size=1, max_size=5)
)
def test_counts_never_rise(ratios: list[float], n: list[int]) -> None:
    ratios = sorted(ratios, reverse=True)
    counts = ratio_counts(ratios, n)
    assert (np.diff(counts, axis=1) <= 0).all()
    for row, size in zip(counts, n, strict=True):
        assert row.tolist() == [keep_count(r, size) for r in ratios]


SMALL = ModelShape(layers=4, hidden=8, heads=4, kv_heads=2, head_dim=2, mlp=16)


@st.composite
def policies_on_a_batch(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    samples = draw(st.integers(1, 3))
    visual = np.array(draw(st.lists(st.integers(0, 4), min_size=samples, max_size=samples)))
    text = np.array(draw(st.lists(st.integers(1, 5), min_size=samples, max_size=samples)))
    count = draw(st.integers(1, 6))
    kept = st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=samples, max_size=samples)
    counts = [np.minimum.accumulate(np.minimum(draw(kept), visual[:, None]), axis=1) for _ in range(count)]
    return counts, visual, text


def tree_flops(counts: list[np.ndarray], visual: np.ndarray, text: np.ndarray, method: Any) -> int:
    """The tree's cost from its set of nodes: layers by prefix, scorings by (prefix, boundary, sample)."""
    layers, scorings, begun = {}, {}, set()
    for policy in counts:
        for layer in range(policy.shape[1]):
            prefix = policy[:, :layer].tobytes()
            layers[layer, policy[:, : layer + 1].tobytes()] = layer_flops(SMALL, policy[:, layer] + text).sum()
            for sample in range(len(text)):
                before = policy[sample, layer - 1] if layer else visual[sample]
                if 0 < policy[sample, layer] < before:
                    price = method.scoring_flops(SMALL, np.array([[before]]), text[[sample], None])
                    scorings[layer, prefix, sample] = int(np.sum(price))
                    begun.add(sample)
    begins = [int(np.sum(method.begin_flops(SMALL, visual[[s]], text[[s]]))) for s in begun]
    return int(sum(layers.values()) + sum(scorings.values()) + sum(begins))


@given(given=policies_on_a_batch(), name=st.sampled_from(["fastv", "sparsevlm", "stride"]), data=st.data())
def test_shared_flops_are_those_of_the_tree(given: Any, name: str, data: st.DataObject) -> None:
    counts, visual, text = given
    method = make_method(name)
    added = shared_flops(SMALL, counts, visual, text, method)
    for stop in range(1, len(counts) + 1):
        assert added[:stop].sum() == tree_flops(counts[:stop], visual, text, method)
    alone = [prefill_flops(SMALL, policy, visual, text, method).sum() for policy in counts]
    assert added[0] == alone[0]
    assert (added >= 0).all()
    assert (added <= alone).all()
    other = data.draw(st.permutations(counts))
    assert shared_flops(SMALL, other, visual, text, method).sum() == added.sum()
    assert not shared_flops(SMALL, counts * 2, visual, text, method)[len(counts) :].any()


def test_shared_flops_by_hand() -> None:
    """Two policies that drop before layer 2 share layers 0 and 1 and FastV's row; none of it without a method."""
    visual, text, fastv = np.array([6]), np.array([4]), make_method("fastv")
    counts = [np.array([[6, 6, 3, 3]]), np.array([[6, 6, 2, 2]]), np.array([[6, 6, 0, 0]])]
    rows = [2 * layer_flops(SMALL, n + 4) for n in (6, 3, 2, 0)]
    assert shared_flops(SMALL, counts, visual, text).tolist() == [rows[0] + rows[1], rows[2], rows[3]]
    assert shared_flops(SMALL, counts, visual, text, fastv).tolist() == [
        rows[0] + rows[1] + 2 * 8 * 10,
        rows[2],
        rows[3],
    ]
    assert shared_flops(SMALL, [], visual, text, fastv).tolist() == []


NEWER = ("qwen3_vl_moe", "gemma4", "mistral3", "glm4v", "glm46v", "glm4v_moe", "qwen3_5", "qwen3_5_moe")


# The long form: 352 random prompts and schedules.
@pytest.mark.parametrize("rounds", [4, pytest.param(22, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["random", "scope"])
@pytest.mark.parametrize("name", NEWER)
def test_flops_of_layers_that_differ_equal_the_counter(name: str, method: str, rounds: int) -> None:
    """Experts, heads of two sizes, linear attention: random prompts and schedules."""
    tiny, rng, chosen = TINY[name], random.Random(name), make_method(method)
    model, shape = tiny.model(), adapter_for(tiny.model()).shape()
    for _ in range(rounds):
        before, after, images = rng.randint(1, 6), rng.randint(1, 60), rng.randint(1, 2)
        batch, schedule = tiny.batch([(before, images, after)]), random_schedule(rng, shape.layers)
        n_visual = adapter_for(model).visual_mask(batch["input_ids"], None).sum(dim=1).numpy()
        n_text = batch["input_ids"].shape[1] - n_visual
        counts = schedule.counts(n_visual, shape.layers)
        with vispco.prune(model, method=chosen, schedule=schedule):
            measured = counted_flops(model, batch)
        assert measured == prefill_flops(shape, counts, n_visual, n_text, chosen)[0]


@pytest.mark.parametrize("name", ["llava", "qwen3_vl_moe", "gemma4", "qwen3_5"])
def test_a_decode_step_costs_what_torch_counts(name: str) -> None:
    """One token on a cache of n: each layer's own matrices, and attention with n + 1 keys (fewer in a window)."""
    tiny = TINY[name]
    model, batch = tiny.model(), tiny.batch([(3, 1, 5)])
    adapter, n = adapter_for(model), batch["input_ids"].shape[1]
    decoder, config, counter = adapter.decoder(), adapter.decoder().config, FlopCounterMode(display=False)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        token = model.get_input_embeddings()(torch.tensor([[11]]))
        implementation, config._experts_implementation = config._experts_implementation, "eager"
        try:
            with sdpa_kernel(SDPBackend.MATH), counter:
                decoder(inputs_embeds=token, past_key_values=cache, use_cache=True)
        finally:
            config._experts_implementation = implementation
    shape, expected = adapter.shape(), 0
    for layer in range(shape.layers):
        own, window = shape.at(layer), adapter.sliding_window(layer)
        keys = n + 1 if window is None else min(n + 1, window)
        expected += decode_flops(shape, layer) + 4 * own.heads * own.head_dim * keys
    assert counter.get_total_flops() == expected
