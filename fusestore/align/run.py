"""`align`: align one cache of a store to a target's tokenizer."""

from __future__ import annotations

from fusestore.align.alignment_writer import write_alignment
from fusestore.align.settings import AlignSettings, alignment_name
from fusestore.align.stored import Alignment
from fusestore.align.target_tokens import target_tokens
from fusestore.align.vocabulary.statistics import count_pairs
from fusestore.align.vocabulary.stored_map import (
    CountedCorpus,
    stored_vocabulary_map,
    vocabulary_map_folder,
)
from fusestore.cache.reader import Cache, open_cache
from fusestore.corpus.corpus import open_corpus
from fusestore.errors import IncompatibleError, NotFoundError
from fusestore.models.model import Model
from fusestore.models.target import Target
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.inventory import name_by_digest
from fusestore.store.layout import Store
from fusestore.store.result import StageResult
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.tokenizers.vocabulary import Vocabulary
from fusestore.tokenizers.vocabulary_table import load_vocabulary, save_vocabulary


def align(
    store: Store,
    source: str | Cache,
    target: Model | Tokenizer | Target | str,
    settings: AlignSettings | None = None,
    *,
    name: str | None = None,
    corpus: str | None = None,
    reporter: Reporter | None = None,
) -> StageResult[Alignment]:
    """Align a cache's tokens and vocabulary to the target's tokenizer.

    Args:
        store: holds the cache; receives alignment and vocabulary map.
        source: the cache, or its name.
        target: the target, or a name in the store, a model, or a tokenizer's digest.
        settings: methods; by default the defaults of `AlignSettings`.
        name: of the alignment; by default `alignment_name` of source and target.
        corpus: name of the target's corpus; by default the cache's.
        reporter: receives progress updates.

    Returns:
        The alignment; created if it or its vocabulary map was missing.

    Raises:
        NotFoundError: no such cache, corpus, or target.
        IncompatibleError: cache and target read different corpora.
        InvalidInputError: `target` is a digest, and the store has its tokens with and without BOS.
        FingerprintMismatchError: an alignment of this name was made with other settings.
    """
    settings = settings or AlignSettings()
    reporter = reporter or SilentReporter()
    cache = open_cache(store, source) if isinstance(source, str) else source
    source_name = cache.location.name
    opened = Target.open(target, store=store)
    identity = cache.fingerprint.corpus
    text = open_corpus(
        store, corpus or name_by_digest(store, "corpus", identity.digest, identity.name)
    )
    if text.manifest.digest != identity.digest:
        raise IncompatibleError(
            f"Cache {source_name!r} was captured from corpus {identity.name!r} "
            f"({identity.digest[:16]}), but corpus {text.name!r} has other text "
            f"({text.manifest.digest[:16]}). Capture the cache again from that corpus, "
            f"or align it within corpus {identity.name!r}."
        )
    tokens = target_tokens(store, text, opened)
    target_vocabulary = _target_vocabulary(store, opened)
    source_vocabulary = load_vocabulary(store, cache.fingerprint.tokenizer_digest)
    map_folder = vocabulary_map_folder(
        store,
        cache.fingerprint.tokenizer_digest,
        opened.digest,
        settings.vocabulary,
        identity.digest,
    )
    counted = None
    if settings.vocabulary == "statistical":
        counted = CountedCorpus(identity.digest, lambda: count_pairs(cache, tokens))
    map_existed = (map_folder / "manifest.json").exists()
    with reporter.stage(
        f"Mapping {source_name}'s vocabulary to {opened.name}'s", "tokens"
    ) as mapped:
        stored_vocabulary_map(
            map_folder,
            source_vocabulary,
            target_vocabulary,
            settings.vocabulary,
            progress=mapped,
            corpus=counted,
        )
    folder = store.alignment(name or alignment_name(source_name, opened.name))
    existed = (folder / "manifest.json").exists()
    with reporter.stage(f"Aligning {source_name} to {opened.name}", "tokens") as progress:
        alignment = write_alignment(
            folder,
            cache,
            tokens,
            source_vocabulary,
            target_vocabulary,
            source_cache_digest=cache.digest,
            source_corpus_digest=identity.digest,
            target_corpus_digest=text.manifest.digest,
            method=settings.method,
            progress=progress,
        )
    return StageResult(alignment, created=not (existed and map_existed))


def _target_vocabulary(store: Store, target: Target) -> Vocabulary:
    """The target's vocabulary from the store, without loading a tokenizer; stored if missing."""
    try:
        return load_vocabulary(store, target.digest)
    except NotFoundError:
        save_vocabulary(store, target.vocabulary)
        return target.vocabulary
