"""vLLM's plug-in (entry point group ``vllm.general_plugins``): pruned forms of LLaVA-1.5 and Qwen2.5-VL.

They are architectures of their own, chosen by what ``vispco export --target vllm`` writes; vLLM's are left as they are.
"""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in each of its processes, more than once in some; modules are only named here."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vispco.integrations.vllm.architectures import PREFIX, SERVED
    from vispco.integrations.vllm.settings import CheckedConfig

    for name, place in SERVED.items():
        ModelRegistry.register_model(PREFIX + name, place)
        MODELS_CONFIG_MAP[PREFIX + name] = CheckedConfig
