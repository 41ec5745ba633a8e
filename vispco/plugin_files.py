"""Plug-ins from a file: a Python file that registers its classes when it is loaded.

Code is loaded because a person names its file, in a study file or on the command line, never because a database does.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from vispco.errors import ConfigError, shortened
from vispco.files import read_text

PREFIX = "vispco_plugin_"  # of the names under which loaded files stand in sys.modules


def load_plugin(path: str | Path) -> ModuleType:
    """Run a plug-in's file, so that what it registers can be named; returns its module.

    The same file again does nothing; a changed one replaces what the earlier one registered.

    Raises:
        ConfigError: there is no such file, it fails, or another file of that name is loaded.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"cannot read plug-in {shortened(str(path))}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"plug-in {path} is no text file; a plug-in is a Python file") from None
    return _run(path.name, text, str(path.resolve()))


def load_plugins(names: Iterable[str], folder: Path) -> None:
    """Load the plug-ins that a study file names, relative to its folder."""
    for name in names:
        load_plugin(folder / name)


def require_plugins(names: Iterable[str], source: str) -> None:
    """For a study whose text comes from elsewhere: its plug-ins must be loaded.

    Raises:
        ConfigError: one is not.
    """
    loaded = loaded_sources()
    for name in names:
        if Path(name).name not in loaded:
            raise ConfigError(
                f"{source} uses the plug-in {name}; code is not loaded because a stored text names it: give the file, "
                f"with --plugin {name} or vispco.plugins.load_plugin({name!r})"
            )


def loaded_sources() -> dict[str, str]:
    """File name -> text of every plug-in that is loaded, for workers in other processes."""
    modules = [module for name, module in sys.modules.items() if name.startswith(PREFIX)]
    return {module.__dict__["__plugin__"]: module.__dict__["__plugin_text__"] for module in modules}


def load_sources(sources: Mapping[str, str]) -> None:
    """Run the texts that :func:`loaded_sources` gave in the process that sends work."""
    for name, text in sources.items():
        _run(name, text, name)


def code_of(**things: Any) -> dict[str, str]:
    """Digest of the file of each class, instance or function that comes from a plug-in; {} if none does.

    Results depend on it: a changed file is measured again.
    """
    found = {}
    for key, thing in things.items():
        module = getattr(thing, "__module__", None) or type(thing).__module__
        text = getattr(sys.modules.get(module), "__plugin_text__", None)
        if text is not None:
            found[key] = _digest(text)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run(name: str, text: str, file: str) -> ModuleType:
    key = PREFIX + name.removesuffix(".py")
    known = sys.modules.get(key)
    if known is not None and known.__plugin_text__ == text:
        return known
    if known is not None and known.__file__ != file:
        raise ConfigError(f"two plug-ins are called {name}: {known.__file__} and {file}; rename one")
    module = ModuleType(key)
    module.__file__ = file
    module.__dict__.update(__plugin__=name, __plugin_text__=text)
    sys.modules[key] = module  # dataclasses and pickle look there
    try:
        exec(compile(text, file, "exec"), module.__dict__)
    except Exception as error:
        if known is None:
            del sys.modules[key]
        else:
            sys.modules[key] = known
        line = error.lineno if isinstance(error, SyntaxError) else _line(error, file)
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"plug-in {name}, line {line}: {type(error).__name__}: {what}") from error
    return module


def _line(error: Exception, file: str) -> int | None:
    """Of the plug-in's own lines the last that was running."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else None
