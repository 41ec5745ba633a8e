"""Files that commands write: whole or not at all, and never over something of another kind."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispco.errors import ConfigError
from vispco.json_text import parse_json

HEAD = 4096  # bytes that tell a file's kind
DATABASE = b"SQLite format 3\0"


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, and whether a file that begins with given bytes may be one."""

    name: str
    begins: Callable[[bytes], bool]


def _text(head: bytes) -> str:
    return head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()


def _begins_with(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signatures)


HTML = Kind("an HTML page", lambda head: _text(head).startswith(("<!doctype html", "<html")))
JSON = Kind("a JSON file", lambda head: _text(head).startswith(("{", "[")))
JSON_LINES = Kind("a JSON Lines file", lambda head: _text(head).startswith("{"))
SVG = Kind("an SVG picture", lambda head: _text(head).startswith(("<?xml", "<svg", "<!doctype svg")))
PDF = Kind("a PDF file", _begins_with(b"%PDF-"))
PNG = Kind("a PNG picture", _begins_with(b"\x89PNG\r\n\x1a\n"))
PICTURE = Kind(
    "a picture",
    lambda head: (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    ),
)
SETTINGS_HEAD = "# vispco export"
SETTINGS = Kind("settings that vispco export wrote", lambda head: head.startswith(SETTINGS_HEAD.encode()))
BY_SUFFIX = {".pdf": PDF, ".svg": SVG, ".png": PNG}


def json_with(key: str, value: str) -> Callable[[Path], bool]:
    """Whether a file is a JSON object that has ``value`` under ``key``."""

    def own(path: Path) -> bool:
        try:
            found: Any = parse_json(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return isinstance(found, dict) and found.get(key) == value

    return own


def check_output(
    path: Path, kind: Kind, *, own: Callable[[Path], bool] | None = None, option: str = "-o"
) -> os.stat_result | None:
    """Whether ``path`` may be written; returns what ``os.stat`` says of a file that is there.

    Args:
        own: whether a file of this kind that is there is one that the command wrote; default: any may be replaced.

    Raises:
        ConfigError: a folder, a database or a file of another kind is there, or the folder is missing.
    """
    another = f"choose another file with {option}"
    try:
        there = os.stat(path)
        if stat.S_ISDIR(there.st_mode):
            raise ConfigError(f"cannot write {str(path)!r}: it is a folder; {another}")
        if not stat.S_ISREG(there.st_mode) or not there.st_size:
            return there
        with open(path, "rb") as file:
            head = file.read(HEAD)
        if head.startswith(DATABASE):
            raise ConfigError(f"will not overwrite {str(path)!r}: it is a database; {another}")
        if not kind.begins(head):
            raise ConfigError(f"will not overwrite {str(path)!r}: it is not {kind.name}; {another}")
        if own is not None and not own(path):
            raise ConfigError(
                f"will not overwrite {str(path)!r}: it is {kind.name}, but not one that this command wrote; {another}"
            )
        return there
    except FileNotFoundError:
        if not Path(os.path.realpath(path)).parent.is_dir():
            raise ConfigError(
                f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; create it first"
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise _unwritable(path, error, option) from None


@contextmanager
def output_file(
    path: Path, kind: Kind, *, own: Callable[[Path], bool] | None = None, option: str = "-o"
) -> Iterator[Path]:
    """A file to fill inside the block. At its end it takes the place of ``path``; after an error ``path`` is as before.

    Devices and pipes, such as ``/dev/stdout``, are written themselves.

    Raises:
        ConfigError: as :func:`check_output`, or writing failed.
    """
    there = check_output(path, kind, own=own, option=option)
    if there is not None and not stat.S_ISREG(there.st_mode):
        held = None
        try:
            if stat.S_ISFIFO(there.st_mode):  # a pipe that nobody reads would be waited for without end
                held = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            yield path
        except OSError as error:
            raise _unwritable(path, error, option) from None
        finally:
            if held is not None:
                os.close(held)
        return
    target, partial = Path(os.path.realpath(path)), None
    try:
        # Matplotlib and Pillow take the format from the suffix.
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".vispco-", suffix=target.suffix)
        partial = Path(name)
        os.close(handle)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(partial, stat.S_IMODE(there.st_mode) if there is not None else 0o666 & ~_umask())
        os.replace(partial, target)
        partial = None
    except OSError as error:
        raise _unwritable(path, error, option) from None
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()


def write_output(
    path: Path, text: str, kind: Kind, *, own: Callable[[Path], bool] | None = None, option: str = "-o"
) -> None:
    """Write ``text`` as :func:`output_file` does.

    Raises:
        ConfigError: as :func:`output_file`.
    """
    with output_file(path, kind, own=own, option=option) as partial:
        partial.write_text(text, encoding="utf-8")


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _unwritable(path: Path, error: Exception, option: str) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(f"cannot write {str(path)!r}: {reason}; choose another file with {option}")
