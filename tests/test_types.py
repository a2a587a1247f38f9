"""Annotations: every public function and method of the package has them, and the package says so to type checkers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "dgnet_fast").rglob("*.py"))


def functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """The public functions and methods that stand in a module or class, by their names; special methods are public."""
    for node in body:
        name = getattr(node, "name", "")
        if name.startswith("_") and not name.endswith("__"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{prefix}{name}.")
        elif isinstance(node, ast.FunctionDef):
            yield f"{prefix}{name}", node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from functions(node.body, prefix)
            yield from functions(getattr(node, "orelse", []), prefix)


def lacking(name: str, function: ast.FunctionDef) -> list[str]:
    """What of a function has no annotation: names of arguments, and 'return'."""
    a = function.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    if "." in name and not static:
        arguments = arguments[1:]
    found = [argument.arg for argument in arguments if argument.annotation is None]
    return found + ([] if function.returns else ["return"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_are_annotated(path):
    for name, function in functions(ast.parse(path.read_text()).body):
        assert not lacking(name, function), f"{path}:{function.lineno}: {name}"


def test_what_counts_as_annotated():
    source = """
def bare(x, *rest, key=1, **options): ...
def _private(x): ...
class Public:
    def method(self, x: int): ...
    @staticmethod
    def free(x) -> int: ...
    def __len__(self): ...
    def _hidden(self, x): ...
class _Private:
    def method(self, x): ...
if True:
    def chosen(x: int) -> int: ...
else:
    def other(x) -> int: ...
"""
    found = {name: lacking(name, one) for name, one in functions(ast.parse(source).body)}
    assert found == {
        "bare": ["x", "key", "rest", "options", "return"],
        "Public.method": ["return"],
        "Public.free": ["x"],
        "Public.__len__": ["return"],
        "chosen": [],
        "other": ["x"],
    }


@pytest.mark.parametrize("verb", sorted(path.stem for path in (ROOT / "dgnet_fast").glob("[a-z]*.py")))
def test_commands_have_an_annotated_entry_point(verb):
    """`main` takes the arguments (None: those of the process) and returns the exit status, or nothing for 0."""
    found = dict(functions(ast.parse((ROOT / f"dgnet_fast/{verb}.py").read_text()).body))
    assert found["main"].returns is not None and ast.unparse(found["main"].returns) in ("int", "None")
    assert ast.unparse(found["main"].args.args[0]).endswith("list[str] | None")


def test_the_package_says_that_it_is_typed():
    """`py.typed` for its own annotations, and a stub for the compiled module; both are installed."""
    setup = ast.parse((ROOT / "setup.py").read_text())
    call = next(n for n in ast.walk(setup) if isinstance(n, ast.Call) and ast.unparse(n.func) == "setup")
    data = ast.literal_eval(next(k.value for k in call.keywords if k.arg == "package_data"))
    assert {"py.typed", "_C.pyi"} <= set(data["dgnet_fast"])
    for name in ("py.typed", "_C.pyi"):
        assert (ROOT / "dgnet_fast" / name).is_file()
