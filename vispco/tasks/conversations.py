"""Rows of LLaVA-Instruct-style files: JSON (a list) or JSONL, checked row by row.

Read with the json module: such files mix rows with and without pictures, and ids that are numbers and texts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vispco.errors import DataError
from vispco.files import check_regular
from vispco.json_text import parse_json

MARK = "<image>"
COLUMNS = "id, image and conversations"


@dataclass(frozen=True)
class Row:
    """What is used of one row; ``key`` names its content, wherever it stands in the file."""

    id: str
    image: str
    question: str
    answer: str

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps([self.id, self.image, self.question, self.answer]).encode()).hexdigest()[:12]


def read_rows(path: Path) -> list[Row]:
    """Rows with a picture, in the order of the file.

    Raises:
        DataError: the file cannot be read, or a row is not as it should be; names the row.
    """
    rows = [row for number, value in enumerate(_values(path)) if (row := _row(value, f"{path}, row {number}"))]
    if not rows:
        raise DataError(f"{path} has no row with a picture; rows have {COLUMNS}")
    return rows


def _values(path: Path) -> list[Any]:
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {str(path)!r}: {reason}; set calibration.options.file") from None
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return [_parsed(line, f"{path}, line {number}") for number, line in lines]
    values = _parsed(text, str(path))
    if not isinstance(values, list):
        raise DataError(f"{path} holds one {type(values).__name__}, not a list of rows with {COLUMNS}")
    return values


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}; files of one row a line end in .jsonl") from None


def _row(value: Any, where: str) -> Row | None:
    """None for a row without a picture."""
    if not isinstance(value, dict) or "conversations" not in value:
        has = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{where} has {has or 'nothing'}; rows have {COLUMNS}")
    images = value.get("image", value.get("images"))
    if isinstance(images, str):
        images = [images]
    if not images:
        return None
    if not isinstance(images, list) or len(images) > 1 or not isinstance(images[0], str):
        raise DataError(f"{where}: image is {images!r}; it must be the path of one picture")
    question, answer = _first_turns(value["conversations"], where)
    return Row(id=str(value.get("id", images[0])), image=images[0], question=question, answer=answer)


def _first_turns(turns: Any, where: str) -> tuple[str, str]:
    """The first human turn without the picture's mark, and the answer that follows it ('' if none does)."""
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: the conversation is empty; remove the row")
    for turn in turns:
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("from"), str)
            or not isinstance(turn.get("value"), str)
        ):
            raise DataError(f"{where}: a turn is {str(turn)[:60]}; turns have from (human or gpt) and value (a text)")
    first = next((number for number, turn in enumerate(turns) if turn["from"] == "human"), None)
    if first is None:
        raise DataError(f"{where}: no turn is from 'human', they are from {', '.join(t['from'] for t in turns[:3])}")
    question = turns[first]["value"].replace(MARK, " ").strip()
    if not question:
        raise DataError(f"{where}: the first human turn has no text; remove the row")
    return question, turns[first + 1]["value"] if len(turns) > first + 1 else ""
