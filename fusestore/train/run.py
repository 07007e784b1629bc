"""`train_on_fused`: train a model on a fused dataset of the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusestore.corpus.build import open_corpus
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.data.dataset import FusedDataset, open_fused
from fusestore.data.mixable import own_seed
from fusestore.data.mixture import FusedMixture
from fusestore.data.streaming.stream_mixture import StreamingMixture
from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
from fusestore.errors import InvalidInputError
from fusestore.models.loading import local_model_folder
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.storage.packages import user_cache_folder
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from fusestore.train.evaluation import SCORE
from fusestore.train.guards import check_tokenizer
from fusestore.train.logs import check_log_folder
from fusestore.train.loop import TrainingProgress
from fusestore.train.manifest import TrainingManifest
from fusestore.train.model_io import check_model_folder
from fusestore.train.settings import TrainSettings
from fusestore.train.step_batches import Trainable
from fusestore.train.trainer import train


def train_on_fused(
    store: Store,
    fused: str | Mapping[str, float | None],
    model: str,
    name: str,
    settings: TrainSettings,
    *,
    evaluate: tuple[str, str] | None = None,
    output: Location | None = None,
    work_dir: Path | None = None,
    log_dir: Path | None = None,
    reporter: Reporter | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[TrainingManifest, bool]:
    """Train a model on a fused dataset and publish it.

    Args:
        store: holds the fused dataset; from a remote one it is read as a stream.
        fused: the fused dataset; or several, each with its weight or, all of them, with None: see
            `fusestore.data.FusedMixture`.
        model: the model to start from; its tokenizer is the dataset's.
        name: of the trained model.
        settings: of the run.
        evaluate: corpus and split to score in bits per byte, before, during and after.
        output: the model's folder; `models/<name>` in the store unless given.
        work_dir: local folder for checkpoints; below the user's cache unless given.
        log_dir: local folder outside the store for TensorBoard logs; none unless given.
        reporter: hears the progress.
        tokenizer: the model's, where it is loaded already.

    Returns:
        The training manifest, and whether anything had to be computed.

    Raises:
        NotFoundError: no such dataset, model or corpus.
        IncompatibleError: the model cannot be trained on this dataset: another tokenizer, say.
        NonFiniteError: the loss is not a number.
        DivergedError: the loss rose by more than `settings.loss_spike`.
        AlreadyExistsError: another model has this name.
    """
    reporter = reporter or SilentReporter()
    if log_dir is not None:
        check_log_folder(log_dir, store.location)
    dataset = _open(store, fused, settings.seed)
    folder = local_model_folder(model)
    check_model_folder(folder)
    tokenizer = tokenizer or load_tokenizer(str(folder))
    check_tokenizer(tokenizer.digest, dataset, model)
    evaluation = None
    if evaluate is not None:
        evaluation = held_out_tokens(store, tokenizer, *evaluate)
    output = output or store.model(name)
    was_there = (output / "manifest.json").exists()
    work = work_dir or user_cache_folder() / "training" / f"{name}-{dataset.digest[:16]}"
    with reporter.measured_stage(f"Training {name}", "tokens") as progress:

        def step_done(report: TrainingProgress) -> None:
            seen = report.num_tokens_so_far
            progress(seen, round(seen * report.total_steps / report.step), _measured(report))

        result = train(
            folder,
            dataset,
            settings,
            output,
            work,
            evaluation=evaluation,
            progress=step_done,
            log_dir=log_dir,
            reporter=reporter,
        )
    return result.manifest, not was_there


def _measured(report: TrainingProgress) -> str:
    """What the live line says: the loss, and the last evaluation."""
    parts = [f"step {report.step:,}", f"loss {report.point.loss:.4f}"]
    if report.evaluation is not None and SCORE in report.evaluation.metrics:
        score = report.evaluation.metrics[SCORE]
        parts.append(f"{score:.4f} bits/byte after {report.evaluation.step:,}")
    return ", ".join(parts)


def _open(store: Store, fused: str | Mapping[str, float | None], seed: int) -> Trainable:
    """One dataset or a mixture: mapped where it lies here, streamed where it is complete elsewhere.

    Windows come in one order either way, so a run may go on where the store is nearer. What is not
    complete is made on demand, which a stream does not.
    """
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
            f"Some of the fused datasets {', '.join(fused)} have weights and some have none: give "
            "each a weight, as in NAME=0.7, or none."
        )
    if streamed:
        digests = [StreamingFusedDataset(store.fused(name)).digest for name in names]
        seeds = [own_seed(digest, seed) for digest in digests]
        streams = [_stream(store, *each) for each in zip(names, seeds, strict=True)]
        return StreamingMixture(streams, weights or None)
    return FusedMixture([mapped(name) for name in names], weights or None)


def _stream(store: Store, name: str, seed: int) -> StreamingFusedDataset:
    return StreamingFusedDataset(store.fused(name), seed=seed, shuffle_span=None)


def held_out_tokens(store: Store, tokenizer: Tokenizer, corpus_name: str, split: str) -> TokenTable:
    """The tokens of a split's documents, by a model's own tokenizer."""
    corpus = open_corpus(store, corpus_name)
    documents = corpus.split_documents(split)
    return corpus_tokens(store, corpus, tokenizer, tokenizer.adds_bos).take(documents)
