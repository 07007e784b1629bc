"""Making damaged vocabulary maps and alignments again from what they were made from."""

from __future__ import annotations

from fusestore.align.kinds import MapMethod
from fusestore.align.map_tables import (
    VocabularyMapManifest,
    load_vocabulary_map,
    stored_vocabulary_map,
)
from fusestore.align.tables import AlignmentFingerprint, AlignmentManifest, write_alignment
from fusestore.align.vocabulary import VocabularyMap
from fusestore.cache.reader import Cache, open_cache
from fusestore.corpus.repair import find_corpus, kept_tokens
from fusestore.corpus.vocabulary_table import load_vocabulary
from fusestore.errors import CorruptionError, FusestoreError, NotFoundError
from fusestore.storage.manifest import check_repaired
from fusestore.storage.shards import FileRecord
from fusestore.storage.store import Store
from fusestore.storage.urls import Location


def repair_vocabulary_map(store: Store, name: str) -> None:
    """Make a vocabulary map again from the two vocabularies its name tells.

    Raises:
        NotFoundError, CorruptionError: a vocabulary is not there, or damaged.
        IncompatibleError: the map comes out otherwise.
    """
    location = store.location / "vocabulary_maps" / name
    source, target, method = name.split("-", 2)
    old = VocabularyMapManifest.load_if_sound(location / "manifest.json")
    vocabularies = load_vocabulary(store, source), load_vocabulary(store, target)
    chosen: MapMethod = method if old is None else old.method  # type: ignore[assignment]
    tie_break = "prefix" if old is None else old.tie_break
    # The manifest goes first: what is left when this is cut short is unfinished.
    (location / "manifest.json").delete()
    stored_vocabulary_map(location, *vocabularies, chosen, tie_break)
    check_repaired(old, VocabularyMapManifest.load(location / "manifest.json"), location)


def repair_alignment(store: Store, name: str) -> None:
    """Make the damaged parts of an alignment again from the cache and the corpus's tokens.

    Raises:
        NotFoundError, CorruptionError: what it was made from is not there, or damaged.
        IncompatibleError: it comes out otherwise.
    """
    location = store.alignment(name)
    old = AlignmentManifest.load_if_sound(location / "manifest.json")
    kept = AlignmentFingerprint.load_if_sound(location / "fingerprint.json")
    fingerprint = kept if old is None else old.fingerprint
    if fingerprint is None:
        raise CorruptionError(
            f"Neither manifest.json nor fingerprint.json of {location} is sound, so nothing says "
            "what was aligned. Delete it and run `fusestore align` again."
        )
    cache = find_cache(store, fingerprint.source_cache_digest)
    corpus = find_corpus(store, fingerprint.corpus_digest)
    target = next(
        tokens
        for tokens in kept_tokens(corpus, fingerprint.target_tokenizer_digest)
        if tokens.num_tokens == fingerprint.num_target_tokens
    )
    source_vocabulary = load_vocabulary(store, fingerprint.source_tokenizer_digest)
    target_vocabulary = load_vocabulary(store, fingerprint.target_tokenizer_digest)
    pairs = fingerprint.vocabulary_map_digest
    vocabulary_map = None if pairs is None else find_vocabulary_map(store, pairs)
    (location / "manifest.json").delete()
    if kept != fingerprint:
        (location / "fingerprint.json").delete()
    records = {} if old is None else {part.name: part.record for part in old.parts}
    for file in location.list():
        # Without the manifest nothing tells which parts are sound.
        if file.startswith("part-") and not _matches(location / file, records.get(file)):
            (location / file).delete()
    made = write_alignment(
        location,
        cache.tokens,
        target,
        source_vocabulary,
        target_vocabulary,
        source_cache_digest=fingerprint.source_cache_digest,
        source_corpus_digest=fingerprint.corpus_digest,
        target_corpus_digest=fingerprint.corpus_digest,
        method=fingerprint.method,
        vocabulary_map=vocabulary_map,
        tokens_per_part=fingerprint.tokens_per_part,
    )
    check_repaired(old, made.manifest, location)


def find_cache(store: Store, digest: str) -> Cache:
    """The cache of this content digest.

    Raises:
        NotFoundError: the store holds none that is complete.
    """
    for name in store.names("caches"):
        try:
            cache = open_cache(store, name)
        except FusestoreError:
            continue
        if cache.digest == digest:
            return cache
    raise NotFoundError(f"{store.location} holds no complete cache of content {digest[:16]}.")


def find_vocabulary_map(store: Store, digest: str) -> VocabularyMap:
    """The vocabulary map of this content digest.

    Raises:
        NotFoundError: the store holds none that is sound.
    """
    for name in store.names("vocabulary_maps"):
        try:
            found = load_vocabulary_map(store.location / "vocabulary_maps" / name)
        except FusestoreError:
            continue
        if found.digest == digest:
            return found
    raise NotFoundError(f"{store.location} holds no sound vocabulary map {digest[:16]}.")


def _matches(file: Location, record: FileRecord | None) -> bool:
    return record is not None and FileRecord.of(file.read_bytes()) == record
