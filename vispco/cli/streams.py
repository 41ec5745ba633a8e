"""Standard streams as they may be: closed, full, or read by a program that has seen enough."""

from __future__ import annotations

import errno
import io
import os
import sys

NO_MORE_READER = 1  # without a word, as typer ends where it meets a closed pipe itself
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


def prepare() -> None:
    """Closed streams become the null device; names of files need not be UTF-8."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def failure_of_output() -> OSError | None:
    """Why standard output takes nothing any more; None: it does. Afterwards nothing is written to it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Else Python tries once more when it ends, and says so in lines of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def no_space(error: BaseException) -> str | None:
    """What a person can mend of a device that cannot be written; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    where = f" {str(error.filename)!r}" if error.filename is not None else ""
    return f"cannot write{where}: {error.strerror}; make space or write elsewhere, and run the same command again"


def say(text: str) -> None:
    """To standard error; where that is full too, the exit code has to do."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
