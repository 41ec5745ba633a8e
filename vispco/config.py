"""Experiment files: YAML to frozen models and back; an unknown key is an error that names the nearest key."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from vispco.errors import ConfigError, shortened
from vispco.files import read_text
from vispco.registry import suggest
from vispco.yaml_text import NO_CHARACTER, read_yaml


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


MOST_SAMPLES = 10_000_000  # of a split; larger than any benchmark
MOST_BUDGETS = 1000
LARGEST = 2**53  # of any whole number: what every library reads, and JSON keeps


class ModelConfig(Frozen):
    """Which model, and how it is run.

    ``adapter``: PEFT adapter that is put into it, a hub id or a folder. ``quantization``: of its weights while they are
    loaded, as transformers' ``quantization_config`` (``{quant_method: quanto, weights: int8}``).
    """

    name: str = "demo"
    device: str = "cpu"
    dtype: str = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    resolution: Annotated[float, Field(gt=0, le=1)] = 1.0
    adapter: str | None = None
    quantization: dict[str, Any] | None = None


class TaskConfig(Frozen):
    """One benchmark and the number of samples of each split."""

    name: str
    splits: dict[str, Annotated[int, Field(le=MOST_SAMPLES)]]
    options: dict[str, Any] = {}


class CalibrationConfig(Frozen):
    """Samples that gradients are taken on, where these are not the tasks' own calibration splits."""

    name: str
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
    split: str = "calibration"
    options: dict[str, Any] = {}

    @field_validator("split")
    @classmethod
    def _gradients_only(cls, value: str) -> str:
        if value in ("search", "held_out"):
            raise ValueError("schedules are chosen or judged there; take gradients on split calibration")
        if value != "calibration":
            raise ValueError("a task's own data for gradients is its split calibration")
        return value


def _budget(value: Any) -> Any:
    """A text that is a number is that number; any other begins with one and ends in a unit."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            if not re.fullmatch(r"\s*[0-9.][0-9.eE+-]*\s*[A-Za-z/]+\s*", value):
                raise ValueError("a budget is a number, or a number with a unit, such as 120 ms") from None
    return value


Budget = Annotated[float | str, BeforeValidator(_budget)]


class CostConfig(Frozen):
    """The cost that budgets are in: ``batch`` prompts that run together, answers of ``answer_tokens``.

    ``also``: further costs that are minimised, each an objective of its own. ``name: [prefill_ms, kv_bytes]`` is short
    for the first as ``name`` and the rest as ``also``.
    """

    name: str = "flops"
    batch: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 1
    answer_tokens: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 16
    also: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        names = value.get("name") if isinstance(value, dict) else None
        if not isinstance(names, list):
            return value
        if not names or "also" in value:
            raise ValueError("name one cost or more, such as [prefill_ms, kv_bytes]; budgets are in the first")
        return {**value, "name": names[0], "also": names[1:]}

    @model_validator(mode="after")
    def _distinct(self) -> CostConfig:
        names = [self.name, *self.also]
        if len(set(names)) != len(names):
            raise ValueError(f"a cost is listed twice: {', '.join(names)}")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> Any:
        """One cost is written as it was before ``also`` was known."""
        return {key: value for key, value in dump(self).items() if key != "also" or value}


class MethodConfig(Frozen):
    name: str
    parameters: dict[str, Any] = {}


def _method(value: Any) -> Any:
    if isinstance(value, list):
        return _method(value[0]) if len(value) == 1 else [_method(one) for one in value]
    return {"name": value} if isinstance(value, str) else value


CHECKPOINTS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]  # shares of the dense grid's cost, for anytime: true


Seeds = Annotated[list[int], Field(min_length=1)]
Resolutions = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]


def _sorted_resolutions(value: list[float] | None) -> list[float] | None:
    if value is not None and len(set(value)) != len(value):
        raise ValueError(f"resolutions repeat: {value}")
    return None if value is None else sorted(value, reverse=True)


class SearchConfig(Frozen):
    """One entry: a kind of search with its options; method and family default to the experiment's.

    ``method`` may be a list: the search then also finds which of these methods to use.
    ``seeds``: one study per seed, named ``<experiment>/<entry>@<seed>``; without it one study, seed 0.
    ``resolution``: shares of a picture's visual tokens, searched together with the schedule.
    """

    kind: str
    method: MethodConfig | Annotated[list[MethodConfig], Field(min_length=2)] | None = None
    family: str | None = None
    seeds: Seeds | None = None
    resolution: Resolutions | None = None
    options: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> Any:
        """An entry without ``resolution`` is written as it was before that key was known."""
        return {key: value for key, value in dump(self).items() if key != "resolution" or value is not None}

    @field_validator("resolution")
    @classmethod
    def _descending(cls, value: list[float] | None) -> list[float] | None:
        return _sorted_resolutions(value)

    @model_validator(mode="before")
    @classmethod
    def _collect_options(cls, value: Any) -> Any:
        """Keys beside the common ones are the options of the entry's kind of search."""
        if not isinstance(value, dict):
            raise ValueError("an entry is a mapping with a kind, for example {kind: grid}")
        common = {key: value[key] for key in value if key in cls.model_fields}
        common["method"] = _method(common.get("method"))
        rest = {key: value[key] for key in value if key not in cls.model_fields}
        options = common.get("options", {})
        if not isinstance(options, dict):
            raise ValueError(f"options = {options!r} is no mapping; write them beside kind: instead")
        return {**common, "options": {**options, **rest}}

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError(f"seeds repeat: {value}")
        return value


class Study(Frozen):
    """An experiment: a model, tasks, budgets and named search entries.

    ``cost``: what budgets are in, a name of :data:`vispco.costs.COSTS`; costs in time need a ``profile``. Of a list all
    are objectives, and budgets are in the first.
    ``budgets``: shares of the unpruned model's cost, numbers with a unit (``120 ms``), or how many to spread.
    ``limits``: upper bounds on other costs, written as budgets are, and under ``tasks`` points that tasks may lose.
    ``resolution``: of every entry that names none of its own.
    ``score``: what accuracy means: the tasks' own numbers, or how far answers stay those of the plain model
    (:mod:`vispco.evaluation.agreement`).
    ``target``: where schedules must be able to run (:data:`vispco.pruning.targets.TARGETS`).
    ``profile``: file of a hardware profile, which is stored with the experiment; relative to the study's file.
    ``plugins``: Python files, relative to the study's, that register methods, tasks, ... of one's own.
    ``anytime``: shares of the dense grid's naive cost at which what a search would have chosen by then is measured on
    the held-out split too; True for the usual ones.
    """

    experiment: str
    purpose: str = ""
    model: ModelConfig = ModelConfig()
    tasks: Annotated[list[TaskConfig], Field(min_length=1)]
    calibration: CalibrationConfig | None = None
    method: MethodConfig = MethodConfig(name="fastv")
    family: str = "step"
    resolution: Resolutions | None = None
    score: Literal["task", "agreement", "likelihood"] = "task"
    target: str = "transformers"
    budgets: (
        Annotated[int, Field(ge=1, le=MOST_BUDGETS)]
        | Annotated[list[Budget], Field(min_length=1, max_length=MOST_BUDGETS)]
    ) = 12
    cost: CostConfig = CostConfig()
    limits: dict[str, Any] = {}
    defaults: list[str] = ["fastv:k2-r50"]
    profile: str | None = None
    plugins: list[str] = []
    anytime: bool | Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = False
    batch_size: Annotated[int, Field(ge=1)] = 64
    memory_mib: Annotated[int, Field(ge=0)] = 2048
    searches: dict[str, SearchConfig]

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        _plain(value, ())
        if isinstance(value, dict):
            value = dict(value)
            if isinstance(value.get("model"), str):
                value["model"] = {"name": value["model"]}
            if "method" in value:
                value["method"] = _method(value["method"])
                if isinstance(value["method"], list):
                    raise ValueError(
                        "the experiment has one method, whose floor its budgets start at; list several in an entry"
                    )
            if isinstance(value.get("cost"), (str, list)):
                value["cost"] = {"name": value["cost"]}
        return value

    @field_validator("limits")
    @classmethod
    def _limits(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, limit in value.items():
            if name == "tasks":
                if not isinstance(limit, dict) or not all(map(_is_drop, limit.values())):
                    raise ValueError(f"tasks: {shortened(limit)} is no loss of tasks; write {{NAME: {{max_drop: 2}}}}")
            elif isinstance(limit, bool) or not isinstance(limit, (int, float, str)):
                raise ValueError(f"{name}: {shortened(limit)} is no limit; write a share such as 0.5, or 120 ms")
        return value

    @field_validator("resolution")
    @classmethod
    def _descending(cls, value: list[float] | None) -> list[float] | None:
        return _sorted_resolutions(value)

    @model_validator(mode="after")
    def _one_resolution(self) -> Study:
        listed = self.resolution or any(entry.resolution for entry in self.searches.values())
        if listed and self.model.resolution != 1:
            raise ValueError("resolution: [...] is searched, and model.resolution would fix it; give one of the two")
        if self.score != "task" and listed:
            raise ValueError(f"score: {self.score} compares answers to equal pictures; remove resolution")
        return self

    @field_validator("experiment")
    @classmethod
    def _name(cls, value: str) -> str:
        if not value or len(value) > 200 or "/" in value or "@" in value:
            raise ValueError(
                "an experiment's name has 1 to 200 characters, without / and @, which separate entry and seed"
            )
        if NO_CHARACTER.search(value):
            raise ValueError("a NUL and a lone surrogate are no characters of a name")
        return value

    @field_validator("searches")
    @classmethod
    def _entries(cls, value: dict[str, SearchConfig]) -> dict[str, SearchConfig]:
        for name in value:
            if not re.fullmatch(r"[\w.+-]{1,100}", name):
                raise ValueError(f"entry name {name!r}: use letters, digits, _ . + and -")
        return value

    @property
    def memory_limit(self) -> int:
        """Bytes of hidden states that may be put aside while schedules share their first layers."""
        return self.memory_mib << 20

    @property
    def checkpoints(self) -> list[float]:
        """``anytime`` as ascending shares."""
        if isinstance(self.anytime, bool):
            return list(CHECKPOINTS) if self.anytime else []
        return sorted(set(self.anytime))

    def identity(self) -> dict[str, Any]:
        """What may not change once an experiment has trials."""
        dump = self._dump()
        always = ("model", "tasks", "calibration", "budgets", "method", "family")
        where_given = ("resolution", "score", "cost", "limits")
        return {key: dump[key] for key in (*always, *where_given) if key in dump}

    def spec_hash(self) -> str:
        """Of what decides what is searched; neither words, nor memory, nor what is measured besides.

        A study without ``calibration`` has the hash from before that key was known.
        """
        left_out = {"purpose", "memory_mib", "anytime", "target", "profile", "plugins"}
        left_out |= {"calibration"} if self.calibration is None else set()
        return content_hash(self._dump(left_out))

    def _dump(self, left_out: set[str] | None = None) -> dict[str, Any]:
        """Plain data; a study that leaves out a later key has what it had before that key was known."""
        dump = self.model_dump(mode="json", exclude=left_out)
        if self.cost == CostConfig():
            del dump["cost"]
        if not self.limits:
            del dump["limits"]
        for key, nothing in (("resolution", 1), ("adapter", None), ("quantization", None)):
            if dump["model"][key] == nothing:
                del dump["model"][key]
        if self.resolution is None:
            del dump["resolution"]
        if self.score == "task":
            del dump["score"]
        return dump


def _is_drop(value: Any) -> bool:
    """Whether it says how many points a task may lose."""
    points = value.get("max_drop") if isinstance(value, dict) and len(value) == 1 else None
    return isinstance(points, (int, float)) and not isinstance(points, bool) and 0 <= points <= 100


def _plain(value: Any, path: tuple[str, ...]) -> None:
    """Refuse what JSON cannot keep, also among the options that a task or a search will only look at later.

    Raises:
        ValueError: a number without bounds, a date, bytes, or a set; names the place.
    """
    where = ".".join(path) or "study"
    if isinstance(value, dict):
        for key, inside in value.items():
            _plain(inside, (*path, str(key)[:40]))
    elif isinstance(value, (list, tuple)):
        for number, inside in enumerate(value):
            _plain(inside, (*path, str(number)))
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{where} is a number of {value.bit_length()} bits; the largest is {LARGEST}")
    elif not isinstance(value, (str, int, float, bool, type(None), BaseModel)):
        raise ValueError(f"{where} is a {type(value).__name__}; put texts that look like one in quotes")


def content_hash(value: Any) -> str:
    """Short hash of plain data; key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_study(path: str | Path, overrides: list[str] | None = None) -> tuple[Study, str]:
    """Read an experiment file; returns it with the text that reproduces it, overrides included.

    Raises:
        ConfigError: no such file, not YAML, or an unknown key or wrong value.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"cannot read study {shortened(str(path))}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text file; a study is YAML, see studies/quickstart.yaml") from None
    if overrides:
        data = _yaml(text, str(path))
        for item in overrides:
            _override(data, item)
        text = yaml.safe_dump(data, sort_keys=False)
    return parse_study(text, str(path)), text


def parse_study(text: str, source: str = "study") -> Study:
    """Validate an experiment's YAML text."""
    data = _yaml(text, source)
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error)}") from None


def _yaml(text: str, source: str) -> dict[str, Any]:
    data = read_yaml(text, source)
    if not isinstance(data, dict):
        raise ConfigError(f"{source} is empty or no mapping; a study has experiment, model, tasks and searches")
    return data


def _override(data: dict[str, Any], item: str) -> None:
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {item!r} is not key=value, for example --set tasks.0.splits.search=128")
    try:
        parsed = read_yaml(value, "the value")
    except ConfigError as error:
        raise ConfigError(f"--set {item!r}: {error}; put texts with : or [ in quotes") from None
    *parents, last = key.split(".")
    target: Any = data
    for part in parents:
        at: Any = part
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                raise ConfigError(f"--set {key}: {part!r} is no index of a list of {len(target)}")
            at = int(part)
        elif target.get(part) is None:
            target[part] = {}
        elif part in NAMED and isinstance(target[part], str):
            target[part] = {"name": target[part]}
        target = target[at]
        if not isinstance(target, (dict, list)):
            raise ConfigError(f"--set {key}: {part!r} is a value, not a mapping; write the whole mapping instead")
    if isinstance(target, list):
        if not last.isdigit() or int(last) >= len(target):
            raise ConfigError(f"--set {key}: {last!r} is no index of a list of {len(target)}")
        target[int(last)] = parsed
    else:
        target[last] = parsed


NAMED = ("model", "method", "cost")  # a text stands for its name
_MODELS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "tasks": TaskConfig,
    "calibration": CalibrationConfig,
    "cost": CostConfig,
    "method": MethodConfig,
    "searches": SearchConfig,
}


_TYPE = re.compile(r"constrained-\w+|(list|dict|tuple)\[.*\]|int|float|bool|str")  # pydantic's names in a place


def first_problem(error: ValidationError) -> str:
    """One line: where, what, and the nearest known key."""
    problem, path = _clearest(error)
    where = ".".join(path)
    if problem["type"] == "extra_forbidden":
        # An entry may be called as a key is.
        parents = [path[0], *path[2:-1]] if path[0] == "searches" else path[:-1]
        owner = next((_MODELS[part] for part in reversed(parents) if part in _MODELS), Study)
        return f"unknown key {where!r}; {suggest(path[-1], list(owner.model_fields))}"
    if problem["type"] == "missing":
        return f"key {where!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where or 'study'} = {shortened(problem['input'])}: {message}" if where else message


def _clearest(error: ValidationError) -> tuple[ErrorDetails, list[str]]:
    """The first problem and where it is. Where a value may have one of several types, it is the problem of the type
    that came nearest, and the types' names are no part of the place."""
    problems = error.errors()
    first = problems[0]["loc"]
    if len(first) < 2 or first[0] == "searches" or not _TYPE.fullmatch(str(first[1])):
        return problems[0], [str(part) for part in first if part != MethodConfig.__name__]
    nearest = max(
        (p for p in problems if p["loc"][0] == first[0]),
        key=lambda problem: (len(problem["loc"]), not problem["type"].endswith("_type")),
    )
    return nearest, [str(part) for part in nearest["loc"] if not _TYPE.fullmatch(str(part))]


def check_options(model: type[BaseModel], entry: str, kind: str, options: dict[str, Any]) -> Any:
    """Validate a search entry's options against its kind's model.

    Raises:
        ConfigError: unknown option or wrong value.
    """
    try:
        return model.model_validate(options)
    except ValidationError as error:
        problem, path = _clearest(error)
        key, where = ".".join(path), ".".join(["searches", entry, *path])
        if problem["type"] == "extra_forbidden":
            known = [*model.model_fields, *(f for f in SearchConfig.model_fields if f != "options")]
            raise ConfigError(
                f"unknown key {where!r} for kind {kind!r}; {suggest(key.split('.')[-1], known)}"
            ) from None
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where} = {shortened(problem['input'])}: {message}") from None
