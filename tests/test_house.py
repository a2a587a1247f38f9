"""Where things may live: the root of the package holds commands that nobody imports, packages stand on floors, and no
import goes up or round.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dgnet_fast"
FLOORS = [
    {"config", "distributed", "extension", "metrics", "report"},
    {"data", "ops"},
    {"models"},
    {"checkpoints"},
    {"retrieval"},
    {"generation", "cli"},
    {"training", "translation", "web"},
]
"""Packages from the ground up; a package may import those of its own floor and of the floors below."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OUTSIDE = {"_C", "_allocator", "kernels"}
"""Compiled modules and the Triton bodies: they import nothing of the package."""
VERBS = {
    "convert", "cross_evaluate", "demo", "doctor", "evaluate", "export", "extract", "generate", "quality", "reproduce",
    "search", "teacher", "train", "transfer", "translate", "unit", "validate", "visualize",
}  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str) -> set[str]:
    """The modules of the package that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "dgnet_fast"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dgnet_fast":
            assert not node.level, f"{name}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES or inner.split(".")[1] in OUTSIDE else node.module)
    return found - {name}


ARROWS = {name: imports_of(name) for name in MODULES}


def room_of(module: str) -> str:
    """The package below dgnet_fast, or the command, that a module belongs to; '' for the package itself."""
    return (module.split(".") + [""])[1]


def test_the_root_holds_commands_and_packages():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert files == VERBS
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_of_a_command_or_of_a_higher_floor(name):
    own = FLOOR.get(room_of(name), len(FLOORS))
    for target in ARROWS[name]:
        room = room_of(target)
        if not room or room in OUTSIDE:
            continue
        assert room not in VERBS, f"{name} imports the command {target}"
        if name == "dgnet_fast":
            continue  # what it offers under its own name, it imports when it is asked for
        assert FLOOR[room] <= own, f"{name} (floor {own}) imports {target} (floor {FLOOR[room]})"


def test_no_import_cycles():
    arrows = {
        name: {t for t in targets if t in MODULES and t != "dgnet_fast"} for name, targets in ARROWS.items()
    }
    del arrows["dgnet_fast"]
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name in done:
            return
        for target in sorted(arrows[name]):
            visit(target, (*path, name))
        done.add(name)

    for name in sorted(arrows):
        visit(name, ())


def test_no_cycles_between_packages():
    rooms: dict[str, set[str]] = {}
    for name, targets in ARROWS.items():
        room = room_of(name)
        if room in FLOOR:
            rooms.setdefault(room, set()).update({room_of(t) for t in targets} & set(FLOOR) - {room})
    for floor in FLOORS:
        for room in floor:
            for other in rooms.get(room, set()) & floor:
                assert room not in rooms.get(other, set()), f"{room} and {other} import each other"
