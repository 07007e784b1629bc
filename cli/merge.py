"""`fusestore merge`: merge the weights of models of one architecture."""

from __future__ import annotations

from typing import Annotated

import typer

from fusestore.merge.settings import MergeSettings

from .console import ConsoleReporter, output, print_json
from .early_checks import check_artifacts, check_models
from .options import (
    MODEL_FORMS,
    EvaluateOption,
    JsonOption,
    PrecisionOption,
    StorageOption,
    StoreOption,
    TrustOption,
    corpus_and_split,
    open_store,
)
from .settings_options import settings_options


@settings_options(MergeSettings, panel="Merging")
def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help=f"Two or more models, each {MODEL_FORMS}.",
        ),
    ],
    store: StoreOption,
    settings: MergeSettings,
    name: Annotated[
        str, typer.Option("--name", "-n", metavar="NAME", help="Name of the merged model.")
    ] = "merged",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Base model, from which the others were trained; for task_arithmetic, ties, varm "
            "and sce.",
            rich_help_panel="Merging",
        ),
    ] = None,
    trust_remote_code: TrustOption = False,
    evaluate: EvaluateOption = None,
    precision: PrecisionOption = "auto",
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge the weights of models of one architecture and tokenizer."""
    opened = open_store(store, storage_option)
    evaluated = corpus_and_split(evaluate)
    check_artifacts(opened, "corpus", [evaluated and evaluated[0]])
    check_models([*models, base])
    from fusestore.merge.run import merge_models
    from fusestore.models.model import Model

    def open_model(spec: str) -> Model:
        return Model.open(spec, store=opened, trust_remote_code=trust_remote_code)

    result = merge_models(
        opened,
        name,
        [open_model(spec) for spec in models],
        settings,
        base=None if base is None else open_model(base),
        evaluate=evaluated,
        precision=precision,
        reporter=ConsoleReporter(),
    )
    merged = result.artifact
    manifest = merged.manifest
    if as_json:
        content = manifest.model_dump(mode="json")
        print_json({"model": name, "built": result.created, **content})
        return
    output.print(f"{'Merged' if result.created else 'Already there:'} {name} in {merged.location}")
    if manifest.evaluation is not None:
        metrics = (f"{key} {value:.4f}" for key, value in manifest.evaluation.metrics.items())
        output.print(f"  on {evaluate}: {', '.join(metrics)}")
