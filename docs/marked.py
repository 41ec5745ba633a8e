"""What the scripts here share: Markdown tables, marked parts of a page, and results that are kept beside the page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Put each part between ``<!-- its name -->`` and the next ``<!-- end -->``."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        marker = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        assert re.search(marker, text, flags=re.DOTALL), f"{page} has no place for {name}"
        text = re.sub(marker, lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text, flags=re.DOTALL)
        print(f"{name}\n{part}\n")
    page.write_text(text, encoding="utf-8")


def keep(file: Path, told: dict[str, Any]) -> dict[str, Any]:
    """What ``file`` then holds: ``told``, in five decimals."""
    rounded: dict[str, Any] = json.loads(json.dumps(told), parse_float=lambda text: round(float(text), 5))
    file.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
    return rounded


def kept(file: Path, read: Callable[[str | None], dict[str, Any]]) -> dict[str, Any]:
    """What ``file`` holds, with ``--from-json``; else what is read from the place on the command line, kept there."""
    place = sys.argv[1] if len(sys.argv) > 1 else None
    if place != "--from-json":
        return keep(file, read(place))
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
