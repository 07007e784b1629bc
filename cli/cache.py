"""`fusestore cache`: capture a source model's distributions."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .console import ConsoleReporter, output, print_json
from .options import JsonOption, StorageOption, StoreOption, storage_options


def cache(
    model: Annotated[
        str, typer.Argument(help="A model folder, hub id, .gguf file, or package:NAME.")
    ],
    store: StoreOption,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the cache.")],
    corpus: Annotated[str, typer.Option(help="Name of the corpus.")] = "corpus",
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", min=1, help="Most entries a row; draws, if sampled.")
    ] = 32,
    selection: Annotated[str, typer.Option(help="top-k, top-p or sampled.")] = "top-k",
    top_p: Annotated[
        float | None, typer.Option(help="For top-p: as few of the top k as reach this mass.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For sampled: of the draws; default 0.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="compact: smallest; lossless: exact; fast: not compressed.")
    ] = "compact",
    logprob_step: Annotated[
        float | None,
        typer.Option(min=0, help="Grid of log-probabilities in nats; default 1/16."),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(
            help="Format the model runs in. auto: bfloat16 where the device has it in hardware, "
            "else float32."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Documents at a time; default: by a token budget.")
    ] = None,
    bos: Annotated[str, typer.Option(help="auto, always or never.")] = "auto",
    attention: Annotated[str | None, typer.Option(help="sdpa, eager, flash_attention_2.")] = None,
    on_nan: Annotated[str, typer.Option(help="stop, or skip the document.")] = "stop",
    revision: Annotated[str | None, typer.Option(help="Commit or tag of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code the model folder carries.")
    ] = False,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Rows written as one unit.")] = 262_144,
    rows_per_chunk: Annotated[int, typer.Option(min=1, help="Rows decoded as one unit.")] = 2_048,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Capture a model's top-k next-token log-probabilities over a corpus.

    Run it again after an interruption: what is there is kept.
    """
    from fusestore.capture.run import capture
    from fusestore.capture.settings import CaptureSettings
    from fusestore.corpus.build import open_corpus
    from fusestore.store.layout import Store
    from fusestore.store.settings_file import parse_settings

    settings = parse_settings(
        CaptureSettings,
        {
            "selection": selection,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "profile": profile,
            "logprob_step": logprob_step,
            "dtype": dtype,
            "device": device,
            "batch_size": batch_size,
            "bos": bos,
            "attention": attention,
            "on_nan": on_nan,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "rows_per_shard": rows_per_shard,
            "rows_per_chunk": rows_per_chunk,
        },
        "The command line",
    )
    where = Store.open(store, storage_options(storage_option))
    opened = open_corpus(where, corpus)
    result, built = capture(where, opened, model, name, settings, ConsoleReporter())
    if as_json:
        print_json({"cache": name, "built": built, **result.manifest.model_dump(mode="json")})
        return
    verb = "Captured" if built else "Already there:"
    output.print(
        f"{verb} cache {name}: {len(result):,} rows of at most {result.k} entries in "
        f"{where.location}"
    )
