"""Malformed input, as users bring it: one line that says what, where and what to do; nothing is written."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from conftest import Cli

DATA = ["eval", "--model", "demo", "--task", "vqa-json", "--option", "path=rows.jsonl"]
TASK = """name: vqa-json
    splits: {calibration: 4, search: 4, held_out: 4}
    options:
      path: rows.jsonl"""
STUDY = """
experiment: mine
model: demo
tasks:
  - name: vqa-json
    splits: {calibration: 4, search: 4, held_out: 4}
    options:
      path: rows.jsonl
budgets: 2
searches:
  random: {kind: random, trials: 2}
"""


def png(width: int = 40, height: int = 30) -> bytes:
    held = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(held, "PNG")
    return held.getvalue()


@dataclass
class Place:
    """A folder with twenty good rows, their pictures, and a study of them; tests break one thing of it."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "photos").mkdir()
        for number in range(20):
            (self.folder / f"photos/{number}.png").write_bytes(png(40 + number))
        self.rows: list[dict[str, Any]] = [
            {"image": f"photos/{number}.png", "question": "what color is it ?", "answer": "red"} for number in range(20)
        ]
        self.write(self.rows)
        (self.folder / "study.yaml").write_text(STUDY)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.text("".join(json.dumps(row) + "\n" for row in rows))

    def text(self, text: str | bytes, name: str = "rows.jsonl") -> None:
        (self.folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    def row(self, number: int, **changed: Any) -> None:
        """Row ``number`` with other values; None removes one."""
        self.rows[number] = {key: value for key, value in {**self.rows[number], **changed}.items() if value is not None}
        self.write(self.rows)

    def study(self, old: str, new: str) -> None:
        assert old in STUDY
        (self.folder / "study.yaml").write_text(STUDY.replace(old, new))

    def exported(self, **changed: Any) -> None:
        good = {"format": "vispco-schedule", "version": 2, "method": "fastv", "schedule": "step(layer=2, keep=0.5)"}
        self.text(json.dumps({**good, **changed}), "best.json")


Break = Callable[[Place], object]
EVAL = ["eval", "study.yaml", "--schedule"]
VALIDATE = ["validate", "study.yaml"]


def cut_in_two(place: Place) -> None:
    whole = (place.folder / "photos/6.png").read_bytes()
    (place.folder / "photos/6.png").write_bytes(whole[: len(whole) // 2])


def claim_size(place: Place, side: int) -> None:
    """A PNG whose header says ``side`` x ``side``."""
    whole = bytearray(png())
    whole[16:24] = side.to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    place.text(bytes(whole), "photos/6.png")


def folder_for_a_picture(place: Place) -> None:
    (place.folder / "photos/6.png").unlink()
    (place.folder / "photos/6.png").mkdir()


def database(place: Place) -> None:
    place.text("my shopping list\n" * 99, "list.db")


def line_7(place: Place) -> None:
    lines = [json.dumps(row) for row in place.rows]
    lines[6] = lines[6][:-9]
    place.text("\n".join(lines))


def laughs(opening: str, closing: str) -> str:
    """A few lines that stand for a thousand million values."""
    lines = ["a: &a {x: 1}" if "<<" in opening else "a: &a [x]"]
    lines += [
        f"{new}: &{new} {opening}{', '.join([f'*{old}'] * 9)}{closing}" for old, new in itertools.pairwise("abcdefghij")
    ]
    return "\n".join(lines)


def nothing(place: Place) -> None:
    return None


# Name -> values of row 7 (None: it is removed), what the line must say.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "row without image": ({"image": None}, r"line 7 of rows.jsonl: image is missing; give"),
    "empty answers": ({"answer": None, "answers": []}, r"line 7 .*answers is empty; give it"),
    "blank answer": ({"answer": "  "}, r"line 7 .*answers? is .*; give it"),
    "number of a question": ({"question": ["a", "b"]}, r"line 7 .*question is \['a', 'b'\]; give it a text"),
    "gold letter outside": (
        {"options": ["red", "blue"], "answer": "C"},
        r"line 7 .*the right option is 'C', but the options are A to B; write",
    ),
    "one option": ({"options": ["red"], "answer": "A"}, r"line 7 .*1 options; give 2 to 26"),
    "options with a gap": (
        {"options": {"A": "x", "C": "y"}, "answer": "A"},
        r"line 7 .*options are named A, C; name them A, B",
    ),
    "marks without pictures": (
        {"question": "<image> and <image> ?"},
        r"line 7 .*2 marks <image> for 1 pictures; write one",
    ),
    "address of a picture": ({"image": "https://example.org/a.png"}, r"line 7 .*is an address; download it"),
}

# Name -> an option of the task, what the line must say.
OPTIONS: dict[str, tuple[str, str]] = {
    "columns names none": ("columns.question=text", r"rows.jsonl has no column 'text'"),
    "columns maps nonsense": ("columns.picture=image", r"columns maps 'picture', which the task does not read"),
    "one annotator for vqa": ("scorer=vqa", r"line 1 .*there are 1; give at least 4"),
    "unknown scorer": ("scorer=exakt", r"no scorer 'exakt'; did you mean 'exact'"),
    "unknown option": ("image_rot=x", r"no option 'image_rot'; did you mean 'image_root'"),
    "streaming without limit": ("streaming=true", r"streaming.*limit"),
    "pixels of a fixed size": ("max_pixels=900", r"pictures of any size equal; remove"),
    "pictures in the home of nobody": ("image_root=~nosuchuser", r"line 1 .*no picture '~nosuchuser/photos/0.png'"),
}

# Name -> a text of the study, what is written in its place, what the line must say.
STUDIES: dict[str, tuple[str, str, str]] = {
    "split of a file": (
        "path: rows.jsonl",
        "path: rows.jsonl\n      split: {search: a}",
        r"option split says nothing of 'calibration'",
    ),
    "split larger than the data": (
        "search: 4",
        "search: 400",
        r"408 samples are asked for \(calibration 4, search 400, held_out 4\), but rows.jsonl has 20; lower",
    ),
    "split of nothing": ("search: 4", "search: 0", r"split 'search' has size 0"),
    "wrong key": ("budgets", "budgts", r"study.yaml: unknown key 'budgts'; did you mean 'budgets'"),
    "wrong indent": ("    splits", "   splits", r"study.yaml is not valid YAML at line \d+"),
    "a tab": ("    splits", "\tsplits", r"study.yaml is not valid YAML at line \d+"),
    "wrong type": ("budgets: 2", "budgets: two", r"budgets.* = 'two': "),
    "a list for a mapping": ("  random: {kind: random, trials: 2}", "  - random", r"searches = \['random'\]: "),
    "a key twice": ("budgets: 2", "budgets: 2\nbudgets: 3", r"study.yaml.*'budgets' .*twice"),
    "budget above 1": (
        "budgets: 2",
        "budgets: [0.5, 1.5]",
        r"budget 1.5 lies outside \[0\.\d+, 1\].*; lower the budget",
    ),
    "no budgets": ("budgets: 2", "budgets: 0", r"study.yaml: budgets = 0: .* 1$"),
    "budget that is a word": ("budgets: 2", "budgets: [0.5, half]", r"study.yaml: budgets.1 = 'half': .*number"),
    "share of compute that is a word": (
        "budgets: 2",
        "anytime: [0.1, none]",
        r"study.yaml: anytime.1 = 'none': .*number",
    ),
    "budget of 0": ("budgets: 2", "budgets: [0]", r"budget 0.0 lies outside"),
    "budget below the floor": (
        "budgets: 2",
        "budgets: [0.05, 0.9]",
        r"budget 0.05 lies outside \[0\.\d+, 1\].*raise the budget",
    ),
    "budget that is no number": ("budgets: 2", "budgets: [.nan]", r"budget nan lies outside"),
    "trials of -1": ("trials: 2", "trials: -1", r"searches.random.trials = -1: "),
    "options that are a number": ("trials: 2", "options: 3", r"searches.random = .*: options = 3 is no mapping"),
    "neither trials nor compute": ("trials: 2", "batch: 2", r"searches.random = \{'batch': 2\}: give either trials"),
    "misspelt key of a method": (
        "trials: 2",
        "trials: 2, method: {name: fastv, paramters: {}}",
        r"unknown key 'searches.random.method.paramters'; did you mean 'parameters'",
    ),
    "sharpness of 0": (
        "kind: random, trials: 2",
        "kind: lagrangian, sharpness: [0, 10]",
        r"searches.random.sharpness.0 = 0: .*greater than 0",
    ),
    "penalty without end": (
        "kind: random, trials: 2",
        "kind: lagrangian, penalty: .inf",
        r"searches.random.penalty = .*inf.*: .*finite",
    ),
    "billion laughs": ("budgets: 2", f"budgets: 2\n{laughs('[', ']')}", r"aliases stand .*100,000"),
    "billion merges": ("budgets: 2", f"budgets: 2\n{laughs('{<<: [', ']}')}", r"aliases stand "),
    "an alias in itself": (
        "budgets: 2",
        "budgets: &a [*a]",
        r"not valid YAML at line 9, column 10: an alias stands within what it repeats$",
    ),
    "3,000 levels": ("budgets: 2", "budgets: " + "[" * 3000 + "]" * 3000, r"than 64 levels"),
    "levels by aliases": (
        "budgets: 2",
        "\n".join(f"a{i}: &a{i} [[[{f'*a{i - 1}' if i else ''}]]]" for i in range(99)),
        r"aliases stand for more than 64 levels",
    ),
    "timestamp that is none": (
        "budgets: 2",
        "budgets: 2001-99-99",
        r"study.yaml is not valid YAML at line 9, column 10: .* is no timestamp .*; put texts in quotes",
    ),
    "int that is none": (
        "budgets: 2",
        "budgets: !!int half",
        r"study.yaml is not valid YAML at line 9, column 10: .* is no int .*; put texts in quotes",
    ),
    "bool that is none": (
        "budgets: 2",
        "budgets: !!bool maybe",
        r"study.yaml is not valid YAML at line 9, column 10: .* is no bool .*; put texts in quotes",
    ),
    "float that is none": (
        "budgets: 2",
        "budgets: !!float half",
        r"study.yaml is not valid YAML at line 9, column 10: .* is no float .*; put texts in quotes",
    ),
    "a date for a name": (
        "experiment: mine",
        "experiment: 2026-01-31",
        r"study.yaml: experiment is a date; put texts that look like one in quotes",
    ),
    "a number of 5,000 digits": ("search: 4", f"search: {'9' * 5000}", r"is no int .*4300"),
    "a size of 30 digits": (
        "search: 4",
        f"search: {'9' * 30}",
        r"study.yaml: tasks.0.splits.search is a number of 100 bits; the largest is \d+",
    ),
    "an option of 30 digits": (
        "path: rows.jsonl",
        f"path: rows.jsonl\n      seed: {'9' * 30}",
        r"tasks.0.options.seed is a number of 100 bits",
    ),
    "a thousand million samples": (
        "search: 4",
        "search: 1000000000",
        r"tasks.0.splits.search = 1000000000: .*less than or equal to 10000000",
    ),
    "a thousand million mosaics": (
        TASK,
        "name: mosaic-vqa\n    splits: {calibration: 4, search: 9000000, held_out: 4}",
        r"'mosaic-vqa': split 'search' has size 9000000; it makes at most 100,000$",
    ),
    "a thousand million budgets": (
        "budgets: 2",
        "budgets: 1000000000",
        r"budgets = 1000000000: .*less than or equal to 1000",
    ),
    "two thousand budgets": (
        "budgets: 2",
        f"budgets: {[0.9] * 2000}",
        r"budgets = \[0.9, .*: List should have at most 1000 items",
    ),
    "a thousand million trials": (
        "trials: 2",
        "trials: 1000000000",
        r"searches.random.trials = 1000000000: .*the most is 1,000,000",
    ),
    "NUL in a name": ("mine", '"mi\\0ne"', r"study.yaml .*at line 2, column 13: a NUL "),
    "surrogate in a name": ("mine", '"mi\\ud800ne"', r"at line 2, column 13: a lone surrogate"),
    "surrogate in a path": ("rows.jsonl", '"\\ud800.jsonl"', r"a lone surrogate .*; remove"),
    "NUL in a study": ("mine", "mi\0ne", r"study.yaml is not valid YAML: a NUL "),
}

# Name -> a schedule, what the line must say.
SCHEDULES: dict[str, tuple[str, str]] = {
    "schedule of words": ("half of them please", r"cannot read schedule 'half of them please'; write step\("),
    "schedule with nan": ("step(layer=2, keep=nan)", r"cannot read schedule 'step\(layer=2, keep=nan\)'"),
    "schedule with 1e999": ("step(layer=2, keep=1e999)", r"keep.* inf.* from 0 to 1"),
    "keep above 1": ("step(layer=2, keep=1.5)", r"1.5.* from 0 to 1"),
    "keep below 0": ("step(layer=2, keep=-0.1)", r"-0.1.* from 0 to 1"),
    "layer outside": ("step(layer=8, keep=0.5)", r"8.*layers 0 to 7"),
    "layer of words": ("step(layer='two', keep=0.5)", r"layer.*'two'"),
    "layers and keeps": ("multistep(layers=(2, 5), keeps=(0.5,))", r"layers.*keeps"),
    "code in a schedule": ("__import__('os').getcwd()", r"cannot read schedule"),
    "a very deep schedule": ("step(" + "(" * 3000 + ")" * 3000 + ")", r"cannot read schedule"),
    "ratio of words": ("ratios('a')", r"keep ratio 0 is 'a'; a keep ratio is the share kept"),
    "ratio of a list": ("ratios(1, [0.5])", r"keep ratio 1 is \[0.5\]; a keep ratio"),
    "ratio that is true": ("ratios(1, True)", r"keep ratio 1 is True; a keep ratio"),
    "a parameter twice": ("step(layer=2, layer=3, keep=0.5)", r"gives a parameter twice; give it once"),
    "parameters unpacked": ("step(**{'layer': 2}, keep=0.5)", r"step has no parameter 'None'"),
    "number of 400 digits": (
        f"linear(start=1{'0' * 400}, width=1, keep=0)",
        r"linear start is 10+\.\.\.; it must be a number",
    ),
    "a number that runs into a word": ("step(layer=2,keep=0.5if 1else 2)", r"cannot read schedule"),
    "surrogate for a schedule": ("\ud800", r"cannot read schedule '\\ud800'"),
    "published for no model": ("fastv:k2-r5", r"no published configuration 'fastv:k2-r5'; did you mean 'fastv:k2-r75'"),
}

# Name -> values of an exported schedule, what the line must say.
EXPORTS: dict[str, tuple[dict[str, Any], str]] = {
    "a schedule of 200,000 characters": (
        {"schedule": f"ratios({'1, ' * 66_667})"},
        r"schedule 'ratios.*\.\.\. has 200,009 characters",
    ),
    "another export": ({"format": "x"}, r"best.json is no exported schedule"),
    "export of a newer version": ({"version": 9}, r"format version 9.*upgrade vispco"),
    "export for another depth": (
        {"schedule": "ratios(" + "1, " * 27 + "0.5)"},
        r"28 keep ratios, but the model has 8 layers",
    ),
    "export with a bad parameter": ({"method": "random", "method_parameters": {"seed": "x"}}, r"seed.*'x'"),
}

# Name -> what is broken, the command, what the line must say.
CASES: dict[str, tuple[Break, Sequence[str], str]] = {
    **{name: (partial(Place.row, number=6, **changed), DATA, message) for name, (changed, message) in ROWS.items()},
    **{name: (nothing, [*DATA, "--option", option], message) for name, (option, message) in OPTIONS.items()},
    **{
        name: (partial(Place.study, old=old, new=new), VALIDATE, message)
        for name, (old, new, message) in STUDIES.items()
    },
    **{name: (nothing, [*EVAL, schedule], message) for name, (schedule, message) in SCHEDULES.items()},
    **{
        name: (partial(Place.exported, **changed), [*EVAL, "best.json"], message)
        for name, (changed, message) in EXPORTS.items()
    },
    # rows
    "missing image": (
        lambda p: (p.folder / "photos/6.png").unlink(),
        DATA,
        r"line 7 .*no picture 'photos/6.png'.*image_root",
    ),
    "wrong column": (
        lambda p: p.write([{"picture": 1, **{k: v for k, v in r.items() if k != "image"}} for r in p.rows]),
        DATA,
        r"rows.jsonl has columns picture, question, answer, but no 'image'; name yours with columns: \{image: COLUMN\}",
    ),
    # pictures
    "truncated png": (cut_in_two, DATA, r"line 7 .*cannot read picture 'photos/6.png': .*damaged; replace"),
    "text named jpg": (
        lambda p: (p.text("hello", "photos/x.jpg"), p.row(6, image="photos/x.jpg")),
        DATA,
        r"line 7 .*'photos/x.jpg': it is no picture",
    ),
    "picture of 0 pixels": (partial(claim_size, side=0), DATA, r"line 7 .*cannot read picture 'photos/6.png'.*replace"),
    "huge picture": (partial(claim_size, side=60_000), DATA, r"line 7 .*'photos/6.png'.*pixels"),
    "folder for a picture": (folder_for_a_picture, DATA, r"line 7 .*'photos/6.png': it is a folder; replace"),
    # files
    "broken line 7": (line_7, DATA, r"line 7 of rows.jsonl is no JSON: .* at column \d+; write one"),
    "a list on a line": (lambda p: p.text("[1, 2]\n"), DATA, r"line 1 of rows.jsonl is \[1, 2\], no object; write \{"),
    "latin-1": (
        lambda p: p.text('{"image": "photos/1.png", "question": "Größe ?", "answer": "red"}\n'.encode("latin-1")),
        DATA,
        r"rows.jsonl is no UTF-8 text; save it as UTF-8",
    ),
    "empty file": (lambda p: p.text(""), DATA, r"rows.jsonl.*(empty|no rows).*;"),
    "duplicate keys": (
        lambda p: p.text('{"image": "photos/1.png", "question": "a ?", "answer": "red", "answer": "blue"}\n'),
        DATA,
        r"line 1 of rows.jsonl .*'answer' .*twice; ",
    ),
    "no such file": (lambda p: (p.folder / "rows.jsonl").unlink(), DATA, r"no file or folder 'rows.jsonl'"),
    "an archive": (
        lambda p: p.text(b"PK\x03\x04", "rows.zip"),
        [*DATA[:-1], "path=./rows.zip"],
        r"rows.zip is no parquet, JSON",
    ),
    "damaged parquet": (
        lambda p: p.text(b"PAR1 nothing PAR1", "rows.parquet"),
        [*DATA[:-1], "path=rows.parquet"],
        r"cannot load rows.parquet .*;",
    ),
    "csv with a comma": (
        lambda p: p.text("image,question,answer\nphotos/1.png,how many, and where,red\n", "rows.csv"),
        [*DATA[:-1], "path=rows.csv"],
        r"row 0 of rows.csv has more cells than the header; quote",
    ),
    "json of several lists": (
        lambda p: p.text('{"a": [], "b": []}', "rows.json"),
        [*DATA[:-1], "path=rows.json"],
        r"rows.json holds a, b; choose one with field: NAME",
    ),
    "pictures alone": (nothing, [*DATA[:-1], "path=photos"], r"photos.*question"),
    "pixels the wrong way": (
        nothing,
        [*DATA, "--option", "min_pixels=9", "--option", "max_pixels=4"],
        r"min_pixels 9 exceeds max_pixels 4",
    ),
    # studies
    "a device for a study": (
        nothing,
        ["validate", "/dev/full"],
        r"cannot read study '/dev/full': it is a pipe or a device",
    ),
    "another device for a study": (
        nothing,
        ["validate", "/dev/zero"],
        r"cannot read study '/dev/zero': it is a pipe or a",
    ),
    "a pipe for a study": (
        lambda p: os.mkfifo(p.folder / "pipe.yaml"),
        ["validate", "pipe.yaml"],
        r"cannot read study 'pipe.yaml': it is a pipe or a device, no regular file",
    ),
    "a study of 5 MiB": (
        lambda p: p.text("#" * (5 << 20), "study.yaml"),
        VALIDATE,
        r"study 'study.yaml': .*than 4 MiB",
    ),
    "a name of 5,000 characters": (
        nothing,
        ["validate", "x" * 5000],
        r"cannot read study 'x+\.\.\.: File name too long$",
    ),
    "empty study": (lambda p: p.text("", "study.yaml"), VALIDATE, r"study.yaml is empty or no mapping"),
    "a study of bytes": (lambda p: p.text(png(), "study.yaml"), VALIDATE, r"study.yaml is no text file"),
    "folder for a study": (nothing, ["validate", "photos"], r"cannot read study 'photos': Is a directory"),
    # schedules
    "a device for an export": (
        lambda p: (p.folder / "best.json").symlink_to("/dev/zero"),
        [*EVAL, "best.json"],
        r"cannot read schedule file 'best.json': it is a pipe or a device",
    ),
    "a pipe for rows": (
        lambda p: ((p.folder / "rows.jsonl").unlink(), os.mkfifo(p.folder / "rows.jsonl")),
        DATA,
        r"cannot load rows.jsonl: it is a pipe or a device",
    ),
    "home of nobody": (
        nothing,
        [*DATA[:-1], "path=~nosuchuser/rows.jsonl"],
        r"no file or folder '~nosuchuser/rows.jsonl'",
    ),
    "an export of 3,000 levels": (
        lambda p: p.text("[" * 100_000, "best.json"),
        [*EVAL, "best.json"],
        r"best.json is not JSON",
    ),
    # command lines
    **{
        f"usage: {' '.join(words) or 'none'}": (nothing, words, message)
        for words, message in [
            (["run"], r"^vispco: Missing argument 'study'; see vispco run --help$"),
            (["nosuch"], r"^vispco: No such command 'nosuch'; see vispco --help$"),
            (["run", "--nosuch", "x"], r"^vispco: No such option: --nosuch .*; see vispco run --help$"),
            (["run", "a", "b"], r"unexpected extra argument.*\(b\); see vispco run --help$"),
            (["compare", "--score"], r"'--score' requires an argument"),
            (["report", "x", "--tokens", "99"], r"Invalid value for '--tokens': .*less than or equal to 50"),
            (["eval", "--samples", "many"], r"Invalid value for '--samples': .*integer"),
            (["run", "study.yaml", "--workers", "0"], r"Invalid value for '--workers': "),
            (["run", "--debug"], r"No such option"),
        ]
    },
    "damaged export": (
        lambda p: p.text('{"format": "vispco-sch', "best.json"),
        [*EVAL, "best.json"],
        r"best.json is not JSON; write it with: vispco export",
    ),
    # databases and outputs
    "database of nonsense": (
        nothing,
        ["status", "--storage", "my database"],
        r"storage is no database URL; write sqlite:///",
    ),
    "database of another kind": (
        nothing,
        ["status", "--storage", "mysql://a/b"],
        r"neither SQLite nor PostgreSQL; write",
    ),
    "database of a text file": (
        database,
        ["run", "study.yaml", "--storage", "sqlite:///list.db"],
        r"cannot open database sqlite:///list.db: file is not a database; give another",
    ),
    "database in no folder": (
        nothing,
        ["run", "study.yaml", "--storage", "sqlite:///none/a.db"],
        r"cannot open database sqlite:///none/a.db: unable to open",
    ),
    "database that is a folder": (
        nothing,
        ["run", "study.yaml", "--storage", "sqlite:///photos"],
        r"cannot open database sqlite:///photos",
    ),
    "no database": (nothing, ["compare", "mine"], r"no database at sqlite:///vispco.db; run a study first"),
    "answers into no folder": (
        nothing,
        [*DATA, "--limit", "1", "--log-samples", "none/a.jsonl"],
        r"cannot write 'none/a.jsonl': there is no folder 'none'; create it",
    ),
}


FINE: dict[str, tuple[Break, Sequence[str]]] = {
    "byte order mark": (lambda p: p.text(b"\xef\xbb\xbf" + (p.folder / "rows.jsonl").read_bytes()), DATA),
    "blank lines": (lambda p: p.text("\n\n" + (p.folder / "rows.jsonl").read_text() + "\n  \n"), DATA),
    "one pixel": (lambda p: p.text(png(1, 1), "photos/6.png"), DATA),
    "a thin line": (lambda p: p.text(png(400, 1), "photos/6.png"), DATA),
    "names of one column": (lambda p: p.row(6, answer=None, label="blue"), DATA),
}


@pytest.mark.parametrize("name", FINE)
def test_what_only_looks_malformed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    odd, command = FINE[name]
    monkeypatch.chdir(tmp_path)
    odd(Place(tmp_path))
    code, out, err = cli(*command, "--option", "max_new_tokens=1", "--json")
    assert code == 0, err
    assert json.loads(out)["protocol"]["samples"] == 20


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("what", ["rows.jsonl", "photos/6.png", "."])
def test_without_permission(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    place = Place(tmp_path)
    monkeypatch.chdir(tmp_path)
    (place.folder / what).chmod(0o500 if what == "." else 0)
    command = ["run", "study.yaml", "--storage", "sqlite:///a.db"] if what == "." else DATA
    code, out, err = cli(*command)
    place.folder.chmod(0o700)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err


def test_a_database_that_may_only_be_read(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own read-only mode, which also binds root."""
    place = Place(tmp_path)
    monkeypatch.chdir(tmp_path)
    sqlite3.connect("a.db").close()
    before = everything(place.folder)
    code, out, err = cli("run", "study.yaml", "--storage", "sqlite:///file:a.db?mode=ro&uri=true")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(r"cannot open database .*a.db.*readonly database; give another", err), err
    assert everything(place.folder) == before


def test_a_picture_that_the_processor_refuses(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a batch of good ones: its line is named. Qwen refuses an aspect ratio above 200."""
    place = Place(tmp_path)
    monkeypatch.chdir(tmp_path)
    place.text(png(600, 2), "photos/6.png")
    code, out, err = cli(*[part if part != "demo" else "demo-qwen" for part in DATA])
    last = err.splitlines()[-1]
    assert (code, out) == (2, ""), err
    assert re.search(r"line 7 of rows.jsonl: the model's processor refuses it: .*aspect ratio.*; change", last), err


def everything(folder: Path) -> dict[str, bytes]:
    """All files below ``folder``."""
    return {path.as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    broken, command, message = CASES[name]
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("VISPCO_STORAGE", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    broken(Place(folder))
    before = everything(folder)
    code, out, err = cli(*command)
    lines = err.splitlines()
    assert (code, out) == (2, ""), err
    assert len(lines) == 1, err
    assert lines[0].startswith("vispco: ")
    assert re.search(message, lines[0]), lines[0]
    assert len(lines[0]) < 500
    assert "Traceback" not in lines[0]
    assert everything(folder) == before
