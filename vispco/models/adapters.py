"""Models as people have them: with a PEFT adapter, or with weights that are quantised while they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vispco.errors import ConfigError, ModelError, listed
from vispco.models.wrappers import PROMPT_LEARNING


def with_adapter(model: Any, name: str) -> Any:
    """The model with an adapter in its layers, as ``PeftModel.from_pretrained`` gives it, but complete or not at all.

    PEFT itself only warns where an adapter's weights find no place, and the answers are then those of the plain model.

    Args:
        name: hub id or folder that PEFT's ``save_pretrained`` wrote.

    Raises:
        ModelError: PEFT is not installed, the adapter cannot be read, or it does not fit this model.
    """
    try:
        from peft import PeftConfig, PeftModel
        from peft.utils import SAFETENSORS_WEIGHTS_NAME
    except ImportError as error:
        raise ModelError(f"adapter {name!r} needs {error.name}; install it with: pip install peft") from None
    folder = Path(name)
    if folder.is_dir() and not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ModelError(
            f"adapter {name!r} has no {SAFETENSORS_WEIGHTS_NAME}; weights are read from safetensors files only, never "
            "from pickles (.bin): save it again with PEFT's save_pretrained"
        )
    try:
        config = PeftConfig.from_pretrained(name)
        if config.is_prompt_learning:
            raise ModelError(f"adapter {name!r}: {config.peft_type} {PROMPT_LEARNING}")
        config.inference_mode = True
        wrapped = PeftModel(model, config)
        found = wrapped.load_adapter(name, "default")
    except ModelError:
        raise
    except Exception as error:  # whatever damaged or foreign files make the libraries raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"cannot load adapter {name!r}: {reason}; give a hub id or a folder with an adapter that was trained for "
            "this model"
        ) from error
    for keys, problem in (
        (found.missing_keys, "has no weights for"),
        (found.unexpected_keys, "has weights that find no place in this model:"),
    ):
        if keys:
            raise ModelError(
                f"adapter {name!r} {problem} {listed(sorted(keys))}; give the adapter that was trained for this model"
            )
    return wrapped


def quantization_config(given: Mapping[str, Any]) -> Any:
    """What ``from_pretrained`` takes, of a mapping as it stands in a model's ``config.json``.

    Raises:
        ConfigError: transformers does not know the method, or the method not the options.
    """
    from transformers.quantizers import AutoQuantizationConfig

    way = "write it as transformers does in config.json, for example {quant_method: quanto, weights: int8}"
    try:
        made = AutoQuantizationConfig.from_dict(dict(given))
    except Exception as error:  # each method checks its options in its own way
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.quantization {dict(given)!r}: {reason}; {way}") from None
    unknown = sorted(given.keys() - made.to_dict().keys())
    if unknown:
        raise ConfigError(f"model.quantization: {given.get('quant_method')!r} has no option {unknown[0]!r}; {way}")
    return made
