"""Every measured figure of README and docs has the command that measures it beside it.

A section with a measured unit names a script, a test or a command, or links a page that names a
script; or its page names the script of all its figures before its first section. A section whose
figures are not ours says so: `<!-- figures: REASON -->`.
"""

from __future__ import annotations

import re

import pytest

from tests.helpers.doc_blocks import ROOT, pages

UNIT = re.compile(
    r"(?<![\w.])\d[\d,.]*\s?(?:[kM] )?"
    r"(?:tokens/s|rows/s|windows/s|ms\b|µs\b|GB\b|MB\b|kB\b|bits per byte|×|%|seconds\b|minutes\b)"
)
SCRIPT = re.compile(r"\b(?:benchmarks|experiments)/\w+\.py|\bmake (?:demo|demo-chat|gpu)\b")
COMMAND = re.compile(
    SCRIPT.pattern + r"|\btest_\w+\.py|^```console|`(?:\w+=\S+ )*(?:fusestore|make|python) [^`]+`",
    re.MULTILINE,
)
LINK = re.compile(r"\]\(([^)#\s]*\.md)[^)]*\)|\]\((#[^)]*)\)")
EXEMPT = re.compile(r"<!-- figures: \S+ .*-->")


def sections(text: str) -> list[str]:
    """The text from each heading to the next; a `#` inside a block begins none."""
    parts, fence = [""], ""
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("```"):
            fence = "" if fence else "```"
        if not fence and re.match("#+ ", line):
            parts.append("")
        parts[-1] += line
    return parts[1:]


def unsaid(page: str) -> list[str]:
    """Headings of sections with figures that nothing says how to measure."""
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = sections(text)
    if SCRIPT.search(parts[0]):
        return []
    found = []
    for section in parts:
        prose = re.sub(r"^ *```.*?^ *```", "", section, flags=re.MULTILINE | re.DOTALL)
        said = COMMAND.search(section) or EXEMPT.search(section) or links_a_script(page, section)
        if UNIT.search(prose) and not said:
            found.append(section.partition("\n")[0])
    return found


def links_a_script(page: str, section: str) -> bool:
    """Whether a page that a section links names a script."""
    files = [((ROOT / page).parent / link[0]) for link in LINK.findall(section) if link[0]]
    return any(SCRIPT.search(file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("page", [p for p in pages() if not p.startswith("docs/decisions/")])
def test_a_figure_has_its_command(page: str) -> None:
    assert unsaid(page) == []


def test_a_script_that_a_page_names_is_there() -> None:
    named = {
        name
        for page in pages()
        for name in re.findall(
            r"\b(?:benchmarks|experiments)/\w+\.py|\btests/[\w/]+\.py",
            (ROOT / page).read_text(encoding="utf-8"),
        )
    }
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []
