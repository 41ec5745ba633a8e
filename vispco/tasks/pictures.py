"""Pictures of a sample, kept encoded and decoded when they are looked at."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from vispco.errors import DataError

Encoded = bytes | Path


class Pictures(Sequence[Any]):
    """RGB pictures, each decoded anew when asked for: thousands of decoded ones would not fit into memory.

    Args:
        read: gives the encoded pictures.
        where: names the row in error messages.
    """

    def __init__(self, count: int, read: Callable[[], Sequence[Encoded]], where: str) -> None:
        self._count, self._read, self.where = count, read, where

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        found = self._read()
        if isinstance(index, slice):
            return [self._decoded(source) for source in found[index]]
        return self._decoded(found[index])

    def __iter__(self) -> Iterator[Any]:
        return map(self._decoded, self._read())

    def evenly(self, most: int) -> Pictures:
        """At most so many of them, from the middles of equal parts."""
        count, read = len(self), self._read
        if count <= most:
            return self
        kept = [(2 * part + 1) * count // (2 * most) for part in range(most)]

        def some() -> list[Encoded]:
            found = read()
            return [found[index] for index in kept]

        return Pictures(most, some, self.where)

    def check(self) -> None:
        """Read what each picture says of itself, without decoding it.

        Raises:
            DataError: a file is missing, or no picture.
        """
        for source in self._read():
            with self._told(source):
                open_picture(source).close()

    def key(self) -> str:
        """What rows with the same pictures share: files, or hashes of bytes."""
        return "+".join(
            source.as_posix() if isinstance(source, Path) else hashlib.sha1(source, usedforsecurity=False).hexdigest()
            for source in self._read()
        )

    def _decoded(self, source: Encoded) -> Any:
        with self._told(source), open_picture(source) as picture:
            return picture.convert("RGB")

    @contextmanager
    def _told(self, source: Encoded) -> Iterator[None]:
        from PIL import Image

        try:
            yield
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.where}: {_unreadable(source, error)}") from None


def open_picture(source: Encoded) -> Any:
    """The picture, its pixels not decoded yet."""
    from PIL import Image

    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def encoded(cell: Any, root: Path | None = None) -> Encoded:
    """A picture as data sets hold it: bytes, {"bytes", "path"}, base64 text, or a path, relative to ``root``."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path") or b""
    if isinstance(cell, bytes):
        return cell
    text = str(cell)
    if len(text) > 255 and "." not in text:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            pass
    path = Path(text).expanduser()
    return root / path if root is not None else path


def _unreadable(source: Encoded, error: BaseException) -> str:
    """What is wrong with a picture, and what to do."""
    from PIL import Image

    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes cannot be decoded; store it as JPEG or PNG, or remove the row"
    if source.as_posix().startswith(("http:", "https:")):
        return f"picture {source.as_posix()!r} is an address; download it and give the file's path"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"picture {source.as_posix()!r} has more than {limit:,} pixels; make it smaller, or remove the row"
    if isinstance(error, FileNotFoundError):
        return f"no picture {source.as_posix()!r}; correct the path, or set image_root to the folder it is relative to"
    reason = "it is a folder" if source.is_dir() else "it is no picture, or damaged"
    return f"cannot read picture {source.as_posix()!r}: {reason}; replace the file or remove the row"
