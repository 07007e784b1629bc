"""`fusestore compare`: models and ensembles of caches on the same held-out text, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import ConsoleReporter, print_curves, print_json, print_table
from .early_checks import check_artifacts, check_models
from .options import (
    MODEL_FORMS,
    JsonOption,
    PrecisionOption,
    StorageOption,
    StoreOption,
    TrustOption,
    corpus_and_split,
    open_store,
)

if TYPE_CHECKING:
    from fusestore.workflows.comparison import Comparison


def compare(
    store: StoreOption,
    evaluate: Annotated[
        str,
        typer.Option(
            help="Corpus and split on which everything is scored in bits per byte.",
            metavar="CORPUS/SPLIT",
        ),
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help=f"Model to compare with those of the store: {MODEL_FORMS}.",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME ...", help="Distribution cache of an ensemble. Needs `--target`."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help=f"Model whose tokens the ensemble predicts: {MODEL_FORMS}.",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="SVG file outside the store for a plot of held-out bits per byte by training "
            "tokens, of models that were trained with `--eval-every`.",
        ),
    ] = None,
    precision: PrecisionOption = "auto",
    trust_remote_code: TrustOption = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare models and ensembles of caches on the same held-out text."""
    if bool(source) != (target is not None):
        raise typer.BadParameter("needs --target, and --target needs it", param_hint="--source")
    opened = open_store(store, storage_option)
    corpus, split = corpus_and_split(evaluate) or ("", "")
    check_artifacts(opened, "corpus", [corpus or None])
    check_artifacts(opened, "cache", source or ())
    check_models(models or ())
    from fusestore.errors import InvalidInputError
    from fusestore.forecast.run import forecast as forecast_recipe
    from fusestore.forecast.settings import ForecastSettings
    from fusestore.fuse.recipe import Recipe
    from fusestore.models.model import Model
    from fusestore.report.svg_plot import check_plot_file, save_plot
    from fusestore.workflows.comparison import compare as compare_all

    if plot is not None:
        check_plot_file(plot, opened.location)
    forecast = None
    if source and target:
        forecast = forecast_recipe(
            opened,
            Recipe.parse({"sources": source, "target": target, "corpus": corpus}),
            ForecastSettings(split=split, strategies=("uniform",)),
        )
    comparison = compare_all(
        opened,
        corpus,
        split,
        [
            Model.open(spec, store=opened, trust_remote_code=trust_remote_code)
            for spec in models or ()
        ],
        forecast=forecast,
        precision=precision,
        reporter=ConsoleReporter(),
    )
    if as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        _print(comparison)
    if plot is not None:
        if not comparison.curves:
            raise InvalidInputError(
                f"{opened.location} holds no model that was evaluated on {corpus}/{split} during "
                f"training, so there is no curve to plot. Train with `--evaluate {corpus}/{split} "
                "--eval-every STEPS`."
            )
        save_plot(plot, comparison.curves)


def _print(comparison: Comparison) -> None:
    print_table(*comparison.table())
    print_curves(comparison.curves, comparison.savings)
