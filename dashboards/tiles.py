"""Numbers in large, with what they are of and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """``number``, ``what`` and ``note`` are HTML; ``small``: the number is a word."""

    number: str
    what: str
    note: str = ""
    small: bool = False


def tiles(shown: Sequence[Tile]) -> str:
    """A row of tiles, which wraps."""
    parts = "".join(
        f'<div class="tile"><b{" class=word" if tile.small else ""}>{tile.number}</b><span>{tile.what}</span>'
        f"<small>{tile.note}</small></div>"
        for tile in shown
    )
    return f'<div class="tiles">{parts}</div>'
