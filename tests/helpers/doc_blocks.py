"""The fenced blocks of README.md, CONTRIBUTING.md and docs/, and the marks before them.

A mark is an HTML comment on the line before a block: CONTRIBUTING.md says what each one means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]

LANGUAGES = ("python", "console", "toml", "yaml", "json", "text", "mermaid")

NOT_RUN, SHOWN, LINES_OF = "not run", "shown", "lines of"

_FENCE = re.compile(r"( *)(`{3,})(.*)")
_MARK = re.compile(r" *<!-- ([a-z ]+): (.*?) *-->")


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page: its file, relative to the repository.
        line: number of the line with its fence.
        heading: the heading it stands under.
        language: what follows the fence; "" if nothing does.
        text: its lines, each with a line feed, without common indentation.
        mark: what the comment before it is: `NOT_RUN`, `SHOWN`, `LINES_OF`, or "" for none.
        reason: what the mark says.
    """

    page: str
    line: int
    heading: str
    language: str
    text: str
    mark: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.language})"


def pages() -> list[str]:
    """All pages, relative to the repository."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [file.relative_to(ROOT).as_posix() for file in files]


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The blocks of a page, in its order."""
    return tuple(_blocks(page, (ROOT / page).read_text(encoding="utf-8").splitlines()))


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in pages() for block in blocks(page)]


def indented(page: str) -> list[int]:
    """Lines that begin a block by indentation alone, which has no language; lists are left out."""
    found, fence, in_list, before = [], "", False, ""
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if fence:
            fence = "" if line.strip() == fence else fence
        elif opened := _FENCE.fullmatch(line):
            fence = opened[2]
        elif re.match(r" *([-*]|\d+\.) ", line):
            in_list = True
        elif line and not line.startswith(" "):
            in_list = False
        elif line.startswith("    ") and not before.strip() and not in_list:
            found.append(number)
        before = line
    return found


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    heading, start, fence, before = "", 0, "", ""
    for number, line in enumerate(lines, 1):
        if fence:
            if line.strip() != fence:
                continue
            text = dedent("".join(f"{each}\n" for each in lines[start : number - 1]))
            mark = _MARK.fullmatch(before)
            yield Block(
                page=page,
                line=start,
                heading=heading,
                language=lines[start - 1].strip().lstrip("`"),
                text=text,
                mark=mark[1] if mark else "",
                reason=mark[2] if mark else "",
            )
            fence = ""
        elif opened := _FENCE.fullmatch(line):
            start, fence = number, opened[2]
        elif re.match("#+ ", line):
            heading = line.lstrip("# ")
        before = line if not fence or number != start else before
    assert not fence, f"{page}:{start}: the block does not end"
