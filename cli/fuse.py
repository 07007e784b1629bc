"""`fusestore fuse`: fuse aligned caches into a dataset to train on."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, StoreOption, storage_options


def fuse(
    store: StoreOption,
    source: Annotated[
        list[str], typer.Option("--source", help="A cache (repeatable); order breaks ties.")
    ],
    target: Annotated[
        str,
        typer.Option("--target", "-t", help="Target model: folder, hub id, .gguf, package:NAME."),
    ],
    target_name: Annotated[str, typer.Option(help="What the target is called.")] = "target",
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the fused dataset.")] = "fused",
    corpus: Annotated[str, typer.Option(help="Name of the corpus.")] = "corpus",
    split: Annotated[str, typer.Option(help="Split to fuse.")] = "train",
    strategy: Annotated[
        str, typer.Option(help="mince, avgce, weighted, uniform or single.")
    ] = "mince",
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each source, for `weighted`.")
    ] = None,
    score: Annotated[
        str, typer.Option(help="bits_per_byte, aligned_ce or token_ce.")
    ] = "bits_per_byte",
    granularity: Annotated[str, typer.Option(help="document, window or token.")] = "document",
    kind: Annotated[
        list[str] | None, typer.Option(help="Alignment kinds to accept: span, mined (repeatable).")
    ] = None,
    unaligned: Annotated[str, typer.Option(help="skip, label, target or fusellm.")] = "skip",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Entries kept.")] = 32,
    window_length: Annotated[int, typer.Option(min=2, help="Target tokens a window.")] = 1024,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Positions a file.")] = 65_536,
    method: Annotated[str, typer.Option(help="Of the token alignments.")] = "hybrid",
    vocabulary: Annotated[str, typer.Option(help="Of the vocabulary maps.")] = "mined",
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fuse the sources' distributions over the target's tokens."""
    from fusestore.capture.models import local_model_folder
    from fusestore.config import AlignConfig, FuseConfig
    from fusestore.corpus.tokenizers import load_tokenizer
    from fusestore.fuse.run import fuse_caches
    from fusestore.storage.settings import parse_settings
    from fusestore.storage.store import Store

    config = parse_settings(
        FuseConfig,
        {
            "name": name,
            "target": target_name,
            "sources": tuple(source),
            "weights": tuple(weight or ()),
            "split": split,
            "strategy": strategy,
            "score": score,
            "granularity": granularity,
            "kinds": tuple(kind or ("span",)),
            "unaligned": unaligned,
            "top_k": top_k,
            "window_length": window_length,
            "rows_per_shard": rows_per_shard,
        },
        "The command line",
    )
    aligned = parse_settings(
        AlignConfig, {"method": method, "vocabulary": vocabulary}, "The command line"
    )
    where = Store.open(store, storage_options(storage_option))
    manifest, built = fuse_caches(
        where,
        config,
        load_tokenizer(str(local_model_folder(target))),
        corpus,
        alignment_method=aligned.method,
        vocabulary_method=aligned.vocabulary,
        reporter=ConsoleReporter(),
    )
    if as_json:
        print_json({"fused": name, "built": built, **manifest.model_dump(mode="json")})
        return
    verb = "Fused" if built else "Already there:"
    output.print(
        f"{verb} {name}: {manifest.num_tokens:,} target tokens in {manifest.num_windows:,} windows"
    )
