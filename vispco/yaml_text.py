"""YAML of bounded size and depth: whatever the text, reading it ends soon, in data or in one line that says why not."""

from __future__ import annotations

import re
from typing import Any

import yaml

from vispco.errors import ConfigError

MOST_VALUES = 100_000  # after aliases are written out
DEEPEST = 64
NO_CHARACTER = re.compile("[\0\ud800-\udfff]")


def read_yaml(text: str, source: str) -> Any:
    """Plain data of a YAML document.

    Raises:
        ConfigError: not YAML, a key twice, too many values, too deep, an alias within itself, or a value that is none.
    """
    if NO_CHARACTER.search(text):
        raise ConfigError(f"{source} is not valid YAML: {_character(text)}; remove it")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, source)
        return _built(loader, node, source)
    except yaml.YAMLError as error:
        problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split())
        raise ConfigError(f"{source} is not valid YAML{_place(error)}: {problem[:200]}") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """Counts while it composes, so that neither depth nor length need be trusted; notes what it is constructing."""

    depth = 0
    values = 0
    making: Any = None

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.values += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels; nothing needs so many", mark)
        if self.values > MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MOST_VALUES:,} values; write fewer", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        self.making = node
        return super().construct_object(node, deep=deep)


def _built(loader: _Loader, node: Any, source: str) -> Any:
    """The data of ``node``. PyYAML's own constructors raise whatever Python does: ValueError for month 13, ..."""
    try:
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except Exception as error:
        at = loader.making
        value, tag = getattr(at, "value", ""), str(getattr(at, "tag", "")).rpartition(":")[2]
        shown = value[:60] if isinstance(value, str) else "..."
        raise ConfigError(
            f"{source} is not valid YAML{_place(at)}: {shown!r} is no {tag} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:80]}); put texts in quotes"
        ) from None


def _place(at: Any) -> str:
    mark = getattr(at, "problem_mark", None) or getattr(at, "start_mark", None)
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _character(text: str) -> str:
    found = NO_CHARACTER.search(text)
    assert found is not None
    what = "a NUL" if found[0] == "\0" else "a lone surrogate"
    return f"{what} (character {found.start() + 1} of {text[:40]!r}) is no character of a text"


def _check(root: Any, source: str) -> None:
    """Every node, as often as aliases repeat it: keys are distinct, texts are texts, and it ends.

    Raises:
        ConfigError: YAML would take the last of equal keys and say nothing; a few lines of aliases may stand for more
            values than fit into any memory, or for themselves.
    """
    measured: dict[int, tuple[int, int]] = {}
    under_way: set[int] = set()

    def measure(node: Any) -> tuple[int, int]:
        """(values, levels) of a node; what an alias repeats comes before it, so its measure is known by then."""
        key = id(node)
        if key in under_way:
            raise ConfigError(f"{source} is not valid YAML{_place(node)}: an alias stands within what it repeats")
        if key not in measured:
            under_way.add(key)
            inside = [measure(part) for part in _parts(node, source)]
            under_way.remove(key)
            values, levels = 1 + sum(v for v, _ in inside), 1 + max((n for _, n in inside), default=0)
            if values > MOST_VALUES or levels > DEEPEST:
                many = f"{MOST_VALUES:,} values" if values > MOST_VALUES else f"{DEEPEST} levels"
                raise ConfigError(
                    f"{source} is not valid YAML{_place(node)}: its aliases stand for more than {many}; write fewer"
                )
            measured[key] = values, levels
        return measured[key]

    measure(root)


def _parts(node: Any, source: str) -> list[Any]:
    """Nodes within ``node``; a scalar has none."""
    if isinstance(node, yaml.ScalarNode):
        if NO_CHARACTER.search(node.value):
            raise ConfigError(f"{source} is not valid YAML{_place(node)}: {_character(node.value)}; remove it")
        return []
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen and key.value != "<<":
                raise ConfigError(
                    f"{source} has the key {key.value!r} twice, in lines {seen[key.value]} and {line}; keep one"
                )
            seen[key.value] = line
    return [part for pair in node.value for part in pair]
