"""The relaxed model: a hard mask is the pruned forward, gradients point the right way, no trace is left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from conftest import make_batch
from vispco.errors import ModelError
from vispco.models.families import adapter_for
from vispco.pruning.forward.relaxed import kept_counts, relaxed
from vispco.pruning.methods import make_method
from vispco.pruning.schedules import Step, keep_count
from vispco.testing import checks

ROWS = [(3, 1, 5), (1, 1, 9), (2, 2, 3)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("schedule", [Step(3, 0.0), Step(2, 1.0)], ids=str)
def test_hard_mask_is_the_pruned_forward_at_both_ends(tiny_llava: Any, schedule: Step, attention: str) -> None:
    tiny_llava.set_attn_implementation(attention)
    checks.check_relaxed(tiny_llava, make_batch(ROWS, "left"), make_method("fastv"), schedule)


def test_gradient_is_the_effect_of_keeping_more(tiny_llava: Any) -> None:
    """One token away from the threshold, the gradient has the sign of the (large) change that keeping it makes."""
    tiny_llava.set_attn_implementation("sdpa")
    adapter, method = adapter_for(tiny_llava), make_method("fastv")
    agree, clear = 0, 0
    for seed in range(48):
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
        if abs(change) > 0.2:
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
    hooks = checks.installed_hooks(tiny_llava)
    with pytest.raises(KeyError), relaxed(adapter, method, torch.tensor([1.0, 0.5, 0.5, 0.5])):
        raise KeyError
    with torch.no_grad():
        assert torch.equal(before, tiny_llava(**batch).logits)
    assert [p.requires_grad for p in tiny_llava.parameters()] == flags
    assert checks.installed_hooks(tiny_llava) == hooks
    with pytest.raises(ModelError, match="cannot drive"), relaxed(adapter, make_method("random"), torch.ones(4)):
        pass
    half = adapter_for(copy.deepcopy(tiny_llava).half())
    with pytest.raises(ModelError, match="in float16 the gradient"), relaxed(half, method, torch.ones(4)):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_those_of_the_pruned_forward(dtype: torch.dtype) -> None:
    n_visual = torch.arange(0, 700)
    for steps in (20, 100):
        for part in range(steps + 1):
            ratio = part / steps
            found = kept_counts(torch.tensor(ratio, dtype=dtype), n_visual)
            asked = found.clamp(max=n_visual.double()) * (n_visual > 0)
            assert asked.tolist() == [keep_count(ratio, int(n)) for n in n_visual], ratio


def test_leaves_no_hook_where_it_cannot_begin(tiny_llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in tiny_llava.modules())

    adapter, before = adapter_for(tiny_llava), hooks()
    monkeypatch.setattr(adapter, "projections", lambda layer: (_ for _ in ()).throw(ModelError("none here")))
    with pytest.raises(ModelError, match="none here"), relaxed(adapter, make_method("fastv"), torch.ones(4)):
        pass
    assert hooks() == before
