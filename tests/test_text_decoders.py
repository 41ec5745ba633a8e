"""LLaVA with text decoders other than Llama: what is read of them is right, or they are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CohereConfig,
    GraniteConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from vispco.costs import prefill_flops, relaxed_backward_flops
from vispco.errors import ModelError
from vispco.models.base import ModelAdapter
from vispco.models.families import adapter_for
from vispco.pruning.forward.attention import LayerAttention
from vispco.pruning.forward.relaxed import relaxed
from vispco.pruning.methods import make_method
from vispco.pruning.methods.fastv import FastV
from vispco.pruning.prune import prune
from vispco.pruning.schedules import Ratios, Step
from vispco.testing import checks
from vispco.testing.tiny import TINY
from vispco.testing.tiny.base import IMAGE, TEXT, TOWER

EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "granite": partial(
        GraniteConfig, **TEXT, attention_multiplier=0.02, residual_multiplier=0.5, embedding_multiplier=2.0
    ),
    "olmo2": partial(Olmo2Config, **TEXT),
    "mistral": partial(MistralConfig, **TEXT, sliding_window=12),
    "phi3": partial(Phi3Config, **TEXT),
    "cohere": partial(CohereConfig, **TEXT),
    "qwen3_moe": partial(Qwen3MoeConfig, **TEXT, **EXPERTS, head_dim=8, num_experts=6, mlp_only_layers=[2]),
    "qwen2_moe": partial(
        Qwen2MoeConfig, **TEXT, **EXPERTS, shared_expert_intermediate_size=40, num_experts=4, mlp_only_layers=[]
    ),
}


def llava(decoder: str) -> Any:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
    text = CONFIGS[decoder]()
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("decoder", ["granite", "olmo2", "mistral"])
def test_attention_rows_are_the_models_own(decoder: str) -> None:
    model, batch = llava(decoder), TINY["llava"].batch([(3, 1, 5)])
    model.set_attn_implementation("eager")
    seen: dict[int, torch.Tensor] = {}

    class Watching(FastV):
        def score(self, context: Any) -> Any:
            seen[context.boundary] = context.attention_rows(context.last[:, None])[:, :, 0]
            return super().score(context)

    with torch.no_grad():
        own = model(**batch, output_attentions=True, use_cache=False).attentions
        with prune(model, method=Watching(), schedule=Step(2, 0.9)):
            model(**batch, use_cache=False)
    torch.testing.assert_close(seen[2], own[1][:, :, -1])


@pytest.mark.parametrize("decoder", ["phi3", "cohere"])
def test_what_cannot_be_read_is_refused(decoder: str) -> None:
    model, batch = llava(decoder), TINY["llava"].batch([(3, 1, 5)])
    refused = r"method 'fastv' needs attention of the layer before, .*methods that run on it: .*random"
    with pytest.raises(ModelError, match=refused), prune(model, method="fastv", schedule=Step(2, 0.5)):
        pass
    with pytest.raises(ModelError, match=refused), relaxed(adapter_for(model), make_method("fastv"), torch.ones(4)):
        pass
    with torch.no_grad(), prune(model, method="random", schedule=Step(2, 0.5)) as session:
        model(**batch)
    assert [len(session.kept(layer)[0]) for layer in range(4)] == [16, 16, 8, 8]


@pytest.mark.parametrize("decoder", ["qwen3_moe", "qwen2_moe", "phi3"])
def test_weights_that_a_token_meets_are_counted(decoder: str) -> None:
    """Experts that it is sent to, the router, a shared expert with its gate, fused projections: by torch's counter."""
    model, batch = llava(decoder), TINY["llava"].batch([(3, 1, 5)])
    for schedule in (Step(2, 1.0), Step(1, 0.5), Ratios([1, 0.75, 0.3, 0.0])):
        with prune(model, method="random", schedule=schedule):
            counted = checks.counted_flops(model, batch)
        counts = schedule.counts(np.array([16]), 4)
        assert counted == prefill_flops(adapter_for(model).shape(), counts, np.array([16]), np.array([8]))[0]


def test_experts_of_the_backward_pass_are_counted() -> None:
    """By hand: of layers 1 to 3 the first has no gradient with respect to its input."""
    shape = adapter_for(llava("qwen3_moe")).shape()
    attention, n = 2 * 32 * 32 + 2 * 32 * 16, 10
    experts, dense = 6 * 32 + 2 * 3 * 32 * 16, 3 * 32 * 56
    assert [layer.weights for layer in shape.each] == [attention + experts] * 2 + [
        attention + dense,
        attention + experts,
    ]
    product = 4 * n * n * 32
    first = 2 * n * (32 * 32 + experts) + product // 2
    others = sum(2 * n * (attention + mlp) + 2 * product for mlp in (dense, experts))
    assert relaxed_backward_flops(shape, n) == first + others


def test_a_decoder_whose_experts_are_not_said_is_refused() -> None:
    model = llava("qwen3_moe")
    model.config.text_config.num_experts_per_tok = 0
    with pytest.raises(ModelError, match="'qwen3_moe' does not say how many experts a token is sent to"):
        adapter_for(model).shape()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_half_precision_are_exact_products(dtype: torch.dtype) -> None:
    """Qwen's decoders have key biases of some hundreds, so that a row's logits are large and differ by little."""
    adapter: ModelAdapter = adapter_for(TINY["qwen2_5_vl"].model())
    shape, n = adapter.shape(), 40
    make = torch.Generator().manual_seed(0)
    queries, keys = (
        torch.randn(1, n, heads, shape.head_dim, generator=make) for heads in (shape.heads, shape.kv_heads)
    )
    queries[..., 3], keys[..., 3] = 250, 330
    queries, keys = queries.flatten(2).to(dtype), keys.flatten(2).to(dtype)
    still = torch.ones(1, n, shape.head_dim, dtype=dtype), torch.zeros(1, n, shape.head_dim, dtype=dtype)
    valid = torch.ones(1, n, dtype=torch.bool)
    attention = LayerAttention(adapter, 1, queries=queries, keys=keys, position_embeddings=still, valid=valid)
    rows = attention.rows(torch.tensor([[n - 1]]))
    q = adapter.to_heads(queries, shape.heads).double()[:, :, -1:]
    k = adapter.to_heads(keys, shape.kv_heads).double().repeat_interleave(shape.heads // shape.kv_heads, dim=1)
    exact = (q @ k.transpose(2, 3) * adapter.attention_scale(1)).softmax(dim=-1)
    assert 0.1 < float(exact.max()) < 0.9  # else every precision would do
    torch.testing.assert_close(rows.double(), exact, atol=5e-3, rtol=5e-3)
