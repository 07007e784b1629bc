"""Asking for help costs no second: nothing heavy is imported before something needs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusestore.version import FORMAT_VERSION

ROOT = Path(__file__).parents[1]

HEAVY = ("numba", "obstore", "polars", "torch", "transformers", "zarr")

_REPORT = f"""
import sys
found = [name for name in {HEAVY!r} if name in sys.modules]
sys.stderr.write("imported: " + ",".join(found))
"""


LOAD_CONFIG = f"""
from fusestore.storage.location import Location
from fusestore.workflows.fusion_config import load_config
for path in ("fusestore/workflows/demo/demo.toml", "examples/chat.toml"):
    load_config(Location.parse(f"{ROOT}/{{path}}"))
"""


KEPT = ROOT / f"tests/kept_store/format-{FORMAT_VERSION}/store"


def imported_by(code):
    """Heavy modules that are loaded after the code has run, in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{_REPORT}"], capture_output=True, text=True, check=False
    )
    assert "imported: " in result.stderr, result.stderr
    return result.stderr.rpartition("imported: ")[2], result.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import fusestore",
        "import fusestore; dir(fusestore)",
        "import fusestore; fusestore.align; fusestore.train",
        "import fusestore.workflows.fusion_config, fusestore.store.inventory",
        "import fusestore as fs; fs.Recipe(sources=['a', 'b'], strategy='uniform')",
        LOAD_CONFIG,
        "from fusestore.store.registry import kinds; assert len(kinds()) == 8",
        f"import fusestore as fs; assert fs.open_store({str(KEPT)!r})._repr_html_()",
    ],
)
def test_importing_is_light(code):
    assert imported_by(code)[0] == ""


COMMANDS = [
    "demo",
    "init",
    "run",
    "corpus",
    "capture",
    "align",
    "fuse",
    "train",
    "merge",
    "ls",
    "show",
    "verify",
]
COMMANDS += ["forecast", "push", "pull", "sync", "publish", "estimate", "compare"]

ASKED = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]


@pytest.fixture(scope="module")
def told():
    """What each of `ASKED` prints, and what was imported until then: one process asks them all."""
    code = f"""
import contextlib, io, json, sys
from fusestore_cli.app import main
for arguments in {ASKED!r}:
    sys.argv = ["fusestore", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            main()
        except SystemExit as end:
            assert not end.code, end.code
    found = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([arguments, found, output.getvalue()]))
"""
    return [json.loads(line) for line in imported_by(code)[1].splitlines()]


EMPTY = """
import typer
app = typer.Typer(rich_markup_mode=None)
@app.command()
def main() -> None: "Do nothing."
"""


def modules_of_help(setup, call):
    """What is imported for one help page, in a process of its own."""
    code = f"""
import contextlib, io, json, sys
before = set(sys.modules)
{setup}
sys.argv = ["program", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {call}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout))


def test_help_imports_what_an_empty_program_of_typer_does_and_few_modules_of_ours():
    """benchmarks/help.py measures the time."""
    ours = modules_of_help("from fusestore_cli.app import main", "main()")
    more = ours - modules_of_help(EMPTY, "app()")
    assert len(more) <= 8, more
    assert all(name.startswith("fusestore") for name in more), more


@pytest.mark.parametrize("arguments", ASKED)
def test_help_is_light(told, arguments):
    ((found, output),) = (rest for asked, *rest in told if asked == arguments)
    assert found == []
    assert "fusestore" in output


def test_listing_a_store_and_showing_a_manifest_is_light():
    store = Path(__file__).parent / f"kept_store/format-{FORMAT_VERSION}/store"
    for arguments in (["ls"], ["ls", "--json"], ["show", "fused/mince"], ["show", "cache/wide"]):
        code = f"""
import sys
from fusestore_cli.app import main
sys.argv = ["fusestore", *{arguments!r}, "--store", {str(store)!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
        found, output = imported_by(code)
        assert found == "", arguments
        assert "mince" in output or "wide" in output


MISSING = {
    "capture /nowhere/x --name n": "no corpus 'corpus'",
    "capture /nowhere/x --name n --corpus addresses": "/nowhere/x does not exist",
    "align wied -t small": "Did you mean 'wide'",
    "align wide -t /nowhere/x": "/nowhere/x does not exist",
    "fuse --source wied -t small": "Did you mean 'wide'",
    "fuse /nowhere.toml": "/nowhere.toml does not exist",
    "forecast --source wied -t small": "Did you mean 'wide'",
    "train small --fused minc": "Did you mean 'mince'",
    "train /nowhere/x --fused mince": "/nowhere/x does not exist",
    "train small --fused mince --evaluate adresses/train": "Did you mean 'addresses'",
    "merge /nowhere/a /nowhere/b": "/nowhere/a does not exist",
    "compare --evaluate adresses/train": "Did you mean 'addresses'",
    "compare /nowhere/x --evaluate addresses/train": "/nowhere/x does not exist",
    "estimate /nowhere/x": "no corpus 'corpus'",
    "push cache/wied --to elsewhere": "Did you mean 'cache/wide'",
    "show cache/wied": "Did you mean 'cache/wide'",
    "rm cache/wied": "Did you mean 'cache/wide'",
    "run /nowhere.toml": "/nowhere.toml does not exist",
}
"""Command lines that name what does not exist, and what is said of it."""


def test_what_is_missing_is_said_before_anything_slow_is_imported():
    """One process for all: none of them may import what the next one would find there."""
    store = Path(__file__).parent / f"kept_store/format-{FORMAT_VERSION}/store"
    code = f"""
import contextlib, io, sys
from fusestore_cli.app import run_command
from fusestore_cli import console
for line, said in {MISSING!r}.items():
    sys.argv = ["fusestore", *line.split(), "--store", {str(store)!r}]
    text = io.StringIO()
    console.messages.file = text
    try:
        run_command()
    except SystemExit as end:
        assert end.code == 1, (line, end.code)
    assert said in text.getvalue(), (line, text.getvalue())
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, (line, heavy)
"""
    assert imported_by(code)[0] == ""


def test_every_public_name_can_be_had():
    import fusestore

    for name in fusestore.__all__:
        assert getattr(fusestore, name) is not None
    with pytest.raises(AttributeError, match="opne_cache"):
        fusestore.opne_cache  # noqa: B018
