"""`merge_models`: merge models of one architecture into a model folder of the store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusestore.corpus.build import open_corpus
from fusestore.errors import AlreadyExistsError, IncompatibleError, InvalidInputError
from fusestore.merge.manifest import MergeEvaluation, MergeManifest, MergePlan
from fusestore.merge.settings import MergeSettings
from fusestore.merge.weights import ModelWeights, check_mergeable
from fusestore.merge.write import write_merged
from fusestore.models.loading import local_model_folder, model_digest
from fusestore.models.precision import PrecisionSetting, settle_precision
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from fusestore.train.evaluate import score
from fusestore.train.model_io import publish_folder
from fusestore.train.run import held_out_tokens


def merge_models(
    store: Store,
    models: Sequence[str],
    name: str,
    settings: MergeSettings,
    *,
    base: str | None = None,
    evaluate: tuple[str, str] | None = None,
    precision: PrecisionSetting = "auto",
    reporter: Reporter | None = None,
) -> tuple[MergeManifest, bool]:
    """Merge models and publish the result as `models/<name>`.

    Args:
        store: where it goes.
        models: two or more: folders, hub ids, `.gguf` files, `package:NAME`.
        name: of the merged model.
        settings: how.
        base: the model that the others were trained from, for task_arithmetic and ties.
        evaluate: corpus and split to score in bits per byte.
        precision: what the merged model computes in while it is scored, on this machine's
            processor; `auto`: bfloat16 where it has that in hardware.
        reporter: hears the progress.

    Returns:
        The manifest, and whether anything had to be computed.

    Raises:
        NotFoundError: no such model or corpus.
        InvalidInputError: too few or too many models or weights, or a base too many or too few.
        IncompatibleError: models of different architectures, tensors or tokenizers.
        NonFiniteError: the merged weights hold NaN or infinity.
        AlreadyExistsError: another model has this name.
    """
    _check_call(models, settings, base)
    reporter = reporter or SilentReporter()
    names = [*models, *([base] if base is not None else [])]
    folders = [local_model_folder(spec) for spec in names]
    tokenizers = [load_tokenizer(str(folder)) for folder in folders]
    weights = [ModelWeights(folder, spec) for folder, spec in zip(folders, names, strict=True)]
    check_mergeable(weights, [tokenizer.digest for tokenizer in tokenizers])
    digests = [model_digest(folder) for folder in folders]
    plan = MergePlan(
        settings=settings,
        model_digests=tuple(digests[: len(models)]),
        base_digest=digests[-1] if base is not None else None,
        tokenizer_digest=tokenizers[0].digest,
    )
    output = store.model(name)
    found = _finished(output, plan)
    if found is not None:
        return found, False
    with tempfile.TemporaryDirectory(prefix="fusestore-merge-") as temporary:
        staging = Path(temporary) / "model"
        with reporter.stage(f"Merging {name}", "parameters") as progress:
            num_parameters = write_merged(
                staging,
                weights[: len(models)],
                weights[-1] if base is not None else None,
                settings,
                progress,
            )
        evaluation = None
        if evaluate is not None:
            evaluation = _evaluate(
                store, staging, tokenizers[0], *evaluate, name, precision, reporter
            )
        files = publish_folder(staging, output)
        shutil.rmtree(staging)
    manifest = MergeManifest(
        merge=plan, num_parameters=num_parameters, evaluation=evaluation, files=files
    )
    manifest.save(output / "manifest.json")
    return manifest, True


def _check_call(models: Sequence[str], settings: MergeSettings, base: str | None) -> None:
    method = settings.method
    if len(models) < (1 if settings.needs_base else 2):
        raise InvalidInputError(f"Method {method} needs more models than {len(models)}.")
    if method == "slerp" and len(models) != 2:
        raise InvalidInputError(
            f"Method slerp goes between two models, not {len(models)}; merge pairs, or use linear."
        )
    if settings.weights and len(settings.weights) != len(models):
        raise InvalidInputError(
            f"There are {len(settings.weights)} weights for {len(models)} models; give one each."
        )
    if settings.needs_base and base is None:
        raise InvalidInputError(
            f"Method {method} adds what models learned to the model they were trained from: "
            "give it with --base."
        )
    if base is not None and not settings.needs_base:
        raise InvalidInputError(f"Method {method} has no base; leave --base out.")


def _finished(output: Location, plan: MergePlan) -> MergeManifest | None:
    if not (output / "manifest.json").exists():
        return None
    try:
        manifest = MergeManifest.load(output / "manifest.json")
    except InvalidInputError as error:
        raise AlreadyExistsError(
            f"{output} holds a model that was not merged. Choose another name."
        ) from error
    if manifest.merge != plan:
        raise AlreadyExistsError(
            f"{output} holds a model merged from others or in another way. Choose another name, "
            "or delete it first."
        )
    return manifest


def _evaluate(
    store: Store,
    folder: Path,
    tokenizer: Tokenizer,
    corpus_name: str,
    split: str,
    name: str,
    precision: PrecisionSetting,
    reporter: Reporter,
) -> MergeEvaluation:
    import torch
    from transformers import AutoModelForCausalLM

    corpus = open_corpus(store, corpus_name)
    tokens = held_out_tokens(store, tokenizer, corpus_name, split)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    except (ValueError, OSError, ImportError) as error:
        raise IncompatibleError(
            f"The merged model cannot be loaded as a causal language model: {error}"
        ) from error
    settled = settle_precision(precision, "cpu", reporter)
    return MergeEvaluation(
        corpus_digest=corpus.manifest.digest,
        split=split,
        precision=settled,
        metrics=score(tokens, settled, name, reporter, model),
    )
