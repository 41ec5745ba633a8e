"""JSON from files of other people: data, or a reason of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def parse_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What ``json.loads`` gives.

    Args:
        pairs: makes an object of its keys and values; default: a dictionary.

    Raises:
        ValueError: always when it is no JSON that Python can hold; a ``JSONDecodeError`` also says where.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("its values lie too deep in one another") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # Python's bound on the digits of a whole number
        raise ValueError("a number has thousands of digits") from None
