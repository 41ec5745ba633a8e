"""Commands whose output is closed, full, or read no further: one line or none, and an exit code that tells."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vispco.cli.streams import NO_MORE_READER, no_space

LIST = [sys.executable, "-m", "vispco", "ls", "methods", "--json"]


def ended(command: list[str], **streams: Any) -> tuple[int, list[str]]:
    done = subprocess.run(command, **{"stderr": subprocess.PIPE, **streams}, text=True)
    return done.returncode, (done.stderr or "").splitlines()


def test_a_full_device_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        assert ended(LIST, stdout=full) == (
            2,
            [
                "vispco: cannot write: No space left on device; make space or write elsewhere, and run the same "
                "command again"
            ],
        )


def test_a_reader_that_has_enough_is_no_failure_to_speak_of() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert ended(LIST, stdout=write) == (NO_MORE_READER, [])
    finally:
        os.close(write)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_the_null_device(closed: str) -> None:
    shell = f'exec "$@" {closed}'
    code, said = ended(["sh", "-c", shell, "sh", *LIST], stdout=subprocess.PIPE)
    assert (code, said) == (0, [])


@pytest.mark.slow
def test_an_error_that_nobody_can_read_keeps_its_exit_code(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "vispco", "validate", str(tmp_path / "none.yaml")]
        assert ended(command, stderr=full)[0] == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_no_space_anywhere_is_said(number: int) -> None:
    error = OSError(number, os.strerror(number), "/cache/x")
    assert no_space(error) == (
        f"cannot write '/cache/x': {os.strerror(number)}; make space or write elsewhere, and run the same command again"
    )
    assert no_space(OSError(errno.EACCES, "denied")) is None
    assert no_space(ValueError("no space")) is None
