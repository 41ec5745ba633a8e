"""The deeper demo VLM: the LLaVA demo with 26 decoder layers, so that the dense step grid has 501 points.

It is grown, not trained from scratch: new layers that do nothing yet are put between the trained ones.
"""

from __future__ import annotations

import re
from typing import Any

from benchmarks.train.demo.build import LAYERS, build_model

DEEP_LAYERS = 26
LAYER = re.compile(r"(model\.language_model\.layers\.)(\d+)(\..*)")


def places(shallow: int = LAYERS, deep: int = DEEP_LAYERS) -> list[int]:
    """Where the layers of the shallow decoder go in the deep one: evenly, from the first layer on.

    >>> places(8, 26)
    [0, 3, 6, 9, 13, 16, 19, 22]
    """
    return [layer * deep // shallow for layer in range(shallow)]


def build_deep_model(seed: int) -> Any:
    """The untrained model."""
    return build_model(seed, DEEP_LAYERS)


def grow(model: Any, demo: Any) -> None:
    """Start ``model`` as the function that the LLaVA ``demo`` computes.

    The demo's layers go to :func:`places`. The others keep their random weights except for the two projections that
    write into the residual stream: those are zero, so that such a layer adds nothing and still receives gradients.
    """
    import torch

    target = model.state_dict()
    at = places(len(demo.model.language_model.layers), len(model.model.language_model.layers))
    with torch.no_grad():
        for name, value in demo.state_dict().items():
            part = LAYER.fullmatch(name)
            place = f"{part[1]}{at[int(part[2])]}{part[3]}" if part else name
            target[place].copy_(value)
        for number, layer in enumerate(model.model.language_model.layers):
            if number not in at:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
