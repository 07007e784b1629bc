"""`fusestore train`: train a model on a fused dataset."""

from __future__ import annotations

import os
from pathlib import Path
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

_LORA = "--lora-target/--adapter-only"


def train(
    model: Annotated[
        str, typer.Argument(help="Model to start from: folder, hub id, .gguf, package:NAME.")
    ],
    store: StoreOption,
    fused: Annotated[
        list[str] | None,
        typer.Option(help="The fused dataset; several, NAME or NAME=WEIGHT, are mixed."),
    ] = None,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the trained model.")] = "model",
    objective: Annotated[
        str, typer.Option(help="fuse; kd: the distributions alone; clm: the text alone.")
    ] = "fuse",
    lm_weight: Annotated[float, typer.Option(help="Weight of the text against the fusion.")] = 0.9,
    final_lm_weight: Annotated[
        float | None, typer.Option(help="Where it goes in a straight line; FuseLLM's decay: 1.")
    ] = None,
    divergence: Annotated[
        str, typer.Option(help="cross_entropy, forward_kl, reverse_kl or jensen_shannon.")
    ] = "cross_entropy",
    temperature: Annotated[float, typer.Option(help="Of the fused term.")] = 1.0,
    tail: Annotated[
        str, typer.Option(help="What rows do not keep: renormalize or ghost.")
    ] = "renormalize",
    logits: Annotated[str, typer.Option(help="whole, pieces, or auto by their number.")] = "auto",
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train low-rank updates of this rank (LoRA).")
    ] = None,
    lora_alpha: Annotated[float, typer.Option(help="They are multiplied by alpha / rank.")] = 32.0,
    lora_dropout: Annotated[float, typer.Option(help="Of what they are applied to.")] = 0.0,
    lora_target: Annotated[
        list[str] | None, typer.Option(help="Layer names (repeatable); all linear ones.")
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Publish the LoRA updates, not merged.")
    ] = False,
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 2e-5,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant.")] = "cosine",
    warmup: Annotated[float, typer.Option(help="Share of the steps.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows a forward pass.")] = 4,
    gradient_accumulation: Annotated[int, typer.Option(min=1, help="Passes a step.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the dataset.")] = 1,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Instead of epochs.")] = None,
    loss_spike: Annotated[
        float, typer.Option(help="Nats above the usual loss that end the run; 0: none do.")
    ] = 3.0,
    seed: Annotated[int, typer.Option(help="Of the order of windows.")] = 0,
    precision: PrecisionOption = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    attend_within: Annotated[
        str, typer.Option(help="window, or document: none sees another of its window.")
    ] = "window",
    num_workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 0,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Steps.")] = None,
    eval_every: Annotated[int | None, typer.Option(min=1, help="Steps.")] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="CORPUS/SPLIT to score in bits per byte.")
    ] = None,
    result: Annotated[
        str, typer.Option(help="Publish the last step's weights, or the best by --evaluate.")
    ] = "last",
    work_dir: Annotated[Path | None, typer.Option(help="Local folder for checkpoints.")] = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Local folder for TensorBoard logs, outside the store.")
    ] = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model on text and fused distributions, or on the same text alone."""
    from fusestore.progress import SilentReporter
    from fusestore.store.layout import Store
    from fusestore.store.settings_file import parse_settings
    from fusestore.train.run import train_on_fused
    from fusestore.train.settings import TrainSettings

    lora = None
    if lora_rank is not None:
        lora = {
            "rank": lora_rank,
            "alpha": lora_alpha,
            "dropout": lora_dropout,
            "target_modules": lora_target or (),
            "merge": not adapter_only,
        }
    elif lora_target or adapter_only:
        raise typer.BadParameter("says something of LoRA: give --lora-rank too", param_hint=_LORA)
    values: dict[str, Any] = {
        "objective": objective,
        "lm_weight": lm_weight,
        "final_lm_weight": final_lm_weight,
        "divergence": divergence,
        "temperature": temperature,
        "tail": tail,
        "logits": logits,
        "lora": lora,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup": warmup,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "epochs": epochs,
        "max_steps": max_steps,
        "loss_spike": loss_spike or None,
        "seed": seed,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing,
        "attend_within": attend_within,
        "num_workers": num_workers,
        "checkpoint_every": checkpoint_every,
        "eval_every": eval_every,
        "result": result,
    }
    settings = parse_settings(TrainSettings, values, "The command line")
    where = Store.open(store, storage_options(storage_option))
    # Under a launcher every process runs this command; one of them speaks.
    is_main_process = os.environ.get("RANK", "0") == "0"
    reporter = ConsoleReporter() if is_main_process else SilentReporter()
    manifest, built = train_on_fused(
        where,
        _weights(fused or ["fused"]),
        model,
        name,
        settings,
        evaluate=corpus_and_split(evaluate),
        work_dir=work_dir,
        log_dir=log_dir,
        reporter=reporter,
    )
    if not is_main_process:
        return
    if as_json:
        print_json({"model": name, "built": built, **manifest.model_dump(mode="json")})
        return
    output.print(f"{'Trained' if built else 'Already there:'} {name} in {where.model(name)}")
    for point in manifest.evaluations:
        metrics = ", ".join(f"{key} {value:.4f}" for key, value in point.metrics.items())
        kept = " (published)" if point.step == manifest.result_step else ""
        output.print(f"  after step {point.step}: {metrics}{kept}")


def _weights(fused: list[str]) -> str | dict[str, float | None]:
    """Names of fused datasets with their weights; of one without a weight, its name."""
    if len(fused) == 1 and "=" not in fused[0]:
        return fused[0]
    weights: dict[str, float | None] = {}
    for entry in fused:
        name, given, weight = entry.partition("=")
        if name in weights:
            raise typer.BadParameter(f"{name} is named twice", param_hint="--fused")
        try:
            weights[name] = float(weight) if given else None
        except ValueError as error:
            raise typer.BadParameter(
                f"{entry!r}: expected NAME or NAME=WEIGHT", param_hint="--fused"
            ) from error
    return weights
