"""`fusestore merge`: merge the weights of models of one architecture."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .console import ConsoleReporter, output, print_json
from .options import (
    JsonOption,
    PrecisionOption,
    StorageOption,
    StoreOption,
    corpus_and_split,
    storage_options,
)


def merge(
    models: Annotated[
        list[str], typer.Argument(help="Two or more: folder, hub id, .gguf, package:NAME.")
    ],
    store: StoreOption,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the merged model.")] = "merged",
    method: Annotated[str, typer.Option(help="linear, slerp, task_arithmetic or ties.")] = "linear",
    base: Annotated[
        str | None,
        typer.Option(help="What the models were trained from, for task_arithmetic and ties."),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each model, in order (repeatable).")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Of what task_arithmetic and ties add to the base (1).")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of each task vector that ties keeps (0.2).")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as the first model.")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="CORPUS/SPLIT to score in bits per byte.")
    ] = None,
    precision: PrecisionOption = "auto",
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge the weights of models of one architecture and one tokenizer."""
    from fusestore.merge.run import merge_models
    from fusestore.merge.settings import MergeSettings
    from fusestore.store.layout import Store
    from fusestore.store.settings_file import parse_settings

    values: dict[str, Any] = {
        "method": method,
        "weights": tuple(weight or ()),
        "scale": scale,
        "density": density,
        "dtype": dtype,
    }
    given = {key: value for key, value in values.items() if value is not None}
    where = Store.open(store, storage_options(storage_option))
    manifest, built = merge_models(
        where,
        models,
        name,
        parse_settings(MergeSettings, given, "The command line"),
        base=base,
        evaluate=corpus_and_split(evaluate),
        precision=precision,
        reporter=ConsoleReporter(),
    )
    if as_json:
        print_json({"model": name, "built": built, **manifest.model_dump(mode="json")})
        return
    output.print(f"{'Merged' if built else 'Already there:'} {name} in {where.model(name)}")
    if manifest.evaluation is not None:
        metrics = (f"{key} {value:.4f}" for key, value in manifest.evaluation.metrics.items())
        output.print(f"  on {evaluate}: {', '.join(metrics)}")
