"""What is missing or wrong is answered in the same way by every command, and at once.

The commands are found here, by their examples and options, so that a new one is checked too. All of
them run in one process of their own, which must not import what takes seconds.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from fusestore_cli.app import app
from fusestore_cli.commands import COMMANDS
from typer.testing import CliRunner

from tests.helpers.kept_copy import first_store

__all__ = ["first_store"]

HEAVY = ("numba", "obstore", "polars", "torch", "transformers", "zarr")

MAKE_STORES = {"corpus", "run", "demo", "distill", "init"}

NEEDS_NO_STORE = ("align --text", "estimate google/gemma-3-270m --fit")
"""Examples that load a tokenizer, or a model's configuration, and nothing else."""


def local(example):
    """The arguments of an example, on this machine."""
    arguments = shlex.split(example)[1:]
    return ["other.store" if "://" in each else each for each in arguments]


def examples():
    for entry in COMMANDS:
        for example in entry.examples:
            if entry.name not in ("demo", "init") and not example.startswith(
                tuple(f"fusestore {start}" for start in NEEDS_NO_STORE)
            ):
                yield entry.name, local(example)


def is_missing(name, arguments):
    """Arguments of `distill` are hub ids, which only a download can tell to be wrong."""
    return (name, arguments) if name != "distill" else (name, [name, "./no", *arguments[2:3], "no"])


MISSING = [arguments for _, arguments in (is_missing(*each) for each in examples())]


_TYPED = re.compile(r"^ +(?:-\w, )?(--[\w-]+) <", re.MULTILINE)
"""Options of a help text that take a number or one of some words."""


def wrong_values():
    """Each command with an option that it does not have, and with wrong values of some it has."""
    for entry in COMMANDS:
        arguments = local(entry.examples[0])
        yield [*arguments, "--no-such-option"]
        shown = CliRunner().invoke(app, [entry.name, "--help"], env={"COLUMNS": "80"}).output
        for option in _TYPED.findall(shown):
            yield [*arguments, option, "no:such:value"]


WRONG = list(wrong_values())

PROGRAM = """
import contextlib, io, json, sys, time
from fusestore_cli.app import run_command
cases, heavy = json.load(sys.stdin)
results = []
for arguments in cases:
    sys.argv = ["fusestore", *arguments]
    out, err = io.StringIO(), io.StringIO()
    import fusestore_cli.console as console
    from rich.console import Console
    console.messages = Console(
        stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
    )
    code, began = None, time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command()
        except SystemExit as ended:
            code = ended.code
    imported = [name for name in heavy if name in sys.modules]
    results.append([code, out.getvalue(), err.getvalue(), imported, time.process_time() - began])
    for name in imported:
        # Of what one case imports the next ones are not accused.
        heavy.remove(name)
json.dump(results, sys.stdout)
"""


def run_all(cases, folder):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([cases, list(HEAVY)]),
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return list(zip(cases, json.loads(ended.stdout), strict=True))


def check_failures(outcomes):
    """Each ended with 1 and one paragraph on standard error, without output or slow imports."""
    for arguments, (code, out, err, imported, seconds) in outcomes:
        what = f"{shlex.join(arguments)}: exit code {code}\n{out}{err}"
        assert code == 1, what
        assert out == "" or arguments[0] == "distill", what
        assert err.count("Error: ") == 1, what
        message = err.partition("Error: ")[2].strip()
        assert "\n" not in message, what
        assert "Traceback" not in err, what
        assert "defect of fusestore" not in err, what
        assert imported == [], what
        assert seconds < 1, what


@pytest.fixture(scope="module")
def no_store(tmp_path_factory):
    return run_all(MISSING, tmp_path_factory.mktemp("empty"))


def test_a_store_or_an_input_that_is_missing(no_store):
    assert {arguments[0] for arguments, _ in no_store} == {entry.name for entry in COMMANDS} - {
        "demo",
        "init",
    }
    check_failures(no_store)


def test_a_missing_store_is_called_so(no_store):
    """By every command that reads one, but for those that miss a file first."""
    for arguments, (_, _, err, _, _) in no_store:
        files = ("merge", "import", "recipe.toml")
        if arguments[0] not in MAKE_STORES and not set(files) & set(arguments):
            assert "Error: There is no store at " in err, (arguments, err)


@pytest.mark.slow
def test_an_artifact_that_is_missing(first_store, tmp_path):
    shutil.copytree(first_store, tmp_path / "my.store")
    shutil.copytree(first_store, tmp_path / "other.store")
    whole = {"ls", "tree", "du", "report", "verify", "gc", "push", "pull", "sync"}
    cases = [
        each
        for each in MISSING
        if each[0] not in MAKE_STORES and (each[0] not in whole or any("/" in a for a in each[1:2]))
    ]
    assert len({each[0] for each in cases}) >= 18
    check_failures(run_all(cases, tmp_path))


@pytest.mark.slow
def test_wrong_options(tmp_path):
    assert len(WRONG) > 100
    for arguments, (code, out, err, imported, seconds) in run_all(WRONG, tmp_path):
        what = f"{shlex.join(arguments)}: exit code {code}\n{out}{err}"
        assert (code, out) == (2, ""), what
        assert err.startswith("Usage: "), what
        assert err.count("Error: ") == 1, what
        wrong = arguments[-1] if arguments[-1].startswith("--") else arguments[-2]
        assert wrong in err.partition("Error: ")[2], what
        assert imported == [], what
        assert seconds < 1, what
    assert list(tmp_path.iterdir()) == []
