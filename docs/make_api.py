"""Write docs/api.md from the docstrings of what ``vispco`` exports: ``python docs/make_api.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import vispco

PAGE = Path(__file__).parent / "api.md"
HEAD = """# Python

Everything that `import vispco` offers, from its docstrings; written by `python docs/make_api.py`. Axes: B samples of a
batch, T tokens, V visual tokens, L layers, H hidden size. What you can register besides is in
[Bring your own](extending.md).
"""
GROUPS = {
    "Models": ("load_model", "adapter_for"),
    "Pruning": ("prune", "install", "make_method", "load_schedule", "parse_schedule", "rescaled"),
    "Schedules": ("Schedule", "Step", "MultiStep", "Linear", "Exponential", "Sigmoid", "Ratios", "AtResolution"),
    "Experiments": ("run", "choose", "report", "export", "open_store", "Comparison"),
    "Measuring": ("Problem", "Evaluator", "Evaluation", "objective", "flops_ratio"),
}
MODULES = ("methods", "plugins")
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Example):$", re.MULTILINE)


def page() -> str:
    parts = [HEAD]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        parts += [entry(name, getattr(vispco, name)) for name in names]
    parts += [module(name, getattr(vispco, name)) for name in MODULES]
    return "\n".join(parts)


def module(name: str, thing: Any) -> str:
    """A module that collects names: its docstring, and each class with its parameters and its first line."""
    rows = [f"### `vispco.{name}`\n", markdown(inspect.getdoc(thing) or "")]
    for one in thing.__all__:
        value = getattr(thing, one)
        first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split()) if callable(value) else ""
        own = inspect.isclass(value) and name == "methods" and not inspect.isabstract(value)
        head = unquoted(f"{one}{inspect.signature(value)}").removesuffix(" -> None") if own else one
        rows.append(f"- `{head}`" + (f": {markdown(first).strip()}" if first else ""))
    return "\n".join(rows) + "\n"


def entry(name: str, thing: Any) -> str:
    lines = [
        f"### `vispco.{name}`\n",
        f"```text\n{signature(name, thing)}\n```\n",
        markdown(inspect.getdoc(thing) or ""),
    ]
    if inspect.isclass(thing):
        lines += [member(key, value) for key, value in members(thing).items() if not key.startswith("_")]
    return "\n".join(line for line in lines if line)


def members(thing: type) -> dict[str, Any]:
    """Those of a class, and of its bases in this package that are not on the page themselves."""
    shown = {getattr(vispco, name) for names in GROUPS.values() for name in names if name != thing.__name__}
    bases = [base for base in thing.__mro__ if base.__module__.startswith("vispco.") and base not in shown]
    return {key: value for base in reversed(bases) for key, value in vars(base).items()}


def signature(name: str, thing: Any) -> str:
    """One line, or one argument a line where that is too long."""
    told = inspect.signature(thing)
    if inspect.isclass(thing):
        told = told.replace(return_annotation=told.empty)
    short = unquoted(f"{name}{told}")
    if len(short) <= 100:
        return short
    inside = ",\n    ".join(str(one) for one in told.parameters.values())
    returns = "" if told.return_annotation is told.empty else f" -> {told.return_annotation}"
    return unquoted(f"{name}(\n    {inside},\n){returns}")


def unquoted(told: str) -> str:
    """Annotations without quotes; defaults keep theirs."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", told)


def member(name: str, value: Any) -> str:
    """A method or property that says what it does."""
    inner = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    inner = inner.fget if isinstance(inner, property) else inner
    if not inspect.isfunction(inner) or not inner.__doc__:
        return ""
    first, _, rest = markdown(inspect.getdoc(inner) or "").partition("\n")
    head = f"`{name}`" if isinstance(value, property) else f"`{call(name, inner)}`"
    more = "".join(f"\n  {line}" if line else "\n" for line in rest.rstrip().splitlines())
    return f"- {head}: {first}{more}\n"


def call(name: str, function: Any) -> str:
    """How a method is called: names and defaults."""
    shown = []
    for one in list(inspect.signature(function).parameters.values())[1:]:
        default = "..." if callable(one.default) and one.default is not one.empty else repr(one.default)
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        shown.append(f"{stars}{one.name}" + ("" if one.default is one.empty else f"={default}"))
    return f"{name}({', '.join(shown)})"


def markdown(doc: str) -> str:
    """Google's style of docstrings: sections in bold, their entries as lists, double backticks as single ones."""
    out, section = [], False
    for line in doc.replace("``", "`").splitlines():
        plain = re.sub(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`", r"`\1`", line)
        if SECTION.match(plain):
            section = True
            out += [f"**{plain[:-1]}**", ""]
        elif section and plain.startswith("    ") and not plain.startswith("     "):
            key, colon, text = plain.strip().partition(": ")
            out.append(f"- `{key}`: {text}" if colon and " " not in key.replace(", ", "") else f"- {plain.strip()}")
        elif section and plain.startswith("     "):
            out.append(f"  {plain.strip()}")
        else:
            section = section and not plain
            out.append(plain)
    return "\n".join(out).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
