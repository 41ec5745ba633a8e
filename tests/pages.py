"""The pages of docs/ as tests read them: their sections and their blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def sections(page: str) -> dict[str, str]:
    """Texts below the headings of level 2, by heading; what stands before the first is under ``""``."""
    text = (ROOT / page).read_text()
    found, title, code = {"": ""}, "", False
    for line in text.splitlines(keepends=True):
        code ^= line.startswith("```")
        if line.startswith("## ") and not code:
            title = line[3:].strip()
            found[title] = ""
        found[title] += line
    return found


def blocks(page: str, language: str, section: str | None = None) -> list[str]:
    """The page's blocks in a language, or those of one section."""
    text = (ROOT / page).read_text() if section is None else sections(page)[section]
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
