"""The walls between the rooms of the package: a room imports from those below it only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up; rooms of one line may use each other. A line may import from the lines above it in this list.
FLOORS = (
    {"errors"},
    {"files", "json_text", "yaml_text", "registry", "outputs", "provenance"},
    {"config", "plugin_files"},
    {"models", "tasks"},
    {"pruning", "methods"},
    {"costs"},
    {"problem"},
    {"evaluation"},
    {"integrations", "storage", "survivors"},
    {"fronts"},
    {"search", "official"},
    {"experiment", "optuna_objective", "confirming"},
    {"analysis"},
    {"choosing", "exporting"},
    {"dashboards"},
    {"api"},
    {"testing"},
    {"cli"},
)
# Doors to the outside: they name everything, and nothing of the package imports them.
DOORS = {"", "__main__", "plugins"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> Iterator[tuple[str, Path]]:
    for folder, prefix in ((ROOT / "vispco", ""), (ROOT / "dashboards", "dashboards.")):
        for path in sorted(folder.rglob("*.py")):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            yield name.removesuffix("__init__").removesuffix("."), path


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of each import from the package, those inside functions too; those for types alone are free."""
    tree = ast.parse(path.read_text())
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "vispco"
            names = [f"vispco.{alias.name}" for alias in node.names] if whole else [node.module]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "vispco":
                yield node.lineno, rest.partition(".")[0]


def test_every_room_has_a_floor() -> None:
    rooms = {name.partition(".")[0] for name, _ in modules()}
    assert rooms == set(FLOOR) | DOORS


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_room_imports_from_below(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {other or 'vispco'}"
        for name, path in modules()
        if name.partition(".")[0] == room
        for line, other in imported(path)
        if FLOOR.get(other, len(FLOORS)) > FLOOR[room]
    ]
    assert not wrong
