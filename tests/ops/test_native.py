"""dgnet_fast/_C.pyi says of the extension what pybind11 says of it, and its functions take names alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import dgnet_fast
from dgnet_fast.ops.native import _C

STUB = Path(dgnet_fast.__file__).with_name("_C.pyi")
#: pybind11's spellings, with and without the `typing.` of some versions, of what the stub calls int and float.
SPELLINGS = (
    (r"(typing\.)?SupportsInt( \| (typing\.)?SupportsIndex)?", "int"),
    (r"(typing\.)?SupportsFloat( \| (typing\.)?SupportsIndex)?", "float"),
)


def signature(text: str, aliases: dict[str, str]) -> tuple[dict[str, str], str]:
    """(type of each keyword-only argument by its name, type of the result); no other arguments are allowed."""
    (function,) = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef) and not function.args.args and not function.args.posonlyargs
    types = {a.arg: ast.unparse(a.annotation) for a in function.args.kwonlyargs}
    return {name: aliases.get(kind, kind) for name, kind in types.items()}, ast.unparse(function.returns)


def stated() -> dict[str, tuple[dict[str, str], str]]:
    body = ast.parse(STUB.read_text()).body
    aliases = {
        node.targets[0].id: ast.unparse(node.value)
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    assert len({node.name for node in functions}) == len(functions)
    return {node.name: signature(ast.unparse(node), aliases) for node in functions}


def built() -> dict[str, tuple[dict[str, str], str]]:
    found = {}
    for name, value in vars(_C).items():
        if not callable(value) or name.startswith("__"):
            continue
        line = value.__doc__.splitlines()[0]
        for spelling, plain in SPELLINGS:
            line = re.sub(spelling, plain, line)
        found[name] = signature(f"def {line}: ...", {})
    return found


def test_the_stub_is_the_extension():
    there, said = built(), stated()
    if not _C.build["cuda"]:
        said = {name: how for name, how in said.items() if not name.endswith(("_cuda", "_workspace"))}
    assert there.keys() == said.keys()
    for name, how in there.items():
        assert said[name] == how and list(said[name][0]) == list(how[0]), name


def test_arguments_without_names_do_not_run():
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.loss_l1_backward(1, 1, 0, 0, 0, 0)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.act_pad_forward(layout=(1, 1, 2, 2, 1, False, 0), x=0, slopes=0, sides=0, y=0)
