"""Names and numbers as text, whatever they contain: in HTML, in a script element, in plotly's own small markup."""

from __future__ import annotations

import json
import re
import unicodedata
from html import escape
from typing import Any

LONGEST = 60  # characters of a name in a figure
RIGHT_TO_LEFT = ("R", "AL", "AN")
# What turns the direction of all that follows, and so can make a text read as another one.
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def clean(text: str) -> str:
    """Without control characters and lone surrogates, which no page can hold, and without turns of direction."""
    return "".join("?" if _is_bad(c) else c for c in text)


def _is_bad(character: str) -> bool:
    category = unicodedata.category(character)
    return character in TURNING or (category in ("Cc", "Cs") and character not in "\n\t")


def shortened(text: str, longest: int = LONGEST) -> str:
    """At most ``longest`` characters; what is left out is shown by three dots."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def in_html(text: str) -> str:
    """A name in running text; its direction of writing does not spill over."""
    return f"<bdi>{escape(clean(text))}</bdi>"


def in_figure(text: str, longest: int = LONGEST) -> str:
    """A name in a plotly text or template, where tags, entities and %{...} would be read."""
    shown = " ".join(shortened(clean(text), longest).split())
    if any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in shown):
        shown = f"\u2068{shown}\u2069"
    return escape(shown).replace("{", "&#123;").replace("%", "&#37;")


def script_json(value: Any) -> str:
    """JSON that cannot end the script element in which it stands."""
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def percent(value: float | None, digits: int = 1) -> str:
    """
    >>> percent(0.6875), percent(None)
    ('68.8 %', '-')
    """
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def whole_percent(share: float) -> str:
    """In whole percent, but for what would pass for nothing or for all.

    >>> whole_percent(0.6), whole_percent(0.004), whole_percent(0.996), whole_percent(1)
    ('60 %', '0.4 %', '99.6 %', '100 %')
    """
    return percent(share, 1 if 0 < share < 0.005 or 0.995 <= share < 1 else 0)


def points(value: float) -> str:
    """A difference of accuracies in points, with its sign."""
    return f"{100 * value:+.1f}"


def points_interval(interval: Any) -> str:
    """
    >>> points_interval([-0.01, 0.02])
    '-1.0 to +2.0'
    """
    return f"{points(interval[0])} to {points(interval[1])}"


def in_markdown(text: str, longest: int = LONGEST) -> str:
    """A name in a cell of a Markdown table, as code: in it nothing is read and nothing linked."""
    shown = " ".join(shortened(clean(text), longest).split()) or " "
    if any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in shown):
        shown = f"\u2068{shown}\u2069"
    runs = [len(run) for run in re.findall("`+", shown)]
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    shown = shown.replace("|", "\\|")
    return f"{fence} {shown} {fence}" if runs else f"{fence}{shown}{fence}"
