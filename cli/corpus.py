"""`fusestore corpus`: make a corpus of documents from files."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.corpus.settings import CorpusSettings

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, StoreOption, storage_options
from .settings_options import settings_options


@settings_options(CorpusSettings)
def corpus(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Files, shell patterns, folders or URLs of .txt, .jsonl, .parquet or .csv files."
        ),
    ],
    store: StoreOption,
    settings: CorpusSettings,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the corpus.")] = "corpus",
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            "--tokenizer",
            "-t",
            help="Model of the run: a folder, hub id, .gguf file, package:NAME, or a name of the "
            "store. Repeat for each model; documents will fit all of them.",
        ),
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read text, cut long documents where all tokenizers agree, and keep the result."""
    if settings.max_length is not None and not tokenizer:
        raise typer.BadParameter(
            "name the models of the run, or give --max-length none, which leaves documents whole",
            param_hint="--tokenizer",
        )
    from fusestore.corpus.run import build_corpus
    from fusestore.store.layout import Store

    where = Store.open(store, storage_options(storage_option))
    result = build_corpus(
        where, name, inputs, settings, tokenizers=tokenizer or (), reporter=ConsoleReporter()
    )
    manifest = result.artifact.manifest
    if as_json:
        print_json({"corpus": name, "built": result.created, **manifest.model_dump(mode="json")})
        return
    output.print(
        f"{'Built' if result.created else 'Already there:'} corpus {name}: "
        f"{manifest.num_documents:,} documents, {manifest.num_bytes:,} bytes in {where.location}"
    )
