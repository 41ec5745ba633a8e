"""What a person sees in a terminal of 80 columns, and what a pipe gets."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from optuna.trial import create_trial
from rich.cells import cell_len

from conftest import VISPCO
from report_data import HOSTILE, RIGHT_TO_LEFT, fill
from vispco.analysis.comparison import Comparison
from vispco.cli import output
from vispco.cli.comparison import print_comparison
from vispco.cli.output import print_table
from vispco.cli.progress import TerminalProgress
from vispco.search.progress import in_flops, result_so_far
from vispco.storage.store import Store

COMMAND = [sys.executable, *VISPCO]
STUDY = """
experiment: small
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 8, search: 8, held_out: 4}}
budgets: 3
searches:
  lagrangian: {kind: lagrangian, dual_steps: 1, primal_steps: 1, batch: 4, check: 4, measure: 1, between: 0}
  tpe: {kind: tpe, trials: 6, batch: 2}
"""
LONG = "an-entry-with-a-name-of-forty-characters"
GOLDEN = [
    "name              count  words",
    "--------------  -------  ---------------",
    "a-very-long-    1234567  several words,",
    "name-of-                 and a number",
    "something                0.12345",
    "short                 -  \u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03",
    "                         \u516b",
]
ENTRIES = {
    LONG: ("grid", None, 12, 0.0),
    "lagrangian": ("lagrangian", 3, 6, 0.05),
    "\u4e00" * 30: ("tpe", 1, 9, -0.02),
    **{f"entry-{n}": ("tpe", 1, 4, 0.0) for n in range(4)},
}


def in_terminal(command: list[str], columns: int = 80, seconds: float = 240) -> str:
    """What a command writes to a terminal."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(TERM="xterm-256color", OMP_NUM_THREADS="1")
        os.environ.pop("COLUMNS", None)
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written, limit = b"", time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        written += part
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, written.decode()
    os.close(terminal)
    return written.decode()


def lines_of(written: str) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "study.yaml").write_text(STUDY)
    return folder


@pytest.mark.slow
def test_a_run_in_a_terminal_has_bars_and_tables_of_80_columns(study: Path) -> None:
    storage = ["--storage", f"sqlite:///{study}/a.db"]
    written = in_terminal([*COMMAND, "run", f"{study}/study.yaml", *storage])
    assert "\x1b[" in written
    lines = lines_of(written)
    assert max(map(cell_len, lines)) <= 80
    found = Comparison(Store(storage[1]), "small").to_dict()
    for number, search in enumerate(found["searches"], start=1):
        bars = [line for line in lines if line.startswith(f"small/{search['name']} ({number} of 2) ")]
        assert any(re.search(r" \d+/\d+ (\d\d:\d\d|--:--) score \d\.\d{3}, [\d.]+ [KMGT]?FLOPs", bar) for bar in bars)
        scores = [float(score) for bar in bars for score in re.findall(r"score (\d\.\d{3})", bar)]
        assert scores == sorted(scores)
        assert f", {in_flops(search['spent_flops'])}" in bars[-1]
    assert any("budget_score" in line for line in lines)


def test_a_run_in_a_pipe_writes_plain_lines(cli: Any, study: Path) -> None:
    url = f"sqlite:///{study}/b.db"
    code, out, err = cli("run", study / "study.yaml", "--search", "tpe", "--storage", url)
    assert code == 0, err
    for text in (out, err):
        assert all(character.isprintable() or character == "\n" for character in text)
        assert max(map(len, text.splitlines())) <= 80
    last = r"^small/tpe \(1 of 1\): 6/6 done in \d+ s, score \d\.\d{3}, [\d.]+ [KMGT]?FLOPs$"
    assert re.search(last, err, re.MULTILINE)
    assert err.splitlines()[-1] == "small: 6 new trials"


@pytest.mark.parametrize("experiment", ["made", RIGHT_TO_LEFT + HOSTILE.replace("/", "").strip() * 2])
def test_tables_of_many_long_names_fit_into_80_columns(cli: Any, tmp_path: Path, experiment: str) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    store = Store(url)
    fill(store, experiment, entries=ENTRIES)
    store.trial_log(f"{experiment}/tpe-that-failed").add_failure(
        "step", parameters={}, distributions={}, error="x", attempt=3
    )
    for command in (
        ["compare", experiment],
        ["compare", experiment, "--against", LONG],
        ["compare", experiment, "--anytime"],
        ["status", experiment],
    ):
        code, out, err = cli(*command, "--storage", url)
        assert code == 0, err
        assert max(map(cell_len, out.splitlines())) <= 80, (command, out)
        assert all(character.isprintable() or character == "\n" for character in out)
        assert LONG[:8] in out
    assert "pruned" not in out
    assert "failed" in out


def test_cells_are_wrapped_and_numbers_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "a-very-long-name-of-something", "count": 1234567, "words": "several words, and a number 0.12345"},
        {"name": "short", "count": None, "words": "\u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03\u516b"},
    ]
    print_table(rows, 40)
    assert capsys.readouterr().out.splitlines() == GOLDEN
    print_table(rows)  # a pipe, which programs read
    assert len(capsys.readouterr().out.splitlines()) == 4
    print_table(rows, 5)  # there is no room: wide rather than unreadable
    assert "1234567" in capsys.readouterr().out


def test_searches_beyond_the_width_of_a_page_come_below(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    fill(Store(url), entries={f"entry-{n}": ("tpe", 1, 4, 0.0) for n in range(8)})

    def heads(*more: str) -> list[list[str]]:
        """Searches of each table by budget."""
        code, out, err = cli("compare", "made", *more, "--storage", url)
        assert code == 0, err
        return [line.split()[1:] for line in out.splitlines() if line.startswith("budget ")]

    names = [f"entry-{n}" for n in range(8)]
    first, second = heads()
    assert [*first[: first.index("best")], *second] == names
    assert heads("--search", "entry-7", "--search", "entry-2") == [["entry-2", "entry-7", "best", "schedule"]]
    assert "did you mean 'entry-" in cli("compare", "made", "--search", "entri-7", "--storage", url)[2]
    found = json.loads(cli("compare", "made", "--search", "entry-7", "--json", "--storage", url)[1])
    assert [one["name"] for one in found["searches"]] == list(found["by_budget"][0]["chosen"]) == ["entry-7"]
    monkeypatch.setattr("vispco.cli.comparison.page_width", lambda: 200)
    assert heads() == [[*names, "best", "schedule"]]


def test_seeds_are_one_line_with_their_spread(cli: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    fill(Store(url), entries={"grid": ("grid", None, 12, 0.0), "tpe": ("tpe", 3, 6, 0.1)}, tasks=["a", "b"])
    found = Comparison(Store(url), "made").to_dict()
    runs = [search for search in found["searches"] if search["name"].startswith("tpe@")]
    scores = [run["budget_score"] for run in runs]
    code, out, err = cli("compare", "made", "--storage", url)
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("tpe "))
    assert line.split()[1:4] == ["3", f"{fmean(scores):.3f}", f"{min(scores):.3f}..{max(scores):.3f}"]
    assert "tpe@" not in out
    row = found["by_budget"][0]
    held = [row["chosen"][run["name"]]["accuracy_held_out"] for run in runs]
    assert f"{fmean(held):.3f}\u00b1{stdev(held):.3f}" in out
    on_task = [row["chosen"][run["name"]]["tasks"]["b"] for run in runs]
    assert (
        f"{fmean(on_task):.3f}\u00b1{stdev(on_task):.3f}" in cli("compare", "made", "--per-task", "--storage", url)[1]
    )
    single = cli("compare", "made", "--search", "tpe@1", "--storage", url)[1]
    assert "tpe@1" in single
    assert "seeds" not in single


def test_models_are_listed_one_line_each(cli: Any) -> None:
    code, out, _ = cli("ls", "models")
    assert code == 0
    listed = json.loads(cli("ls", "models", "--json")[1])
    lines = out.splitlines()[2 : 2 + len(listed)]
    assert [line.split("  ")[0] for line in lines] == [row["model"] for row in listed]
    assert max(map(len, lines)) <= 80
    assert "--csv" in out.splitlines()[-1]


def test_the_result_so_far(tmp_path: Path) -> None:
    log = Store(f"sqlite:///{tmp_path}/a.db").trial_log("e/s")
    budgets = [0.3, 0.6]
    assert result_so_far(log, budgets, 0.2) == "0 FLOPs"
    told = []
    for accuracy, ratio in ((0.9, 0.9), (0.5, 0.5), (0.4, 0.2), (0.6, 0.25)):
        trial = create_trial(values=[accuracy, ratio], user_attrs={"spent_flops": 2_500_000})
        log.study.add_trial(trial)
        told.append(result_so_far(log, budgets, 0.2))
    assert told == [
        "score 0.200, 2.5 MFLOPs",  # nothing fits
        "score 0.350, 5.0 MFLOPs",
        "score 0.450, 7.5 MFLOPs",
        "score 0.600, 10.0 MFLOPs",
    ]


def test_flops_in_words() -> None:
    numbers = (0, 999, 1000, 1.234e12, 999.96e9, 5e26)
    assert list(map(in_flops, numbers)) == [
        *("0 FLOPs", "999.0 FLOPs", "1.0 KFLOPs", "1.2 TFLOPs", "1.0 TFLOPs", "500000.0 ZFLOPs"),
    ]


def test_hostile_titles_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress()
    progress.say("a\x1b[2Jb\u202ec")
    with progress.track("x\x07\ry", lambda: "score 0.5") as advance:
        advance(1, 2, "n\x1b")
    err = capsys.readouterr().err
    assert err.splitlines()[0] == "a?[2Jb?c"
    assert err.splitlines()[1].startswith("x??y: 1/2 done in")
    assert err.splitlines()[1].endswith("s, score 0.5")
    assert output.page_width() == 80


@pytest.mark.parametrize(
    ("plain", "blind", "said"), [(0.0, 0.0, True), (0.3, 0.4, True), (0.8, 0.3, False), (0.8, None, False)]
)
def test_a_model_that_sees_nothing_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: float, blind: float | None, said: bool
) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    fill(store, "made")
    found = Comparison(store, "made").to_dict()
    found["unpruned"]["accuracy_held_out"], found["no_image"]["accuracy"] = plain, blind
    print_comparison(found)
    out = " ".join(capsys.readouterr().out.split())
    assert ("No better than without the picture" in out) == said
    assert ("--log-samples answers.jsonl" in out) == said
