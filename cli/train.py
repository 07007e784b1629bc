"""`fusestore train`: train a model on a fused dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusestore.process_rank import launcher_rank
from fusestore.train.settings import TrainSettings

from .console import ConsoleReporter, output, print_json
from .early_checks import check_artifacts, check_models
from .options import (
    MODEL_FORMS,
    EvaluateOption,
    JsonOption,
    StorageOption,
    StoreOption,
    TrustOption,
    corpus_and_split,
    open_store,
)
from .settings_options import settings_options

_FOLDERS = "Checkpoints and logs"


@settings_options(TrainSettings)
def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"Model to start from: {MODEL_FORMS}.",
        ),
    ],
    store: StoreOption,
    settings: TrainSettings,
    fused: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT] ...",
            help="Name of the fused dataset. Repeat it, with weights, to mix several datasets. By "
            "default fused.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", "-n", metavar="NAME", help="Name of the trained model.")
    ] = "model",
    trust_remote_code: TrustOption = False,
    evaluate: EvaluateOption = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Local folder for checkpoints. By default a folder in the user's cache.",
            rich_help_panel=_FOLDERS,
        ),
    ] = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Local folder for TensorBoard logs, outside the store. By default no logs.",
            rich_help_panel=_FOLDERS,
        ),
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model on text and fused distributions, or on text alone.

    The same command resumes an interrupted run. To train with several processes, start the
    command with `accelerate launch` or `torchrun`.
    """
    opened = open_store(store, storage_option)
    datasets = _weights(fused or ["fused"])
    evaluated = corpus_and_split(evaluate)
    check_artifacts(opened, "fused", [datasets] if isinstance(datasets, str) else datasets)
    check_artifacts(opened, "corpus", [evaluated and evaluated[0]])
    check_models([model])
    from fusestore.models.model import Model
    from fusestore.progress import SilentReporter
    from fusestore.train.run import train_model

    # Under a launcher every process runs this command; the main process alone prints.
    is_main_process = launcher_rank() == 0
    result = train_model(
        opened,
        name,
        Model.open(model, store=opened, trust_remote_code=trust_remote_code),
        datasets,
        settings,
        evaluate=evaluated,
        work_dir=work_dir,
        log_dir=log_dir,
        reporter=ConsoleReporter() if is_main_process else SilentReporter(),
    )
    if not is_main_process:
        return
    trained = result.artifact
    manifest = trained.manifest
    if as_json:
        content = manifest.model_dump(mode="json")
        print_json({"model": name, "built": result.created, **content})
        return
    output.print(
        f"{'Trained' if result.created else 'Already there:'} {name} in {trained.location}"
    )
    for point in manifest.evaluations:
        metrics = ", ".join(f"{key} {value:.4f}" for key, value in point.metrics.items())
        published = " (published)" if point.step == manifest.result_step else ""
        output.print(f"  after step {point.step}: {metrics}{published}")


def _weights(fused: list[str]) -> str | dict[str, float | None]:
    """Weights by dataset name; for a single dataset without a weight, its name."""
    if len(fused) == 1 and "=" not in fused[0]:
        return fused[0]
    weights: dict[str, float | None] = {}
    for entry in fused:
        name, separator, weight = entry.partition("=")
        if name in weights:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--fused")
        try:
            weights[name] = float(weight) if separator else None
        except ValueError as error:
            raise typer.BadParameter(
                f"{entry!r}: expected NAME or NAME=WEIGHT", param_hint="--fused"
            ) from error
    return weights
