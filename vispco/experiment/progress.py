"""What a run shows of itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vispco.search.base import Advance


class Progress(Protocol):
    """Shows what a run does; ``track`` wraps one part of it.

    ``result`` says what a search has come to so far; it reads the trials, so it is asked for now and then only.
    """

    def track(self, title: str, result: Callable[[], str] | None = None) -> AbstractContextManager[Advance]: ...

    def say(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def track(self, title: str, result: Callable[[], str] | None = None) -> AbstractContextManager[Advance]:
        return nullcontext(lambda done, total, note: None)

    def say(self, text: str) -> None:
        return None
