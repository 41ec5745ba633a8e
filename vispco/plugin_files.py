"""Plug-ins from a file: a Python file that registers its classes when it is loaded.

Code is loaded because a person names its file, in a study file or on the command line, never because a database does.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType
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
    """Digest of the code of each class, instance or function that is not part of this package; {} if all are.

    Results depend on it: what was changed is measured again. Of a plug-in or an installed package it is the whole file
    that defines it, and those of its base classes beside it; of a notebook or a prompt, which have none, its bytecode.
    """
    found = {}
    for key, thing in things.items():
        while isinstance(thing, functools.partial):
            thing = thing.func
        owner = thing if isinstance(thing, type) or inspect.isroutine(thing) else type(thing)
        package = (getattr(owner, "__module__", None) or "builtins").partition(".")[0]
        if package not in ("vispco", "builtins"):
            parts = (
                [one for one in inspect.getmro(owner) if one.__module__.partition(".")[0] == package]
                if (isinstance(owner, type))
                else [owner]
            )
            text = "\n".join(dict.fromkeys(_source(part) for part in parts))
            found[key] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


@functools.cache
def _source(owner: Any) -> str:
    """Text of the file that defines a class or function; else its bytecode. Read once: a file that is edited while it
    runs is not what runs."""
    module = sys.modules.get(owner.__module__)
    text: str | None = getattr(module, "__plugin_text__", None)
    file = getattr(module, "__file__", None)
    if text is None and file and owner.__module__ != "__main__":
        with suppress(OSError, UnicodeDecodeError):
            text = read_text(Path(file))
    return _bytecode(owner) if text is None else text


def _bytecode(owner: Any) -> str:
    """Of a function, or of everything that a class defines."""
    if isinstance(owner, type):
        own = {key: value for key, value in vars(owner).items() if key not in ("__dict__", "__weakref__", "__doc__")}
        return "\n".join(f"{key} {_bytecode(value)}" for key, value in sorted(own.items()))
    for inner in ("__wrapped__", "__func__", "fget", "func"):
        if hasattr(owner, inner):
            return _bytecode(getattr(owner, inner))
    code = owner if isinstance(owner, CodeType) else getattr(owner, "__code__", None)
    if code is None:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(owner))
    return f"{code.co_code.hex()} {code.co_names} {[_constant(one) for one in code.co_consts]}"


def _constant(value: Any) -> str:
    if isinstance(value, frozenset):
        return str(sorted(map(_constant, value)))  # its own order differs from process to process
    return _bytecode(value) if isinstance(value, CodeType) else repr(value)


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
