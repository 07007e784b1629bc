"""`fusestore fuse`: fuse aligned caches into a dataset to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import ConsoleReporter, output, print_json, print_table
from .options import JsonOption, StorageOption, StoreOption, storage_options

if TYPE_CHECKING:
    from fusestore.fuse.forecast import Forecast


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
    split: Annotated[
        str | None,
        typer.Option(help="Split to fuse (train), or to analyse (held_out).", show_default=False),
    ] = None,
    analyze: Annotated[
        bool,
        typer.Option(
            "--analyze",
            help="Write nothing: forecast from the caches what fusing them would bring.",
        ),
    ] = False,
    strategy: Annotated[
        str, typer.Option(help="mince, avgce, packllm, weighted, uniform or single.")
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
    from fusestore.config import FuseConfig
    from fusestore.corpus.tokenizers import load_tokenizer
    from fusestore.fuse.run import analyze_caches, fuse_caches
    from fusestore.storage.settings import parse_settings
    from fusestore.storage.store import Store

    config = parse_settings(
        FuseConfig,
        {
            "name": name,
            "target": target_name,
            "sources": tuple(source),
            "weights": tuple(weight or ()),
            "split": split or ("held_out" if analyze else "train"),
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
    where = Store.open(store, storage_options(storage_option))
    tokenizer = load_tokenizer(str(local_model_folder(target)))
    if analyze:
        forecast = analyze_caches(
            where,
            config,
            tokenizer,
            corpus,
            alignment_method=method,
            vocabulary_method=vocabulary,
            reporter=ConsoleReporter(),
        )
        _print_forecast(forecast, as_json)
        return
    manifest, built = fuse_caches(
        where,
        config,
        tokenizer,
        corpus,
        alignment_method=method,
        vocabulary_method=vocabulary,
        reporter=ConsoleReporter(),
    )
    if as_json:
        print_json({"fused": name, "built": built, **manifest.model_dump(mode="json")})
        return
    verb = "Fused" if built else "Already there:"
    output.print(
        f"{verb} {name}: {manifest.num_tokens:,} target tokens in {manifest.num_windows:,} windows"
    )


def _print_forecast(forecast: Forecast, as_json: bool) -> None:
    if as_json:
        print_json(forecast.model_dump(mode="json"))
        return
    for title, columns, rows in forecast.tables():
        print_table(title, columns, rows)
    output.print(
        "Compare the column common: the rest is over the positions that each one covers. "
        "docs/fusion.md defines every number and says what a forecast cannot tell."
    )
