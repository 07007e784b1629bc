"""Every code block of README, CONTRIBUTING and docs, run or not: what it names exists."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from fusestore.fuse.recipe import Recipe
from fusestore.storage.location import Location
from fusestore.workflows.fusion_config import load_config
from tests.docs.setups import KEPT_STORE, PLACES, RUN_BY, SETUPS
from tests.helpers import doc_commands
from tests.helpers.doc_blocks import (
    LANGUAGES,
    LINES_OF,
    NOT_RUN,
    ROOT,
    SHOWN,
    Block,
    all_blocks,
    blocks,
    indented,
    pages,
)
from tests.helpers.doc_names import check_names

TOML_ABOVE = 'store = "my.store"\n'
TOML_BELOW = {
    "corpus": '[corpus]\ninputs = ["texts"]\n',
    "models": '[models.smollm2]\nmodel = "a"\n[models.gemma3]\nmodel = "b"\n',
    "fuse": '[fuse]\nsources = ["smollm2"]\n',
}
"""What a part of a fusion.toml lacks to be a whole one."""


@pytest.mark.parametrize("page", pages())
def test_each_block_is_marked_and_says_what_exists(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        _check_mark(block)
        try:
            _check_content(block, tmp_path)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block}: {error}") from error
    assert not indented(page), "a block is fenced and names its language"


def _check_mark(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block}: not one of {LANGUAGES}"
    assert block.mark in ("", NOT_RUN, SHOWN, LINES_OF), f"{block}: no mark {block.mark!r}"
    if block.mark == NOT_RUN:
        assert len(block.reason.split()) > 1, f"{block}: why is it not run?"
    if block.mark == SHOWN:
        assert block.language == "text", f"{block}: only a text is shown by a command"
        doc_commands.check(doc_commands.Line(block.reason, ()))
    for file in re.findall(r"\b[\w/]+/\w+\.py\b", block.reason):
        assert (ROOT / file).is_file(), f"{block}: there is no {file}"


def _check_content(block: Block, folder: Path) -> None:
    if block.mark == LINES_OF:
        listed = _listed((ROOT / block.reason).read_text(encoding="utf-8"))
        wanted = _listed(block.text)
        places = range(len(listed))
        assert any(listed[at : at + len(wanted)] == wanted for at in places), "not lines of it"
    if block.language == "console":
        for line in doc_commands.lines(block.text):
            doc_commands.check(line)
    elif block.language == "python":
        check_names(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        _check_settings(block.text, folder / "fusion.toml")
    elif block.language == "yaml":
        _check_yaml(block.text, folder / "config.yaml")


def _listed(text: str) -> list[str]:
    """Lines without indentation and empty lines."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _check_settings(text: str, file: Path) -> None:
    """A recipe, a fusion.toml, or tables of one."""
    content = tomllib.loads(text)
    if "sources" in content:
        Recipe.parse(content)
        return
    above = "" if "store" in content else TOML_ABOVE
    below = [table for name, table in TOML_BELOW.items() if name not in content]
    file.write_text("\n".join([above + text, *below]), encoding="utf-8")
    load_config(Location.parse(file))


def _check_yaml(text: str, file: Path) -> None:
    """A configuration of accelerate has its keys; of others it is only parsed."""
    content = yaml.safe_load(text)
    if "distributed_type" in content:
        from accelerate.commands.config.config_args import load_config_from_file

        file.write_text(text, encoding="utf-8")
        load_config_from_file(str(file))


def test_what_one_command_showed_is_the_same_on_all_pages() -> None:
    shown: dict[str, set[str]] = {}
    for block in all_blocks():
        if block.mark == SHOWN:
            shown.setdefault(block.reason, set()).add(block.text)
    assert [command for command, texts in shown.items() if len(texts) > 1] == []


def test_a_text_is_compared_or_says_where_it_comes_from() -> None:
    for page in pages():
        for before, block in zip([None, *blocks(page)], blocks(page), strict=False):
            if block.language == "text" and not block.mark:
                assert before is not None, block
                assert before.language in ("console", "python"), block
                assert not before.mark, block


def test_pages_that_other_tests_run_are_there() -> None:
    for pattern, test in RUN_BY.items():
        assert any(fnmatch(page, pattern) for page in pages()), pattern
        assert (ROOT / test).is_file()


@pytest.mark.parametrize("page", SETUPS)
def test_a_setup_replaces_what_its_page_says(page: str) -> None:
    text = "".join(block.text for block in blocks(page) if not block.mark)
    for pattern, here in PLACES.items():
        text = re.sub(pattern, here, text)
    assert [pattern for pattern in SETUPS[page].replaced if not re.search(pattern, text)] == []


def test_the_files_of_a_store_are_listed() -> None:
    """Every file of the kept store is a line of docs/store.md."""
    (listed,) = (b.text for b in blocks("docs/store.md") if b.text.startswith("corpora/"))
    patterns = [
        re.sub(r"<\w+>", "[^/]+", re.escape(line)).replace("…", ".*") for line in listed.split()
    ]
    files = [file.relative_to(KEPT_STORE).as_posix() for file in KEPT_STORE.rglob("*")]
    unlisted = [
        file
        for file in files
        if (KEPT_STORE / file).is_file() and not any(re.fullmatch(p, file) for p in patterns)
    ]
    assert unlisted == []


def test_what_is_not_run_is_known() -> None:
    """How many blocks have which mark: `pytest -rP` shows it."""
    counted = Counter((block.language, block.mark) for block in all_blocks())
    for (language, mark), number in sorted(counted.items()):
        print(f"{number:3} {language:8} {mark or 'run or compared'}")  # noqa: T201
    for block in all_blocks():
        if block.mark == NOT_RUN:
            print(f"{block}: {block.reason}")  # noqa: T201
    for language in ("console", "python"):
        assert counted[language, ""] > counted[language, NOT_RUN] / 2


def wrong(language: str, text: str) -> Block:
    return Block("x.md", 1, "", language, dedent(text), "", "")


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("console", "fusestore lss -s x", "Did you mean 'ls'"),
        ("console", "fusestore ls -s x --nope", "--nope"),
        ("console", "fusestore capture m", "store"),
        ("console", "fusestore capture m -s s -n n --dtype half", "'half' is not one of"),
        ("console", "make tea", "tea"),
        ("console", "python benchmarks/nothing.py", "nothing"),
        ("console", "python benchmarks/rate_distortion.py --nothing", "--nothing"),
        ("console", "pip install 'fusestore[nothing]'", "nothing"),
        ("console", "nothing", "nothing"),
        ("python", "fs.open_nothing('x')", "open_nothing"),
        ("python", "from fusestore.nothing import x", "nothing"),
        ("python", "fs.CaptureSettings(top_l=3)", "top_l"),
        ("python", "x = (", "never closed"),
        ("toml", "sources = ['a']\nstrategie = 'em'", "strategie"),
        ("toml", "[fuse]\nsources = ['smollm2']\nstrategi = 'em'", "strategi"),
        ("toml", "[train.runs.a]\nlearning_rat = 1", "learning_rat"),
        ("json", "{", "Expecting"),
        ("yaml", "distributed_type: FSDP\nnothing: 1", "nothing"),
    ],
)
def test_what_does_not_exist_is_found(
    language: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises((Exception, SystemExit), match=re.escape(message)):
        _check_content(wrong(language, text), tmp_path)
