"""The command `fusestore` and how it ends: 0 done, 1 a failure explained, 2 wrong usage."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from fusestore.errors import FusestoreError
from fusestore.version import __version__

from .command_help import CommandGroup

app = typer.Typer(
    name="fusestore",
    cls=CommandGroup,
    help="Store, align and fuse the next-token distributions of several language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    # Help is plain text in sections, in a pipe as on a terminal: see `command_help`.
    rich_markup_mode=None,
)

# What typer makes of a Ctrl-C, without a word.
_TYPER_INTERRUPTED = 130

_debug = False


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"fusestore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of a failure."),
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
    # Imported when the command runs, after all options have been checked.
    _plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="MODULE",
            help="Import a Python module that registers strategies, divergences or artifact kinds "
            "(repeatable).",
        ),
    ] = None,
) -> None:
    global _debug
    _debug = debug


def main() -> NoReturn:
    """Run the command line as a process of its own: Ctrl-C ends it with a word, at any moment."""
    try:
        try:
            run_command()
        except SystemExit as ended:
            if ended.code == _TYPER_INTERRUPTED:
                raise KeyboardInterrupt from ended
            # All is done and said; a Ctrl-C while Python shuts down would kill the process.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise
    except KeyboardInterrupt:
        # A second one need not wait for what is still being tidied up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _fail("Interrupted. What was finished is kept; run the same command again to go on.")


def run_command() -> NoReturn:
    """Run the command in `sys.argv`; ends with `SystemExit`, or with `KeyboardInterrupt`."""
    # Both of these only ever add noise between our progress lines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # A panic of Rust code is no Exception.
        if _comes_from_interrupt(error):
            raise KeyboardInterrupt from error
        if isinstance(error, FusestoreError):
            _fail(str(error))
        _fail(
            f"Unexpected {type(error).__name__}: {error}\n"
            "This is a defect of fusestore: please report it with the output of "
            "`fusestore --debug …`."
        )
    sys.exit(0)


def _comes_from_interrupt(error: BaseException) -> bool:
    """Whether a Ctrl-C began what ended so: compiled libraries answer it with errors of their own.

    A SystemError, "… returned a result with an exception set", is the commonest.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _fail(message: str) -> NoReturn:
    if _debug:
        traceback.print_exc()
    from .console import messages

    messages.print(f"Error: {message}", style="red", markup=False)
    sys.exit(1)
