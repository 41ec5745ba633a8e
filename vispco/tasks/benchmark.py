"""A task made of a data set: where its rows are, what a row says, how answers are scored, how splits are cut."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from vispco.config import Frozen
from vispco.errors import ConfigError, DataError, shortened
from vispco.files import expanded
from vispco.registry import suggest
from vispco.tasks.base import PLACE, SPLITS, Sample, Task
from vispco.tasks.loading import Row, Source, Table, open_table
from vispco.tasks.pictures import Pictures, picture_keys
from vispco.tasks.subsets import connected, cut, joined

if TYPE_CHECKING:
    from datasets import Dataset

Scorer = Callable[[Sample, str], float]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Options(Frozen):
    """What the task block of a study may say beside name and splits."""

    path: str | None = None
    config: str | None = None
    split: str | dict[str, str] | None = None
    revision: str | None = None
    streaming: bool = False
    limit: Count | Share | None = None
    seed: int = 0
    columns: dict[str, str] = {}
    image_root: str | None = None
    field: str | None = None
    scorer: str = "standard"
    answer_by: Literal["generate", "likelihood"] = "generate"
    pre_prompt: str = ""
    post_prompt: str | None = None
    max_new_tokens: Count | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None


@dataclass(frozen=True)
class Item:
    """What a row says.

    ``prompt``: the question with its options, without what is written after it; "" if that is the question.
    ``group``: rows that are scored together, "" if each is by itself. ``picture``: a name that rows about one picture
    share, "" to compare the pictures themselves.
    """

    question: str
    answers: tuple[str, ...]
    prompt: str = ""
    options: tuple[str, ...] = ()
    category: str = ""
    group: str = ""
    picture: str = ""
    post_prompt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(Task):
    """A data set of pictures and questions; subclasses say what a row means and how an answer is scored.

    ``hub``: (id, configuration) where the data are, tried in this order; several configurations are joined by "+".
    ``split``: the one whose numbers are published. ``columns``: those that a row must have, each with the names it goes
    by; ``pictures`` likewise, the first of them must be there. ``scorers``: rules by name, ``standard`` first.
    ``whole``: groups are taken all or none.
    """

    hub: ClassVar[tuple[tuple[str, str | None], ...]] = ()
    split: ClassVar[str] = "test"
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    optional: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    pictures: ClassVar[Mapping[str, tuple[str, ...]]] = {"image": ("image",)}
    scorers: ClassVar[Mapping[str, Scorer]]
    post_prompt: ClassVar[str] = ""
    whole: ClassVar[bool] = False
    Options: ClassVar[type[Options]] = Options

    def __init__(self, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(sizes)
        self.options = self._checked(options or {})
        self.scorer = self.options.scorer
        if self.scorer not in self.scorers:
            raise ConfigError(
                f"task {self.name!r} has no scorer {self.scorer!r}; {suggest(self.scorer, [*self.scorers])}"
            )
        self.answer_by = self.options.answer_by
        self.max_new_tokens = self._tokens()
        self.pixels = (self.options.min_pixels, self.options.max_pixels)
        if None not in self.pixels and self.pixels[0] > self.pixels[1]:  # type: ignore[operator]
            raise ConfigError(f"task {self.name!r}: min_pixels {self.pixels[0]} exceeds max_pixels {self.pixels[1]}")
        self._loaded: dict[str, tuple[Table, list[Sample], list[str]]] = {}
        for split in self.sizes:
            self.data_split(split)
        if not self.options.path and not self.hub:
            raise ConfigError(
                f"task {self.name!r} needs a path: a JSONL, JSON, CSV or parquet file, a folder or a hub id"
            )

    def _checked(self, options: Mapping[str, Any]) -> Any:
        try:
            return self.Options.model_validate(options)
        except ValidationError as error:
            problem = error.errors()[0]
            key = str(problem["loc"][0])
            if problem["type"] == "extra_forbidden":
                known = list(self.Options.model_fields)
                raise ConfigError(f"task {self.name!r} has no option {key!r}; {suggest(key, known)}") from None
            message = problem["msg"].removeprefix("Value error, ")
            raise ConfigError(f"task {self.name!r}: option {key} = {problem['input']!r}: {message}") from None

    def _tokens(self) -> int:
        """An answer by likelihood is one token."""
        asked = self.options.max_new_tokens
        if self.answer_by == "generate":
            return asked or type(self).max_new_tokens
        if asked not in (None, 1):
            raise ConfigError(
                f"task {self.name!r}: max_new_tokens {asked} with answer_by: likelihood, which generates nothing; "
                "remove one of the two"
            )
        return 1

    # --- what a subclass says ----------------------------------------------------------------------

    @abstractmethod
    def read(self, row: Row) -> Item | None:
        """What a row says; None leaves it out.

        Raises:
            DataError: a value is missing or impossible.
        """

    def picture_columns(self, row: Row) -> Sequence[str]:
        """Names of the columns whose pictures the model sees, in this order. Default: all."""
        return list(self.pictures)

    def shown(self, pictures: Pictures) -> Pictures:
        """Those of a row's pictures that the model sees. Default: all."""
        return pictures

    def seen(self, table: Table, row: Row, number: int, names: Mapping[str, str], root: Path | None) -> Pictures:
        """What the model sees of row ``number``; paths are relative to ``root``. Default: :meth:`shown` of the pictures
        in its columns."""
        columns = [names[name] for name in self.picture_columns(row) if name in names]
        return self.shown(table.pictures(number, columns, root, f"task {self.name!r}: {row.place}"))

    def leaves_out(self, row: Row) -> bool:
        """Whether a row without a picture is left out instead of being refused."""
        return False

    def group_size(self, sample: Sample) -> int:
        """Rows of a complete group of ``sample``'s kind, where groups are taken whole."""
        return 1

    def score(self, sample: Sample, answer: str) -> float:
        return self.scorers[self.scorer](sample, answer)

    # --- rows ----------------------------------------------------------------------------------------

    def sources(self, split: str) -> list[Source]:
        """Where the rows of a split of the data set may be."""
        options, places = self.options, self.hub
        if options.path is not None:
            known = dict(self.hub)
            usual = next(iter(known.values()), None)
            places = ((options.path, known.get(options.path, usual)),)
        return [
            Source(
                path=name,
                split=split,
                config=options.config or config,
                revision=options.revision,
                streaming=options.streaming,
                limit=self._read_limit(),
                field=options.field,
            )
            for name, config in places
        ]

    def _read_limit(self) -> int | None:
        if not self.options.streaming:
            return None
        return self.options.limit if isinstance(self.options.limit, int) else 2 * sum(self.sizes.values())

    def data_split(self, split: str) -> str:
        """The data set's split that ``split`` of the study is cut from."""
        chosen = self.options.split or type(self).split
        if isinstance(chosen, str):
            return chosen
        if split not in chosen or set(chosen) - set(SPLITS):
            wrong = next((name for name in chosen if name not in SPLITS), split)
            raise ConfigError(
                f"task {self.name!r}: option split {'knows no' if wrong in chosen else 'says nothing of'} {wrong!r}; "
                "write one name, or {calibration: NAME, search: NAME, held_out: NAME}"
            )
        return str(chosen[split])

    def rows(self, split: str) -> tuple[Table, list[Sample], list[str]]:
        """Table, samples and picture names of one split of the data set; pictures are read when looked at."""
        if split not in self._loaded:
            try:
                self._loaded[split] = self._read(self.open(split), split)
            except DataError as error:
                raise DataError(f"task {self.name!r}: {error}") from None
        return self._loaded[split]

    def open(self, split: str) -> Table:
        """The table of one split of the data set."""
        known = {name for names in self.pictures.values() for name in names}
        known |= {name for key, name in self.options.columns.items() if key in self.pictures}
        return open_table(self.sources(split), sorted(known))

    def required(self, table: Table) -> Sequence[str]:
        """Columns that ``table`` must have."""
        return [*self.columns, *list(self.pictures)[:1]]

    def names(self, table: Table) -> dict[str, str]:
        """Our name of a column -> its name in ``table``.

        Raises:
            DataError: a column is missing.
        """
        found, mapped = {}, self.options.columns
        ours = {**self.pictures, **self.columns, **self.optional}
        for key in mapped:
            if key not in ours:
                raise DataError(f"columns maps {key!r}, which the task does not read; {suggest(key, list(ours))}")
            if mapped[key] not in table.columns:
                raise DataError(
                    f"{table.name} has no column {mapped[key]!r}; {suggest(mapped[key], list(table.columns))}"
                )
        required = self.required(table)
        for name, known in ours.items():
            there = mapped.get(name) or next((column for column in known if column in table.columns), None)
            if there is not None:
                found[name] = there
            elif name in required:
                raise DataError(
                    f"{table.name} has columns {', '.join(table.columns) or 'none'}, but no {name!r}; name yours with "
                    f"columns: {{{name}: COLUMN}}"
                )
        return found

    def _read(self, table: Table, split: str) -> tuple[Table, list[Sample], list[str]]:
        names = self.names(table)
        root = expanded(self.options.image_root) if self.options.image_root else table.root
        samples: list[Sample] = []
        shown: list[list[str]] = []
        for number in range(len(table.rows)):
            row = table.row(number, names)
            item = self.read(row)
            if item is None:
                continue
            pictures = self.seen(table, row, number, names, root)
            if len(pictures) == 0:
                if self.leaves_out(row):
                    continue
                column = next(names[name] for name in self.picture_columns(row) if name in names)
                raise row.error(f"{column} is missing", f"give the {row.unit} a picture, or remove it")
            shown.append([item.picture] if item.picture else pictures.keys())
            samples.append(self._sample(row, item, f"{split}/{number}", pictures))
        units = connected(shown)
        samples = [replace(one, group_id=one.group_id or unit) for one, unit in zip(samples, units, strict=True)]
        return table, *self._limited(samples, units)

    def _sample(self, row: Row, item: Item, name: str, pictures: Pictures) -> Sample:
        self._check(row, item)
        behind = item.post_prompt if item.post_prompt is not None else self.post_prompt
        behind = self.options.post_prompt if self.options.post_prompt is not None else behind
        prompt = f"{self.options.pre_prompt}{item.prompt or item.question}{behind}"
        marks = prompt.count(PLACE)
        if marks not in (0, len(pictures)):
            raise row.error(
                f"the text has {marks} marks {PLACE} for {len(pictures)} pictures",
                "write one for each picture, or none to put pictures first",
            )
        return Sample(
            id=name,
            group_id=item.group or "",
            images=pictures,
            question=item.question,
            answers=item.answers,
            extra=item.extra,
            options=item.options,
            category=item.category,
            prompt=prompt,
            show=self.show,
        )

    def _check(self, row: Row, item: Item) -> None:
        if not item.answers or not any(answer.strip() for answer in item.answers):
            raise row.error(
                "the answer is empty", "give one, remove the row, or choose a split whose answers are public"
            )
        if self.answer_by == "likelihood" and not item.options:
            raise row.error("answer_by: likelihood needs options, and there are none", "use answer_by: generate")
        if item.options:
            letters = ascii_uppercase[: len(item.options)]
            if len(item.options) < 2 or len(item.options) > len(ascii_uppercase):
                raise row.error(f"{len(item.options)} options", "give 2 to 26")
            outside = [answer for answer in item.answers if answer not in letters]
            if outside:
                raise row.error(
                    f"the right option is {outside[0]!r}, but the options are {letters[0]} to {letters[-1]}",
                    "correct the answer, or add the option",
                )

    def _limited(self, samples: list[Sample], units: list[str]) -> tuple[list[Sample], list[str]]:
        """Only complete groups, and of these the first that ``limit`` allows."""
        if self.whole:
            seen = Counter(sample.group_id for sample in samples)
            complete = [seen[sample.group_id] == self.group_size(sample) for sample in samples]
            if samples and not any(complete):
                raise DataError(f"no group of rows is complete, each needs {self.group_size(samples[0])}; raise limit")
            samples, units = _kept(samples, complete), _kept(units, complete)
        limit = self.options.limit
        if limit is None:
            return samples, units
        most = limit if isinstance(limit, int) else max(1, round(limit * len(samples)))
        keys = [sample.group_id for sample in samples] if self.whole else list(map(str, range(len(samples))))
        size, allowed, total = Counter(keys), set(), 0
        for key in dict.fromkeys(keys):
            if total + size[key] > most:
                break
            allowed.add(key)
            total += size[key]
        inside = [key in allowed for key in keys]
        return _kept(samples, inside), _kept(units, inside)

    # --- splits --------------------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> dict[str, list[Sample]]:
        """Samples of every split of the study that has a size."""
        found: dict[str, list[Sample]] = {}
        sharing: dict[str, dict[str, int]] = {}
        for split, size in self.sizes.items():
            sharing.setdefault(self.data_split(split), {})[split] = size
        for there, sizes in sharing.items():
            table, samples, units = self.rows(there)
            groups = [sample.group_id for sample in samples]
            rows = cut(
                joined(units, groups) if self.whole else units,
                [sample.category for sample in samples],
                sizes,
                self.options.seed,
                groups if self.whole else None,
            )
            for split, size in sizes.items():
                found[split] = [samples[row] for row in rows[split]]
                self._check_size(split, size, len(found[split]), len(samples), table.name)
        if len(sharing) > 1:
            self._check_apart(found)
        return found

    def _check_apart(self, found: Mapping[str, Sequence[Sample]]) -> None:
        """Splits of the data that were cut each by itself must be of different pictures."""
        seen: dict[str, str] = {}
        for split, samples in found.items():
            for key in (key for sample in samples for key in picture_keys(sample)):
                other = seen.setdefault(key, split)
                if self.data_split(other) != self.data_split(split):
                    raise DataError(
                        f"task {self.name!r}: splits {other} ({self.data_split(other)} of the data) and {split} "
                        f"({self.data_split(split)}) share the picture {shortened(key)}, so that one would be judged "
                        "by what was chosen on the other; leave option split out, and all are cut from the same rows"
                    )

    def _check_size(self, split: str, size: int, got: int, rows: int, name: str) -> None:
        if got == size or (self.whole and got):
            return
        fix = f"lower the sizes, or name another split of the data: split: {{{split}: NAME, ...}}"
        there = self.data_split(split)
        asked = {part: wanted for part, wanted in self.sizes.items() if self.data_split(part) == there}
        if sum(asked.values()) > rows:
            parts = ", ".join(f"{part} {wanted}" for part, wanted in asked.items())
            raise DataError(
                f"task {self.name!r}: {sum(asked.values())} samples are asked for ({parts}), but {name} has {rows}; "
                f"{fix}"
            )
        raise DataError(
            f"task {self.name!r}: split {split!r} wants {size} samples, but only {got} of the {rows} rows of {name} "
            f"are left to it without sharing a picture; {fix}"
        )

    def available(self, split: str) -> int:
        if self.options.streaming and self.options.limit is None:
            raise ConfigError(f"task {self.name!r}: streaming reads so many rows and no more; say how many: limit=500")
        return len(self.rows(self.data_split(split))[1])

    def check(self) -> None:
        for split in self.sizes:
            self.samples(split)

    def samples(self, split: str) -> list[Sample]:
        """All samples of ``split``.

        Raises:
            DataError: the data cannot be loaded or are too few, or a row cannot be used; the message names it.
        """
        if split not in self.sizes:
            raise DataError(f"task {self.name!r} has no rows in split {split!r}; give it a size above 0")
        found = self._parts[split]
        for sample in found:
            if isinstance(sample.images, Pictures):
                sample.images.check()
        return found

    def dataset(self, split: str) -> Dataset:
        from datasets import Dataset, Features, Image, List, Value

        columns = {
            "id": [sample.id for sample in self.samples(split)],
            "group_id": [sample.group_id for sample in self.samples(split)],
            "images": [list(sample.images) for sample in self.samples(split)],
            "question": [sample.question for sample in self.samples(split)],
            "answers": [list(sample.answers) for sample in self.samples(split)],
            "options": [list(sample.options) for sample in self.samples(split)],
            "category": [sample.category for sample in self.samples(split)],
            "prompt": [sample.prompt for sample in self.samples(split)],
            "show": [sample.show for sample in self.samples(split)],
        }
        kinds = {"images": List(Image()), "answers": List(Value("string")), "options": List(Value("string"))}
        return Dataset.from_dict(columns, features=Features({k: kinds.get(k, Value("string")) for k in columns}))

    def sample(self, row: Mapping[str, Any]) -> Sample:
        listed = {key: tuple(row[key]) for key in ("answers", "options")}
        return Sample(**{**row, **listed})

    # --- records -------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "scorer": self.scorer, "pixels": list(self.pixels)}

    def _data(self, split: str) -> list[str]:
        """Where the rows come from, or may come from if none were read yet."""
        if split in self._loaded:
            return [self._loaded[split][0].name]
        return [str(source) for source in self.sources(split)]

    def protocol(self) -> dict[str, Any]:
        options = self.options
        return {
            **super().protocol(),
            "data": {split: self._data(self.data_split(split)) for split in self.sizes},
            "revision": options.revision,
            "limit": options.limit,
            "seed": options.seed,
            "pre_prompt": options.pre_prompt,
            "post_prompt": self.post_prompt if options.post_prompt is None else options.post_prompt,
        }


def _kept(values: list[Any], which: Sequence[bool]) -> list[Any]:
    return [value for value, kept in zip(values, which, strict=True) if kept]
