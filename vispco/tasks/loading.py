"""Rows from wherever they are: the hub, its cache, a local folder, parquet, JSON, CSV or TSV."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from vispco.errors import DataError
from vispco.files import check_regular, expanded
from vispco.json_text import parse_json
from vispco.registry import suggest
from vispco.tasks.pictures import Encoded, Pictures, encoded

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    ``path``: hub id, folder or file. ``config``: a configuration, or several joined by "+". ``streaming``: read only
    the first ``limit`` rows, without storing the rest. ``field``: the list in a JSON object that holds the rows.
    """

    path: str
    split: str
    config: str | None = None
    revision: str | None = None
    streaming: bool = False
    limit: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        config = (self.config or "").split("+")
        return (
            f"{self.path} ({config[0]}, ..., {self.split})"
            if len(config) > 1
            else f"{self.path} ({', '.join(filter(None, (self.config, self.split)))})"
        )


@dataclass(frozen=True, eq=False)
class Row:
    """One row without its pictures; ``place`` names it in messages.

    Null, numbers that are not finite and blank texts are absent.
    """

    values: Mapping[str, Any]
    place: str

    def get(self, name: str) -> Any:
        value = self.values.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return None if isinstance(value, str) and not value.strip() else value

    def text(self, name: str) -> str:
        """A column that must say something."""
        value = self.get(name)
        if value is None or isinstance(value, (list, dict)):
            raise self.error(f"{name} is {_shown(self.values.get(name))}", f"give it a text, or remove the {self.unit}")
        return str(value)

    def optional(self, name: str) -> str:
        value = self.get(name)
        return "" if value is None else str(value)

    def texts(self, name: str, *, written: bool = False) -> tuple[str, ...]:
        """A list of texts; a single text is a list of one, unless it is a ``written`` Python list."""
        value = self.get(name)
        if written and isinstance(value, str) and value.strip().startswith("["):
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                raise self.error(f"{name} {_shown(value)} is no list", "write it as a list of texts") from None
        listed = value if isinstance(value, (list, tuple)) else [value]
        if not listed or any(text is None or isinstance(text, (list, dict)) for text in listed):
            raise self.error(f"{name} is {_shown(self.values.get(name))}", f"give it, or remove the {self.unit}")
        return tuple(map(str, listed))

    def letter(self, name: str, options: Sequence[str]) -> str:
        """The letter of an option that is given by its number, counted from 0."""
        number = self.integer(name)
        if not 0 <= number < len(options):
            raise self.error(
                f"{name} is {number}, but the {len(options)} options are 0 to {len(options) - 1}",
                "correct it, or add the option",
            )
        return ascii_uppercase[number]

    def integer(self, name: str) -> int:
        value = self.get(name)
        try:
            return int(value)
        except (TypeError, ValueError):
            raise self.error(f"{name} is {_shown(value)}, no whole number", "correct it") from None

    @property
    def unit(self) -> str:
        return self.place.split()[0]

    def error(self, what: str, fix: str) -> DataError:
        return DataError(f"{self.place}: {what}; {fix}")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of a source, without their pictures.

    ``held``: numbers of pictures in each row, by column. ``cells``: from a row's number to its encoded pictures, by
    column. ``root``: the folder that paths of pictures are relative to. ``places``: what a person calls the rows;
    default: their number.
    """

    rows: Sequence[Mapping[str, Any]]
    held: Mapping[str, Sequence[int]]
    cells: Callable[[int], Mapping[str, Any]]
    columns: tuple[str, ...]
    name: str
    root: Path | None = None
    places: Sequence[str] = field(default_factory=tuple)

    def row(self, number: int, names: Mapping[str, str]) -> Row:
        """Row ``number``; ``names``: what the columns are called here."""
        values = dict(self.rows[number])
        values |= {name: self.rows[number].get(there) for name, there in names.items()}
        place = self.places[number] if self.places else f"row {number}"
        return Row(values, f"{place} of {self.name}")

    def pictures(self, number: int, columns: Sequence[str], root: Path | None, where: str) -> Pictures:
        """The pictures of row ``number`` in ``columns``, in this order."""

        def read() -> list[Encoded]:
            cells = self.cells(number)
            return [
                encoded(cell, root) for column in columns for cell in as_list(cells[column]) if cell not in (None, "")
            ]

        return Pictures(sum(self.held[column][number] for column in columns), read, where)


def as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _count(value: Any) -> int:
    return sum(cell not in (None, "") for cell in as_list(value))


def _shown(value: Any) -> str:
    return "missing" if value is None else "empty" if value in ("", []) else repr(value)[:60]


def open_table(sources: Sequence[Source], pictures: Sequence[str]) -> Table:
    """Rows of the first source that can be had.

    Args:
        pictures: columns that hold pictures; those that the data set declares as pictures are known without.

    Raises:
        DataError: none can be had, or there is no such configuration, split or file.
    """
    missing = []
    for source in sources:
        try:
            return _open(source, pictures)
        except OSError as error:
            missing.append(f"{source.path}: {one_line(error)}")
    ways = "download it where there is a network, or name a copy with path: FOLDER" if sources else ""
    raise DataError(f"cannot load {'; '.join(missing)}; {ways}")


def _open(source: Source, pictures: Sequence[str]) -> Table:
    path = expanded(source.path)
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return _arrow_table(_saved(path, source), source, pictures)
        if (file := _only_file(path)) is not None:
            path = file
    if path.is_file() and path.suffix in READERS:
        with readable(path):
            rows, places = READERS[path.suffix](path, source)
        if not rows:
            raise DataError(f"{path.as_posix()} has no rows; write one for each question")
        return _listed(rows, places, pictures, path.as_posix(), path.parent)
    if not path.exists() and looks_local(source.path):
        raise DataError(f"no file or folder {source.path!r}; paths are relative to the working directory")
    if path.exists() and not path.is_dir():
        check_regular(path)
    return _arrow_table(_loaded(path, source), source, pictures)


def looks_local(path: str) -> bool:
    """Whether ``path`` can be no hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix in (*READERS, ".parquet")


def _only_file(folder: Path) -> Path | None:
    """The table of a folder that holds one beside pictures, and nothing that ``datasets`` would read better."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in READERS]
    known = any(folder.rglob("*.parquet")) or any(folder.rglob("*.arrow"))
    return files[0] if len(files) == 1 and not known else None


# --- through the datasets library ------------------------------------------------------------------


def _loaded(path: Path, source: Source) -> Any:
    from datasets import concatenate_datasets, load_dataset

    kwargs: dict[str, Any] = {"split": source.split, "streaming": source.streaming}
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"{path} is no parquet, JSON, CSV or TSV file; convert it, or give a folder")
        with _library(source):
            return load_dataset("parquet", data_files={source.split: str(path)}, **kwargs)
    if not path.is_dir():
        kwargs["revision"] = source.revision
    name = str(path) if path.is_dir() else source.path
    parts = []
    for config in source.config.split("+") if source.config else [None]:
        with _library(source):
            try:
                parts.append(load_dataset(name, config, **kwargs))
            except ValueError as error:
                # A copy of one configuration's files knows no configuration by name.
                if not path.is_dir() or "BuilderConfig" not in str(error):
                    raise
                return load_dataset(name, **kwargs)
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _saved(path: Path, source: Source) -> Any:
    from datasets import DatasetDict, load_from_disk

    with _library(source):
        found = load_from_disk(str(path))
    if not isinstance(found, DatasetDict):
        return found
    if source.split not in found:
        raise DataError(f"{path} has no split {source.split!r}; {suggest(source.split, list(found))}")
    return found[source.split]


@contextmanager
def _library(source: Source) -> Iterator[None]:
    """Neither progress bars nor a log; what goes wrong in one line, but for what is merely not there."""
    from datasets.exceptions import DatasetsError
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    told = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except (ConnectionError, FileNotFoundError):
        raise
    except (OSError, ValueError, TypeError, RuntimeError, DatasetsError) as error:
        reason = one_line(error.__cause__ or error)
        raise DataError(f"cannot load {source}: {reason}; correct it, or name another path") from error
    finally:
        logging.set_verbosity(told)
        if shown:
            enable_progress_bars()


def _arrow_table(data: Any, source: Source, pictures: Sequence[str]) -> Table:
    from datasets import Dataset

    if not isinstance(data, Dataset):
        with _library(source):
            rows = list(itertools.islice(data.decode(False) if data.features else data, source.limit))
        declared = _declared_pictures(data.features or {})
        return _listed(rows, (), {*pictures, *declared}, str(source), None)
    held = [name for name in data.column_names if name in {*pictures, *_declared_pictures(data.features)}]
    plain = data.remove_columns(held).with_format("arrow")
    raw = data.select_columns(held).with_format("arrow")
    rows = plain[:].to_pylist() if plain.column_names else [{}] * len(data)
    counts = {name: _counts(data.select_columns([name]).with_format("arrow"), name) for name in held}

    def cells(number: int) -> Mapping[str, Any]:
        found: Mapping[str, Any] = raw[number : number + 1].to_pylist()[0] if held else {}
        return found

    path = Path(source.path)
    root = path if path.is_dir() else path.parent if path.is_file() else None
    return Table(rows, counts, cells, tuple(data.column_names), str(source), root)


def _counts(data: Dataset, name: str) -> list[int]:
    """Pictures in each row of an Arrow column, without reading them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[int] = []
    for table in data.iter(batch_size=1000):
        column = table[name]
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            counts = pc.fill_null(pc.list_value_length(column), 0)
        else:
            counts = pc.cast(pc.is_valid(column), pa.int32())
        found += counts.to_pylist()
    return found


def _declared_pictures(features: Mapping[str, Any]) -> list[str]:
    from datasets import Image

    return [name for name, kind in features.items() if isinstance(getattr(kind, "feature", kind), Image)]


def one_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


# --- files that are read here ----------------------------------------------------------------------

Rows = tuple[list[dict[str, Any]], Sequence[str]]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:
        raise DataError(f"{path.as_posix()} is no UTF-8 text; save it as UTF-8") from None
    except PermissionError:
        raise DataError(f"{path.as_posix()} may not be read; change its permissions") from None


def _listed(
    rows: list[dict[str, Any]], places: Sequence[str], pictures: Iterable[str], name: str, root: Path | None
) -> Table:
    columns = tuple(dict.fromkeys(itertools.chain.from_iterable(rows)))
    held = [column for column in columns if column in set(pictures)]
    plain = [{key: value for key, value in row.items() if key not in held} for row in rows]
    for number, row in enumerate(rows):
        for key in held:
            if 0 < _count(row.get(key)) < len(as_list(row.get(key))):
                place = places[number] if places else f"row {number}"
                raise DataError(f"{place} of {name}: {key} names {_shown(row[key])}; give each picture, or take it out")
    counts = {key: [_count(row.get(key)) for row in rows] for key in held}

    def cells(number: int) -> Mapping[str, Any]:
        return {key: rows[number].get(key) for key in held}

    return Table(plain, counts, cells, columns, name, root, places)


def read_json_lines(path: Path, source: Source) -> Rows:
    """An object a line."""
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if source.streaming and source.limit is not None and len(rows) >= source.limit:
                break
            try:
                row = parse_json(line, _distinct)
            except _Twice as error:
                raise DataError(f"line {number} of {path.as_posix()} has the key {error} twice; keep one") from None
            except ValueError as error:
                where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise DataError(
                    f"line {number} of {path.as_posix()} is no JSON: {where}; write one object a line, or name the "
                    "file .json if it is one list"
                ) from None
            rows.append(_object(row, f"line {number} of {path.as_posix()}"))
            places.append(f"line {number}")
    return rows, places


def read_json(path: Path, source: Source) -> Rows:
    """A list of objects, or an object of such lists of which ``field`` names one."""
    try:
        data = parse_json(path.read_text(encoding="utf-8-sig"), _distinct)
    except _Twice as error:
        raise DataError(f"{path.as_posix()} has an object with the key {error} twice; keep one") from None
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        where = str(error)
        if isinstance(error, json.JSONDecodeError):
            where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{path.as_posix()} is no JSON: {where}; name the file .jsonl if it has one object a line"
        ) from None
    if isinstance(data, dict) and source.field is None and len(data) > 1:
        raise DataError(f"{path.as_posix()} holds {', '.join(data)}; choose one with field: NAME")
    if isinstance(data, dict):
        name = source.field or next(iter(data), "")
        if name not in data:
            raise DataError(f"{path.as_posix()} has no field {name!r}; {suggest(name, list(data))}")
        data = data[name]
    if not isinstance(data, list):
        raise DataError(f"{path.as_posix()} holds {type(data).__name__}, no list of objects; wrap the rows in [ ]")
    return [_object(row, f"row {number} of {path.as_posix()}") for number, row in enumerate(data)], ()


class _Twice(Exception):
    """An object says a key twice, of which JSON would quietly take the last."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(repr(next(name for name in names if names.count(name) > 1)))
    return found


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place} is {_shown(row)}, no object; write {{...}} with image, question and answer")
    return row


def read_csv(path: Path, source: Source) -> Rows:
    """A table with a header. In those of VLMEvalKit (TSV) a picture may be the index of the row that holds it."""
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    shared = {row.get("index"): row.get("image") for row in rows}
    for number, row in enumerate(rows):
        if None in row:
            raise DataError(
                f"row {number} of {path.as_posix()} has more cells than the header; quote cells with commas"
            )
        if row.get("image") and len(row["image"]) < 16 and row["image"] in shared:
            row["image"] = shared[row["image"]]
    return rows, ()


READERS: Mapping[str, Callable[[Path, Source], Rows]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
}
