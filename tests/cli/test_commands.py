"""The table of commands is true, and its help can be read."""

import inspect
import shlex

import pytest
from fusestore_cli.app import app
from fusestore_cli.command_help import LazyCommand
from fusestore_cli.commands import COMMANDS
from typer.testing import CliRunner

by_name = pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)


def help_of(*arguments):
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.output


@by_name
def test_the_one_line_help_is_the_docstring_s_first_line(entry):
    command = LazyCommand(entry).load()
    assert inspect.cleandoc(command.help).splitlines()[0] == entry.summary
    assert entry.summary.endswith(".")
    shown = help_of(entry.name)
    assert "".join(entry.summary.split()) in "".join(shown.split())
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "Examples:" in shown


@by_name
def test_examples_are_understood(entry):
    assert len(entry.examples) == 2
    for example in entry.examples:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("fusestore", entry.name)
        # Fails where an option or a value is unknown, or a required one is missing.
        with LazyCommand(entry).make_context(name, arguments) as context:
            assert context.params


def test_all_commands_are_listed_by_purpose():
    shown = help_of()
    places = [
        shown.index(f"\n{panel}:\n") for panel in ("Start", "Build", "Measure", "Inspect", "Share")
    ]
    assert places == sorted(places)
    assert len({entry.name for entry in COMMANDS}) == len(COMMANDS)
    for entry in COMMANDS:
        # One line each.
        assert f"\n  {entry.name:8}  {entry.summary}\n" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_mistyped_command_is_answered_with_the_nearest():
    result = CliRunner().invoke(app, ["captrue"])
    assert result.exit_code == 2
    assert "Did you mean 'capture'" in result.output
