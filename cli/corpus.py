"""`fusestore corpus`: build a corpus from files of text."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.corpus.input_format import READABLE
from fusestore.corpus.settings import CorpusSettings
from fusestore.store.shown_table import counted

from .console import ConsoleReporter, output, print_json
from .early_checks import check_inputs, check_models
from .options import (
    MODEL_FORMS,
    JsonOption,
    StorageOption,
    StoreOption,
    open_store,
    storage_options,
)
from .settings_options import settings_options


@settings_options(CorpusSettings)
def corpus(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Text to read: files, shell patterns, folders, URLs (http, s3, hf and others), or "
            f"folders saved by the datasets package. Read are {READABLE}. A .json file holds an "
            'array of objects, an object with such an array as "data", or JSON lines.',
        ),
    ],
    store: StoreOption,
    settings: CorpusSettings,
    name: Annotated[
        str, typer.Option("--name", "-n", metavar="NAME", help="Name of the corpus.")
    ] = "corpus",
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            "--tokenizer",
            "-t",
            metavar="MODEL ...",
            help=f"Model that must be able to read the documents: {MODEL_FORMS}. Repeat it for "
            "every source and the target.",
        ),
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a corpus: read text and cut documents to fit the models."""
    if settings.max_length is not None and not tokenizer:
        raise typer.BadParameter(
            "name every source and the target, or give --max-length none to keep documents whole",
            param_hint="--tokenizer",
        )
    # Options are for the storage of the store, or of the inputs where the store is local.
    for_inputs = "://" not in store and any("://" in path for path in inputs)
    opened = open_store(store, None if for_inputs else storage_option)
    check_inputs(opened, name, inputs)
    check_models(tokenizer or ())
    from fusestore.corpus.run import build_corpus

    result = build_corpus(
        opened,
        name,
        inputs,
        settings,
        tokenizers=tokenizer or (),
        storage_options=storage_options(storage_option) if for_inputs else None,
        reporter=ConsoleReporter(),
    )
    manifest = result.artifact.manifest
    if as_json:
        print_json({"corpus": name, "built": result.created, **manifest.model_dump(mode="json")})
        return
    blank = f"; {manifest.dropped_blank:,} blank ones left out" if manifest.dropped_blank else ""
    output.print(
        f"{'Built' if result.created else 'Already there:'} corpus {name}: "
        f"{counted(manifest.num_documents, 'document')}, {manifest.num_bytes:,} bytes in "
        f"{opened.location}{blank}"
    )
