"""Malformed input, as users bring it: one line that says what, where and what to do; nothing is written."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., tuple[int, str, str]]

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
    from PIL import Image

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


def no_pixels(place: Place) -> None:
    """A PNG whose header says 0 x 0."""
    whole = bytearray(png())
    import zlib

    whole[16:24] = bytes(8)
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    place.text(bytes(whole), "photos/6.png")


def bomb(place: Place) -> None:
    """A PNG whose header says 60,000 x 60,000."""
    import zlib

    whole = bytearray(png())
    whole[16:24] = (60_000).to_bytes(4, "big") * 2
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


def optioned(answer: Any, options: Any = ("red", "blue")) -> Break:
    return lambda place: place.row(6, options=list(options), answer=answer)


def nothing(place: Place) -> None:
    return None


# Name -> what is broken, the command, what the line must say.
CASES: dict[str, tuple[Break, Sequence[str], str]] = {
    # rows
    "missing image": (
        lambda p: (p.folder / "photos/6.png").unlink(),
        DATA,
        r"line 7 .*no picture 'photos/6.png'.*image_root",
    ),
    "row without image": (lambda p: p.row(6, image=None), DATA, r"line 7 of rows.jsonl: image is missing; give"),
    "wrong column": (
        lambda p: p.write([{"picture": 1, **{k: v for k, v in r.items() if k != "image"}} for r in p.rows]),
        DATA,
        r"rows.jsonl has columns picture, question, answer, but no 'image'; name yours with columns: \{image: COLUMN\}",
    ),
    "columns names none": (nothing, [*DATA, "--option", "columns.question=text"], r"rows.jsonl has no column 'text'"),
    "columns maps nonsense": (
        nothing,
        [*DATA, "--option", "columns.picture=image"],
        r"columns maps 'picture', which the task does not read",
    ),
    "empty answers": (lambda p: p.row(6, answer=None, answers=[]), DATA, r"line 7 .*answers is empty; give it"),
    "blank answer": (lambda p: p.row(6, answer="  "), DATA, r"line 7 .*answers? is .*; give it"),
    "number of a question": (
        lambda p: p.row(6, question=["a", "b"]),
        DATA,
        r"line 7 .*question is \['a', 'b'\]; give it a text",
    ),
    "gold letter outside": (
        optioned("C"),
        DATA,
        r"line 7 .*the right option is 'C', but the options are A to B; write",
    ),
    "one option": (optioned("A", ["red"]), DATA, r"line 7 .*1 options; give 2 to 26"),
    "options with a gap": (
        lambda p: p.row(6, options={"A": "x", "C": "y"}, answer="A"),
        DATA,
        r"line 7 .*options are named A, C; name them A, B",
    ),
    "one annotator for vqa": (nothing, [*DATA, "--option", "scorer=vqa"], r"line 1 .*there are 1; give at least 4"),
    "marks without pictures": (
        lambda p: p.row(6, question="<image> and <image> ?"),
        DATA,
        r"line 7 .*2 marks <image> for 1 pictures; write one",
    ),
    # pictures
    "truncated png": (cut_in_two, DATA, r"line 7 .*cannot read picture 'photos/6.png': .*damaged; replace"),
    "text named jpg": (
        lambda p: (p.text("hello", "photos/x.jpg"), p.row(6, image="photos/x.jpg")),
        DATA,
        r"line 7 .*'photos/x.jpg': it is no picture",
    ),
    "picture of 0 pixels": (no_pixels, DATA, r"line 7 .*cannot read picture 'photos/6.png'.*replace"),
    "huge picture": (bomb, DATA, r"line 7 .*'photos/6.png'.*pixels"),
    "folder for a picture": (folder_for_a_picture, DATA, r"line 7 .*'photos/6.png': it is a folder; replace"),
    "address of a picture": (
        lambda p: p.row(6, image="https://example.org/a.png"),
        DATA,
        r"line 7 .*is an address; download it",
    ),
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
    "pictures alone": (lambda p: None, [*DATA[:-1], "path=photos"], r"photos.*question"),
    # options of a task
    "unknown scorer": (nothing, [*DATA, "--option", "scorer=exakt"], r"no scorer 'exakt'; did you mean 'exact'"),
    "unknown option": (
        nothing,
        [*DATA, "--option", "image_rot=x"],
        r"no option 'image_rot'; did you mean 'image_root'",
    ),
    "streaming without limit": (nothing, [*DATA, "--option", "streaming=true"], r"streaming.*limit"),
    "split of a file": (
        lambda p: p.study("path: rows.jsonl", "path: rows.jsonl\n      split: {search: a}"),
        VALIDATE,
        r"option split says nothing of 'calibration'",
    ),
    "split larger than the data": (
        lambda p: p.study("search: 4", "search: 400"),
        VALIDATE,
        r"408 samples are asked for \(calibration 4, search 400, held_out 4\), but rows.jsonl has 20; lower",
    ),
    "split of nothing": (lambda p: p.study("search: 4", "search: 0"), VALIDATE, r"split 'search' has size 0"),
    "pixels the wrong way": (
        nothing,
        [*DATA, "--option", "min_pixels=9", "--option", "max_pixels=4"],
        r"min_pixels 9 exceeds max_pixels 4",
    ),
    "pixels of a fixed size": (nothing, [*DATA, "--option", "max_pixels=900"], r"pictures of any size equal; remove"),
    # studies
    "wrong key": (
        lambda p: p.study("budgets", "budgts"),
        VALIDATE,
        r"study.yaml: unknown key 'budgts'; did you mean 'budgets'",
    ),
    "wrong indent": (
        lambda p: p.study("    splits", "   splits"),
        VALIDATE,
        r"study.yaml is not valid YAML at line \d+",
    ),
    "a tab": (lambda p: p.study("    splits", "\tsplits"), VALIDATE, r"study.yaml is not valid YAML at line \d+"),
    "wrong type": (lambda p: p.study("budgets: 2", "budgets: two"), VALIDATE, r"budgets.* = 'two': "),
    "a list for a mapping": (
        lambda p: p.study("  random: {kind: random, trials: 2}", "  - random"),
        VALIDATE,
        r"searches = \['random'\]: ",
    ),
    "a key twice": (
        lambda p: p.study("budgets: 2", "budgets: 2\nbudgets: 3"),
        VALIDATE,
        r"study.yaml.*'budgets' .*twice",
    ),
    "budget above 1": (
        lambda p: p.study("budgets: 2", "budgets: [0.5, 1.5]"),
        VALIDATE,
        r"budget 1.5 lies outside \[0\.\d+, 1\].*; lower the budget",
    ),
    "no budgets": (lambda p: p.study("budgets: 2", "budgets: 0"), VALIDATE, r"study.yaml: budgets = 0: .* 1$"),
    "budget that is a word": (
        lambda p: p.study("budgets: 2", "budgets: [0.5, half]"),
        VALIDATE,
        r"study.yaml: budgets.1 = 'half': .*number",
    ),
    "share of compute that is a word": (
        lambda p: p.study("budgets: 2", "anytime: [0.1, none]"),
        VALIDATE,
        r"study.yaml: anytime.1 = 'none': .*number",
    ),
    "budget of 0": (lambda p: p.study("budgets: 2", "budgets: [0]"), VALIDATE, r"budget 0.0 lies outside"),
    "budget below the floor": (
        lambda p: p.study("budgets: 2", "budgets: [0.05, 0.9]"),
        VALIDATE,
        r"budget 0.05 lies outside \[0\.\d+, 1\].*raise the budget",
    ),
    "budget that is no number": (
        lambda p: p.study("budgets: 2", "budgets: [.nan]"),
        VALIDATE,
        r"budget nan lies outside",
    ),
    "trials of -1": (lambda p: p.study("trials: 2", "trials: -1"), VALIDATE, r"searches.random.trials = -1: "),
    "options that are a number": (
        lambda p: p.study("trials: 2", "options: 3"),
        VALIDATE,
        r"searches.random = .*: options = 3 is no mapping",
    ),
    "neither trials nor compute": (
        lambda p: p.study("trials: 2", "batch: 2"),
        VALIDATE,
        r"searches.random = \{'batch': 2\}: give either trials",
    ),
    "misspelt key of a method": (
        lambda p: p.study("trials: 2", "trials: 2, method: {name: fastv, paramters: {}}"),
        VALIDATE,
        r"unknown key 'searches.random.method.paramters'; did you mean 'parameters'",
    ),
    "sharpness of 0": (
        lambda p: p.study("kind: random, trials: 2", "kind: lagrangian, sharpness: [0, 10]"),
        VALIDATE,
        r"searches.random.sharpness.0 = 0: .*greater than 0",
    ),
    "penalty without end": (
        lambda p: p.study("kind: random, trials: 2", "kind: lagrangian, penalty: .inf"),
        VALIDATE,
        r"searches.random.penalty = .*inf.*: .*finite",
    ),
    "billion laughs": (
        lambda p: p.study("budgets: 2", f"budgets: 2\n{laughs('[', ']')}"),
        VALIDATE,
        r"aliases stand .*100,000",
    ),
    "billion merges": (
        lambda p: p.study("budgets: 2", f"budgets: 2\n{laughs('{<<: [', ']}')}"),
        VALIDATE,
        r"aliases stand ",
    ),
    "an alias in itself": (
        lambda p: p.study("budgets: 2", "budgets: &a [*a]"),
        VALIDATE,
        r"not valid YAML at line 9, column 10: an alias stands within what it repeats$",
    ),
    "3,000 levels": (
        lambda p: p.study("budgets: 2", "budgets: " + "[" * 3000 + "]" * 3000),
        VALIDATE,
        r"than 64 levels",
    ),
    "levels by aliases": (
        lambda p: p.study("budgets: 2", "\n".join(f"a{i}: &a{i} [[[{f'*a{i - 1}' if i else ''}]]]" for i in range(99))),
        VALIDATE,
        r"aliases stand for more than 64 levels",
    ),
    **{
        f"{what} that is none": (
            lambda p, text=text: p.study("budgets: 2", f"budgets: {text}"),  # type: ignore[misc]
            VALIDATE,
            rf"study.yaml is not valid YAML at line 9, column 10: .* is no {what} .*; put texts in quotes",
        )
        for what, text in {
            "timestamp": "2001-99-99",
            "int": "!!int half",
            "bool": "!!bool maybe",
            "float": "!!float half",
        }.items()
    },
    "a date for a name": (
        lambda p: p.study("experiment: mine", "experiment: 2026-01-31"),
        VALIDATE,
        r"study.yaml: experiment is a date; put texts that look like one in quotes",
    ),
    "a number of 5,000 digits": (
        lambda p: p.study("search: 4", f"search: {'9' * 5000}"),
        VALIDATE,
        r"is no int .*4300",
    ),
    "a size of 30 digits": (
        lambda p: p.study("search: 4", f"search: {'9' * 30}"),
        VALIDATE,
        r"study.yaml: tasks.0.splits.search is a number of 100 bits; the largest is \d+",
    ),
    "an option of 30 digits": (
        lambda p: p.study("path: rows.jsonl", f"path: rows.jsonl\n      seed: {'9' * 30}"),
        VALIDATE,
        r"tasks.0.options.seed is a number of 100 bits",
    ),
    "a thousand million samples": (
        lambda p: p.study("search: 4", "search: 1000000000"),
        VALIDATE,
        r"tasks.0.splits.search = 1000000000: .*less than or equal to 10000000",
    ),
    "a thousand million mosaics": (
        lambda p: p.study(TASK, "name: mosaic-vqa\n    splits: {calibration: 4, search: 9000000, held_out: 4}"),
        VALIDATE,
        r"'mosaic-vqa': split 'search' has size 9000000; it makes at most 100,000$",
    ),
    "a thousand million budgets": (
        lambda p: p.study("budgets: 2", "budgets: 1000000000"),
        VALIDATE,
        r"budgets = 1000000000: .*less than or equal to 1000",
    ),
    "two thousand budgets": (
        lambda p: p.study("budgets: 2", f"budgets: {[0.9] * 2000}"),
        VALIDATE,
        r"budgets = \[0.9, .*: List should have at most 1000 items",
    ),
    "a thousand million trials": (
        lambda p: p.study("trials: 2", "trials: 1000000000"),
        VALIDATE,
        r"searches.random.trials = 1000000000: .*the most is 1,000,000",
    ),
    "NUL in a name": (lambda p: p.study("mine", '"mi\\0ne"'), VALIDATE, r"study.yaml .*at line 2, column 13: a NUL "),
    "surrogate in a name": (
        lambda p: p.study("mine", '"mi\\ud800ne"'),
        VALIDATE,
        r"at line 2, column 13: a lone surrogate",
    ),
    "surrogate in a path": (
        lambda p: p.study("rows.jsonl", '"\\ud800.jsonl"'),
        VALIDATE,
        r"a lone surrogate .*; remove",
    ),
    "NUL in a study": (lambda p: p.study("mine", "mi\0ne"), VALIDATE, r"study.yaml is not valid YAML: a NUL "),
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
    "folder for a study": (lambda p: None, ["validate", "photos"], r"cannot read study 'photos': Is a directory"),
    # schedules
    "schedule of words": (
        nothing,
        [*EVAL, "half of them please"],
        r"cannot read schedule 'half of them please'; write step\(",
    ),
    "schedule with nan": (
        nothing,
        [*EVAL, "step(layer=2, keep=nan)"],
        r"cannot read schedule 'step\(layer=2, keep=nan\)'",
    ),
    "schedule with 1e999": (nothing, [*EVAL, "step(layer=2, keep=1e999)"], r"keep.* inf.* from 0 to 1"),
    "keep above 1": (nothing, [*EVAL, "step(layer=2, keep=1.5)"], r"1.5.* from 0 to 1"),
    "keep below 0": (nothing, [*EVAL, "step(layer=2, keep=-0.1)"], r"-0.1.* from 0 to 1"),
    "layer outside": (nothing, [*EVAL, "step(layer=8, keep=0.5)"], r"8.*layers 0 to 7"),
    "layer of words": (nothing, [*EVAL, "step(layer='two', keep=0.5)"], r"layer.*'two'"),
    "layers and keeps": (nothing, [*EVAL, "multistep(layers=(2, 5), keeps=(0.5,))"], r"layers.*keeps"),
    "code in a schedule": (nothing, [*EVAL, "__import__('os').getcwd()"], r"cannot read schedule"),
    "a very deep schedule": (nothing, [*EVAL, "step(" + "(" * 3000 + ")" * 3000 + ")"], r"cannot read schedule"),
    "ratio of words": (nothing, [*EVAL, "ratios('a')"], r"keep ratio 0 is 'a'; a keep ratio is the share kept"),
    "ratio of a list": (nothing, [*EVAL, "ratios(1, [0.5])"], r"keep ratio 1 is \[0.5\]; a keep ratio"),
    "ratio that is true": (nothing, [*EVAL, "ratios(1, True)"], r"keep ratio 1 is True; a keep ratio"),
    "a parameter twice": (
        nothing,
        [*EVAL, "step(layer=2, layer=3, keep=0.5)"],
        r"gives a parameter twice; give it once",
    ),
    "parameters unpacked": (nothing, [*EVAL, "step(**{'layer': 2}, keep=0.5)"], r"step has no parameter 'None'"),
    "number of 400 digits": (
        nothing,
        [*EVAL, f"linear(start=1{'0' * 400}, width=1, keep=0)"],
        r"linear start is 10+\.\.\.; it must be a number",
    ),
    "a number that runs into a word": (nothing, [*EVAL, "step(layer=2,keep=0.5if 1else 2)"], r"cannot read schedule"),
    "a schedule of 200,000 characters": (
        lambda p: p.exported(schedule=f"ratios({'1, ' * 66_667})"),
        [*EVAL, "best.json"],
        r"schedule 'ratios.*\.\.\. has 200,009 characters",
    ),
    "surrogate for a schedule": (nothing, [*EVAL, "\ud800"], r"cannot read schedule '\\ud800'"),
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
    "pictures in the home of nobody": (
        nothing,
        [*DATA, "--option", "image_root=~nosuchuser"],
        r"line 1 .*no picture '~nosuchuser/photos/0.png'",
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
    "another export": (lambda p: p.exported(format="x"), [*EVAL, "best.json"], r"best.json is no exported schedule"),
    "export of a newer version": (
        lambda p: p.exported(version=9),
        [*EVAL, "best.json"],
        r"format version 9.*upgrade vispco",
    ),
    "export for another depth": (
        lambda p: p.exported(schedule="ratios(" + "1, " * 27 + "0.5)"),
        [*EVAL, "best.json"],
        r"28 keep ratios, but the model has 8 layers",
    ),
    "export with a bad parameter": (
        lambda p: p.exported(method="random", method_parameters={"seed": "x"}),
        [*EVAL, "best.json"],
        r"seed.*'x'",
    ),
    "published for no model": (
        nothing,
        [*EVAL, "fastv:k2-r5"],
        r"no published configuration 'fastv:k2-r5'; did you mean 'fastv:k2-r75'",
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
    import sqlite3

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


def test_there_are_thirty() -> None:
    assert len(CASES) >= 30


def everything(folder: Path) -> dict[str, bytes]:
    """All files below ``folder``."""
    return {path.as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import datasets

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
