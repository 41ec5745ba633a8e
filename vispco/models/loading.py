"""Load a vision-language model and its processor by hub id, local folder, or a demo's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vispco.errors import ModelError

if TYPE_CHECKING:
    import torch


DTYPES = ("float32", "bfloat16", "float16", "float64")
# Arguments of from_pretrained that say which files are meant: the processor is to be of the same.
FOUND_BY = ("revision", "subfolder", "cache_dir", "token", "local_files_only", "force_download")
DEMOS = {
    "demo": ("llava", "small LLaVA that is part of this package"),
    "demo-deep": ("deep", "the same with 26 decoder layers: 501 points on the dense step grid"),
    "demo-qwen": ("qwen", "small Qwen2.5-VL for the same task"),
}


def demo_folder(name: str = "demo") -> Path:
    """Where the weights of a demo VLM lie."""
    return Path(__file__).parent / "demo" / DEMOS[name][0]


DEMO = demo_folder()
SMOL = "smol"


def source_of(name: str) -> str:
    """What transformers loads under a name: the folder of a demo or of ``smol``, anything else as it is.

    Raises:
        ModelError: ``smol`` cannot be assembled.
    """
    if name == SMOL:
        from vispco.models.smol.assemble import smol_folder

        return str(smol_folder())
    return str(demo_folder(name)) if name in DEMOS else name


def load_model(
    name: str = "demo",
    *,
    device: str = "cpu",
    dtype: str = "auto",
    adapter: str | None = None,
    quantization: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor.

    Args:
        name: hub id, local folder, ``demo``, ``demo-deep``, ``demo-qwen`` for the small VLMs of this package, or
            ``smol`` for the one on SmolLM2, which is assembled in the user's cache when it is first asked for.
        device: a torch device, or ``auto`` to spread the model over what there is (needs accelerate).
        dtype: a torch dtype's name; ``auto`` is float32 on a CPU and bfloat16 elsewhere.
        adapter: a PEFT adapter, hub id or folder.
        quantization: of the weights while they are loaded, as ``quantization_config`` in a model's ``config.json``.
        kwargs: passed to ``from_pretrained`` (``attn_implementation``, ``device_map``, ``quantization_config``,
            ...). A model that was placed or quantised by them stays where it is.

    Weights are read from safetensors files only, and all of them must be there.

    Raises:
        ModelError: the model or its adapter cannot be found or read, or its family is not supported.
        ConfigError: there is no such quantisation.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    from vispco.models.adapters import quantization_config, with_adapter
    from vispco.models.families import adapter_for

    source = source_of(name)
    if device == "auto":
        kwargs.setdefault("device_map", "auto")
    if dtype == "auto":
        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        dtype = "float32" if on_cpu else "bfloat16"
    numbers = dtype_of(dtype)
    _check_device(device)
    if kwargs.setdefault("use_safetensors", True) is not True:
        raise ModelError("use_safetensors: weights are read from safetensors files only; remove the option")
    if quantization is not None:
        kwargs["quantization_config"] = quantization_config(quantization)
        kwargs.setdefault("device_map", {"": device})  # most kinds cannot be moved afterwards
    # A study out of somebody's database may name any model: its repository's own code is not run, nor asked about.
    trust = kwargs.setdefault("trust_remote_code", False)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, loaded = AutoModelForImageTextToText.from_pretrained(
            source, dtype=numbers, **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        )
        _check_complete(name, loaded)
        reader = AutoProcessor
        if name == "demo-qwen":
            from vispco.models.demo.pictures_only import Qwen25VLPicturesProcessor as reader
        same = {key: kwargs[key] for key in FOUND_BY if key in kwargs}
        processor = reader.from_pretrained(source, trust_remote_code=trust, **same)
        if name in DEMOS or name == SMOL:  # trained, and measured, on what Pillow makes of pictures
            processor.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **same)
    except ImportError as error:
        missing = " ".join(str(error).split())
        raise ModelError(f"model {name!r} needs a package that is not installed: {missing[:160]}") from error
    except ModelError:
        raise
    except Exception as error:  # whatever damaged or hostile files make the libraries raise
        raise ModelError(_unloadable(name, error)) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if not adapter_for(model).layers():
        raise ModelError(f"model {name!r} has no decoder layers by its config.json; get the one that belongs to it")
    if adapter is not None:
        model = with_adapter(model, adapter)
    placed = kwargs.get("device_map") is not None or getattr(model, "is_quantized", False)
    return (model if placed else model.to(device)).eval(), processor


def dtype_of(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise ModelError(f"unknown dtype {name!r}; use float32, bfloat16 or float16")
    found: torch.dtype = getattr(torch, name)
    return found


def _check_complete(name: str, loaded: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose gaps transformers would fill with random numbers.

    Raises:
        ModelError: weights are missing or have other shapes than the configuration says.
    """
    for keys, problem in (
        ("missing_keys", "has no weights for"),
        ("mismatched_keys", "has weights of wrong shape for"),
    ):
        found = sorted(key if isinstance(key, str) else str(key[0]) for key in loaded.get(keys) or ())
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ModelError(
                f"model {name!r} {problem} {', '.join(found[:3])}{more}, which would be random numbers; "
                "get the complete checkpoint, with the configuration that belongs to it"
            )


def _unloadable(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    way_out = "give a hub id, a local folder, or 'demo'"
    if "SafetensorError" in type(error).__name__:
        reason, way_out = f"its weights are damaged or not complete ({reason})", "copy or download the file again"
    elif isinstance(error, OSError) and "safetensors" in reason:
        way_out = "weights are read from safetensors files only, never from pickles (.bin, .pt): convert them"
    elif not isinstance(error, (OSError, ValueError)):
        reason, way_out = f"{type(error).__name__}: {reason}", "mend or replace its files"
    return f"cannot load model {name!r}: {reason}; {way_out}"


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=None if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"cannot use device {device!r}: {reason[:160]}; give cpu, cuda or auto") from None


def weights_hash(model: Any, limit: int = 1 << 26) -> str:
    """Identity of a model's weights: all bytes of models up to 64 MiB, an even sample of each tensor above.

    Raises:
        ModelError: weights are offloaded.
    """
    import torch

    state = model.state_dict()
    large = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > limit
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if tensor.is_meta:
            raise ModelError(
                f"weights of {name} are offloaded, so results cannot be told apart by them; "
                "load the whole model (device: cpu or cuda) to measure it"
            )
        for part, values in _plain_tensors(name, tensor.detach()):
            digest.update(f"{part} {tuple(values.shape)} {values.dtype}".encode())
            flat = values.flatten()
            if large:
                flat = flat[:: max(1, len(flat) // 4096)]
            digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes() if len(flat) else b"")
    return digest.hexdigest()[:16]


def _plain_tensors(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """``tensor``, or the plain tensors that it consists of: torchao's weights are numbers, scales and zero points."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    parts, _ = tensor.__tensor_flatten__()
    for part in parts:
        value = getattr(tensor, part)
        if value is not None:
            yield from _plain_tensors(f"{name}.{part}", value)
