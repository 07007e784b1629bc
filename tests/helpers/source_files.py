"""Parsed source files: several tests read all of the project's."""

import ast
from functools import cache
from pathlib import Path


@cache
def parsed(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a Python file, as `ast.walk` gives them: the module first."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
