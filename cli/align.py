"""`fusestore align`: align a cache to a target tokenizer."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, StoreOption, storage_options


def align(
    cache: Annotated[str, typer.Argument(help="Name of the cache.")],
    store: StoreOption,
    target: Annotated[
        str,
        typer.Option("--target", "-t", help="Target model: folder, hub id, .gguf, package:NAME."),
    ],
    target_name: Annotated[str, typer.Option(help="What the target is called.")] = "target",
    method: Annotated[str, typer.Option(help="hybrid, span, mined or exact.")] = "hybrid",
    vocabulary: Annotated[str, typer.Option(help="mined, exact, prefix or statistical.")] = "mined",
    corpus: Annotated[
        str | None, typer.Option(help="Corpus the target reads; default: the cache's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Default: CACHE--TARGET_NAME.")
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Map a source's vocabulary to the target's and align their tokens."""
    from fusestore.align.run import align_cache
    from fusestore.capture.models import local_model_folder
    from fusestore.config import AlignConfig
    from fusestore.corpus.tokenizers import load_tokenizer
    from fusestore.storage.settings import parse_settings
    from fusestore.storage.store import Store

    config = parse_settings(
        AlignConfig, {"method": method, "vocabulary": vocabulary}, "The command line"
    )
    result, built = align_cache(
        Store.open(store, storage_options(storage_option)),
        cache,
        load_tokenizer(str(local_model_folder(target))),
        target_name,
        method=config.method,
        vocabulary=config.vocabulary,
        corpus_name=corpus,
        name=name,
        reporter=ConsoleReporter(),
    )
    coverage = result.alignment.coverage
    if as_json:
        print_json({"cache": cache, "built": built, "coverage": coverage})
        return
    shares = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in coverage.items())
    output.print(f"{'Aligned' if built else 'Already there:'} {cache} to {target_name}: {shares}")
