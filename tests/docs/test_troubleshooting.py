"""docs/how-to/troubleshooting.md quotes messages that the code has.

A quoted message has `…` where the code puts a name or a number. What stands between must occur, in
that order, in one text of the code.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
HOLE = "\0"
"""Stands for a value in a text of the code."""


def text_of(node: ast.expr) -> str | None:
    """A text of the code with a hole for each value; None for another expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or HOLE) + (text_of(node.right) or HOLE)
    return None


@cache
def texts_of_the_code() -> str:
    """All texts with a space in them, a line each."""
    files = [path for folder in ("fusestore", "cli") for path in (ROOT / folder).rglob("*.py")]
    texts = (
        text_of(node)
        for path in files
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
    )
    return "\n".join({text.replace("\n", " ") for text in texts if text and " " in text})


def is_in_the_code(message: str) -> bool:
    parts = [re.escape(part) for part in message.split("…") if part.strip(" .:(),")]
    return re.search("[^\n]*".join(parts), texts_of_the_code()) is not None


@pytest.mark.parametrize("message", QUOTED)
def test_each_quoted_message_is_in_the_code(message: str) -> None:
    assert is_in_the_code(message)


def test_the_page_quotes_the_likely_messages() -> None:
    assert len(QUOTED) >= 40
    assert len(QUOTED) == len(set(QUOTED))


def test_a_changed_message_is_found() -> None:
    message = next(each for each in QUOTED if "was begun with other settings" in each)
    assert not is_in_the_code(message.replace("other settings", "different settings"))
    first, second = "has no split", "it has"
    assert is_in_the_code(f"Corpus … {first} …; {second} …")
    assert not is_in_the_code(f"{second} …; {first} … Corpus")
