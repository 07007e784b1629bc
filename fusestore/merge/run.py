"""`merge_models`: merge models of one architecture into a model folder of the store."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fusestore.corpus.corpus import open_corpus
from fusestore.errors import AlreadyExistsError, InvalidInputError
from fusestore.merge.manifest import MergedModel, MergeEvaluation, MergeManifest, MergePlan
from fusestore.merge.settings import MergeSettings
from fusestore.merge.weights import ModelWeights, check_mergeable
from fusestore.merge.write import write_merged
from fusestore.models.model import Model
from fusestore.models.precision import PrecisionSetting, settle_precision
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.storage.replace import scratch_folder
from fusestore.store.layout import Store
from fusestore.store.licenses import LicensedInput, worth_keeping
from fusestore.store.result import StageResult
from fusestore.train.held_out import held_out_tokens, score
from fusestore.train.student.model_folder import publish_folder


def merge_models(
    store: Store,
    name: str,
    models: Sequence[Model | str | os.PathLike[str]],
    settings: MergeSettings,
    *,
    base: Model | str | os.PathLike[str] | None = None,
    evaluate: tuple[str, str] | None = None,
    precision: PrecisionSetting = "auto",
    reporter: Reporter | None = None,
) -> StageResult[MergedModel]:
    """Merge the weights of models and publish the result as `models/<name>` of the store.

    Args:
        store: receives the merged model.
        name: of the merged model.
        models: two or more models (one is enough with a base), or what `Model.open` takes with
            this store.
        settings: how weights are merged.
        base: the model that the others were trained from, for methods that need one.
        evaluate: corpus and split to score in bits per byte.
        precision: format of the merged model's matrix products while it is scored, on the CPU;
            `auto`: bfloat16 where the processor has it in hardware.
        reporter: receives progress updates.

    Raises:
        NotFoundError: there is no such model or corpus.
        InvalidInputError: the number of models or weights does not fit the method, the base is
            missing, or the method has no base.
        IncompatibleError: models of different architectures, tensors or tokenizers.
        NonFiniteError: the merged weights hold NaN or infinity.
        AlreadyExistsError: another model has this name.
    """
    _check_call(len(models), settings, base is not None)
    reporter = reporter or SilentReporter()
    inputs = [Model.open(model, store=store) for model in models]
    if base is not None:
        inputs.append(Model.open(base, store=store))
    weights = [ModelWeights(model) for model in inputs]
    check_mergeable(weights)
    digests = [model.digest for model in inputs]
    plan = MergePlan(
        settings=settings,
        model_digests=tuple(digests[: len(models)]),
        base_digest=digests[-1] if base is not None else None,
        tokenizer_digest=inputs[0].tokenizer.digest,
    )
    output = store.model(name)
    finished = _finished(output, plan)
    if finished is not None:
        return StageResult(MergedModel(output, finished), created=False)
    with scratch_folder("merge") as temporary:
        folder = temporary / "model"
        with reporter.stage(f"Merging {name}", "parameters") as progress:
            num_parameters = write_merged(
                folder,
                weights[: len(models)],
                weights[-1] if base is not None else None,
                settings,
                progress,
            )
        evaluation = None
        if evaluate is not None:
            merged = Model.open(folder, trust_remote_code=inputs[0].trust_remote_code)
            evaluation = _evaluate(store, merged, *evaluate, name, precision, reporter)
        files = publish_folder(folder, output, plan)
    manifest = MergeManifest(
        merge=plan,
        num_parameters=num_parameters,
        evaluation=evaluation,
        files=files,
        made_from=worth_keeping(
            LicensedInput(
                role="merged" if number < len(models) else "base",
                name=model.name,
                digest=model.digest,
                model_spec=model.portable_spec,
                license=model.license,
            )
            for number, model in enumerate(inputs)
        ),
    )
    manifest.save(output / "manifest.json")
    return StageResult(MergedModel(output, manifest), created=True)


def _check_call(num_models: int, settings: MergeSettings, has_base: bool) -> None:
    method = settings.method
    settings.check_models(num_models)
    if settings.needs_base and not has_base:
        raise InvalidInputError(
            f"Method {method} adds the changes of models to the model that they were trained "
            "from. Name that model with --base."
        )
    if has_base and not settings.needs_base:
        raise InvalidInputError(f"Method {method} has no base. Remove --base.")


def _finished(output: Location, plan: MergePlan) -> MergeManifest | None:
    if not (output / "manifest.json").exists():
        return None
    try:
        manifest = MergeManifest.load(output / "manifest.json")
    except InvalidInputError as error:
        raise AlreadyExistsError(
            f"{output} holds a model that was not made by merging. Choose another name."
        ) from error
    if manifest.merge != plan:
        raise AlreadyExistsError(
            f"{output} holds a model merged from other models or with other settings. Choose "
            "another name, or delete it first."
        )
    return manifest


def _evaluate(
    store: Store,
    merged: Model,
    corpus_name: str,
    split: str,
    name: str,
    precision: PrecisionSetting,
    reporter: Reporter,
) -> MergeEvaluation:
    tokens = held_out_tokens(store, merged.tokenizer, corpus_name, split)
    settled = settle_precision(precision, "cpu", reporter)
    return MergeEvaluation(
        corpus_digest=open_corpus(store, corpus_name).manifest.digest,
        split=split,
        precision=settled,
        metrics=score(tokens, settled, name, reporter, merged.load(device="cpu")),
    )
