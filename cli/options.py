"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .field_options import key_values

if TYPE_CHECKING:
    from fusestore.store.layout import Store

MODEL_FORMS = "a folder, hub id, .gguf file, package:NAME, or a name in the store"
STORE_HELP = "The store: a folder, or a URL such as s3://bucket/x."

StoreOption = Annotated[
    str, typer.Option("--store", "-s", metavar="STORE", help=STORE_HELP, show_default=False)
]
StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE ...",
        help="Option of the storage, such as endpoint_url=URL or anon=true; a table is JSON. Pass "
        "credentials in AWS_* variables instead.",
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(
        help="Format of matrix products in the evaluation. auto: bfloat16 where the device has it "
        "in hardware, else float32."
    ),
]
EvaluateOption = Annotated[
    str | None,
    typer.Option(
        help="Corpus and split on which the model is scored in bits per byte.",
        metavar="CORPUS/SPLIT",
        rich_help_panel="Evaluation",
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that the model folder contains. Only for code you have read.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Only show what would be done; nothing is written or removed."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def open_store(url: str, pairs: list[str] | None, hint: str = "--storage-option") -> Store:
    """The store at a path or URL; exit code 2 if its storage does not take an option."""
    from fusestore.errors import InvalidInputError
    from fusestore.store.layout import Store

    options = storage_options(pairs, hint)
    if not options:
        return Store.open(url)
    try:
        store = Store.open(url, options)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error
    if store.location.is_local:
        raise typer.BadParameter(f"{url} is a local folder, which has no options", param_hint=hint)
    return store


def storage_options(pairs: list[str] | None, hint: str = "--storage-option") -> dict[str, str]:
    """`KEY=VALUE` pairs as a dictionary; exit code 2 if a text is not such a pair."""
    try:
        return key_values(pairs or (), secret=True)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error


def corpus_and_split(text: str | None) -> tuple[str, str] | None:
    """`CORPUS/SPLIT` as its two names; exit code 2 if the text has another form."""
    if text is None:
        return None
    corpus, separator, split = text.partition("/")
    if not separator:
        raise typer.BadParameter(f"{text!r} is not CORPUS/SPLIT", param_hint="--evaluate")
    return corpus, split
