"""Slopes by secants: exactly what flipping one key does to an attention output, in a model that is otherwise itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import make_batch
from vispco.errors import ModelError
from vispco.models.families import adapter_for
from vispco.pruning.forward.relaxed import relaxed
from vispco.pruning.forward.secant import HardKeys, _attention, secant_attention
from vispco.pruning.methods import make_method
from vispco.testing import checks

ROWS = [(3, 1, 5), (1, 1, 9), (2, 2, 3)]


def additive(mask: Tensor, seen: Tensor) -> Tensor:
    """Dropped keys are hidden from all but themselves."""
    own = torch.eye(mask.shape[1], dtype=torch.bool)
    allowed = seen & ((mask > 0.5)[:, None, None, :] | own)
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_a_slope_is_what_flipping_the_key_does(spread: float) -> None:
    """Of a loss that is linear in the output, with grouped heads; also where logits lie 30 apart."""
    generator = torch.Generator().manual_seed(0)
    batch, heads, groups, length, width = 2, 4, 2, 9, 8
    query = spread * torch.randn(batch, heads, length, width, generator=generator)
    key, value = (torch.randn(batch, groups, length, width, generator=generator) for _ in range(2))
    wanted = torch.randn(batch, length, heads, width, generator=generator)
    seen = torch.ones(batch, 1, length, length, dtype=torch.bool).tril()
    seen[1, :, :, 0] = False  # a pad
    seen |= torch.eye(length, dtype=torch.bool)
    mask = (torch.rand(batch, length, generator=generator) > 0.4).float()
    module = torch.nn.Module()
    module.num_key_value_groups = heads // groups  # type: ignore[assignment]

    def loss(mask: Tensor, carrier: Tensor) -> Tensor:
        keys = HardKeys(carrier, seen)
        given = additive(mask, seen)
        output, _ = _attention("sdpa")(module, query, key, value, given, hard_keys=keys, scaling=width**-0.5)
        return (output * wanted).sum()

    carrier = mask.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(loss(mask, carrier), [carrier])
    for row in range(batch):
        for place in range(length):
            there, gone = mask.clone(), mask.clone()
            there[row, place], gone[row, place] = 1.0, 0.0
            effect = float(loss(there, mask) - loss(gone, mask))
            assert float(slopes[row, place]) == pytest.approx(effect, rel=1e-4, abs=1e-4)


def test_the_model_says_the_same_and_is_left_as_it_was(tiny_llava: Any) -> None:
    adapter, method, batch = adapter_for(tiny_llava), make_method("fastv"), make_batch(ROWS)
    for attention in ("sdpa", "eager"):
        tiny_llava.set_attn_implementation(attention)
        found = []
        for secant in (False, True):
            ratios = torch.tensor([1.0, 0.75, 0.4, 0.2], requires_grad=True)
            with relaxed(adapter, method, ratios, secant=secant):
                logits = tiny_llava(**batch, use_cache=False).logits[:, -1]
            assert adapter.attention() == attention
            (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), [ratios])
            found.append((logits.detach(), gradient))
        torch.testing.assert_close(found[0][0], found[1][0])
        assert not torch.allclose(found[0][1][1:], found[1][1][1:], rtol=1e-3)
    tiny_llava.set_attn_implementation("sdpa")
    hooks = checks.installed_hooks(tiny_llava)
    with pytest.raises(KeyError), relaxed(adapter, method, torch.ones(4), secant=True):
        raise KeyError
    assert (adapter.attention(), checks.installed_hooks(tiny_llava)) == ("sdpa", hooks)


def test_layers_without_attention_are_refused(tiny_llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_for(tiny_llava)
    monkeypatch.setattr(adapter, "layers", lambda: [torch.nn.Linear(1, 1)])
    with pytest.raises(ModelError, match="set slopes: tangent"), secant_attention(adapter):
        pass
