"""The command `fusestore`. Exit codes: 0 done, 1 a failure that is explained, 2 wrong usage."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from fusestore.errors import FusestoreError, ReportedByRankZeroError
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

# Exit code of Typer after a Ctrl-C, for which it prints no message.
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
            help="Python module to import, which registers strategies, divergences or artifact "
            "kinds. Repeat it for several modules.",
        ),
    ] = None,
) -> None:
    global _debug
    _debug = debug


def main() -> NoReturn:
    """Run the command line as a process of its own: Ctrl-C at any moment ends it with a message."""
    try:
        try:
            run_command()
        except SystemExit as ended:
            if ended.code == _TYPER_INTERRUPTED:
                raise KeyboardInterrupt from ended
            # The command is done; a Ctrl-C while Python shuts down would kill the process.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise
    except KeyboardInterrupt:
        # A second Ctrl-C ends the process at once, without waiting for cleanup.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _fail("Interrupted. What was finished is kept; run the same command again to continue.")


def run_command() -> NoReturn:
    """Run the command in `sys.argv`; ends with `SystemExit`, or with `KeyboardInterrupt`."""
    # All three would print between our progress lines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Paths may hold bytes that are no text.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # A panic of Rust code is no Exception.
        if _comes_from_interrupt(error):
            raise KeyboardInterrupt from error
        if isinstance(error, ReportedByRankZeroError):
            _end_failed()
        if isinstance(error, FusestoreError):
            _fail(str(error))
        failed = _disk_failure(error)
        if failed is not None:
            _fail(failed)
        _fail(
            f"Unexpected {type(error).__name__}: {error}\n"
            "This is a defect of fusestore: please report it with the output of "
            "`fusestore --debug …`."
        )
    sys.exit(0)


def _disk_failure(error: BaseException) -> str | None:
    """The message about a full, read-only or failing disk; None for other errors."""
    from fusestore.storage.disk_errors import disk_error

    file = getattr(error, "filename", None) or "A file"
    failed = disk_error(error, f"{file} could not be written")
    return None if failed is None else str(failed)


def _end_failed() -> NoReturn:
    """Exit with code 1, which threads of a process group that did not end would turn into -6."""
    group = sys.modules.get("torch.distributed")
    if group is not None and group.is_available() and group.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


def _comes_from_interrupt(error: BaseException) -> bool:
    """Whether a Ctrl-C caused the error: compiled libraries raise errors of their own after one.

    The most common is a SystemError, "… returned a result with an exception set".
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _fail(message: str) -> NoReturn:
    from fusestore.storage.shown import hidden, plain

    from .console import messages

    if _debug:
        sys.stderr.write(plain(hidden(traceback.format_exc())))
    messages.print(f"Error: {hidden(message)}", style="red", markup=False)
    _end_failed()
