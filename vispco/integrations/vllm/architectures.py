"""The plug-in's architectures, by those of vLLM that they stand for."""

from __future__ import annotations

from vispco.errors import ModelError

PREFIX = "Vispco"
# Architecture of a checkpoint -> module and class that serve it pruned.
SERVED = {
    "LlavaForConditionalGeneration": "vispco.integrations.vllm.llava:VispcoLlava",
    "Qwen2_5_VLForConditionalGeneration": "vispco.integrations.vllm.qwen:VispcoQwen25VL",
}


def architecture_of(model: str) -> str:
    """The architecture under which vLLM serves a checkpoint pruned.

    Raises:
        ModelError: its configuration cannot be read, or the plug-in does not serve its family.
    """
    from transformers import AutoConfig

    try:
        named: str = (AutoConfig.from_pretrained(model).architectures or [""])[0]
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"cannot read the configuration of {model!r}: {reason}; give a hub id or a folder") from None
    if named not in SERVED:
        raise ModelError(
            f"vLLM's plug-in does not serve architecture {named!r} of {model!r}, but {', '.join(SERVED)}; "
            "name a model of these, or use target transformers and vispco serve"
        )
    return PREFIX + named
