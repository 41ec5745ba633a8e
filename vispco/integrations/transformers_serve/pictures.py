"""Pictures of a request: data URLs, and remote or local ones where they are allowed."""

from __future__ import annotations

import base64
import binascii
import urllib.error
import urllib.request
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vispco.integrations.transformers_serve.limits import Limits, Refused
from vispco.integrations.transformers_serve.requests import check_place
from vispco.tasks.pictures import rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FETCH_SECONDS = 10.0


def read_picture(url: str, number: int, limits: Limits) -> Any:
    """The picture at ``url`` (PIL, RGB, upright); ``number`` counts a request's pictures from 1, for errors.

    The size is read before any pixel is decoded.

    Raises:
        Refused: it is not allowed, too large, or no picture.
    """
    from PIL import Image

    check_place(url, limits)
    data = _bytes(url, number, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > limits.megapixels * 1e6:
                    raise Refused(
                        400,
                        f"picture {number} has {width} x {height} pixels, this server takes {limits.megapixels:g} "
                        "megapixels; send a smaller one, or start it with --max-megapixels",
                    )
                return rgb(picture)  # as evaluation shows it
    except Refused:
        raise
    except Exception as error:  # decoders raise whatever they like at hostile data
        raise Refused(
            400,
            f"picture {number} cannot be read: {type(error).__name__}: {str(error)[:120]}; "
            f"send one of {', '.join(FORMATS)}",
        ) from None


def _bytes(url: str, number: int, limits: Limits) -> bytes:
    most = int(limits.body_mb * 1e6)
    if url.startswith("data:"):
        head, comma, payload = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refused(400, f"picture {number} is a data URL of another form than data:image/png;base64,...")
        try:
            return base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, f"picture {number} is not base64; encode it with the standard alphabet") from None
    if url.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as answer:
                data: bytes = answer.read(most + 1)
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise Refused(400, f"picture {number} cannot be fetched: {error}; check its URL") from None
    else:
        data = _local(url, number, limits, most)
    if len(data) > most:
        raise Refused(400, f"picture {number} is larger than {limits.body_mb:g} MB; send a smaller one")
    return data


def _local(url: str, number: int, limits: Limits, most: int) -> bytes:
    """A file below the folder that is allowed, wherever links lead."""
    assert limits.local is not None
    root = limits.local.resolve()
    given = unquote(urlsplit(url).path) if url.startswith("file://") else url
    try:
        path = (root / Path(given)).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise Refused(400, f"picture {number}: no file {given[:80]!r} in the folder of --local-pictures")
        with path.open("rb") as file:
            return file.read(most + 1)
    except (OSError, ValueError) as error:
        raise Refused(400, f"picture {number} cannot be read: {type(error).__name__}; check its path") from None
