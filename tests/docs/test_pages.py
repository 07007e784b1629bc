"""The blocks of the pages run, in order, and print what the pages show."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import fusestore as fs
from tests.docs.setups import RUN_BY, Start, setup_of
from tests.helpers import doc_commands
from tests.helpers.command import Command
from tests.helpers.doc_blocks import blocks, pages

RUN = ("console", "python")
CHECKED_ONLY = ("pip", "uv")
"""Programs of lines that are not run in a block that is."""


def cases() -> list[object]:
    """Each page and language with blocks to run."""
    found: list[object] = []
    for page in pages():
        if any(fnmatch(page, pattern) for pattern in RUN_BY):
            continue
        for language in RUN:
            if any(block.language == language and not block.mark for block in blocks(page)):
                slow = (pytest.mark.slow,) if language in setup_of(page).slow else ()
                found.append(pytest.param(page, language, marks=slow, id=f"{page}-{language}"))
    return found


# Of other packages about short examples: no validation data, few workers.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("page", "language"), cases())
def test_what_a_page_shows_happens(
    page: str,
    language: str,
    tmp_path: Path,
    documented_store: Path,
    request: pytest.FixtureRequest,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    setup = setup_of(page)
    start = Start(request.getfixturevalue, page, language, documented_store)
    names = {"fs": fs, "__name__": "__main__", **setup.prepare(start)}
    for block, following in zip(blocks(page), [*blocks(page)[1:], None], strict=True):
        if block.language != language or block.mark:
            continue
        text = setup.replace(block.text, start)
        capsys.readouterr()
        if language == "console":
            printed = run_console(text, command)
        else:
            exec(compile(text, str(block), "exec"), names)  # noqa: S102 - our own page
            printed = capsys.readouterr().out
        if following is not None and following.language == "text" and not following.mark:
            expected = setup.replace(following.text, start)
            assert re.fullmatch(shown_as(expected), printed), f"{following}:\n{printed}"
    if language == "python":
        setup.check(names)


def run_console(text: str, command: Command) -> str:
    """Run the commands of a block; what they printed. Output that the block shows is compared."""
    printed = ""
    for line in doc_commands.lines(text):
        program, *arguments = line.expanded
        if program in CHECKED_ONLY:
            continue
        assert program == "fusestore", line
        outcome = command.succeeds(*arguments)
        printed += outcome.out
        there = iter([*outcome.err.splitlines(), *outcome.out.splitlines()])
        for shown in line.output:
            pattern = shown_as(shown.rstrip())
            found = any(re.fullmatch(pattern, each.rstrip()) for each in there)
            assert found, f"{line.text} did not print {shown!r}:\n{outcome.err}{outcome.out}"
    return printed


def shown_as(text: str) -> str:
    """A pattern of what a page shows: `…` stands for anything within a line."""
    return ".*".join(map(re.escape, text.split("…")))
