"""Many policies in one prefill: what they share runs once, within a memory limit; what each gives does not change."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vispco.costs import layer_flops, prefill_flops, shared_flops
from vispco.evaluation.units import recomputed_flops
from vispco.models.families import adapter_for
from vispco.pruning.forward.shared import SharedPrefill
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Ratios, Step, keep_all
from vispco.testing import checks
from vispco.testing.tiny import LAYERS, TINY

TINY_LLAVA = TINY["llava"]


def counts_for(policies: Any, batch: Any) -> Any:
    visual = adapter_for(TINY_LLAVA.model()).visual_mask(batch["input_ids"], None)
    return torch.stack([checks.counts_of(policy, visual) for policy in policies]).numpy()


class Layers:
    """Counts the tokens that enter every layer."""

    def __init__(self, model: Any) -> None:
        self.seen: list[tuple[int, int]] = []
        self._handles = [
            layer.register_forward_hook(self._hook(number)) for number, layer in enumerate(adapter_for(model).layers())
        ]

    def _hook(self, number: int) -> Any:
        return lambda module, args, output: self.seen.append((number, args[0].shape[1]))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize("limit", [None, 3_500, 5_000, 0])
def test_layers_run_as_often_as_the_tree_has_nodes(limit: int | None) -> None:
    """Without a limit every node of the tree once; with one, what was given up again, and not more than that."""
    model, batch = TINY_LLAVA.model(), TINY_LLAVA.batch(checks.ONE)
    policies = [Ratios([1, a, b, c]) for a in (1, 0.5) for b in (0.5, 0.25) for c in (0.25, 0.125, 0)]
    adapter, method, counts = adapter_for(model), make_method("fastv"), counts_for(policies, batch)
    layers = Layers(model)
    shared = SharedPrefill(adapter, method, counts, limit)
    try:
        named = [member for members, _ in shared.logits(batch) for member in members]
    finally:
        layers.remove()
    assert sorted(named) == list(range(len(policies)))
    nodes = 1 + 2 + 4 + 12
    ran = sum(layer_flops(adapter.shape(), tokens) for _, tokens in layers.seen)
    visual, text = np.array([16]), np.array([8])
    tree = shared_flops(adapter.shape(), list(counts), visual, text).sum()
    assert ran == tree + recomputed_flops(shared)
    if limit is None:
        assert len(layers.seen) == nodes
        assert recomputed_flops(shared) == 0
    else:
        assert recomputed_flops(shared) > 0
    if limit == 0:
        alone = sum(int(prefill_flops(adapter.shape(), c, visual, text)[0]) for c in counts)
        assert ran <= alone


def test_a_tighter_limit_holds_less_and_computes_more() -> None:
    model, batch = TINY_LLAVA.model(), TINY_LLAVA.batch(checks.RAGGED)
    counts = counts_for([*checks.MANY, Ratios([1, 0.9, 0.8, 0.7]), Ratios([1, 0.9, 0.8, 0.2])], batch)
    again = []
    for limit in (None, 20_000, 10_000, 5_000, 0):
        shared = SharedPrefill(adapter_for(model), make_method("fastv"), counts, limit)
        for _ in shared.logits(batch):
            held = sum(branching.bytes for branching in shared._stack)
            assert limit is None or held <= limit
        again.append(recomputed_flops(shared))
    assert again == sorted(again)
    assert again[0] == 0 < again[-1]


def test_states_are_gone_when_their_turn_is_over() -> None:
    """Nothing that was put aside outlives the prefill, also when the caller stops half-way."""
    model, batch = TINY_LLAVA.model(), TINY_LLAVA.batch(checks.ONE)
    before = checks.installed_hooks(model)
    shared = SharedPrefill(adapter_for(model), make_method("fastv"), counts_for(checks.MANY, batch))
    running = shared.logits(batch)
    next(running)
    held = [weakref.ref(b.state.hidden) for b in shared._stack if b.state is not None]
    assert held
    running.close()
    assert checks.installed_hooks(model) == before
    assert not shared._stack
    assert all(reference() is None for reference in held)


def test_samples_may_part_at_different_layers() -> None:
    """Counts per sample: paths part where any sample parts."""
    model, batch = TINY_LLAVA.model(), TINY_LLAVA.batch([(3, 1, 5), (1, 1, 9)])
    adapter, method = adapter_for(model), make_method("fastv")
    counts = np.array(
        [[[16, 16, 8, 8], [16, 8, 8, 4]], [[16, 16, 8, 2], [16, 8, 8, 4]], [[16, 8, 8, 8], [16, 8, 8, 4]]]
    )

    class Given:
        def __init__(self, given: Any) -> None:
            self.given = given

        def counts(self, n_visual: Any, layers: int, context: Any = None) -> Any:
            return self.given

    found = {}
    for members, logits in SharedPrefill(adapter, method, counts).logits(batch):
        found.update(dict.fromkeys(members, logits))
    from vispco.pruning.prune import prune

    for number, given_counts in enumerate(counts):
        with torch.inference_mode(), prune(model, method=method, schedule=Given(given_counts)):
            alone = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
        assert torch.equal(found[number], alone)


ratios = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=LAYERS - 1, max_size=LAYERS - 1).map(
    lambda drawn: Ratios([1.0, *sorted(drawn, reverse=True)])
)


@settings(max_examples=25, deadline=None)
@given(
    policies=st.lists(ratios, min_size=1, max_size=7),
    limit=st.sampled_from([None, 0, 3_000, 15_000]),
    method=st.sampled_from(["fastv", "random", "pool", "sparsevlm"]),
)
def test_any_policies_in_any_order(policies: list[Ratios], limit: int | None, method: str) -> None:
    checks.check_sharing(
        TINY_LLAVA.model(), TINY_LLAVA.batch([(3, 1, 5), (6, 0, 2)]), make_method(method), policies, [limit]
    )


def test_text_alone_and_a_single_policy() -> None:
    model, method = TINY_LLAVA.model(), make_method("fastv")
    checks.check_sharing(model, TINY_LLAVA.batch([(6, 0, 2)]), method, [Step(1, 0.5), Step(2, 0.1), keep_all()], [None])
    checks.check_sharing(model, TINY_LLAVA.batch(checks.ONE), method, [Step(1, 0.5)], [0])
