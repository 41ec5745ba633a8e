"""Named plug-ins: one decorator to register, near-name suggestions when a name is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from vispco.errors import ConfigError

T = TypeVar("T")


def suggest(name: str, known: list[str]) -> str:
    """``' Did you mean x?'`` when a known name is near, else the list of known names."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


class Registry(Mapping[str, Any]):
    """Maps lower-case names to classes, or to functions.

    ``attribute``: where a class keeps its name; registering sets it, unless the class does so itself.

    Third-party packages register by an entry point in the group ``vispco.<group>`` (for example
    ``vispco.methods``), whose import runs the decorator; entry points are read at the first miss.
    """

    def __init__(self, kind: str, group: str, attribute: str | None = None) -> None:
        self.kind, self.group, self.attribute = kind, f"vispco.{group}", attribute
        self._classes: dict[str, Any] = {}
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        if not name or name != name.lower():
            raise ValueError(f"{self.kind} name {name!r} must be lower-case")

        def add(cls: T) -> T:
            known = self._classes.get(name)
            # The same class again, from a changed file or a cell of a notebook, takes its own place.
            if known is not None and _place(known) != _place(cls):
                raise ValueError(f"{self.kind} name {name!r} is taken by {'.'.join(_place(known))}; choose another")
            if self.attribute is not None and self.attribute not in vars(cls):
                setattr(cls, self.attribute, name)
            self._classes[name] = cls
            return cls

        return add

    def _load_plugins(self) -> None:
        if not self._plugins_loaded:
            self._plugins_loaded = True
            for entry in entry_points(group=self.group):
                entry.load()

    def __getitem__(self, name: str) -> Any:
        if name not in self._classes:
            self._load_plugins()
        if name not in self._classes:
            raise ConfigError(
                f"unknown {self.kind} {name!r}; {suggest(name, list(self._classes))} (one of your own: give its file, "
                "with plugins: in the study or with --plugin)"
            )
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._classes:
            self._load_plugins()
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)


def _place(thing: Any) -> tuple[str, str]:
    return str(thing.__module__), str(thing.__qualname__)
