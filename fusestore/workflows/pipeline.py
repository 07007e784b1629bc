"""`fusestore run`: from a fusion.toml to trained models; only missing artifacts are made.

If a stage makes its artifact, all artifacts that depend on it are deleted and made again. So the
inputs of every artifact are the artifacts in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from fusestore.align.run import align, alignment_name
from fusestore.align.target_tokens import shares_tokens
from fusestore.cache.reader import Cache
from fusestore.capture.run import capture
from fusestore.corpus.run import build_corpus
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.run import fuse
from fusestore.models.target import Target
from fusestore.progress import Reporter, SilentReporter
from fusestore.report.learning_curves import LearningCurve
from fusestore.report.summary import ModelResult, SourceResult, Summary
from fusestore.report.svg_plot import check_plot_file, save_plot
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.layout import Store
from fusestore.store.result import StageResult
from fusestore.train.manifest import TrainedModel
from fusestore.workflows.fusion_config import FusionConfig
from fusestore.workflows.models import open_models

_Result = TypeVar("_Result")


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
            (output / "manifest.json").delete()
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
    stages = _Stages(reporter)
    for name, model in config.models.items():
        license_text = f", used under: {model.license}" if model.license else ""
        reporter.line(f"model {name}: {model.model}{license_text}")
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
    for split in (config.fuse.recipe.split, config.evaluate_split):
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

    recipe = config.fuse.recipe
    target = Target.of_tokenizer(models[config.target].tokenizer, config.target)
    aligned: list[str] = []
    for source in recipe.sources:
        if shares_tokens(store, corpus, caches[source.cache], target):
            continue
        alignment = source.alignment or alignment_name(source.cache, target.name)
        aligned.append(f"alignment {alignment}")
        stages.run(
            aligned[-1],
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

    fused_stage = f"fused dataset {config.fuse.name}"
    folder = stages.run(
        fused_stage,
        [*(f"cache {name}" for name in caches), *aligned],
        store.fused(config.fuse.name),
        lambda: fuse(store, config.fuse.name, recipe, target=target, reporter=reporter),
    )
    fused = FusedManifest.load(folder.location / MANIFEST_FILE)
    evaluate = (corpus.name, config.evaluate_split) if config.evaluate_split else None

    trained: dict[str, TrainedModel] = {}
    for name, run in config.train.items():
        # Here, because it imports torch, which takes a second and is needed for nothing else.
        from fusestore.train.run import train_model

        trained[name] = stages.run(
            f"model {name}",
            (fused_stage,),
            store.model(name),
            partial(
                train_model,
                store,
                name,
                models[run.model],
                config.fuse.name,
                run.settings,
                evaluate=evaluate,
                log_dir=Path(config.log_dir) / name if config.log_dir is not None else None,
                reporter=reporter,
            ),
        )
    found = (LearningCurve.of(name, model.manifest) for name, model in trained.items())
    curves = tuple(curve for curve in found if curve is not None)
    if config.plot is not None and curves:
        save_plot(config.plot, curves)
        reporter.line(f"plot of the learning curves: {config.plot}")
    return Summary(
        sources=tuple(
            SourceResult.of(statistics, caches[statistics.cache]) for statistics in fused.sources
        ),
        models=tuple(ModelResult.of(name, model.manifest) for name, model in trained.items()),
        num_tokens=fused.num_tokens,
        kinds=fused.kinds,
        curves=curves,
    )
