"""What stands in two files of the repository says the same in both."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from fusestore.version import __version__

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
LOCKED = dict(
    line.split("==") for line in (ROOT / "requirements/lock.txt").read_text().splitlines()[1:]
)
CLASSIFIED = {
    classifier.rpartition(" ")[2]
    for classifier in PROJECT["classifiers"]
    if re.fullmatch(r".* :: 3\.\d+", classifier)
}


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_workflows_test_the_pythons_that_are_promised() -> None:
    jobs = load(".github/workflows/ci.yml")["jobs"]
    assert set(jobs["tests"]["strategy"]["matrix"]["python"]) == CLASSIFIED
    assert PROJECT["requires-python"] == f">={min(CLASSIFIED, key=lambda v: int(v[2:]))}"


def test_the_wheel_has_every_package() -> None:
    folders = {
        "fusestore": ROOT / "fusestore",
        "fusestore_cli": ROOT / "cli",
        "fusestore.examples": ROOT / "examples",
    }
    found = {
        ".".join([name, *file.parent.relative_to(folder).parts])
        for name, folder in folders.items()
        for file in folder.rglob("*.py")
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found | {"fusestore.schemas"}


def test_actions_are_pinned_by_major_version() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for used in re.findall(r"uses: (\S+)", path.read_text()):
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", used), (path, used)


def test_hooks_run_the_ruff_that_is_locked() -> None:
    (revision,) = (
        repo["rev"] for repo in load(".pre-commit-config.yaml")["repos"] if "ruff" in repo["repo"]
    )
    assert revision == f"v{LOCKED['ruff']}"


def test_the_version_is_cited_and_has_a_dated_entry() -> None:
    citation = load("CITATION.cff")
    assert citation["version"] == __version__
    entry = f"## [{__version__}] - {citation['date-released']}"
    assert entry in (ROOT / "CHANGELOG.md").read_text().splitlines()


def test_every_decision_is_in_the_index() -> None:
    pages = sorted(path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    index = (ROOT / "docs/decisions/README.md").read_text()
    assert re.findall(r"^\d+\. \[.*\]\((.*)\)$", index, re.MULTILINE) == pages


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in target or (page.parent / target).exists(), (page, target)


def test_the_architecture_names_files_that_are_there() -> None:
    """Under the heading of a room, names are relative to it; elsewhere, to the package.

    A name that is not in a room's paragraph and has no folder stands for all files of that name.
    """
    everywhere = {path.name for path in (ROOT / "fusestore").rglob("*.py")}
    text = (ROOT / "docs/architecture.md").read_text()
    room = ""
    missing = []
    for line in text.splitlines():
        if heading := re.match(r"##+ (?:`([\w/]+)/`)?", line):
            room = heading[1] or ""
        for name in re.findall(r"`([\w/]+\.py)`", line):
            bases = (ROOT, ROOT / "fusestore", ROOT / room, ROOT / "fusestore" / room)
            general = not room and name in everywhere
            if not general and not any((base / name).is_file() for base in bases):
                missing.append((room, name))
    assert not missing


def test_every_minimum_is_a_version_that_is_tested() -> None:
    """requirements/lowest.txt has what `make test-lowest` installs."""
    lines = (ROOT / "requirements/lowest.txt").read_text().splitlines()
    lowest = dict(line.partition(" ")[0].split("==") for line in lines)
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == "fusestore":
            continue
        (specifier,) = requirement.specifier
        name = re.sub(r"[-_.]+", "-", requirement.name)
        assert Version(specifier.version) == Version(lowest[name]), text
