"""Write the support table of docs/methods.md: ``python docs/make_support.py``."""

from __future__ import annotations

import re
from pathlib import Path

from vispco.pruning.support import support_rows

PAGE = Path(__file__).parent / "methods.md"
MARKER = r"(<!-- support -->\n).*?(<!-- end -->)"


def table() -> str:
    """The table as Markdown."""
    rows = support_rows()
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.search(MARKER, text, flags=re.DOTALL), f"{PAGE} has no place for the table"
    text = re.sub(MARKER, lambda m: f"{m[1]}{table()}\n{m[2]}", text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
