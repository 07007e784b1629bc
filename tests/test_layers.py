"""Who may import whom: the floors of the package, and what tests share."""

from __future__ import annotations

import ast
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.source_files import parsed

ROOT = Path(__file__).parent.parent

FLOORS = (
    *("errors", "version", "progress", "process_rank", "plugins", "forked"),
    *("storage", "store", "tokenizers", "models"),
    *("corpus", "cache", "capture", "testing", "align", "fuse", "forecast"),
    *("data", "losses", "train", "integrations", "merge", "report", "interop"),
    *("workflows",),
    *("stages", "contents", "api", ""),
)
"""Lowest first: a module imports from its own floor and from those before it, nothing else.

The names are the files and folders directly below `fusestore/`; the empty one is the package's own
`__init__`.
"""

SHARED_NAMES = {
    "__init__",
    "artifact",
    "kernels",
    "layout",
    "manifest",
    "run",
    "settings",
    "verify",
}
"""File names that several rooms have, because each has one of these subjects."""


def modules(folder: Path, package: str) -> dict[str, Path]:
    """Every module below a folder, by its dotted name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join([package, *parts])
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, names: frozenset[str]) -> set[str]:
    """Modules among `names` that a file imports anywhere: functions and TYPE_CHECKING count too."""
    found = set()
    for node in parsed(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # Only the commands import their neighbors relatively.
            module = "fusestore_cli." * (node.level > 0) + (node.module or "")
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                found.add(submodule if submodule in names else module)
    return found


PACKAGE = modules(ROOT / "fusestore", "fusestore")
COMMANDS = modules(ROOT / "cli", "fusestore_cli")
TESTS = modules(ROOT / "tests", "tests")


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """What each module of the package imports of it."""
    return {name: imports(path, frozenset(PACKAGE)) for name, path in PACKAGE.items()}


def floor(module: str) -> int:
    """The floor a module of the package is on; a name that is on none is an error."""
    return FLOORS.index(module.partition(".")[2].partition(".")[0])


def test_every_file_and_folder_is_on_a_floor() -> None:
    assert len(FLOORS) == len(set(FLOORS))
    on_floors = {module.partition(".")[2].partition(".")[0] for module in PACKAGE}
    assert on_floors <= set(FLOORS)


def test_no_import_runs_upward(imported: dict[str, set[str]]) -> None:
    upward = {
        (name, other)
        for name, found in imported.items()
        for other in found & PACKAGE.keys()
        if floor(other) > floor(name)
    }
    assert upward == set()


def test_no_import_runs_in_a_circle(imported: dict[str, set[str]]) -> None:
    graph = {name: (found & PACKAGE.keys()) - {name} for name, found in imported.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_one_file_name_stands_for_one_subject() -> None:
    stems = Counter(path.stem for path in PACKAGE.values())
    assert {stem for stem, count in stems.items() if count > 1} - SHARED_NAMES == set()


@pytest.mark.parametrize(
    ("importing", "forbidden"),
    [
        (PACKAGE, {"fusestore_cli", "tools", "tests", "benchmarks", "experiments", "examples"}),
        (COMMANDS, {"tools", "tests", "benchmarks", "experiments", "examples"}),
        (TESTS, {"conftest"}),
    ],
    ids=["fusestore", "fusestore_cli", "tests"],
)
def test_nothing_imports_what_stands_above_it(
    importing: dict[str, Path], forbidden: set[str]
) -> None:
    for path in importing.values():
        roots = {name.partition(".")[0] for name in imports(path, frozenset())}
        assert not roots & forbidden, path


def test_what_tests_share_is_in_the_helpers() -> None:
    """Code that tests run in other processes stands in strings, so the text is searched as well."""
    taken = re.compile(r"\btests(\.\w+)*\.(test_\w+|conftest)\b")
    for path in TESTS.values():
        text = path.read_text(encoding="utf-8")
        found = imports(path, frozenset(TESTS)) | set(re.findall(r"(?:from|import) (\S+)", text))
        assert not [name for name in found if taken.search(name)], path


def test_tiny_models_come_from_one_factory() -> None:
    """Only tests/helpers/tiny_models.py makes configurations of models, or trains tokenizers."""
    factory = "tests.helpers.tiny_models"
    for name, path in TESTS.items():
        if name == factory:
            continue
        for node in parsed(path):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("transformers"):
                made = [alias.name for alias in node.names if alias.name.endswith("Config")]
                assert set(made) <= {"AutoConfig"}, (path, made)
            if isinstance(node, ast.ImportFrom) and node.module == "tokenizers":
                assert "trainers" not in {alias.name for alias in node.names}, path
            assert not (isinstance(node, ast.Attribute) and node.attr == "trainers"), path
