"""Write docs/support.md: ``python docs/make_support.py``."""

from __future__ import annotations

from pathlib import Path

from vispco.testing.support import support_rows

PAGE = Path(__file__).parent / "support.md"
HEAD = """# Which method runs on which model

What `vispco ls support` prints; written by `python docs/make_support.py`. `first_layer` is the first layer that fewer
tokens may enter. What a model lacks is reported in one line before anything runs. Methods are described in
[Methods and schedules](methods.md), model families in [Your data and model](own.md#your-model).
"""


def table() -> str:
    """The table as Markdown."""
    rows = support_rows()
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page() -> str:
    return f"{HEAD}\n{table()}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
