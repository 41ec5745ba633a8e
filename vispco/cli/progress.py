"""Progress on stderr: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vispco.search.base import Advance

LINE_SECONDS = 15.0


class TerminalProgress:
    """One bar per part of a run; without a terminal a line at its start, its end, and now and then."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.fancy = sys.stderr.isatty() and not quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def track(self, title: str) -> Iterator[Advance]:
        if self.fancy:
            with _bar(title) as bar:
                yield bar
            return
        started, last, shown = time.monotonic(), time.monotonic(), ""

        def advance(done: int, total: int | None, note: str) -> None:
            nonlocal last, shown
            shown = f"{done}/{total}" if total else str(done)
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                self.say(f"{title}: {shown} {note}")

        yield advance
        self.say(f"{title}: {shown or 'nothing to do'} done in {time.monotonic() - started:.0f} s")


@contextmanager
def _bar(title: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, note="")

        def advance(done: int, total: int | None, note: str) -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield advance
