"""The relaxed model: a hard mask is the pruned forward, gradients point the right way, no trace is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vispco
from conftest import installed_hooks, make_batch
from vispco.errors import ModelError
from vispco.models.base import adapter_for
from vispco.pruning.families import StepFamily
from vispco.pruning.methods import make_method
from vispco.pruning.relaxed import relaxed
from vispco.pruning.schedules import Ratios, Step

ROWS = [(3, 1, 5), (1, 1, 9), (2, 2, 3)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("schedule", [Step(1, 0.5), Step(3, 0.0), Ratios([1, 0.7, 0.4, 0.1]), Step(2, 1.0)], ids=str)
def test_hard_mask_is_the_pruned_forward(tiny_llava: Any, schedule: Any, attention: str) -> None:
    tiny_llava.set_attn_implementation(attention)
    batch = make_batch(ROWS, "left")
    adapter, method = adapter_for(tiny_llava), make_method("fastv")
    with torch.no_grad():
        with vispco.prune(tiny_llava, method=method, schedule=schedule):
            pruned = tiny_llava(**batch, use_cache=False).logits[:, -1]
        with relaxed(adapter, method, torch.tensor(schedule.keep_ratio(4))):
            soft = tiny_llava(**batch, use_cache=False).logits[:, -1]
    assert (pruned - soft).abs().max() <= 1e-4


def test_answer_tokens_are_not_seen_by_the_method(tiny_llava: Any) -> None:
    """With the answer appended, tokens are still ranked by the prompt's last token."""
    tiny_llava.set_attn_implementation("sdpa")
    batch = make_batch(ROWS, "left")
    adapter, method, ratios = adapter_for(tiny_llava), make_method("fastv"), torch.tensor([1.0, 1.0, 0.3, 0.3])
    answer = torch.tensor([[7, 8], [9, 10], [11, 12]])
    longer = {
        **batch,
        "input_ids": torch.cat([batch["input_ids"], answer], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(answer)], 1),
    }
    with torch.no_grad():
        with relaxed(adapter, method, ratios):
            prompt_only = tiny_llava(**batch, use_cache=False).logits[:, -1]
        with relaxed(adapter, method, ratios, trailing=2):
            with_answer = tiny_llava(**longer, use_cache=False).logits[:, -3]
    assert (prompt_only - with_answer).abs().max() <= 1e-4


def test_gradient_is_the_effect_of_keeping_more(tiny_llava: Any) -> None:
    """One token away from the threshold, the gradient has the sign of the change that keeping it makes."""
    tiny_llava.set_attn_implementation("sdpa")
    adapter, method = adapter_for(tiny_llava), make_method("fastv")
    agree, clear = 0, 0
    for seed in range(24):
        batch = make_batch([(3, 1, 5)], seed=seed)

        def score(keep: float, batch: Any = batch) -> tuple[torch.Tensor, torch.Tensor]:
            ratios = torch.tensor([1.0, 1.0, keep, keep], requires_grad=True)
            with relaxed(adapter, method, ratios, temperature=0.02):
                logits = tiny_llava(**batch, use_cache=False).logits[0, -1]
            return logits.log_softmax(-1)[7], ratios

        value, ratios = score(6 / 16)
        (gradient,) = torch.autograd.grad(value, [ratios])
        assert torch.isfinite(gradient).all()
        change = float((score(7 / 16)[0] - score(5 / 16)[0]).detach())
        slope = float(gradient[2] + gradient[3])
        if abs(change) > 0.05:
            clear += 1
            agree += (change > 0) == (slope > 0)
    assert clear >= 8
    assert agree >= 0.8 * clear


def test_leaves_no_trace(tiny_llava: Any) -> None:
    batch = make_batch(ROWS)
    adapter, method = adapter_for(tiny_llava), make_method("fastv")
    flags = [p.requires_grad for p in tiny_llava.parameters()]
    with torch.no_grad():
        before = tiny_llava(**batch).logits
    hooks = installed_hooks(tiny_llava)
    with pytest.raises(KeyError), relaxed(adapter, method, torch.tensor([1.0, 0.5, 0.5, 0.5])):
        raise KeyError
    with torch.no_grad():
        assert torch.equal(before, tiny_llava(**batch).logits)
    assert [p.requires_grad for p in tiny_llava.parameters()] == flags
    assert installed_hooks(tiny_llava) == hooks
    with pytest.raises(ModelError, match="cannot drive"), relaxed(adapter, make_method("random"), torch.ones(4)):
        pass


def test_official_kernel_values() -> None:
    """Slope 10, centre 4, keep 0.5: r_3 = 0.99998, r_4 = 0.75, r_5 = 0.50002 (official code)."""
    family = StepFamily(9)
    free = torch.tensor([0.0, 0.0], dtype=torch.float64)
    ratios = family.relaxed(free, 10.0)
    assert [round(float(r), 5) for r in ratios[3:6]] == [0.99998, 0.75, 0.50002]


@given(a=st.floats(-4, 4), b=st.floats(-4, 4), layers=st.integers(3, 40))
def test_relaxed_form_sharpens_to_the_discrete_one(a: float, b: float, layers: int) -> None:
    family = StepFamily(layers)
    free = torch.tensor([a, b], dtype=torch.float64)
    centre = float((layers - 1) * torch.sigmoid(free[0]))
    if abs(centre - round(centre)) < 1e-3:
        return
    sharp = family.relaxed(free, 1e6)
    assert torch.allclose(sharp, torch.tensor(family.discrete(free).keep_ratio(layers), dtype=torch.float64), atol=1e-6)
    back = family.discrete(family.invert(family.discrete(free), free))
    assert back.keep_ratio(layers)[0] == 1.0
    assert back.layer == family.discrete(free).layer  # type: ignore[attr-defined]


@given(layer=st.integers(1, 7), keep=st.floats(0, 1), limit=st.floats(0.0, 1.0))
def test_snap_fits_and_is_tight(layer: int, keep: float, limit: float) -> None:
    family = StepFamily(8)

    def cost(schedule: Any) -> float:
        return sum(schedule.keep_ratio(8)) / 8

    floor = cost(family.cheapest())
    budget = floor + limit * (1 - floor)
    snapped = family.snap(Step(layer, keep), lambda s: cost(s) <= budget + 1e-12)
    assert cost(snapped) <= budget + 1e-9
    assert budget - cost(snapped) <= 1e-4 + 1e-9 or snapped.keep_ratio(8)[-1] == 1.0
