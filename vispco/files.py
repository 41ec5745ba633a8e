"""Opening what a user names: a regular file of bounded size. Nothing waits for a pipe or reads a device for ever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_TEXT = 4 << 20  # bytes of a study or a schedule file
STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # opened by the shell, with somebody at the other end


class IrregularFileError(OSError):
    """What was named is no regular file, or too large; its text says what it is."""


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` as the home folder; that of an unknown user stays as it is, and is then not found."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_regular(path: str | Path) -> None:
    """Refuse what is no regular file: opening a named pipe waits, and reading a device need not end.

    Raises:
        OSError: there is no such file, or it is something else.
    """
    shown = os.fspath(path)
    try:
        mode = os.stat(shown).st_mode
    except ValueError as error:  # a NUL, or a surrogate, which no name of a file holds
        raise IrregularFileError(f"it is no name of a file ({error})") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise IrregularFileError("it is a pipe or a device, no regular file")


def is_file(path: Path) -> bool:
    """Whether ``path`` is a regular file; False also for what can be no name of one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: str | Path, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a small file.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than ``most`` bytes.
        UnicodeDecodeError: it is no UTF-8.
    """
    if not os.fspath(path).startswith(STREAMS):
        check_regular(path)
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise IrregularFileError(f"it has more than {most >> 20} MiB")
    return data.decode("utf-8")
