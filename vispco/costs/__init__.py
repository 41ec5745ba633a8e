"""What a schedule costs its user: one file per cost, registered by name as methods are.

Every cost is a pure function of counts, prompt lengths and a :class:`Setting`, so that whatever was measured once has
every cost.
"""

from vispco.costs import kv_bytes, latency_ms, peak_bytes, prefill_ms, tokens_per_second, total_flops  # noqa: F401
from vispco.costs.base import COSTS, CostModel, Prompts, Setting, make_cost
from vispco.costs.flops import (
    decoder_flops,
    flops_ratio,
    layer_flops,
    official_layer_macs,
    plain_flops,
    prefill_flops,
    read_at,
    relaxed_backward_flops,
    shared_flops,
    unpruned_flops,
)
from vispco.costs.kv_bytes import kv_cache_bytes
from vispco.costs.profile import Profile, read_profile

__all__ = [
    "COSTS",
    "CostModel",
    "Profile",
    "Prompts",
    "Setting",
    "decoder_flops",
    "flops_ratio",
    "kv_cache_bytes",
    "layer_flops",
    "make_cost",
    "official_layer_macs",
    "plain_flops",
    "prefill_flops",
    "read_at",
    "read_profile",
    "relaxed_backward_flops",
    "shared_flops",
    "unpruned_flops",
]
