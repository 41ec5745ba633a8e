"""Pictures of a sample, kept encoded and decoded when they are looked at."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from vispco.errors import DataError
from vispco.files import IrregularFileError, check_regular, expanded

if TYPE_CHECKING:
    from vispco.tasks.base import Sample

Encoded = bytes | Path


def picture_keys(sample: Sample) -> list[str]:
    """:meth:`Pictures.keys` of what a sample shows; none where its pictures are made, not read."""
    return sample.images.keys() if isinstance(sample.images, Pictures) else []


class Pictures(Sequence[Any]):
    """Pictures as :func:`rgb` shows them, each decoded anew: thousands of decoded ones would not fit into memory.

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
        """At most this many of them, from midpoints of equal parts."""
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

    def keys(self) -> list[str]:
        """Of each picture, what rows with the same one share: its file, or a hash of its bytes."""
        return [
            source.as_posix() if isinstance(source, Path) else hashlib.sha1(source, usedforsecurity=False).hexdigest()
            for source in self._read()
        ]

    def _decoded(self, source: Encoded) -> Any:
        with self._told(source), open_picture(source) as picture:
            return rgb(picture)

    @contextmanager
    def _told(self, source: Encoded) -> Iterator[None]:
        from PIL import Image

        try:
            yield
        except (Image.DecompressionBombError, *DAMAGED) as error:
            raise DataError(f"{self.where}: {_unreadable(source, error)}") from None


# What Pillow raises for files that are no picture, or damaged.
DAMAGED = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, RuntimeError, struct.error)


class UnscaledError(ValueError):
    """A picture whose values have no agreed black and white."""


def open_picture(source: Encoded) -> Any:
    """The picture, its pixels not decoded yet."""
    from PIL import Image

    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    check_regular(source)
    return Image.open(source)


def rgb(picture: Any) -> Any:
    """A picture as people see it: upright, on white where it is transparent, 8 bits per colour; the first of several.

    Upright as ``datasets`` and ``transformers.image_utils.load_image`` turn it, by its EXIF orientation; on white as
    ``transformers.image_transforms.convert_to_rgb`` puts it for processors, where ``load_image`` would show whatever
    colour lies below. Deviation from both: of 16-bit grey the upper 8 bits are taken, as OpenCV does; they clip at 255.

    Raises:
        UnscaledError: 32-bit values, which say neither what is black nor what is white.
    """
    from PIL import Image, ImageOps

    picture.load()
    if orientation(picture) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in SIXTEEN_BITS):
        return _grey(picture)
    if picture.mode in ("I", "F"):
        raise UnscaledError(f"its values have 32 bits (mode {picture.mode})")
    if "A" not in picture.getbands() and "a" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    shown = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")


def orientation(picture: Any) -> int:
    """1 to 8, as EXIF says it, 1 for upright; from 5 on width and height are swapped."""
    from PIL import ExifTags

    found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return int(found) if found in range(1, 9) else 1


def upright_size(picture: Any) -> tuple[int, int]:
    """(width, height) as :func:`rgb` shows it, from the file's head: EXIF after a PNG's pixels is not read."""
    width, height = picture.size
    known = picture.format != "PNG" or "exif" in picture.info
    return (height, width) if known and orientation(picture) >= 5 else (width, height)


SIXTEEN_BITS = ("PNG", "PPM")  # formats that Pillow scales to 16 bits, in mode I


def _grey(picture: Any) -> Any:
    """16-bit grey as 8-bit RGB; the one transparent value of a PNG as white."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    shown = values >> 8
    if isinstance(clear := picture.info.get("transparency"), int):
        shown[values == clear] = 255
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8)).convert("RGB")


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
    path = expanded(text)
    return root / path if root is not None else path


def _unreadable(source: Encoded, error: BaseException) -> str:
    """What is wrong with a picture, and what to do."""
    from PIL import Image

    if isinstance(source, bytes):
        shown = f"picture of {len(source)} bytes"
        if isinstance(error, DAMAGED) and not isinstance(error, UnscaledError):
            return f"{shown} cannot be decoded; store it as JPEG or PNG, or remove the row"
    else:
        name = source.as_posix()
        shown = f"picture {(name if len(name) <= 100 else name[:97] + '...')!r}"
    if isinstance(error, UnscaledError):
        return f"{shown} says not what is white: {error}; save it with 8 or 16 bits per colour"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"{shown} has more than {limit:,} pixels; make it smaller, or remove the row"
    assert isinstance(source, Path)
    if source.as_posix().startswith(("http:", "https:")):
        return f"{shown} is an address; download it and give the file's path"
    if isinstance(error, FileNotFoundError):
        return f"no {shown}; correct the path, or set image_root to the folder it is relative to"
    if isinstance(error, IsADirectoryError):
        reason = "it is a folder"
    elif isinstance(error, IrregularFileError):
        reason = str(error)
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = "it is no picture, or damaged"
    return f"cannot read {shown}: {reason}; replace the file or remove the row"
