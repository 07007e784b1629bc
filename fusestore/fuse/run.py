"""`fuse_caches`, `analyze_caches`: find all a fusion names in the store; make it or forecast it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fusestore.align.map_tables import load_vocabulary_map
from fusestore.align.run import alignment_name
from fusestore.align.tables import Alignment, open_alignment
from fusestore.cache.reader import Cache, open_cache
from fusestore.config import FuseConfig
from fusestore.corpus.build import open_corpus
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.corpus.tokenizers import Tokenizer
from fusestore.corpus.tokens import TokenTable
from fusestore.errors import IncompatibleError, NotFoundError
from fusestore.fuse.analysis import GRANULARITIES, STRATEGIES, analyze_fusion
from fusestore.fuse.forecast import Forecast
from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Granularity, Recipe
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.store import Store


def fuse_caches(
    store: Store,
    config: FuseConfig,
    target: Tokenizer,
    corpus_name: str,
    *,
    alignment_method: str = "hybrid",
    vocabulary_method: str = "mined",
    reporter: Reporter | None = None,
) -> tuple[FusedManifest, bool]:
    """Fuse caches of the store into the fused dataset `config.name`.

    A source with the target's own tokenizer needs no alignment; any other one is used through the
    alignment `<source>--<target>`.

    Returns:
        The fused dataset's manifest, and whether anything had to be computed.

    Raises:
        NotFoundError: a cache or an alignment is missing; the message names it and the command
            that makes it.
        IncompatibleError: caches of different corpora or documents.
        FingerprintMismatchError: a fused dataset of this name was made from something else.
    """
    reporter = reporter or SilentReporter()
    found = _find(store, config, target, corpus_name, alignment_method, vocabulary_method)
    folder = store.fused(config.name)
    was_there = (folder / "manifest.json").exists()
    with reporter.stage(f"Fusing {config.name}", "tokens") as progress:
        manifest = materialize(
            folder,
            found.recipe,
            found.sources,
            target_tokens=found.tokens,
            documents=found.documents,
            vocab_size=len(target),
            corpus_digest=found.corpus_digest,
            target_cache=found.target_cache,
            progress=progress,
        )
    return manifest, not was_there


def analyze_caches(
    store: Store,
    config: FuseConfig,
    target: Tokenizer,
    corpus_name: str,
    *,
    strategies: Sequence[str] = STRATEGIES,
    granularities: Sequence[Granularity] = GRANULARITIES,
    alignment_method: str = "hybrid",
    vocabulary_method: str = "mined",
    reporter: Reporter | None = None,
) -> Forecast:
    """Forecast from caches alone what `fuse_caches` with this config would bring; writes nothing.

    Arguments and errors as for `fuse_caches` and `analyze_fusion`.
    """
    reporter = reporter or SilentReporter()
    found = _find(store, config, target, corpus_name, alignment_method, vocabulary_method)
    fusion = prepare(
        found.recipe,
        found.sources,
        target_tokens=found.tokens,
        documents=found.documents,
        vocab_size=len(target),
        corpus_digest=found.corpus_digest,
        target_cache=found.target_cache,
    )
    with reporter.stage(f"Analysing {config.split}", "tokens") as progress:
        return analyze_fusion(
            fusion, strategies=strategies, granularities=granularities, progress=progress
        )


@dataclass(frozen=True)
class _Found:
    """What a fusion reads; see `prepare`."""

    recipe: Recipe
    sources: list[SourceInput]
    target_cache: SourceInput | None
    tokens: TokenTable
    documents: npt.NDArray[np.int64]
    corpus_digest: str


def _find(
    store: Store,
    config: FuseConfig,
    target: Tokenizer,
    corpus_name: str,
    alignment_method: str,
    vocabulary_method: str,
) -> _Found:
    corpus = open_corpus(store, corpus_name)
    recipe = _recipe(config, target, corpus_name, alignment_method, vocabulary_method)

    def source(name: str) -> SourceInput:
        return _source_input(
            store, name, target, config.target, alignment_method, vocabulary_method
        )

    return _Found(
        recipe,
        [source(wanted.cache) for wanted in recipe.sources],
        None if recipe.target_cache is None else source(recipe.target_cache),
        corpus_tokens(store, corpus, target, target.adds_bos),
        corpus.split_documents(config.split),
        corpus.manifest.digest,
    )


def _recipe(
    config: FuseConfig,
    target: Tokenizer,
    corpus_name: str,
    alignment_method: str,
    vocabulary_method: str,
) -> Recipe:
    weights: Sequence[float] = config.weights or [1.0] * len(config.sources)
    return Recipe.parse(
        {
            "corpus": corpus_name,
            "split": config.split,
            "target": target.digest,
            "sources": [
                {"cache": name, "weight": weight}
                for name, weight in zip(config.sources, weights, strict=True)
            ],
            "strategy": config.strategy,
            "score": config.score,
            "granularity": config.granularity,
            "kinds": list(config.kinds),
            "unaligned": config.unaligned,
            "target_cache": config.target if config.unaligned == "target" else None,
            "top_k": config.top_k,
            "window_length": config.window_length,
            "rows_per_shard": config.rows_per_shard,
            "alignment_method": alignment_method,
            "vocabulary_method": vocabulary_method,
        }
    )


def _source_input(
    store: Store,
    name: str,
    target: Tokenizer,
    target_name: str,
    alignment_method: str,
    vocabulary_method: str,
) -> SourceInput:
    cache = open_cache(store, name)
    fingerprint = cache.fingerprint
    source = SourceInput(
        name=name,
        cache=cache,
        cache_digest=cache.digest,
        corpus_digest=fingerprint.corpus.digest,
        vocab_size=fingerprint.model.vocab_size,
    )
    if fingerprint.tokenizer_digest == target.digest:
        return source
    alignment_folder = store.alignment(alignment_name(name, target_name))
    map_folder = store.vocabulary_map(
        fingerprint.tokenizer_digest, target.digest, vocabulary_method
    )
    try:
        alignment = open_alignment(alignment_folder)
        vocabulary_map = load_vocabulary_map(map_folder)
    except NotFoundError as error:
        raise NotFoundError(
            f"Source {name!r} has another tokenizer than the target and is not aligned to it yet "
            f"({error}). Run `fusestore align {name} --target {target_name}` first, with "
            f"--method {alignment_method} --vocabulary {vocabulary_method}."
        ) from error
    _check_alignment(alignment, cache, target, alignment_method, name)
    return replace(
        source,
        target_id=vocabulary_map.target_id,
        alignment=alignment,
        vocabulary_map_digest=vocabulary_map.digest,
        alignment_digest=alignment.manifest.digest,
    )


def _check_alignment(
    alignment: Alignment, cache: Cache, target: Tokenizer, method: str, name: str
) -> None:
    """The alignment is of this cache, to this target, by the method asked for.

    Raises:
        IncompatibleError: it is not.
    """
    made = alignment.manifest.fingerprint
    expected = {
        "source_cache_digest": cache.digest,
        "target_tokenizer_digest": target.digest,
        "method": method,
    }
    differing = [
        f"{key} is {getattr(made, key)[:16]} there, {value[:16]} here"
        for key, value in expected.items()
        if getattr(made, key) != value
    ]
    if differing:
        raise IncompatibleError(
            f"The alignment of {name!r} at {alignment.location} is of something else: "
            f"{'; '.join(differing)}. Delete it and run `fusestore align {name}` again."
        )
