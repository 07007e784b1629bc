"""`train_model`: train a model on a fused dataset of the store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fusestore.data.dataset import FusedDataset, open_fused
from fusestore.data.fused import Fused
from fusestore.data.mixable import own_seed
from fusestore.data.mixture import FusedMixture, TrainingDataset
from fusestore.data.streaming.stream_mixture import StreamingMixture
from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
from fusestore.errors import InvalidInputError
from fusestore.models.model import Model
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.packages import user_cache_folder
from fusestore.store.layout import Store
from fusestore.store.result import StageResult
from fusestore.train.evaluator import SCORE
from fusestore.train.guards import check_tokenizer
from fusestore.train.held_out import held_out_tokens
from fusestore.train.logs import check_log_folder
from fusestore.train.loop import TrainingProgress
from fusestore.train.manifest import TrainedModel
from fusestore.train.settings import TrainSettings
from fusestore.train.step_batches import Trainable
from fusestore.train.trainer import train


def train_model(
    store: Store,
    name: str,
    model: Model | str | os.PathLike[str],
    fused: str | Mapping[str, float | None] | Fused | TrainingDataset,
    settings: TrainSettings,
    *,
    evaluate: tuple[str, str] | None = None,
    work_dir: Path | None = None,
    log_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> StageResult[TrainedModel]:
    """Train a model on a fused dataset and publish it as `models/<name>` of the store.

    Args:
        store: holds the fused dataset, which is read as a stream from a remote store; receives the
            trained model.
        name: of the trained model.
        model: the model to start from, or what `Model.open` takes with this store. Its tokenizer
            must be the dataset's.
        fused: name of the fused dataset, or names of several with their weights or all with None
            (see `fusestore.data.FusedMixture`), or a handle, an open dataset or a mixture.
        settings: of the run.
        evaluate: corpus and split to score in bits per byte, before, during and after training.
        work_dir: local folder for checkpoints; by default a folder in the user's cache.
        log_dir: local folder outside the store for TensorBoard logs; None: no logs.
        reporter: receives progress updates.

    Raises:
        NotFoundError: there is no such dataset, model or corpus.
        IncompatibleError: the model cannot be trained on this dataset, for example because its
            tokenizer differs.
        NonFiniteError: the loss, its gradient or the weights are not finite.
        DivergedError: the loss rose by more than `settings.loss_spike`.
        AlreadyExistsError: another model has this name.
        FusestoreError: further errors of `fusestore.train.train`.
    """
    reporter = reporter or SilentReporter()
    if log_dir is not None:
        check_log_folder(log_dir, store.location)
    dataset = _open(store, fused, settings.seed)
    model = Model.open(model, store=store)
    check_tokenizer(model.tokenizer.digest, dataset, model.name)
    evaluation = None
    if evaluate is not None:
        evaluation = held_out_tokens(store, model.tokenizer, *evaluate)
    work_dir = work_dir or user_cache_folder() / "training" / f"{name}-{dataset.digest[:16]}"
    with reporter.measured_stage(f"Training {name}", "steps") as progress:
        # Steps, because the tokens of all steps are known only when the last one is done.
        def step_done(report: TrainingProgress) -> None:
            progress(report.step, report.total_steps, _status(report))

        return train(
            model,
            dataset,
            settings,
            store.model(name),
            work_dir,
            evaluation=evaluation,
            progress=step_done,
            log_dir=log_dir,
            reporter=reporter,
        )


def _status(report: TrainingProgress) -> str:
    """The text of the progress line: the step, its loss, and the last evaluation."""
    parts = [f"step {report.step:,}", f"loss {report.point.loss:.4f}"]
    if report.evaluation is not None and SCORE in report.evaluation.metrics:
        score = report.evaluation.metrics[SCORE]
        parts.append(f"{score:.4f} bits/byte after {report.evaluation.step:,}")
    return ", ".join(parts)


def _open(
    store: Store,
    fused: str | Mapping[str, float | None] | Fused | TrainingDataset,
    seed: int,
) -> Trainable:
    """One dataset or a mixture: mapped if it is local or incomplete, streamed if it is remote.

    Both have the same order of windows, so a run can be resumed on a machine with another path to
    the store. A stream cannot make missing shards of an incomplete dataset.
    """
    if isinstance(fused, FusedDataset | FusedMixture):
        return fused
    if isinstance(fused, Fused):
        return fused.dataset()
    names = [fused] if isinstance(fused, str) else list(fused)
    manifests = [store.fused(name) / "manifest.json" for name in names]
    streamed = not store.location.is_local and all(each.exists() for each in manifests)
    options = dict(store.location.storage_options)

    def mapped(name: str) -> FusedDataset:
        return open_fused(store.location.url, name, options)

    if isinstance(fused, str):
        return _stream(store, fused, seed) if streamed else mapped(fused)
    weights = [weight for weight in fused.values() if weight is not None]
    if 0 < len(weights) < len(fused):
        raise InvalidInputError(
            f"Some of the fused datasets {', '.join(fused)} have weights and some do not. Give all "
            "of them weights, as in NAME=0.7, or none."
        )
    if streamed:
        digests = [StreamingFusedDataset(store.fused(name)).digest for name in names]
        seeds = [own_seed(digest, seed) for digest in digests]
        streams = [_stream(store, *each) for each in zip(names, seeds, strict=True)]
        return StreamingMixture(streams, weights or None)
    return FusedMixture([mapped(name) for name in names], weights or None)


def _stream(store: Store, name: str, seed: int) -> StreamingFusedDataset:
    return StreamingFusedDataset(store.fused(name), seed=seed, shuffle_span=None)
