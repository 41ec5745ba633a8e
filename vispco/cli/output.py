"""What commands print on stdout: a table, JSON or CSV of the same rows."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


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


def print_table(rows: Rows) -> None:
    """An aligned plain-text table; numbers to the right."""
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    numeric = [all(isinstance(row[name], (int, float, type(None))) for row in rows) for name in names]

    def line(values: Sequence[str]) -> str:
        parts = [v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, numeric, strict=True)]
        return "  ".join(parts).rstrip()

    print(line(names))
    print(line(["-" * width for width in widths]))
    for row in cells:
        print(line(row))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "".join(c if c.isprintable() else "?" for c in str(value))
