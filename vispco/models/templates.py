"""Chat templates come with a model, as programs: one that is broken, or does not end, is reported in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vispco.errors import ModelError

MOST_LINES = 1_000_000  # a template of a real model runs through some hundred lines per message
MOST_CHARACTERS = 1 << 24


class _EndlessError(Exception):
    """A template ran through more lines than any real one needs."""


def render_chat(processor: Any, messages: Sequence[Mapping[str, Any]], **settings: Any) -> str:
    """The prompt that the processor's chat template makes of ``messages``, with the beginning of an answer.

    Raises:
        ModelError: the template is no template, refuses the messages, does not end, or gives no text.
    """
    try:
        with _bounded():
            text = processor.apply_chat_template(list(messages), add_generation_prompt=True, **settings)
    except Exception as error:  # whatever a program of somebody else may raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if isinstance(error, _EndlessError):
            reason = f"it does not end within {MOST_LINES:,} steps"
        raise ModelError(
            f"the model's chat template cannot be used: {reason}; mend chat_template.jinja in the model's folder"
        ) from error
    if not isinstance(text, str) or not text.strip() or len(text) > MOST_CHARACTERS:
        got = f"{len(text):,} characters" if isinstance(text, str) else type(text).__name__
        raise ModelError(
            f"the model's chat template makes no prompt of a question, but {got}; "
            "mend chat_template.jinja in the model's folder"
        )
    return text


@contextmanager
def _bounded() -> Iterator[None]:
    """Whatever runs inside the block may run through so many lines of Python; compiled templates are Python."""
    before, left = sys.gettrace(), MOST_LINES

    def watch(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _EndlessError
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
