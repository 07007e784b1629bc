"""`fusestore compare`: trained, merged and given models and ensembles, in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import ConsoleReporter, print_json, print_table
from .options import (
    JsonOption,
    PrecisionOption,
    StorageOption,
    StoreOption,
    corpus_and_split,
    storage_options,
)


def compare(
    store: StoreOption,
    evaluate: Annotated[str, typer.Option(help="CORPUS/SPLIT to score in bits per byte.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models beside the store's: folder, hub id, .gguf, package:NAME."),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Cache of the ensemble (repeatable).")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="With --source: the model whose tokens are predicted, as in `fusestore fuse`."
        ),
    ] = None,
    precision: PrecisionOption = "auto",
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the store's models, others, and ensembles of caches, on the same held-out text."""
    from fusestore.forecast.run import forecast as forecast_recipe
    from fusestore.forecast.settings import ForecastSettings
    from fusestore.fuse.recipe import Recipe
    from fusestore.store.layout import Store
    from fusestore.workflows.comparison import compare as compare_all

    if bool(source) != (target is not None):
        raise typer.BadParameter("--source and --target go together", param_hint="--source")
    where = Store.open(store, storage_options(storage_option))
    corpus, split = corpus_and_split(evaluate) or ("", "")
    forecast = None
    if source and target:
        forecast = forecast_recipe(
            where,
            Recipe.parse({"sources": source, "target": target, "corpus": corpus}),
            ForecastSettings(split=split, strategies=("uniform",)),
        )
    found = compare_all(
        where, corpus, split, models or (), forecast, ConsoleReporter(), precision=precision
    )
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_table(
        f"{corpus}/{split}, models in {found.precision}",
        ["what", "bits/byte", "of the text", "how it was made"],
        [
            [row.name, f"{row.bits_per_byte:.4f}", f"{row.covered:.1%}", row.made]
            for row in found.rows
        ],
    )
