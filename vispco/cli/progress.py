"""Progress on stderr: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.cells import cell_len

from vispco.cli.output import printable
from vispco.search.base import Advance

LINE_SECONDS = 15.0
BAR_SECONDS = 0.5
REST = 20.0  # a result is asked for again after at least so many times what it took

REST_OF_BAR = 44  # columns that bar, count, time and result need
Result = Callable[[], str]


class TerminalProgress:
    """One bar per part of a run; without a terminal a line at its start, its end, and now and then.

    Both say how much is done of how much, and what has come of it (:func:`vispco.search.progress.result_so_far`). A bar
    also says what time is left.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.fancy = sys.stderr.isatty() and not quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    @contextmanager
    def track(self, title: str, result: Result | None = None) -> Iterator[Advance]:
        title = printable(title)
        if self.fancy:
            with _bar(title, result) as bar:
                yield bar
            return
        started, last, shown = time.monotonic(), time.monotonic(), ""

        def advance(done: int, total: int | None, note: str) -> None:
            nonlocal last, shown
            shown = f"{done}/{total}" if total else str(done)
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                self.say(f"{title}: {shown} {_joined(result() if result else '', note)}")

        yield advance
        came = result() if result and shown else ""
        ended = f"{shown} done in {time.monotonic() - started:.0f} s" if shown else "nothing to do"
        self.say(f"{title}: {_joined(ended, came)}")


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


@contextmanager
def _bar(title: str, result: Result | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def text(field: str, least: int | None = None, ratio: int | None = None) -> TextColumn:
        column = Column(no_wrap=True, overflow="ellipsis", min_width=least, ratio=ratio)
        return TextColumn(field, markup=False, table_column=column)

    # The title is whole wherever the terminal has room for it; the note gives way first.
    columns = (
        text("{task.description}", min(cell_len(title), shutil.get_terminal_size().columns - REST_OF_BAR)),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        text("{task.fields[result]}"),
        text("{task.fields[note]}", ratio=1),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
        task = progress.add_task(title, total=None, result="", note="")
        asked, rest, came = -float("inf"), BAR_SECONDS, ""

        def ask() -> None:
            nonlocal asked, rest, came
            if result is not None:
                began = time.monotonic()
                came = result()
                asked = time.monotonic()
                rest = max(BAR_SECONDS, REST * (asked - began))

        def advance(done: int, total: int | None, note: str) -> None:
            if time.monotonic() - asked >= rest:
                ask()
            progress.update(task, completed=done, total=total, result=came, note=printable(note))

        yield advance
        ask()
        progress.update(task, result=came, note="")
