"""Aligned documents to show: a text, or a document of a stored alignment."""

from __future__ import annotations

import polars as pl

from fusestore.align.kinds import AlignmentMethod
from fusestore.align.report.columns import AlignedDocument
from fusestore.align.stored import open_alignment
from fusestore.align.target_tokens import aligned_tokens
from fusestore.align.tokens.pairing import align_tokens
from fusestore.cache.reader import open_cache
from fusestore.corpus.corpus import Corpus, open_corpus
from fusestore.errors import NotFoundError
from fusestore.store.inventory import name_by_digest
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import document_range
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.tokenizers.vocabulary_table import load_vocabulary


def text_alignment(
    text: str, source: Tokenizer, target: Tokenizer, method: AlignmentMethod
) -> AlignedDocument:
    """Align a text as the two models read it, with BOS where they use it."""
    source_ids, source_ends = source.encode([text], source.adds_bos).document(0)
    target_ids, target_ends = target.encode([text], target.adds_bos).document(0)
    vocabularies = source.vocabulary, target.vocabulary
    position, kind = align_tokens(
        source_ids, source_ends, target_ids, target_ends, *vocabularies, method
    )
    return AlignedDocument(
        "the text",
        text.encode(),
        source_ids,
        source_ends,
        target_ids,
        target_ends,
        *vocabularies,
        method,
        position,
        kind,
    )


def stored_alignment(
    store: Store, cache_name: str, alignment_name: str, document: str
) -> AlignedDocument:
    """One document of a stored alignment; no tokenizer is needed.

    Args:
        store: the store.
        cache_name: the source's cache.
        alignment_name: the alignment.
        document: index in the corpus, or the name of a source document, for its first segment;
            `NAME#SEGMENT` for another.

    Raises:
        NotFoundError: no such cache, alignment or document.
        CorruptionError: a file is missing or not what was written.
    """
    alignment = open_alignment(store.alignment(alignment_name))
    fingerprint = alignment.manifest.fingerprint
    cache = open_cache(store, cache_name)
    named = cache.fingerprint.corpus
    corpus = open_corpus(store, name_by_digest(store, "corpus", named.digest, named.name))
    index = _document_index(corpus, document)
    target = aligned_tokens(corpus, fingerprint)
    source_ids, source_ends = document_range(cache, index, index + 1).document(0)
    target_ids, target_ends = document_range(target, index, index + 1).document(0)
    position, kind = alignment.for_documents(index, index + 1)
    return AlignedDocument(
        f"document {index} ({corpus.describe(index)})",
        corpus.table()["text"][index].encode(),
        source_ids,
        source_ends,
        target_ids,
        target_ends,
        load_vocabulary(store, fingerprint.source_tokenizer_digest),
        load_vocabulary(store, fingerprint.target_tokenizer_digest),
        fingerprint.method,
        position,
        kind,
    )


def _document_index(corpus: Corpus, document: str) -> int:
    count = corpus.manifest.num_documents
    if document.isascii() and document.isdigit():
        if int(document) < count:
            return int(document)
    else:
        # Names of source documents may hold a # themselves.
        name, _, segment = document.rpartition("#")
        table = corpus.table()
        for source, number in ((document, "0"), (name, segment)):
            rows = table.filter(
                (pl.col("source") == source) & (pl.col("segment").cast(pl.String) == number)
            )
            if len(rows):
                return int(rows["document"][0])
    raise NotFoundError(
        f"Corpus {corpus.name!r} has no document {document!r}: give an index from 0 to "
        f"{count - 1}, or the name of a source document, with #SEGMENT for a later segment of it "
        f"(the first is called {corpus.table()['source'][0]!r})."
    )
