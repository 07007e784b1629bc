"""`align_cache`: align one cache of a store to a target tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from fusestore.align.kinds import AlignmentMethod, MapMethod
from fusestore.align.stored import Alignment
from fusestore.align.vocabulary.statistics import count_pairs
from fusestore.align.vocabulary.stored_map import (
    CountedCorpus,
    stored_vocabulary_map,
    vocabulary_map_folder,
)
from fusestore.align.vocabulary.vocabulary_map import VocabularyMap
from fusestore.align.writer import write_alignment
from fusestore.cache.reader import open_cache
from fusestore.corpus.build import open_corpus
from fusestore.corpus.tokenize import store_corpus_tokens
from fusestore.errors import IncompatibleError
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.tokenizers.vocabulary_table import load_vocabulary, save_vocabulary


@dataclass(frozen=True)
class AlignedCache:
    """A cache's alignment to a target, and the vocabulary map that goes with it."""

    alignment: Alignment
    vocabulary_map: VocabularyMap


def alignment_name(cache: str, target: str) -> str:
    """The name an alignment goes by unless another is given."""
    return f"{cache}--{target}"


def align_cache(
    store: Store,
    cache_name: str,
    target: Tokenizer,
    target_name: str,
    *,
    method: AlignmentMethod = "hybrid",
    vocabulary: MapMethod = "mined",
    corpus_name: str | None = None,
    name: str | None = None,
    reporter: Reporter | None = None,
) -> tuple[AlignedCache, bool]:
    """Align a cache's tokens and vocabulary to the target tokenizer's.

    Args:
        store: holds the cache; the alignment goes there.
        cache_name: the cache.
        target: the target's tokenizer.
        target_name: what the target is called.
        method: of the token alignment.
        vocabulary: method of the vocabulary map.
        corpus_name: the corpus the target reads; the cache's own unless given.
        name: of the alignment; `alignment_name` unless given.
        reporter: hears the progress.

    Returns:
        Alignment and map, and whether anything had to be computed.

    Raises:
        NotFoundError: no such cache or corpus.
        IncompatibleError: cache and target read different corpora.
        FingerprintMismatchError: an alignment of this name was made with other settings.
    """
    reporter = reporter or SilentReporter()
    cache = open_cache(store, cache_name)
    identity = cache.fingerprint.corpus
    corpus = open_corpus(store, corpus_name or identity.name)
    if corpus.manifest.digest != identity.digest:
        raise IncompatibleError(
            f"Cache {cache_name!r} was captured from corpus {identity.name!r} "
            f"({identity.digest[:16]}), but corpus {corpus.name!r} is another one "
            f"({corpus.manifest.digest[:16]}). Capture the cache again from that corpus, "
            "or align it within its own."
        )
    tokens = store_corpus_tokens(store, corpus, target, target.adds_bos)
    save_vocabulary(store, target.vocabulary)
    source_vocabulary = load_vocabulary(store, cache.fingerprint.tokenizer_digest)
    map_folder = vocabulary_map_folder(
        store, cache.fingerprint.tokenizer_digest, target.digest, vocabulary, identity.digest
    )
    counted = None
    if vocabulary == "statistical":
        counted = CountedCorpus(identity.digest, lambda: count_pairs(cache, tokens))
    map_was_there = (map_folder / "manifest.json").exists()
    with reporter.stage(
        f"Mapping {cache_name}'s vocabulary to {target_name}'s", "tokens"
    ) as mapped:
        vocabulary_map = stored_vocabulary_map(
            map_folder,
            source_vocabulary,
            target.vocabulary,
            vocabulary,
            progress=mapped,
            corpus=counted,
        )
    folder = store.alignment(name or alignment_name(cache_name, target_name))
    was_there = (folder / "manifest.json").exists()
    with reporter.stage(f"Aligning {cache_name} to {target_name}", "tokens") as progress:
        alignment = write_alignment(
            folder,
            cache,
            tokens,
            source_vocabulary,
            target.vocabulary,
            source_cache_digest=cache.digest,
            source_corpus_digest=identity.digest,
            target_corpus_digest=corpus.manifest.digest,
            method=method,
            progress=progress,
        )
    return AlignedCache(alignment, vocabulary_map), not (was_there and map_was_there)
