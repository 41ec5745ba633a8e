"""An experiment resolved: loaded model, tasks, methods, families, budgets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vispco.config import SearchConfig, Study, load_study, parse_study
from vispco.errors import ConfigError, shortened
from vispco.plugin_files import load_plugins, require_plugins
from vispco.pruning.families import FAMILIES, ScheduleFamily
from vispco.pruning.families.resolutions import Resolutions
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.published import PUBLISHED
from vispco.registry import suggest
from vispco.tasks.base import SPLITS, Task, make_task
from vispco.tasks.pictures import picture_keys

if TYPE_CHECKING:
    from vispco.costs.profile import Profile
    from vispco.models.base import ModelAdapter
    from vispco.models.shapes import ModelShape


def make_family(study: Study, entry: SearchConfig | None, layers: int) -> ScheduleFamily:
    """The schedule family of an entry, for a decoder of ``layers`` layers, at the resolutions that it searches."""
    family: ScheduleFamily = FAMILIES[(entry.family if entry else None) or study.family](layers)
    shares = (entry.resolution if entry else None) or study.resolution or [study.model.resolution]
    return family if shares == [study.model.resolution] else Resolutions(family, shares)


class Problem:
    """What is searched: everything that an experiment file says, with the model loaded when first used.

    A model and processor that are already loaded may be given; the file's model block then only names them. Likewise
    tasks that are already made, which need a size only for the splits that will be measured.
    """

    def __init__(
        self,
        study: Study,
        text: str = "",
        *,
        model: Any = None,
        processor: Any = None,
        tasks: Sequence[Task] | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.study = study
        self._profile = profile
        self._folder = Path()
        self.text = text
        self._given = (model, processor) if model is not None else None
        self._given_tasks = list(tasks) if tasks is not None else None
        for name in study.defaults:
            if name not in PUBLISHED:
                raise ConfigError(f"unknown default {name!r}; {suggest(name, list(PUBLISHED))}")
        if study.family not in FAMILIES:
            FAMILIES[study.family]
        make_method(study.method.name, study.method.parameters)
        for task in self.tasks:
            # Split calibration is asked for by the searches that read it.
            missing = [split for split in SPLITS if split != "calibration" and split not in task.sizes]
            if missing and tasks is None:
                raise ConfigError(
                    f"task {task.name!r} gives no size for split {missing[0]!r}; splits: {', '.join(SPLITS)}"
                )
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ConfigError(f"a task is listed twice: {', '.join(names)}")
        loose = [task.scorer.startswith("vispco") for task in self.tasks]
        if any(loose) and not all(loose):
            scored = ", ".join(f"{task.name} by {task.scorer!r}" for task in self.tasks)
            raise ConfigError(
                f"scorers of two kinds in one experiment: {scored}; their mean would mean nothing, use one kind for all"
            )
        if study.calibration is not None:
            _ = self.calibration_tasks  # its options are checked now, not after the first searches

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: list[str] | None = None, **kwargs: Any) -> Problem:
        """Read an experiment file.

        Raises:
            ConfigError: the file is wrong; the message names the fix.
        """
        study, text = load_study(path, overrides)
        load_plugins(study.plugins, Path(path).parent)
        made = cls(study, text, **kwargs)
        made._folder = Path(path).parent
        return made

    @classmethod
    def from_text(cls, text: str, source: str = "study", **kwargs: Any) -> Problem:
        """The same from the text of such a file; ``source`` names it in error messages.

        Raises:
            ConfigError: as :meth:`from_yaml`, or a plug-in of the study is not loaded.
        """
        study = parse_study(text, source)
        require_plugins(study.plugins, source)
        return cls(study, text, **kwargs)

    @property
    def has_given_model(self) -> bool:
        return self._given is not None

    @property
    def portable_text(self) -> str:
        """YAML that gives another process the same experiment."""
        return self.text or yaml.safe_dump(self.study.model_dump(mode="json"), sort_keys=False)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        if self._given is not None:
            return self._given
        from vispco.models.loading import load_model

        config = self.study.model
        return load_model(
            config.name,
            device=config.device,
            dtype=config.dtype,
            attn_implementation=config.attention,
            adapter=config.adapter,
            quantization=config.quantization,
        )

    @property
    def model(self) -> Any:
        return self.loaded[0]

    @property
    def processor(self) -> Any:
        return self.loaded[1]

    @cached_property
    def adapter(self) -> ModelAdapter:
        from vispco.models.families import adapter_for

        return adapter_for(self.model)

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes of the decoder."""
        return self.adapter.shape()

    @property
    def profile_file(self) -> Path | None:
        """The study's hardware profile: beside its file, or else as seen from the working directory."""
        named = self.study.profile
        if named is None:
            return None
        beside = self._folder / named
        return beside if beside.exists() else Path(named)

    @property
    def profile(self) -> Profile | None:
        """The hardware profile that costs in time are read from: the study's file, or the one that is given.

        Raises:
            ConfigError: the file cannot be read, or is wrong.
        """
        from vispco.costs.profile import read_profile

        if self._profile is None and (path := self.profile_file) is not None:
            self._profile = read_profile(path)
        return self._profile

    @profile.setter
    def profile(self, given: Profile | None) -> None:
        self._profile = given

    @cached_property
    def tasks(self) -> list[Task]:
        if self._given_tasks is not None:
            return self._given_tasks
        return [make_task(task.name, task.splits, task.options) for task in self.study.tasks]

    @cached_property
    def calibration_tasks(self) -> list[Task]:
        """Tasks whose split ``calibration`` gradients are taken on: the calibration block's, or all the study's."""
        block = self.study.calibration
        if block is None:
            return self.tasks
        return [make_task(block.name, {block.split: block.samples}, block.options)]

    def check_calibration(self) -> None:
        """Gradients must not be taken on what is measured. Reads the data.

        Raises:
            ConfigError: a picture is in both.
        """
        block = self.study.calibration
        if block is None:
            return  # tasks cut their own splits apart
        (calibration,) = self.calibration_tasks
        learned = {key for sample in calibration.samples(block.split) for key in picture_keys(sample)}
        for task in self.tasks if learned else ():
            for part in {"search", "held_out"} & task.sizes.keys():
                shared = {key for sample in task.samples(part) for key in picture_keys(sample)} & learned
                if shared:
                    raise ConfigError(
                        f"calibration and split {part} of task {task.name!r} share {len(shared)} pictures, such as "
                        f"{shortened(min(shared))}: gradients would be taken on what is measured; give the task a "
                        "split calibration (splits: {calibration: N, ...}) instead of the block, or name other data"
                    )

    @cached_property
    def default_method(self) -> Method:
        return make_method(self.study.method.name, self.study.method.parameters)

    def method(self, entry: SearchConfig) -> Method:
        """The entry's method, the first of several."""
        return self.methods(entry)[0]

    def methods(self, entry: SearchConfig) -> list[Method]:
        """All methods that the entry searches among.

        Raises:
            ConfigError: one is listed twice.
        """
        chosen = entry.method or self.study.method
        found = [make_method(one.name, one.parameters) for one in (chosen if isinstance(chosen, list) else [chosen])]
        keys = [method.key() for method in found]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ConfigError(f"method {twice!r} is listed twice; list each once")
        return found

    def family(self, entry: SearchConfig | None = None) -> ScheduleFamily:
        return make_family(self.study, entry, self.shape.layers)

    def at_resolution(self, share: float) -> Problem:
        """The same problem with pictures at another resolution; model and tasks are shared."""
        _ = self.adapter, self.tasks  # loaded once, for both
        other = copy.copy(self)
        other.study = self.study.model_copy(update={"model": self.study.model.model_copy(update={"resolution": share})})
        return other

    def budgets(self, floor: float) -> list[float]:
        """Budgets in [floor, 1]: the listed ones, or this many evenly spread (midpoints of equal parts).

        Raises:
            ConfigError: a listed budget lies below the floor or above 1.
        """
        asked = self.study.budgets
        if isinstance(asked, int):
            return [floor + (1 - floor) * (i + 0.5) / asked for i in range(asked)]
        for budget in asked:
            assert not isinstance(budget, str)  # StudyCost.budgets reads those that have a unit
            if not floor <= budget <= 1:
                go = "lower" if budget > 1 else "raise"
                raise ConfigError(
                    f"budget {budget} lies outside [{floor:.4f}, 1]: the cheapest schedule of family "
                    f"{self.study.family!r} with {self.study.method.name!r} has flops_ratio {floor:.4f} on the search "
                    f"split; {go} the budget, or write a number of budgets to spread them over the range"
                )
        return sorted(budget for budget in asked if not isinstance(budget, str))
