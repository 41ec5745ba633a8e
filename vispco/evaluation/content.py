"""What an experiment was measured on, by content: names and paths stay the same when what they name changes.

A content is a mapping of mappings of texts, small enough to be stored with the experiment. Everything in it is the same
on every machine; that is why features and logits, which are not, have no part in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vispco.config import content_hash
from vispco.errors import ModelError

if TYPE_CHECKING:
    import torch

    from vispco.evaluation.prepared import PreparedSplit
    from vispco.problem import Problem
    from vispco.tasks.base import Sample, Task

Content = dict[str, dict[str, str]]
CHUNK = 1 << 22  # words of a tensor that are summed at a time
PLAIN = ("model", "configuration", "generation", "processor", "adapters")  # parts whose values are told as they are
LONG = 40  # characters of a setting that are stored as they are
# Settings of a configuration that say where it came from or how it is run, not what it computes.
NOT_CONTENT = frozenset(
    (
        *("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash"),
        *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
        *("_experts_implementation", "use_cache", "output_attentions", "output_hidden_states", "return_dict"),
        *("processor_class", "image_processor_type", "base_model_name_or_path", "inference_mode"),
    )
)


# --- models -----------------------------------------------------------------------------------------


def weights_checksum(model: Any) -> str:
    """Of all bytes of a model's parameters and buffers, on the device where they are.

    Each tensor's 64-bit words are summed with odd weights modulo 2**64, so that no change of one word goes unseen.

    Raises:
        ModelError: weights are offloaded.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        for part, plain in _plain(name, tensor):
            if plain.is_meta:
                raise ModelError(
                    f"weights of {name} are offloaded, so results cannot be told apart by them; "
                    "load the whole model (device: cpu or cuda) to measure it"
                )
            digest.update(f"{part} {tuple(plain.shape)} {plain.dtype} {_word_sum(plain)}\n".encode())
    return digest.hexdigest()[:16]


def _plain(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """The ordinary tensors that a tensor is made of (quantised ones are made of several)."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    names, settings = tensor.__tensor_flatten__()
    for inner in names:
        yield from _plain(f"{name}.{inner} {settings}", getattr(tensor, inner))


def _word_sum(tensor: torch.Tensor) -> int:
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    spare = -len(data) % 8
    whole, rest = data[: len(data) - len(data) % 8], data[len(data) - len(data) % 8 :]
    tail = torch.cat([rest, rest.new_zeros(spare)]) if spare else rest
    total, start = 0, 0
    for words in (*torch.split(whole, 8 * CHUNK), *([tail] if len(tail) else [])):
        if len(words) == 0:
            continue
        if words.storage_offset() % 8:
            words = words.clone()
        numbers = words.view(torch.int64)
        at = torch.arange(start, start + len(numbers), dtype=torch.int64, device=data.device)
        total += int((numbers * (2 * at * 0x9E3779B97F4A7C1 + 1)).sum())
        start += len(numbers)
    return total % (1 << 64)


def model_content(problem: Problem) -> Content:
    """Weights, configuration, adapters and generation settings of the model, and what its processor does.

    Raises:
        ModelError: weights are offloaded.
    """
    model = problem.model
    content: Content = {
        "model": {
            "weights": weights_checksum(model),
            "dtype": str(problem.adapter.dtype()),
            "attention": problem.adapter.attention(),
        },
        "configuration": _settings(model.config),
        "generation": _settings(_decisive(model.generation_config)),
    }
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, Mapping):
        scaling = {
            name: dict(module.scaling)
            for name, module in model.named_modules()
            if isinstance(getattr(module, "scaling", None), Mapping)
        }
        content["adapters"] = _settings({**adapters, "active": getattr(model, "active_adapters", None), **scaling})
    processor = problem.processor
    parts = {"": processor, "pictures": getattr(processor, "image_processor", None)}
    content["processor"] = {
        f"{name}.{key}" if name else key: value
        for name, part in parts.items()
        for key, value in _settings(_own_settings(part)).items()
    }
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None:
        content["processor"]["vocabulary"] = content_hash(sorted(tokenizer.get_vocab().items()))
    return content


def _decisive(generation: Any) -> dict[str, Any]:
    """Settings by which greedy decoding takes another token, or stops."""
    from vispco.evaluation.decoding import CHANGES_LOGITS, changed_logits, stop_tokens

    return {"stop": stop_tokens(generation), **CHANGES_LOGITS, **changed_logits(generation)}


def _own_settings(part: Any) -> dict[str, Any]:
    """Plain values of a processor, without its parts, its templates and what only describes it."""
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    settings = dict(vars(part)) if part is not None else {}
    templates = {"chat_template", "valid_processor_keys", "optional_attributes", "attributes", "audio_tokenizer"}
    return {
        key: value
        for key, value in settings.items()
        if not key.startswith("_") and key not in templates and isinstance(value, plain)
    }


def _settings(value: Any, place: str = "") -> dict[str, str]:
    """Settings by their dotted names; long ones as a hash."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        settings: dict[str, str] = {}
        for key, inside in value.items():
            if key not in NOT_CONTENT and not (isinstance(key, str) and key.startswith("_commit")):
                settings.update(_settings(inside, f"{place}.{key}" if place else str(key)))
        return settings
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    text = json.dumps(value, default=str, sort_keys=True)
    return {place: text if len(text) <= LONG else f"hash {content_hash(text)}"}


# --- data -------------------------------------------------------------------------------------------


def picture_key(picture: Any) -> str:
    """Of a picture's size and pixels, or those of several, such as a video's frames."""
    digest = hashlib.sha256()
    for part in picture if isinstance(picture, (list, tuple)) else [picture]:
        pixels = np.ascontiguousarray(np.asarray(part))
        digest.update(f"{pixels.shape} {pixels.dtype}".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()[:16]


def split_content(part: PreparedSplit) -> dict[str, str]:
    """Of a split that is ready to be measured."""
    return _samples_content(part.samples, part.pictures, part.tokens)


def sample_rows(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What samples say, apart from their pictures."""
    return {
        "samples": [[s.id, s.group_id, s.category] for s in samples],
        "questions": [[s.question, s.prompt, s.options] for s in samples],
        "answers": [[s.answers, dict(s.extra)] for s in samples],
    }


def _samples_content(samples: Sequence[Sample], pictures: Sequence[Any], prompts: Any) -> dict[str, str]:
    rows = {**sample_rows(samples), "pictures": list(pictures), "prompts": prompts}
    return {name: content_hash(values) for name, values in rows.items()}


def calibration_content(problem: Problem, task: Task) -> dict[str, str]:
    """Of a task's split ``calibration``, read as it is for gradients."""
    from vispco.tasks.rendering import render_prompt

    samples = task.samples("calibration")
    prompts = [render_prompt(problem.processor, sample) for sample in samples]
    tokens = [problem.processor.tokenizer(prompt)["input_ids"] for prompt in prompts]
    pictures = [[picture_key(picture) for picture in sample.images] for sample in samples]
    return _samples_content(samples, pictures, tokens)


def split_name(task: str, split: str) -> str:
    return f"task {task!r}, split {split!r}"


# --- comparing --------------------------------------------------------------------------------------


def changes(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What differs, in words. What only one of the two knows, such as a setting of a newer release, does not count."""
    differing = []
    for part, values in before.items():
        for key, value in values.items():
            other = now.get(part, {}).get(key)
            if other is not None and other != value:
                plain = not value.startswith("hash ") and part in PLAIN
                detail = f" ({value} there, {other} here)" if plain and len(value) + len(other) <= 60 else ""
                differing.append(f"{key} of the {part}{detail}" if " " not in part else f"{key} of {part}")
    return differing


def merged(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> Content:
    """Both, where they do not contradict each other."""
    return {part: {**before.get(part, {}), **now.get(part, {})} for part in {**before, **now}}
