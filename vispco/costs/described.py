"""What costs need to know of a model whose weights are not read."""

from __future__ import annotations

from dataclasses import replace

from vispco.costs.base import Setting
from vispco.errors import ModelError
from vispco.models.families import adapter_for
from vispco.models.loading import dtype_of, source_of


def described(name: str, device: str = "cpu", dtype: str = "auto") -> Setting:
    """What costs need to know of a model, from its configuration alone: no weights are read.

    Raises:
        ModelError: the configuration is not at hand, or its family has no adapter.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    source = source_of(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot read the configuration of model {name!r}: {reason}") from error
    setting = Setting.of(adapter_for(model))
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    bits = torch.finfo(dtype_of(dtype)).bits
    return replace(setting, bytes_per_value=bits // 8)
