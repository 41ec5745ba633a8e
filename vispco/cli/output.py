"""What commands print on stdout: a table, JSON or CSV of the same rows."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len

Rows = Sequence[Mapping[str, Any]]
GAP = "  "
NARROWEST = 10  # characters that a column of texts keeps
BREAKS = " /_,;:)@"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def print_rows(rows: Rows, *, as_json: bool = False, as_csv: bool = False, empty: str = "nothing yet") -> None:
    """Print rows with the same keys."""
    if as_json:
        print_json([dict(row) for row in rows])
    elif as_csv:
        if rows:
            writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif not rows:
        print(empty)
    else:
        print_table(rows)


def page_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80


def columns_that_fit(names: Sequence[str], room: int, cell: int) -> list[str]:
    """The first names, one at least, whose columns of ``cell`` or more, with their gaps, need no more than ``room``."""
    shown = list(names[:1])
    for name in names[1:]:
        if sum(max(len(one), cell) + 2 for one in [*shown, name]) > room:
            break
        shown.append(name)
    return shown


def in_blocks(names: Sequence[str], room: int, cell: int, first: int = 0) -> list[list[str]]:
    """All names, in the fewest blocks of columns that fit; the first block has ``first`` columns less."""
    blocks: list[list[str]] = []
    rest = list(names)
    while rest:
        blocks.append(columns_that_fit(rest, room - (0 if blocks else first), cell))
        rest = rest[len(blocks[-1]) :]
    return blocks or [[]]


def print_text(text: str) -> None:
    """A line of text that may hold names, wrapped like the tables that :func:`page_width` is given to."""
    print(*_wrapped(printable(text), page_width()), sep="\n")


def print_table(rows: Rows, width: int | None = None, *, decimals: int = 3) -> None:
    """An aligned plain-text table; numbers to the right.

    Args:
        width: cells are wrapped so that no line is longer, if that leaves each column a few characters; default: that
            of the terminal, and any where there is none, as programs read that.
        decimals: of numbers that are not whole.
    """
    if width is None and sys.stdout.isatty():
        width = page_width()
    names = list(rows[0])
    cells = [[_cell(row[name], decimals) for name in names] for row in rows]
    numeric = [all(isinstance(row[name], (int, float, type(None))) for row in rows) for name in names]
    widths = _widths(names, cells, numeric, width)

    def lines(values: Sequence[str]) -> Iterator[str]:
        parts = [_wrapped(value, size) for value, size in zip(values, widths, strict=True)]
        for row in zip_longest(*parts, fillvalue=""):
            yield GAP.join(_padded(*one) for one in zip(row, widths, numeric, strict=True)).rstrip()

    for values in (names, ["-" * size for size in widths], *cells):
        print(*lines(values), sep="\n")


def _widths(
    names: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool], width: int | None
) -> list[int]:
    """Natural widths, taken from the widest column until they fit; a number is never broken."""
    columns = list(zip(*cells, strict=True))
    inside = [max(map(cell_len, column)) for column in columns]
    widths = [max(cell_len(name), size) for name, size in zip(names, inside, strict=True)]
    least = [
        min(natural, max(size, 4) if number else NARROWEST)
        for natural, size, number in zip(widths, inside, numeric, strict=True)
    ]
    spare = 0 if width is None else sum(widths) + len(GAP) * (len(widths) - 1) - width
    while spare > 0:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        if widths[widest] == least[widest]:
            break
        widths[widest] -= 1
        spare -= 1
    return widths


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a cell, broken after blanks and punctuation where there is some."""
    found, rest = [], text
    while cell_len(rest) > width:
        end = next(n for n in range(len(rest), 0, -1) if n == 1 or cell_len(rest[:n]) <= width)
        cut = max((n for n in range(end, end // 3, -1) if _may_break(rest[:n])), default=end)
        found.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*found, rest] if rest or not found else found


def _may_break(text: str) -> bool:
    """After blanks and punctuation, and after a hyphen that is no sign of a number."""
    return text[-1] in BREAKS or (text[-1] == "-" and text[-2:-1].isalpha())


def _padded(text: str, width: int, number: bool) -> str:
    blank = " " * (width - cell_len(text))
    return blank + text if number else text + blank


def _cell(value: Any, decimals: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return printable(str(value))


def printable(text: str) -> str:
    """Without what would move the cursor, or the direction of writing."""
    return "".join(c if c.isprintable() else "?" for c in text)
