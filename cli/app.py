"""The command `fusestore` and how it ends: 0 done, 1 a failure explained, 2 wrong usage."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from fusestore.errors import FusestoreError
from fusestore.version import __version__

from . import align, cache, corpus, fuse, inspect, run, train, verify
from .console import messages


class _Commands(TyperGroup):
    """Ends an interrupted command with a message; left to itself, typer ends it with none."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's context is not public
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("Interrupted. What was finished is kept; run the same command again to go on.")


app = typer.Typer(
    name="fusestore",
    cls=_Commands,
    help="Store, align and fuse the next-token distributions of several language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("corpus")(corpus.corpus)
app.command("cache")(cache.cache)
app.command("align")(align.align)
app.command("fuse")(fuse.fuse)
app.command("train")(train.train)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)

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
) -> None:
    global _debug
    _debug = debug


def main() -> None:
    """Run the command line; never returns."""
    # Both of these only ever add noise between our progress lines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except FusestoreError as error:
        _fail(str(error))
    except Exception as error:
        _fail(
            f"Unexpected {type(error).__name__}: {error}\n"
            "This is a defect of fusestore: please report it with the output of "
            "`fusestore --debug …`."
        )


def _fail(message: str) -> NoReturn:
    if _debug:
        traceback.print_exc()
    messages.print(f"Error: {message}", style="red", markup=False)
    sys.exit(1)
