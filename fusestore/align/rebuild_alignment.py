"""Rebuilding damaged vocabulary maps and alignments from their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fusestore.align.alignment_writer import write_alignment
from fusestore.align.kinds import MapMethod
from fusestore.align.manifest import AlignmentFingerprint, AlignmentManifest
from fusestore.align.target_tokens import aligned_tokens
from fusestore.align.vocabulary.manifest import VocabularyMapManifest
from fusestore.align.vocabulary.statistics import count_pairs
from fusestore.align.vocabulary.stored_map import (
    CountedCorpus,
    load_vocabulary_map,
    stored_vocabulary_map,
)
from fusestore.align.vocabulary.vocabulary_map import VocabularyMap
from fusestore.cache.reader import Cache, open_cache
from fusestore.corpus.rebuild_corpus import find_corpus
from fusestore.corpus.tokenize import find_corpus_tokens
from fusestore.errors import CorruptionError, FusestoreError, NotFoundError
from fusestore.storage.publish import publish, retract
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.layout import Store
from fusestore.store.manifest import check_repaired
from fusestore.tokenizers.vocabulary_table import load_vocabulary


def rebuild_vocabulary_map(store: Store, name: str) -> None:
    """Make a vocabulary map again from the two vocabularies and the method in its name.

    A statistical map also needs the corpus, a cache of it and the target's tokens.

    Raises:
        NotFoundError, CorruptionError: an input is missing or damaged.
        IncompatibleError: the new map differs from the manifest.
    """
    location = store.location / "vocabulary_maps" / name
    source, target, method, *corpus = name.split("-")
    old = VocabularyMapManifest.load_if_sound(location / "manifest.json")
    vocabularies = load_vocabulary(store, source), load_vocabulary(store, target)
    chosen: MapMethod = method if old is None else old.fingerprint.method  # type: ignore[assignment]
    tie_break = "prefix" if old is None else old.fingerprint.tie_break
    counts = _counted(store, source, target, corpus[0]) if corpus else iter([None])
    for counted in counts:
        # The manifest is deleted first, so that an interruption leaves an unfinished map.
        for file in (MANIFEST_FILE, FINGERPRINT_FILE):
            retract(location / file)
        stored_vocabulary_map(location, *vocabularies, chosen, tie_break, corpus=counted)
        rebuilt = VocabularyMapManifest.load(location / "manifest.json")
        if old is None or rebuilt == old:
            return
    check_repaired(old, rebuilt, location)


def _counted(store: Store, source: str, target: str, corpus_digest: str) -> Iterator[CountedCorpus]:
    """The counts that the map may have: of the target's stored tokens, with and without BOS."""
    corpus = find_corpus(store, corpus_digest)
    cache = next(
        (
            cache
            for cache in sound_caches(store)
            if cache.fingerprint.corpus.digest == corpus.digest
            and cache.fingerprint.tokenizer_digest.startswith(source)
        ),
        None,
    )
    if cache is None:
        raise NotFoundError(
            f"{store.location} holds no complete cache of corpus {corpus.name!r} by a model with "
            f"tokenizer {source}, which this map was counted from."
        )
    for tokens in find_corpus_tokens(corpus, target):
        yield CountedCorpus(corpus.digest, partial(count_pairs, cache, tokens))


def rebuild_alignment(store: Store, name: str) -> None:
    """Make the damaged shards of an alignment again from the cache and the target's tokens.

    Raises:
        NotFoundError, CorruptionError: an input is missing or damaged.
        IncompatibleError: the result differs from the manifest.
    """
    location = store.alignment(name)
    old = AlignmentManifest.load_if_sound(location / "manifest.json")
    kept = AlignmentFingerprint.load_if_sound(location / "fingerprint.json")
    fingerprint = kept if old is None else old.fingerprint
    if fingerprint is None:
        raise CorruptionError(
            f"Neither manifest.json nor fingerprint.json of {location} is sound, so its inputs "
            "cannot be found. Delete it and run `fusestore align` again."
        )
    cache = find_cache(store, fingerprint.source_cache_digest)
    corpus = find_corpus(store, fingerprint.corpus_digest)
    target = aligned_tokens(corpus, fingerprint)
    source_vocabulary = load_vocabulary(store, fingerprint.source_tokenizer_digest)
    target_vocabulary = load_vocabulary(store, fingerprint.target_tokenizer_digest)
    pairs = fingerprint.vocabulary_map_digest
    vocabulary_map = None if pairs is None else find_vocabulary_map(store, pairs)
    if kept != fingerprint:
        # Before the manifest goes: if this process is killed, one of the two still has the inputs.
        publish(location / FINGERPRINT_FILE, fingerprint.to_bytes())
    retract(location / MANIFEST_FILE)
    # Makes every shard again that has no receipt or does not match it.
    rebuilt = write_alignment(
        location,
        cache,
        target,
        source_vocabulary,
        target_vocabulary,
        source_cache_digest=fingerprint.source_cache_digest,
        source_corpus_digest=fingerprint.corpus_digest,
        target_corpus_digest=fingerprint.corpus_digest,
        method=fingerprint.method,
        vocabulary_map=vocabulary_map,
        rows_per_shard=fingerprint.rows_per_shard,
    )
    check_repaired(old, rebuilt.manifest, location)


def sound_caches(store: Store) -> Iterator[Cache]:
    """Every complete cache with a sound manifest."""
    for name in store.names("caches"):
        try:
            yield open_cache(store, name)
        except FusestoreError:
            continue


def find_cache(store: Store, digest: str) -> Cache:
    """The cache of this content digest.

    Raises:
        NotFoundError: the store holds no such complete cache.
    """
    for cache in sound_caches(store):
        if cache.digest == digest:
            return cache
    raise NotFoundError(f"{store.location} holds no complete cache of content {digest[:16]}.")


def find_vocabulary_map(store: Store, digest: str) -> VocabularyMap:
    """The vocabulary map of this content digest.

    Raises:
        NotFoundError: the store holds no such sound map.
    """
    for name in store.names("vocabulary_maps"):
        try:
            vocabulary_map = load_vocabulary_map(store.location / "vocabulary_maps" / name)
        except FusestoreError:
            continue
        if vocabulary_map.digest == digest:
            return vocabulary_map
    raise NotFoundError(f"{store.location} holds no sound vocabulary map {digest[:16]}.")
