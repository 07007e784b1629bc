"""`fusestore corpus`: make a corpus of documents from files."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, StoreOption, counts, storage_options


def corpus(
    inputs: Annotated[
        list[str], typer.Argument(help="Files, globs, folders or URLs: .txt .jsonl .parquet .csv.")
    ],
    store: StoreOption,
    tokenizer: Annotated[
        list[str],
        typer.Option(
            "--tokenizer",
            "-t",
            help="A model of the run (repeatable): documents will fit them all.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the corpus.")] = "corpus",
    max_length: Annotated[int, typer.Option(min=8, help="Most tokens a document may have.")] = 1024,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    split_column: Annotated[str | None, typer.Option(help="Column that names the split.")] = None,
    held_out_fraction: Annotated[
        float | None, typer.Option(help="Share of source documents held out, by hash.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Glob on file names: these are held out (repeatable).")
    ] = None,
    max_documents: Annotated[
        list[str] | None, typer.Option(help="SPLIT=NUMBER of source documents (repeatable).")
    ] = None,
    max_bytes: Annotated[
        list[str] | None, typer.Option(help="SPLIT=NUMBER of bytes of text (repeatable).")
    ] = None,
    sample_seed: Annotated[
        int | None,
        typer.Option(help="Draw the limited documents by this seed, not from the first."),
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read text, split long documents where all tokenizers agree, and keep the result."""
    from fusestore.corpus.run import make_corpus
    from fusestore.store.layout import Store
    from fusestore.store.settings_file import parse_settings
    from fusestore.workflows.fusion_config import CorpusConfig

    config = parse_settings(
        CorpusConfig,
        {
            "name": name,
            "inputs": tuple(inputs),
            "text_column": text_column,
            "split_column": split_column,
            "held_out_fraction": held_out_fraction,
            "held_out_pattern": tuple(held_out or ()),
            "max_length": max_length,
            "max_documents": counts(max_documents, "--max-documents"),
            "max_bytes": counts(max_bytes, "--max-bytes"),
            "sample_seed": sample_seed,
        },
        "The command line",
    )
    where = Store.open(store, storage_options(storage_option))
    from fusestore.models.target import open_tokenizer

    tokenizers = [open_tokenizer(spec) for spec in tokenizer]
    result, built = make_corpus(where, config, tokenizers, ConsoleReporter())
    if as_json:
        print_json({"corpus": name, "built": built, **result.manifest.model_dump(mode="json")})
        return
    verb = "Built" if built else "Already there:"
    output.print(
        f"{verb} corpus {name}: {result.manifest.num_documents:,} documents, "
        f"{result.manifest.num_bytes:,} bytes in {where.location}"
    )
