"""`fusestore run`: from a fusion.toml to trained models; only missing artifacts are made.

If a stage makes its artifact, all artifacts that depend on it are deleted and made again. So the
inputs of every artifact are the artifacts in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from fusestore.align.run import align
from fusestore.align.settings import alignment_name
from fusestore.align.target_tokens import shares_tokens
from fusestore.cache.reader import Cache
from fusestore.capture.run import capture
from fusestore.corpus.corpus import Corpus
from fusestore.corpus.run import build_corpus
from fusestore.fuse.fusion import count_masked
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.run import fuse
from fusestore.merge.manifest import MergedModel
from fusestore.models.target import Target
from fusestore.progress import Reporter, SilentReporter
from fusestore.report.learning_curves import LearningCurve
from fusestore.report.summary import FusionResult, ModelResult, SourceResult, Summary
from fusestore.report.svg_plot import check_plot_file, save_plot
from fusestore.storage.location import Location
from fusestore.storage.publish import retract
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.layout import Store
from fusestore.store.result import StageResult
from fusestore.tokenizers.conversation import TrainOn
from fusestore.train.manifest import TrainedModel
from fusestore.workflows.fusion_config import FusionConfig, code_notices
from fusestore.workflows.models import open_models
from fusestore.workflows.store_report import check_report_file, write_report

_Result = TypeVar("_Result")

_SCORED_TURNS: dict[TrainOn, str] = {
    "assistant": "turns of the assistant",
    "all": "turns",
    "last-turn": "last turns of the assistant",
    "completion": "turns of the assistant after the last turn of a user",
}
"""What is scored of a conversation, by the corpus's `train_on`."""


class _Stages:
    """Runs stages in order, and records the stages that made their artifact."""

    def __init__(self, reporter: Reporter) -> None:
        self._made: set[str] = set()
        self._reporter = reporter

    def run(
        self,
        name: str,
        after: Iterable[str],
        output: Location,
        make: Callable[[], StageResult[_Result]],
    ) -> _Result:
        """Run one stage with the function `make`; `after` has the names of the stages it needs."""
        if self._made.intersection(after):
            # The manifest is deleted first, so that an interruption leaves an unfinished artifact.
            retract(output / MANIFEST_FILE)
            output.delete()
        result = make()
        if result.created:
            self._made.add(name)
        self._reporter.line(f"{name}: {'done' if result.created else 'already there'}")
        return result.artifact


def run_pipeline(config: FusionConfig, reporter: Reporter | None = None) -> Summary:
    """Run all stages of a fusion.toml.

    Args:
        config: the file's content.
        reporter: receives progress updates.

    Returns:
        The summary that `fusestore run` prints at the end.

    Raises:
        FusestoreError: the error of a stage; finished artifacts stay.
    """
    reporter = reporter or SilentReporter()
    store = Store.open(config.store, config.storage_options)
    if config.plot is not None:
        check_plot_file(config.plot, store.location)
    if config.report is not None:
        check_report_file(config.report, store.location)
    stages = _Stages(reporter)
    for name, model in config.models.items():
        license_text = f", used under: {model.license}" if model.license else ""
        reporter.line(f"model {name}: {model.model}{license_text}")
    for notice in code_notices(config):
        reporter.line(notice)
    models = open_models(config)

    corpus_stage = f"corpus {config.corpus.name}"
    corpus = stages.run(
        corpus_stage,
        (),
        store.corpus(config.corpus.name),
        lambda: build_corpus(
            store,
            config.corpus.name,
            config.corpus.inputs,
            config.corpus,
            tokenizers=list(models.values()),
            reporter=reporter,
        ),
    )

    # Before anything is captured.
    for split in {*(recipe.split for recipe in config.fuse.values()), config.evaluate_split}:
        if split is not None:
            corpus.split_documents(split)

    caches: dict[str, Cache] = {}
    for name in config.captured:
        caches[name] = stages.run(
            f"cache {name}",
            (corpus_stage,),
            store.cache(name),
            partial(
                capture,
                store,
                name,
                models[name],
                corpus,
                config.models[name].capture,
                reporter=reporter,
            ),
        )

    fused: dict[str, FusedManifest] = {}
    masked: dict[str, float] = {}
    aligned: set[str] = set()
    for name, recipe in config.fuse.items():
        target_name = str(recipe.target)
        target = Target.of_tokenizer(models[target_name].tokenizer, target_name)
        needed = [f"cache {cache}" for cache in caches]
        for source in recipe.sources:
            if shares_tokens(store, corpus, caches[source.cache], target):
                continue
            alignment = source.alignment or alignment_name(source.cache, target.name)
            needed.append(f"alignment {alignment}")
            if alignment in aligned:
                continue
            aligned.add(alignment)
            stages.run(
                needed[-1],
                (f"cache {source.cache}", corpus_stage),
                store.alignment(alignment),
                partial(
                    align,
                    store,
                    source.cache,
                    target,
                    config.align,
                    name=alignment,
                    reporter=reporter,
                ),
            )
        folder = stages.run(
            f"fused dataset {name}",
            needed,
            store.fused(name),
            partial(fuse, store, name, recipe, target=target, reporter=reporter),
        )
        fused[name] = FusedManifest.load(folder.location / MANIFEST_FILE)
        masked[name] = count_masked(folder.fusion) / folder.fusion.num_tokens
    evaluate = (corpus.name, config.evaluate_split) if config.evaluate_split else None

    trained: dict[str, TrainedModel] = {}
    for name, run in config.train.items():
        # Here, because it imports torch, which takes a second and is needed for nothing else.
        from fusestore.train.run import train_model

        trained[name] = stages.run(
            f"model {name}",
            (f"fused dataset {run.fused}",),
            store.model(name),
            partial(
                train_model,
                store,
                name,
                models[run.model],
                run.fused,
                run.settings,
                evaluate=evaluate,
                log_dir=Path(config.log_dir) / name if config.log_dir is not None else None,
                reporter=reporter,
            ),
        )
    merged: dict[str, MergedModel] = {}
    for name, merge in config.merge.items():
        from fusestore.merge.run import merge_models

        base = models[config.base_of(merge)] if merge.settings.needs_base else None
        merged[name] = stages.run(
            f"model {name}",
            [f"model {run}" for run in merge.models],
            store.model(name),
            partial(
                merge_models,
                store,
                name,
                list(merge.models),
                merge.settings,
                base=base,
                evaluate=evaluate,
                precision=config.train[merge.models[0]].settings.precision,
                reporter=reporter,
            ),
        )
    found = (LearningCurve.of(name, model.manifest) for name, model in trained.items())
    curves = tuple(curve for curve in found if curve is not None)
    if config.plot is not None and curves:
        save_plot(config.plot, curves)
        reporter.line(f"plot of the learning curves: {config.plot}")
    if config.report is not None:
        write_report(store, config.report, reporter=reporter)
    results = {
        name: ModelResult.of(name, config.train[name].fused, model.manifest)
        for name, model in trained.items()
    }
    for name, result in merged.items():
        before = results[config.merge[name].models[0]].bits_per_byte_before
        results[name] = ModelResult.of_merge(name, result.manifest, before)
    return Summary(
        fusions=tuple(
            FusionResult(
                name=name,
                sources=tuple(
                    # The manifest has the names that caches had when the dataset was made.
                    SourceResult.of(
                        statistics.model_copy(update={"cache": source.cache}),
                        caches[source.cache],
                        masked[name],
                    )
                    for statistics, source in zip(
                        manifest.sources, config.fuse[name].sources, strict=True
                    )
                ),
                num_tokens=manifest.num_tokens,
                kinds=manifest.kinds,
            )
            for name, manifest in fused.items()
        ),
        models=tuple(results.values()),
        curves=curves,
        scored=_scored(corpus),
        report=config.report,
    )


def _scored(corpus: Corpus) -> str:
    """What is scored of the corpus, in words."""
    chat = corpus.manifest.fingerprint.chat
    return _SCORED_TURNS[chat.train_on] if chat is not None else "text"
