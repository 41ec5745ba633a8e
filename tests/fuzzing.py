"""What tests/test_fuzz.py mutates, and how one input is tried: in this process, with bounds on time and memory."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import resource
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from vispco.cli.main import main

SECONDS = 60  # of CPU for one input; what is refused takes a fraction of one
STILL = 300  # ticks of a second, each without any work, after which an input hangs; a process that is held ticks not
MEMORY = 3 << 30  # bytes beyond what the process has

SCALARS: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 10**9, -(10**9), 2**63, 10**30, -(10**30)),
    *(0.5, 1.5, -0.1, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "a", "half", "1e5", "NaN", "None", "true", "0x10", "1_000", "2026-13-99", "x" * 5000, "x " * 3000),
    *("\0", "a\0b", "\ud800", "\u202e", "\x1b[2J", "a\nb", "é", "🙂", "٣", "%s %d {0}", "{", "}", "[", "]", "'", '"'),
    *("~nosuchuser/x", "/dev/full", "/dev/zero", "pipe.png", "..", "/", "photos", "photos/0.png", "rows.jsonl"),
    *("http://a.example/b.png", "demo", "fastv", "grid", "step", "mosaic-vqa", "<image>", "<image><image>", "A", "B"),
    *("'; DROP TABLE trials; --", "a/b", "a@1", "step(layer=2, keep=0.5)", "fastv:k2-r50", "cuda:99", "float64"),
]
STRUCTURES: list[Any] = [[], {}, [[]], {"a": 1}, [1, 2], ["a"], [None], [0.5] * 50, {"": ""}, [{}], {"name": "demo"}]
TOKENS = [
    *(
        "[",
        "]",
        "{",
        "}",
        ":",
        ": ",
        ",",
        "- ",
        "&a ",
        "*a",
        "<<: *a",
        "!!int ",
        "!!binary ",
        "!!python/none ",
        "|",
        ">",
    ),
    *(
        "#",
        "%",
        "@",
        "`",
        "\t",
        "\n",
        "\r",
        "  ",
        "'",
        '"',
        "\\",
        "\0",
        "\x07",
        "\ufeff",
        "\u2028",
        "?",
        "~",
        "=",
        "...",
    ),
    *("---\n", "999999999999999999999999999999", "1e999", "-", "nan", "(", ")", "**", "lambda: 0", "True", "é", "🙂"),
]


@dataclass(frozen=True)
class Choices:
    """Draws of one input."""

    data: Any

    def of(self, values: Sequence[Any]) -> Any:
        return self.data.draw(st.sampled_from(list(values)))

    def number(self, low: int, high: int) -> int:
        return int(self.data.draw(st.integers(low, high)))

    def often(self, one_in: int = 2) -> bool:
        return self.number(1, one_in) == 1

    def value(self) -> Any:
        return copy.deepcopy(self.of(STRUCTURES if self.often(4) else SCALARS))


# --- mutations ---------------------------------------------------------------------------------------


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value below ``tree``."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def mutate_tree(choose: Choices, tree: Any) -> None:
    """Change one thing of nested dictionaries and lists."""
    known = list(places(tree))
    if not known:
        return
    holder, key = choose.of(known)
    kind = choose.of(["replace", "replace", "replace", "delete", "rename", "repeat", "wrap", "swap", "add", "deepen"])
    if kind == "replace":
        holder[key] = choose.value()
    elif kind == "delete":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        name = str(key)
        at = choose.number(0, max(0, len(name) - 1))
        holder[choose.of([name[:at] + name[at + 1 :], name + "s", name.upper(), choose.of(SCALARS)])] = holder.pop(key)
    elif kind == "repeat":
        holder[key] = [copy.deepcopy(holder[key]) for _ in range(choose.of([2, 3, 30]))]
    elif kind == "wrap":
        holder[key] = choose.of([[holder[key]], {"name": holder[key]}, {"a": holder[key]}, str(holder[key])])
    elif kind == "swap":
        other, there = choose.of(known)
        with contextlib.suppress(KeyError, IndexError):
            other[there] = copy.deepcopy(holder[key])
    elif kind == "add":
        if isinstance(holder, dict):
            holder[choose.of(["seed", "options", "path", "race", "name", "x", "split", "compute"])] = choose.value()
        else:
            holder.append(choose.value())
    else:
        for _ in range(choose.of([3, 70, 200])):
            holder[key] = [holder[key]]


def mutate_text(choose: Choices, text: str) -> str:
    """Change one thing of a text."""
    start = choose.number(0, len(text))
    end = min(len(text), start + choose.of([0, 0, 1, 2, 5, 40]))
    kind = choose.of(["insert", "insert", "value", "cut", "line", "repeat", "end"])
    if kind == "insert":
        return text[:start] + "".join(choose.of(TOKENS) for _ in range(choose.number(1, 3))) + text[end:]
    if kind == "value":
        return text[:start] + str(choose.of(SCALARS)) + text[end:]
    if kind == "cut":
        return text[:start] + text[end:]
    if kind == "line":
        lines = text.split("\n")
        at = choose.number(0, len(lines) - 1)
        return "\n".join([*lines[:at], *[lines[at]] * choose.of([0, 2, 3]), *lines[at + 1 :]])
    if kind == "repeat":
        return text[:start] + text[start:end] * choose.of([2, 1000, 20_000]) + text[end:]
    return text[:start]


def mutate_bytes(choose: Choices, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(choose.of([1, 1, 3, 30])):
        if changed:
            changed[choose.number(0, len(changed) - 1)] = choose.number(0, 255)
    return bytes(changed[: choose.number(0, len(changed))]) if choose.often(5) else bytes(changed)


def as_yaml(tree: Any) -> str:
    """As a person might write it; what YAML cannot say is left to JSON."""
    try:
        return yaml.safe_dump(tree, sort_keys=False)
    except yaml.YAMLError:
        return json.dumps(tree, default=str)


def write(path: Path, data: str | bytes) -> None:
    path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)


def mutate_database(choose: Choices, path: Path) -> str:
    """Change one thing of a SQLite database; returns what."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA foreign_keys = OFF")
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = choose.of([name for name in tables if not name.startswith("sqlite_")])
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        rows = [row[0] for row in connection.execute(f'SELECT rowid FROM "{table}" LIMIT 200')]
        kind = choose.of(["cell"] * 8 + ["column", "row", "rows", "table", "double"])
        column, row = choose.of(columns), choose.of(rows or [0])
        if kind == "cell" or kind == "column":
            where = "" if kind == "column" else f"WHERE rowid = {row}"
            value = sql_value(choose)
            statement = f'UPDATE OR IGNORE "{table}" SET "{column}" = ? {where}'
            with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeEncodeError):
                connection.execute(statement, (value,))
            return f"{statement} {value!r}"[:300]
        statement = {
            "row": f'DELETE FROM "{table}" WHERE rowid = {row}',
            "rows": f'DELETE FROM "{table}"',
            "table": f'DROP TABLE "{table}"',
            "double": f'INSERT OR IGNORE INTO "{table}" SELECT * FROM "{table}"',
        }[kind]
        with contextlib.suppress(sqlite3.Error):
            connection.execute(statement)
        return statement
    finally:
        connection.close()


def sql_value(choose: Choices) -> Any:
    kind = choose.of(["scalar", "json", "word", "blob"])
    if kind == "blob":
        return choose.of([b"", b"\x00", b"\xff" * 7, b"\x00\x00\xc0\x7f" * 12])
    if kind == "json":
        return json.dumps(choose.value(), default=str)
    if kind == "word":
        return choose.of(["COMPLETE", "FAIL", "RUNNING", "WAITING", "PRUNED", "INF_POS", "FINITE", "NaN", "Infinity"])
    value = choose.of(SCALARS)
    return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)


# --- trying one ----------------------------------------------------------------------------------------


class TooLongError(BaseException):
    """An input took more than its time."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """So many seconds of CPU, no long standstill, and so much more memory than now."""
    began = worked = time.process_time()
    still = 0

    def stop(*_: Any) -> None:
        nonlocal worked, still
        now = time.process_time()
        worked, still = (now, 0) if now - worked > 0.05 else (worked, still + 1)
        if now - began > SECONDS or still > STILL:
            raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, 1, 1)  # and again, should somebody swallow what it raises
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def call(arguments: Sequence[str]) -> tuple[Any, str, str]:
    """The command line in this process: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["vispco", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        text = err.getvalue()
        if "unexpected failure" in text and ended.__context__ is not None:
            *_, last = traceback.extract_tb(ended.__context__.__traceback__)
            text = f"{text.rstrip()} in {last.filename}:{last.lineno}"
        return ended.code or 0, out.getvalue(), text
    finally:
        sys.argv = argv
        os.environ.pop("VISPCO_DEBUG", None)
    return None, out.getvalue(), err.getvalue()


def problem_of(arguments: Sequence[str]) -> str | None:
    """What is wrong with how a command ended; None if it succeeded, or said in one line why not."""
    try:
        with bounded():
            code, _, err = call(arguments)
    except TooLongError:
        return f"took more than {SECONDS} s, or stood still"
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}"
    lines = [line for line in err.splitlines() if line.startswith("vispco:")]
    if code == 0:
        return None if not lines else f"succeeded, and said {lines[0]}"
    if code not in (1, 2):
        return f"ended with {code!r}: {err[-300:]}"
    if len(lines) != 1 or not err.splitlines()[-1].startswith("vispco:"):
        return f"said {len(lines)} lines: {err[-500:]}"
    return lines[0] if "unexpected failure" in lines[0] or "Traceback" in err else None


def alike(problem: str) -> str:
    """Problems that differ in values only are one."""
    where = problem.rpartition(" in /")[2] if "unexpected failure" in problem else ""
    return re.sub(r"0x[0-9a-f]+|\d+|'[^']*'|\"[^\"]*\"", "_", problem)[:100] + where


Mutate = Callable[[Choices, Path], tuple[list[str], str]]
