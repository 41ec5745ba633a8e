"""Databases that somebody changed by hand: one line that says what is odd, in bounded time; nothing is made up."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from conftest import Cli
from vispco.experiment.run import Run
from vispco.problem import Problem
from vispco.storage.store import open_store

STUDY = """
experiment: hand
model: demo
tasks:
  - {name: mosaic-vqa, splits: {calibration: 2, search: 2, held_out: 2}}
budgets: 2
searches:
  random: {kind: random, trials: 2}
  tpe: {kind: tpe, trials: 2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hand")
    (folder / "study.yaml").write_text(STUDY)
    with open_store(f"sqlite:///{folder}/a.db") as store:
        Run(Problem.from_yaml(folder / "study.yaml"), store).run()
    return folder


RUN, COMPARE = ["run", "study.yaml"], ["compare", "hand"]
ODD = "holds something unexpected"
CASES: dict[str, tuple[str, list[str], str]] = {
    "studies gone": (
        "DELETE FROM studies",
        RUN,
        "cannot create study 'hand/random' .*: rows of one that was",
    ),
    "attribute gone": (
        "DELETE FROM trial_user_attributes WHERE key = 'schedule'",
        RUN,
        r"trial \d of study 'hand/\w+' has no attribute 'schedule'; .*--fresh",
    ),
    "schedule is a number": (
        "UPDATE trial_user_attributes SET value_json = '3' WHERE key = 'schedule'",
        RUN,
        r"trial 0 of study 'hand/random' attribute 'schedule' is 3; if",
    ),
    "flops are NaN": (
        "UPDATE trial_user_attributes SET value_json = 'NaN' WHERE key = 'charged_flops'",
        RUN,
        r"attribute 'charged_flops' is nan",
    ),
    "attribute is no JSON": ("UPDATE trial_user_attributes SET value_json = '{'", COMPARE, ODD),
    "attribute is bytes": ("UPDATE trial_user_attributes SET value_json = x'ff'", COMPARE, ODD),
    "no date": ("UPDATE trials SET datetime_start = 'yesterday'", COMPARE, ODD),
    "no state": ("UPDATE trials SET state = 'HALF'", RUN, ODD),
    "values gone": ("DELETE FROM trial_values", RUN, r"trial 0 of study 'hand/random' is complete without its values"),
    "facts are a list": ("UPDATE vispco_experiment SET facts = '[1]'", COMPARE, ODD),
    "facts are no JSON": ("UPDATE vispco_experiment SET facts = 'x'", ["status"], ODD),
    "identity is empty": ("UPDATE vispco_experiment SET identity = ''", RUN, ODD),
    "study text is no YAML": ("UPDATE vispco_experiment SET spec_text = '[['", ["resume", "hand"], "not valid YAML"),
    "study text is bytes": ("UPDATE vispco_experiment SET spec_text = x'00'", RUN, ODD),
    "groups are no JSON": ("UPDATE vispco_groups SET groups = x'00'", RUN, ODD),
    "groups gone at the end of a run": ("DELETE FROM vispco_groups", RUN, ODD),
    "groups gone": ("DELETE FROM vispco_groups", COMPARE, ODD),
    "scores are short": ("UPDATE vispco_evaluation SET scores = x'00'", COMPARE, ODD),
    "scores of other tasks": ("""UPDATE vispco_evaluation SET score_counts = '{"a": 1, "b": 1}'""", COMPARE, ODD),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str, run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statement, command, message = CASES[name]
    for file in run.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("a.db") as connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()
    code, out, err = cli(*command, "--storage", "sqlite:///a.db")
    lines = [line for line in err.splitlines() if line.startswith("vispco:")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert lines == err.splitlines()[-1:]
    assert re.search(message, lines[0]), lines[0]
    assert "unexpected failure" not in err
