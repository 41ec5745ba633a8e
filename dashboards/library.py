"""Plotly's JavaScript library inside a page: compressed, and unpacked by the page once text and slider are there."""

from __future__ import annotations

import base64
import gzip
import hashlib
from functools import cache

from plotly.offline import get_plotlyjs


@cache
def library_html() -> str:
    """The library as gzip in base64, in an element that nothing runs: 2 MB instead of 5."""
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), mtime=0)).decode("ascii")
    return f'<script type="text/plain" id="library">{packed}</script>'


@cache
def library_digest() -> str:
    """What the page's content policy allows to run."""
    return digest(get_plotlyjs())


def digest(script: str) -> str:
    """A script's source in a content policy."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") + "'"
