"""`fusestore run`: from one fusion.toml to trained models, doing only what is missing.

Each stage knows whether its output is there. A stage that had to be built makes everything that
depends on it be built again: what a thing was made from is always what the store holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from fusestore.align.run import align_cache, alignment_name
from fusestore.cache.reader import Cache
from fusestore.capture.run import capture
from fusestore.corpus.run import make_corpus
from fusestore.fuse.run import fuse_caches
from fusestore.models.loading import local_model_folder
from fusestore.progress import Reporter, SilentReporter
from fusestore.report.summary import ModelResult, SourceResult, Summary
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from fusestore.train.manifest import TrainingManifest
from fusestore.train.run import train_on_fused
from fusestore.workflows.fusion_config import FusionConfig

_Result = TypeVar("_Result")


class _Stages:
    """Runs stages in order and remembers which of them had to be built."""

    def __init__(self, reporter: Reporter) -> None:
        self._built: set[str] = set()
        self._reporter = reporter

    def run(
        self,
        name: str,
        after: Iterable[str],
        output: Location,
        make: Callable[[], tuple[_Result, bool]],
    ) -> _Result:
        """Run one stage: `make` returns its result and whether it had to be built."""
        if self._built.intersection(after):
            # The manifest goes first: what a deletion that is cut short leaves is unfinished.
            (output / "manifest.json").delete()
            output.delete()
        result, built = make()
        if built:
            self._built.add(name)
        self._reporter.line(f"{name}: {'done' if built else 'already there'}")
        return result


def run_pipeline(
    config: FusionConfig,
    storage_options: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> Summary:
    """Do what a fusion.toml says.

    Args:
        config: the file's content.
        storage_options: for a remote store.
        reporter: hears what is going on.

    Returns:
        What came out, as the tables that `fusestore run` ends with show it.

    Raises:
        FusestoreError: whatever a stage raises; what is finished stays.
    """
    reporter = reporter or SilentReporter()
    store = Store.open(config.store, storage_options)
    stages = _Stages(reporter)
    _say_licences(config, reporter)
    # Stages are given the folder, not the name: what a hub's name and revision stand for is
    # settled here, once.
    folders: dict[str, str] = {}
    tokenizers: dict[str, Tokenizer] = {}
    for name, model in config.models.items():
        reporter.line(f"model {name}: {model.model}")
        folders[name] = str(local_model_folder(model.model, revision=model.capture.revision))
        tokenizers[name] = load_tokenizer(
            folders[name], trust_remote_code=model.capture.trust_remote_code
        )

    corpus_stage = f"corpus {config.corpus.name}"
    corpus = stages.run(
        corpus_stage,
        (),
        store.corpus(config.corpus.name),
        lambda: make_corpus(store, config.corpus, list(tokenizers.values()), reporter),
    )

    caches: dict[str, Cache] = {}
    for name in config.captured:
        caches[name] = stages.run(
            f"cache {name}",
            (corpus_stage,),
            store.cache(name),
            partial(
                capture,
                store,
                corpus,
                folders[name],
                name,
                config.models[name].capture,
                reporter,
                tokenizers[name],
            ),
        )

    target = config.fuse.target
    for name in config.fuse.sources:
        if tokenizers[name].digest == tokenizers[target].digest:
            continue
        stages.run(
            f"alignment {alignment_name(name, target)}",
            (f"cache {name}", corpus_stage),
            store.alignment(alignment_name(name, target)),
            partial(
                align_cache,
                store,
                name,
                tokenizers[target],
                target,
                method=config.align.method,
                vocabulary=config.align.vocabulary,
                reporter=reporter,
            ),
        )

    fused_stage = f"fused dataset {config.fuse.name}"
    fused = stages.run(
        fused_stage,
        [
            *(f"cache {name}" for name in caches),
            *(f"alignment {alignment_name(name, target)}" for name in config.fuse.sources),
        ],
        store.fused(config.fuse.name),
        lambda: fuse_caches(
            store,
            config.fuse,
            tokenizers[target],
            corpus.name,
            alignment_method=config.align.method,
            vocabulary_method=config.align.vocabulary,
            reporter=reporter,
        ),
    )

    trained: dict[str, TrainingManifest] = {}
    for name, run in config.train.items():
        trained[name] = stages.run(
            f"model {name}",
            (fused_stage,),
            store.model(name),
            partial(
                train_on_fused,
                store,
                config.fuse.name,
                folders[run.model],
                name,
                run.settings,
                evaluate=(corpus.name, config.evaluate_split) if config.evaluate_split else None,
                log_dir=Path(config.log_dir) / name if config.log_dir is not None else None,
                reporter=reporter,
                tokenizer=tokenizers[run.model],
            ),
        )
    return Summary(
        sources=tuple(
            SourceResult.of(statistics, caches[statistics.cache]) for statistics in fused.sources
        ),
        models=tuple(ModelResult.of(name, manifest) for name, manifest in trained.items()),
        num_tokens=fused.num_tokens,
        kinds=fused.kinds,
    )


def _say_licences(config: FusionConfig, reporter: Reporter) -> None:
    for name, model in config.models.items():
        if model.licence:
            reporter.line(f"{name} is used under: {model.licence}")
