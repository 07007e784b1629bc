"""What a block of Python names of fusestore exists: imports, attributes, keyword arguments."""

from __future__ import annotations

import ast
import importlib
import inspect
from importlib.util import find_spec
from typing import Any

_UNKNOWN = object()


def check_names(code: str) -> None:
    """Raise an error unless the code compiles and all it names of fusestore exists."""
    tree = ast.parse(code)
    names: dict[str, Any] = {"fs": importlib.import_module("fusestore")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _check_module(alias.name)
                if alias.name.split(".")[0] == "fusestore":
                    bound = alias.name if alias.asname else "fusestore"
                    names[alias.asname or "fusestore"] = importlib.import_module(bound)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            _check_module(node.module)
            if node.module.split(".")[0] == "fusestore":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    names[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _value(node, names)
        elif isinstance(node, ast.Call):
            _check_arguments(node, names)


def _check_module(name: str) -> None:
    assert find_spec(name.split(".")[0]) is not None, f"no module {name}"


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """What a dotted name of fusestore is; `_UNKNOWN` for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, _UNKNOWN)
    if isinstance(node, ast.Attribute):
        value = _value(node.value, names)
        if inspect.ismodule(value) or inspect.isclass(value):
            return getattr(value, node.attr)
    return _UNKNOWN


def _check_arguments(node: ast.Call, names: dict[str, Any]) -> None:
    function = _value(node.func, names)
    if not callable(function):
        return
    given = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    positional = 0 if starred else len(node.args)
    inspect.signature(function).bind_partial(*[None] * positional, **dict.fromkeys(given))
