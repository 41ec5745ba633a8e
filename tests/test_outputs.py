"""What commands write is whole or as it was, and never replaces something of another kind."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from conftest import SMALL, Cli
from vispco.errors import ConfigError
from vispco.outputs import HTML, JSON, JSON_LINES, PDF, PICTURE, PNG, SVG, Kind, output_file, write_output

DATA = Path(__file__).parent / "data"
OWN = {
    HTML: b"<!DOCTYPE html>\n<html></html>",
    JSON: b'{"a": 1}',
    JSON_LINES: b'{"a": 1}\n{"a": 2}\n',
    SVG: b'<?xml version="1.0"?><svg/>',
    PDF: b"%PDF-1.4 ...",
    PNG: b"\x89PNG\r\n\x1a\n....",
    PICTURE: b"\xff\xd8\xff\xe0 JFIF",
}
STRANGE = {
    "text": b"Dear diary, today ",
    "script": b"#!/bin/sh\nrm -rf build\n",
    "yaml": b"experiment: x\n",
    "wal": b"\x37\x7f\x06\x82" + bytes(28),
    "zip": b"PK\x03\x04....",
    "database": b"SQLite format 3\0" + bytes(84),
}


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.name)
def test_what_is_not_of_the_kind_is_not_overwritten(kind: Kind, strange: str, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(STRANGE[strange])
    with pytest.raises(ConfigError, match="will not overwrite"):
        write_output(target, "new", kind)
    assert target.read_bytes() == STRANGE[strange]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("there", ["own", "empty", "none"])
def test_what_is_of_the_kind_is_replaced(kind: Kind, there: str, tmp_path: Path) -> None:
    target = tmp_path / "file"
    if there != "none":
        target.write_bytes(OWN[kind] if there == "own" else b"")
    write_output(target, "new", kind)
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_good_page_and_no_stump(tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    target.write_bytes(OWN[HTML])

    def full(partial: Path) -> None:
        partial.write_text("<html>half a pa")
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="No space left on device"), output_file(target, HTML) as partial:
        full(partial)
    with pytest.raises(KeyboardInterrupt), output_file(target, HTML):
        raise KeyboardInterrupt
    assert target.read_bytes() == OWN[HTML]
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_device_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write '/dev/full': No space left on device"):
        write_output(Path("/dev/full"), "x" * 100, HTML)
    write_output(Path("/dev/null"), "x", HTML)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "r.html", tmp_path / "latest.html"
    target.write_bytes(OWN[HTML])
    target.chmod(0o640)
    link.symlink_to(target)
    write_output(link, "new", HTML)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    before = os.umask(0o027)
    try:
        write_output(tmp_path / "new.html", "new", HTML)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.html").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("path", "why"),
    [("folder", "it is a folder"), ("none/r.html", "there is no folder"), ("a\0b", "null"), ("x" * 300, "too long")],
)
def test_a_path_that_cannot_be_written_is_one_line(path: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=why) as raised:
        write_output(tmp_path / path, "x", HTML)
    assert "\n" not in str(raised.value)


def test_no_command_overwrites_the_database_or_a_foreign_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option that names a file to write, on the experiment's own database and on a file of somebody else."""
    monkeypatch.chdir(tmp_path)
    database, study = Path(shutil.copy(DATA / "version-1.db", tmp_path / "a.db")), Path("study.yaml")
    study.write_text(SMALL)
    finished_url = f"sqlite:///{database}"
    foreign = Path("mine.json")
    foreign.write_text('{"name": "my project"}\n')
    picture = Path("notes.svg")
    picture.write_text("not a picture\n")
    schedule = "step(layer=2, keep=0.5)"
    for command in (
        ["report", "old", "-o", database, "--storage", finished_url],
        ["export", "old", "--budget", "0.9", "-o", database, "--storage", finished_url],
        ["export", "old", "--budget", "0.9", "-o", foreign, "--storage", finished_url],
        ["report", "old", "-o", foreign, "--storage", finished_url],
        ["plot", "old", "-o", picture, "--storage", finished_url],
        ["tokens", study, "--schedule", schedule, "-o", database],
        ["eval", "--model", "demo", "--task", "mosaic-vqa", "--samples", "2", "--log-samples", database],
    ):
        code, _, err = cli(*command)
        assert code == 2, command
        assert "will not overwrite" in err, err
    assert foreign.read_text() == '{"name": "my project"}\n'
    assert picture.read_text() == "not a picture\n"
    with sqlite3.connect(database) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    assert cli("export", "old", "--budget", "0.9", "-o", "best.json", "--storage", finished_url)[0] == 0
    assert cli("export", "old", "--budget", "0.5", "-o", "best.json", "--storage", finished_url)[0] == 0


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="cannot write"):
        write_output(pipe, "{}", JSON)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_output(pipe, "{}", JSON)
    assert os.read(reader, 10) == b"{}"
    os.close(reader)
