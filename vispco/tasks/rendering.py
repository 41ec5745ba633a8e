"""The text that a model reads of a sample."""

from __future__ import annotations

from typing import Any

from vispco.models.templates import render_chat
from vispco.tasks.base import PLACE, Sample


def render_prompt(processor: Any, sample: Sample) -> str:
    """The text the model reads: by the processor's chat template if it has one, else pictures then question.

    Pictures stand where the prompt has a mark for each of them.
    """
    read, count = sample.prompt or sample.question, len(sample.images)
    if sample.show == "video":
        return _with_video(processor, read, count)
    parts = read.split(PLACE) if count and read.count(PLACE) == count else [*[""] * count, read]
    if getattr(processor, "chat_template", None):
        content: list[dict[str, Any]] = []
        for number, part in enumerate(parts):
            content += [{"type": "image"}] if number else []
            content += [{"type": "text", "text": part}] if part else []
        text = render_chat(processor, [{"role": "user", "content": content}])
        return with_one_bos(processor, text)
    token = getattr(processor, "image_token", PLACE)
    if not any(parts[:-1]):
        return f"{token * count} {parts[-1]}".strip()
    return str(token.join(parts))


def _with_video(processor: Any, read: str, frames: int) -> str:
    if not getattr(processor, "chat_template", None):
        return f"{processor.video_token} {read}" if frames else read
    content = [*([{"type": "video"}] if frames else []), {"type": "text", "text": read}]
    return with_one_bos(processor, render_chat(processor, [{"role": "user", "content": content}]))


def with_one_bos(processor: Any, text: str) -> str:
    """``text`` without its BOS token where the tokenizer adds one too (as Gemma 3's does)."""
    tokenizer: Any = getattr(processor, "tokenizer", None)
    begin = getattr(tokenizer, "bos_token", None)
    if not begin or not text.startswith(begin):
        return text
    twice = tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2
    return text.removeprefix(begin) if twice else text
