"""``llava-instruct``: prompts for gradients from a LLaVA-Instruct-style file, with pictures spread over areas.

The file is JSON (a list) or JSONL of ``{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}``, as in
LLaVA-Instruct-150K and LLaVA-1.5's mix of 665K. The prompt is the first human turn without ``<image>``. Each picture
gives one sample; rows without a picture are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vispco.errors import ConfigError, DataError
from vispco.files import is_file
from vispco.registry import suggest
from vispco.tasks import areas
from vispco.tasks.base import TASKS, Sample, Task
from vispco.tasks.conversations import Row, read_rows
from vispco.tasks.pictures import DAMAGED, open_picture, rgb, upright_size

if TYPE_CHECKING:
    from datasets import Dataset


class LlavaInstructOptions(BaseModel):
    """Where the data are, and how they are drawn and resized.

    ``images``: folder that the rows' pictures are relative to; default: the file's own. ``sampling``: ``uniform``
    (all pictures alike), ``area`` (spread evenly over [min_area, max_area], in ``bins`` of equal width) or
    ``quantile`` (one from each of so many parts of the pictures in the order of their areas). ``resize: official``
    gives the pictures drawn areas from ``min_area`` to ``max_area`` in equal steps, in their order, as the official
    code does. The teacher's answers take memory of samples times ``max_new_tokens`` times the vocabulary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    images: str | None = None
    sampling: Literal["uniform", "area", "quantile"] = "uniform"
    resize: Literal["none", "official"] = "none"
    seed: int = 0
    min_area: int = Field(areas.MIN_AREA, ge=1)
    max_area: int = areas.MAX_AREA
    bins: int = Field(20, ge=1)
    max_new_tokens: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> LlavaInstructOptions:
        if self.max_area < self.min_area:
            raise ValueError(f"max_area is {self.max_area}; it must not be less than min_area, {self.min_area}")
        return self


class Picture(Sequence[Any]):
    """One picture, read anew whenever it is asked for: ten thousand of them do not fit into memory."""

    def __init__(self, path: str, size: tuple[int, int]) -> None:
        self.path, self.size = path, size

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        """RGB, resized (Lanczos) where ``size`` is not its own.

        Raises:
            DataError: the file is broken.
        """
        from PIL import Image

        if index not in (0, -1):
            raise IndexError(index)
        try:
            with open_picture(Path(self.path)) as opened:
                picture = rgb(opened)
        except (Image.DecompressionBombError, *DAMAGED) as error:
            raise _unreadable(self.path, error) from None
        return picture if picture.size == self.size else picture.resize(self.size, Image.Resampling.LANCZOS)


@TASKS.register("llava-instruct")
class LlavaInstruct(Task):
    """Gives gradients only: its answers are free text that nothing here can score."""

    name: ClassVar[str] = "llava-instruct"

    def __init__(self, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(sizes)
        measured = [split for split in sizes if split != "calibration"]
        if measured:
            raise ConfigError(
                f"task {self.name!r} has no split {measured[0]!r}: its answers cannot be scored; name it under "
                "calibration: {name: llava-instruct, samples: ...}"
            )
        self.options = _checked(options or {})
        self.max_new_tokens = self.options.max_new_tokens

    def dataset(self, split: str) -> Dataset:
        """Columns id, group_id, image (a path), width, height (after resizing), question, answer."""
        from datasets import Dataset, Features, Value

        texts = ("id", "group_id", "image", "question", "answer")
        features = Features({**{n: Value("string") for n in texts}, "width": Value("int32"), "height": Value("int32")})
        rows = self._chosen if self.sizes.get(split) else []
        return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        size = (row["width"], row["height"])
        return Sample.of(row, Picture(row["image"], size), extra={"size": size})

    def score(self, sample: Sample, answer: str) -> float:
        raise ConfigError(f"task {self.name!r} cannot score answers; name it under calibration:, not under tasks:")

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "options": self.options.model_dump(mode="json")}

    @property
    def folder(self) -> Path:
        return Path(self.options.images) if self.options.images else Path(self.options.file).parent

    @cached_property
    def _chosen(self) -> list[dict[str, Any]]:
        """The rows drawn, as columns of :meth:`dataset`."""
        options, count = self.options, self.sizes["calibration"]
        rows = self._one_per_picture()
        keys = [row.image for row in rows]
        if count > len(rows):
            raise DataError(
                f"{options.file}: {count} samples are asked for, but it has {len(rows)} pictures; lower "
                "calibration.samples"
            )
        if options.sampling == "uniform":
            drawn = areas.draw_uniform(keys, count, options.seed)
            sizes = {i: self._size(keys[i]) for i in drawn}
        else:
            sizes = {i: self._size(key) for i, key in enumerate(keys)}
            drawn = self._drawn_by_area(keys, [width * height for width, height in sizes.values()], count)
        if options.resize == "official":
            target = areas.even_areas(
                [keys[i] for i in drawn],
                [sizes[i][0] * sizes[i][1] for i in drawn],
                options.seed,
                low=options.min_area,
                high=options.max_area,
            )
            sizes.update({i: areas.official_size(*sizes[i], area) for i, area in zip(drawn, target, strict=True)})
        return [
            {
                "id": f"{rows[i].id}/{rows[i].key}",
                "group_id": rows[i].image,
                "image": str(self.folder / rows[i].image),
                "width": sizes[i][0],
                "height": sizes[i][1],
                "question": rows[i].question,
                "answer": rows[i].answer,
            }
            for i in drawn
        ]

    def _drawn_by_area(self, keys: Sequence[str], known: Sequence[int], count: int) -> list[int]:
        options = self.options
        if options.sampling == "quantile":
            return areas.draw_by_quantile(keys, known, count, options.seed)
        low, high = options.min_area, options.max_area
        drawn = areas.draw_by_area(keys, known, count, options.seed, low=low, high=high, bins=options.bins)
        if len(drawn) < count:
            raise DataError(
                f"{options.file}: {count} samples are asked for, but {len(drawn)} of its {len(keys)} pictures have an "
                f"area from {low} to {high} (they have {min(known)} to {max(known)}); lower calibration.samples, widen "
                "min_area and max_area, or use sampling: quantile"
            )
        return drawn

    def _one_per_picture(self) -> list[Row]:
        """A row of each picture, drawn by the seed.

        Raises:
            DataError: no pictures, or some that are not where they should be.
        """
        found: dict[str, list[Row]] = {}
        for row in read_rows(Path(self.options.file)):
            found.setdefault(row.image, []).append(row)
        missing = sorted(image for image in found if not is_file(self.folder / image))
        if missing:
            raise DataError(
                f"{self.options.file}: {len(missing)} of {len(found)} pictures are missing in {str(self.folder)!r}, "
                f"the first is {missing[0]!r}; set calibration.options.images to their folder"
            )
        seed = self.options.seed
        return [rows[areas.shuffled([row.key for row in rows], seed)[0]] for _, rows in sorted(found.items())]

    def _size(self, image: str) -> tuple[int, int]:
        """(width, height), from the file's head alone."""
        from PIL import Image

        path = str(self.folder / image)
        try:
            with open_picture(Path(path)) as opened:
                return upright_size(opened)
        except (Image.DecompressionBombError, *DAMAGED) as error:
            raise _unreadable(path, error) from None


def _checked(options: Mapping[str, Any]) -> LlavaInstructOptions:
    try:
        return LlavaInstructOptions.model_validate(options)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        known = list(LlavaInstructOptions.model_fields)
        if problem["type"] == "extra_forbidden":
            raise ConfigError(f"task 'llava-instruct' has no option {key!r}; {suggest(key, known)}") from None
        if problem["type"] == "missing":
            raise ConfigError(f"task 'llava-instruct' needs option {key!r}, a LLaVA-Instruct JSON file") from None
        value = f"{key} = {problem['input']!r}: " if key else ""
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"task 'llava-instruct': {value}{message}") from None


def _unreadable(path: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"cannot read picture {path!r}: {reason}; replace the file or remove its rows")
